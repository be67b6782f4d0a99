"""Ways to run a trained network faster without training it again: fold, compile, export, quantise."""

import copy
import io
import logging
import tempfile
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import torch
from torch import Tensor, nn

REFERENCE = "eager float32"


def folded(model: nn.Module) -> nn.Module:
    """A copy, in evaluation mode, whose batch norms are folded into the convolutions before them.

    Source: torch.fx.experimental.optimization.fuse, which folds each pair with torch.nn.utils.fusion.
    """
    from torch.fx.experimental.optimization import fuse

    return fuse(copy.deepcopy(model).eval())


def variants(
    model: nn.Module, example: Tensor, calibration: Tensor, *, compiled: bool = True
) -> tuple[dict[str, Callable[[Tensor], Tensor]], list[str]]:
    """Ways to run a network, by name, on the device of its weights.

    Each is a function (N, C, H, W) float32 → logits (N, classes) float32; it takes and returns what the plain network
    would, so that changes of format count in its time. The first, `REFERENCE`, is the plain network.

    Args:
        example: a batch of the size that will be run; compilation is for its shape.
        calibration: real pictures, from which the 8-bit network takes its ranges.
        compiled: also the ways that need a compiler, which take from seconds to a minute each to make.
    Returns: the ways, and a sentence for each that was left out.
    """
    model = model.eval()
    where = next(model.parameters()).device
    fused, rows_last = folded(model), {"memory_format": torch.channels_last}
    last, fast = (copy.deepcopy(net).to(**rows_last) for net in (model, fused))
    old_gpu = where.type == "cuda" and not torch.cuda.is_bf16_supported()
    half = torch.float16 if old_gpu else torch.bfloat16
    short = copy.deepcopy(fast).to(half)
    name = str(half).removeprefix("torch.")
    exported = export(fused, example).module()
    ways = {
        REFERENCE: model,
        "channels-last": lambda x: last(x.to(**rows_last)),
        "folded": fused,
        "folded, torch.export": exported,
        "folded, channels-last": lambda x: fast(x.to(**rows_last)),
        f"folded, channels-last, {name}": lambda x: short(x.to(half, **rows_last)).float(),
    }
    notes = []
    if compiled:
        for name, way in _compiled(model, fast, short, where).items():
            try:
                _without_gradient(way)(example)  # compilation happens at the first call
                ways[name] = way
            except RuntimeError as error:  # no compiler on this machine, or one that fails
                notes.append(f"{name} was left out: it does not compile here ({str(error).splitlines()[0]}).")
    else:
        notes.append("The compiled network was left out, because compiling it takes long.")
    if where.type == "cpu":
        found, missing = _onnx(model, example, calibration)
        ways |= found
        notes += missing
    else:
        notes.append("onnxruntime was left out: here it is used on CPUs only.")
    return {name: _without_gradient(way) for name, way in ways.items()}, notes


def export(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """The graph of a network in evaluation mode, for any batch size."""
    pair = torch.cat([example, example])  # a batch of one would be taken for a constant
    return torch.export.export(model.eval(), (pair,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def _without_gradient(way: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            return way(images)

    return run


def _compiled(model, fast, short, where) -> dict[str, Callable[[Tensor], Tensor]]:
    rows_last = {"memory_format": torch.channels_last}
    if where.type == "cpu":  # frozen weights let the compiler choose their layout, and fold the norms itself
        return {"compiled, frozen": torch.compile(model, options={"freezing": True})}
    half = next(short.parameters()).dtype
    graphs = {"mode": "reduce-overhead"}  # CUDA graphs
    quick, quick_half = torch.compile(fast, **graphs), torch.compile(short, **graphs)
    return {
        "folded, channels-last, compiled": lambda x: quick(x.to(**rows_last)).clone(),
        "the same in 16 bits": lambda x: quick_half(x.to(half, **rows_last)).float(),
    }


def _onnx(model: nn.Module, example: Tensor, calibration: Tensor):
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx.export needs it
        from onnxruntime import quantization
    except ImportError as error:
        return {}, [f"onnxruntime was left out: {error}; install onnx, onnxscript and onnxruntime to see it."]

    class Pictures(quantization.CalibrationDataReader):
        def __init__(self, name: str):
            self.batches = iter([{name: part.numpy()} for part in calibration.split(len(example)) if len(part)])

        def get_next(self):
            return next(self.batches, None)

    def session(path: Path) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # leave the cores to the others' turn
        return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])

    def way(path: Path) -> Callable[[Tensor], Tensor]:
        one = session(path)
        name = one.get_inputs()[0].name
        return lambda x: torch.from_numpy(one.run(None, {name: x.contiguous().numpy()})[0])

    with tempfile.TemporaryDirectory() as folder:
        plain, prepared, eight = (Path(folder, f"{name}.onnx") for name in ("plain", "prepared", "eight"))
        export_onnx(model, example, plain)
        quantization.quant_pre_process(plain, prepared)
        name = session(plain).get_inputs()[0].name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantization.quantize_static(
                prepared,
                eight,
                Pictures(name),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8,  # unsigned times signed: what VNNI multiplies
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
            )
        return {"onnxruntime": way(plain), "onnxruntime, 8 bits": way(eight)}, []


def export_onnx(model: nn.Module, example: Tensor, path: Path) -> None:
    """Write a network in evaluation mode as one ONNX file for any batch size."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the exporter tells its steps
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(export(model, example), (), path, dynamo=True, external_data=False)
    finally:
        logging.disable(level)
