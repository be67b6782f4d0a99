"""A trained network as an ONNX file, in float32 or in 8 bits, and the runtimes that answer from it on a CPU."""

import copy
import functools
import importlib
import io
import logging
import platform
import tempfile
import warnings
from collections.abc import Callable
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch
from torch import Tensor, nn

from resnet_lib import devices

Way = Callable[[Tensor], Tensor]  # pictures (N, C, H, W), float32 → logits (N, classes), float32
NEEDED = {
    "ONNX Runtime": ("onnx", "onnxscript", "onnxruntime"),
    "OpenVINO": ("onnx", "onnxscript", "onnxruntime", "openvino"),
}
WITHOUT_SUMS = ["Conv", "Gemm", "MaxPool"]  # the kinds of layers that count in 8 bits where additions do not
PART = 4  # pictures that a stream takes at once: few enough for its core's cache, enough to be worth the asking


def missing(runtime: str) -> str:
    """Which package a runtime lacks here, and what to do; "" where it is whole."""
    for name in NEEDED[runtime]:
        try:
            importlib.import_module(name)
        except ImportError as error:
            return f"{error}; pip install {' '.join(NEEDED[runtime])}"
    return ""


class Files:
    """A network's ONNX files, each made when it is first asked for.

    Args:
        model: on the CPU; it is copied, and the copy is in evaluation mode.
        example: a batch of pictures, (N, C, H, W) float32; the files take any N.
        calibration: pictures like those to come, and none of them, from which 8 bits take their ranges.
    """

    def __init__(self, model: nn.Module, example: Tensor, calibration: Tensor):
        self.model, self.example, self.calibration = copy.deepcopy(model).eval(), example, calibration
        self.made: dict[tuple[bool, bool], bytes] = {}

    @functools.cached_property
    def plain(self) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            export_onnx(self.model, self.example, Path(folder, "plain.onnx"))
            return Path(folder, "plain.onnx").read_bytes()

    @functools.cached_property
    def prepared(self) -> bytes:
        """The float32 file made ready to be quantised."""
        return made_ready(self.plain)

    def calibrated(self, calibration: Tensor) -> "Files":
        """The same network's files with ranges from other pictures."""
        other = copy.copy(self)
        other.calibration, other.prepared, other.made = calibration, self.prepared, {}
        return other

    def eight(self, sums: bool = True, per_channel: bool = True) -> bytes:
        """The network in 8 bits; see `quantised`."""
        if (sums, per_channel) not in self.made:
            self.made[sums, per_channel] = quantised(
                self.prepared, self.calibration, sums=sums, per_channel=per_channel
            )
        return self.made[sums, per_channel]


def export(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """The graph of a network in evaluation mode, for any batch size."""
    pair = torch.cat([example, example])  # a batch of one would be taken for a constant
    return torch.export.export(copy.deepcopy(model).eval(), (pair,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def export_onnx(model: nn.Module, example: Tensor, path: Path) -> None:
    """Write a network in evaluation mode as one ONNX file for any batch size."""
    with _quietly():
        torch.onnx.export(export(model, example), (), path, dynamo=True, external_data=False)


@contextmanager
def _quietly():
    """Exporters tell their steps, and warn as they please."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def made_ready(plain: bytes) -> bytes:
    """A float32 file with its shapes written down and its norms folded, as `quantised` wants it."""
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory() as folder, _quietly():
        before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
        before.write_bytes(plain)
        quantization.quant_pre_process(before, after)
        return after.read_bytes()


def quantised(
    prepared: bytes, calibration: Tensor, *, sums: bool = True, per_channel: bool = True, batch: int = 32
) -> bytes:
    """An ONNX file whose weights and signals are whole numbers of 8 bits, with the ranges that some pictures show.

    Signals are unsigned, weights signed and symmetric, which is what the CPU's instructions multiply.

    Args:
        prepared: of `made_ready`.
        calibration: pictures, (N, C, H, W) float32; each signal's range reaches from its lowest to its highest value.
        sums: additions too, so that nothing between the first and the last convolution is a float.
        per_channel: a scale for each output channel of the weights; else one for all of a layer.
        batch: pictures that are looked at together.
    Source:  Jacob et al. 2018 (arXiv:1712.05877), §2.1, by onnxruntime.quantization.
    Departs: an x86 CPU without VNNI adds pairs of products in 16 bits, so there weights have 7 bits.
    """
    from onnxruntime import quantization

    class Pictures(quantization.CalibrationDataReader):
        def __init__(self, name: str):
            self.batches = iter([{name: part.numpy()} for part in calibration.split(batch)])

        def get_next(self):
            return next(self.batches, None)

    with tempfile.TemporaryDirectory() as folder, _quietly():
        before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
        before.write_bytes(prepared)
        quantization.quantize_static(
            before,
            after,
            Pictures(_session(prepared).get_inputs()[0].name),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=None if sums else WITHOUT_SUMS,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=per_channel,
            reduce_range=platform.machine() in ("x86_64", "AMD64") and not _multiplies_bytes(),
        )
        return after.read_bytes()


def _multiplies_bytes() -> bool:
    return any(name.endswith(("vnni", "int8")) for name in devices.instruction_sets())


def _session(file: bytes):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # leave the cores to the others' turn
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def onnxruntime(file: bytes) -> Way:
    """ONNX Runtime's answers from a file, with PyTorch's number of threads."""
    session = _session(file)
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.contiguous().numpy()})[0])


@functools.cache
def _core():
    """OpenVINO, once a process: where each way had one of its own, a later fork crashed (OpenVINO 2026.4)."""
    import openvino

    return openvino.Core()


def openvino(file: bytes, numbers: str = "float32", in_parts: bool = False) -> Way:
    """OpenVINO's answers from a file, with PyTorch's number of threads; made ready for each batch size at its first.

    Args:
        numbers: "bfloat16" rounds a float32 file's numbers; else they stay what they are in the file.
        in_parts: each thread works alone on PART pictures at a time, in place of all threads on the whole batch.
    Raises: ValueError where this CPU has no instructions for bfloat16.
    """
    import openvino

    core, threads = _core(), torch.get_num_threads()
    if numbers == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ValueError("this CPU has no instructions for bfloat16")
    network = core.read_model(io.BytesIO(file))
    how = {"INFERENCE_PRECISION_HINT": "bf16" if numbers == "bfloat16" else "f32", "INFERENCE_NUM_THREADS": threads}

    @functools.cache
    def ready(count: int, streams: int):
        shaped = network.clone()
        shape = shaped.input(0).partial_shape
        shape[0] = count
        shaped.reshape(shape)
        return core.compile_model(shaped, "CPU", how | {"NUM_STREAMS": streams})

    @functools.cache
    def request(count: int):
        return ready(count, 1).create_infer_request()

    @functools.cache
    def queue():
        return openvino.AsyncInferQueue(ready(PART, threads), threads)

    def whole(x: Tensor) -> Tensor:
        return torch.from_numpy(request(len(x)).infer(x.contiguous().numpy(), share_inputs=True)[0])

    def parts(x: Tensor) -> Tensor:
        if len(x) % PART:
            return whole(x)
        pieces = x.contiguous().split(PART)
        logits = [None] * len(pieces)
        waiting = queue()
        waiting.set_callback(lambda done, place: logits.__setitem__(place, done.get_output_tensor(0).data.copy()))
        for place, piece in enumerate(pieces):
            waiting.start_async(piece.numpy(), place, share_inputs=True)
        waiting.wait_all()
        return torch.cat([torch.from_numpy(one) for one in logits])

    return parts if in_parts else whole
