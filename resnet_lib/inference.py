"""Ways to run a trained network faster without training it again: fold, compile, export, quantise."""

import copy
import io
import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import torch
import torch.fx
from torch import Tensor, nn

REFERENCE = "eager float32"
OFF = {"8 bits": 0.5, "float16": 0.1, "": 1e-3}  # largest relative error of logits, by a word of the way's name


def folded(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy, in evaluation mode, whose batch norms are folded into the convolutions before them.

    A norm stays where folding would be wrong: its convolution is used more than once, or by something else too, or
    the norm itself is used more than once, or it keeps no running statistics.

    Args:    example: a batch of pictures, (N, C, H, W).
    Raises:  ValueError where the network cannot be traced, or the copy gives other outputs on the example.
    Source:  Jacob et al. 2018 (arXiv:1712.05877), §3.2, by torch.nn.utils.fusion.fuse_conv_bn_eval.
    """
    copied = copy.deepcopy(model).eval()
    try:
        traced = torch.fx.symbolic_trace(copied)
    except Exception as error:  # whatever a network's own forward raises when it meets no numbers
        raise ValueError(f"{type(model).__name__} cannot be traced, so nothing is folded: {error}") from error
    modules = dict(traced.named_modules())
    uses = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    for norm in list(traced.graph.nodes):
        if not _follows_its_convolution(norm, modules, uses):
            continue
        convolution = norm.args[0]
        pair = modules[convolution.target], modules[norm.target]
        traced.set_submodule(convolution.target, torch.nn.utils.fusion.fuse_conv_bn_eval(*pair))
        norm.replace_all_uses_with(convolution)
        traced.graph.erase_node(norm)
    traced.delete_all_unused_submodules()
    traced.recompile()
    with torch.no_grad():
        off = relative_error(traced(example), copied(example))
    if not off <= OFF[""]:
        raise ValueError(f"{type(model).__name__} folded gives other outputs: a relative error of {off:.2g}")
    return traced


def _follows_its_convolution(norm: torch.fx.Node, modules: dict[str, nn.Module], uses: Counter) -> bool:
    pairs = {nn.BatchNorm1d: nn.Conv1d, nn.BatchNorm2d: nn.Conv2d, nn.BatchNorm3d: nn.Conv3d}
    if norm.op != "call_module" or type(modules[norm.target]) not in pairs:
        return False
    before = norm.args[0]
    return (
        before.op == "call_module"
        and type(modules[before.target]) is pairs[type(modules[norm.target])]
        and uses[before.target] == uses[norm.target] == len(before.users) == 1
        and modules[norm.target].running_var is not None
    )


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference over the norm of what was expected."""
    return ((found - expected).norm() / expected.norm().clamp_min(1e-30)).item()


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
    Returns: the ways, and a sentence for each that was left out: each way has proved itself on the example.
    """
    model = copy.deepcopy(model).eval()
    where = next(model.parameters()).device
    fused, rows_last = folded(model, example), {"memory_format": torch.channels_last}
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
    return _proved({name: _without_gradient(way) for name, way in ways.items()}, example, notes)


def _proved(ways: dict[str, Callable[[Tensor], Tensor]], example: Tensor, notes: list[str]):
    """The ways whose outputs are the plain network's, within what their numbers allow."""
    expected, kept = ways[REFERENCE](example), {}
    for name, way in ways.items():
        off = relative_error(way(example), expected)
        if off <= next(limit for word, limit in OFF.items() if word in name):
            kept[name] = way
        else:
            notes = [*notes, f"{name} was left out: its outputs are off by {off:.2g} of the plain network's."]
    return kept, notes


def export(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """The graph of a network in evaluation mode, for any batch size."""
    pair = torch.cat([example, example])  # a batch of one would be taken for a constant
    return torch.export.export(copy.deepcopy(model).eval(), (pair,), dynamic_shapes=({0: torch.export.Dim("batch")},))


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
