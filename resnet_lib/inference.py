"""Run a trained network faster without training it again: fold, convert, compile, capture, hand to a runtime, quantise.

`python -m resnet_lib.inference` does it to a reader's own network, and says what it costs in accuracy.
"""

import argparse
import copy
import json
import re
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.fx
from torch import Tensor, nn

from resnet_lib import bench, data, devices, page, resnets, runtimes, stats, train
from resnet_lib.paths import write_atomically
from resnet_lib.runtimes import Way

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


UNKNOWN = -1  # the label of a picture that only fills a batch
ROUNDS, CHOOSING_ROUNDS = 9, 3  # the first rounds choose the fastest way, the others say how fast it is
KEPT = 0.005  # the largest change of accuracy with which a way still counts as the same network
RUNTIMES = ("PyTorch", "compiled", "CUDA graph", "ONNX Runtime", "OpenVINO")
NUMBERS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}


@dataclass(frozen=True)
class Recipe:
    """What is done to a network."""

    runtime: str = "PyTorch"  # one of RUNTIMES
    folded: bool = False  # batch norms go into the convolutions before them; ONNX Runtime and OpenVINO always do it
    channels_last: bool = False  # memory format of pictures and weights; the same two choose their own
    numbers: str = "float32"  # a key of NUMBERS
    in_parts: bool = False  # OpenVINO: each thread alone on a few pictures, in place of all on the whole batch
    sums: bool = True  # of 8 bits: additions too
    per_channel: bool = True  # of 8 bits: a scale for each output channel

    def __post_init__(self):
        for name, allowed in (("runtime", RUNTIMES), ("numbers", tuple(NUMBERS))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(map(repr, allowed))}")
        if self.numbers == "int8" and not self.from_file:
            raise ValueError(f"numbers='int8' needs a runtime that has them: {', '.join(map(repr, RUNTIMES[3:]))}")
        if self.in_parts and self.runtime != "OpenVINO":
            raise ValueError(f"in_parts=True needs runtime='OpenVINO', not {self.runtime!r}")

    @property
    def from_file(self) -> bool:
        """Whether it answers from an ONNX file."""
        return self.runtime in ("ONNX Runtime", "OpenVINO")


_best = {"folded": True, "channels_last": True}
WAYS = {
    REFERENCE: Recipe(),
    "channels-last": Recipe(channels_last=True),
    "folded": Recipe(folded=True),
    "folded, channels-last": Recipe(**_best),
    "folded, channels-last, bfloat16": Recipe(**_best, numbers="bfloat16"),
    "folded, channels-last, float16": Recipe(**_best, numbers="float16"),
    "folded, channels-last, compiled": Recipe("compiled", **_best),
    "folded, channels-last, float16, compiled": Recipe("compiled", **_best, numbers="float16"),
    "folded, channels-last, float16, CUDA graph": Recipe("CUDA graph", **_best, numbers="float16"),
    "ONNX Runtime": Recipe("ONNX Runtime"),
    "ONNX Runtime, 8 bits": Recipe("ONNX Runtime", numbers="int8"),
    "OpenVINO": Recipe("OpenVINO"),
    "OpenVINO, bfloat16": Recipe("OpenVINO", numbers="bfloat16"),
    "OpenVINO, 8 bits": Recipe("OpenVINO", numbers="int8"),
    "OpenVINO, 8 bits, in parts": Recipe("OpenVINO", numbers="int8", in_parts=True),
}


def variants(
    model: nn.Module,
    example: Tensor,
    calibration: Tensor,
    *,
    recipes: dict[str, Recipe] = WAYS,
    compiled: bool = True,
    files: runtimes.Files | None = None,
) -> tuple[dict[str, Way], dict[str, str]]:
    """Ways to run a network, by name, on the device of its weights, with PyTorch's number of threads.

    Each is a function (N, C, H, W) float32 → logits (N, classes) float32; it takes and returns what the plain network
    would, so that changes of format count in its time. Each has answered the example nearly as the plain network does.

    Args:
        example: a batch of the size that will be run; what is compiled or captured is so for its shape.
        calibration: pictures like those to come, and none of them, from which 8 bits take their ranges.
        recipes: what to make, by name.
        compiled: also what needs a compiler, which takes from seconds to a minute each to make.
        files: the network's, where they are already there.
    Returns: the ways, and for each that is not there why.
    """
    model = copy.deepcopy(model).eval()
    files = files or runtimes.Files(model, example, calibration)
    expected = _without_gradient(model)(example)
    ways, why = {}, {}
    for name, recipe in recipes.items():
        try:
            if reason := _why_not(recipe, example.device, compiled):
                raise ValueError(reason)
            way = _without_gradient(built(recipe, model, example, files))
            off = relative_error(way(example), expected)  # compilation happens at the first call
            if not off <= _allowed(recipe):
                raise ValueError(f"its logits are off by {off:.2g} of the plain network's")
            ways[name] = way
        except (RuntimeError, ValueError) as error:  # no compiler on this machine, or one that fails
            why[name] = str(error).splitlines()[0]
    return ways, why


def _allowed(recipe: Recipe) -> float:
    return OFF["8 bits" if recipe.numbers == "int8" else "" if recipe.numbers == "float32" else "float16"]


def _why_not(recipe: Recipe, device: torch.device, compiled: bool) -> str:
    """Why a recipe cannot be followed here; "" where it can be tried."""
    is_gpu = device.type == "cuda"
    if recipe.runtime == "compiled" and not compiled:
        return "compiling takes long, and was not asked for"
    if recipe.runtime == "CUDA graph" and not is_gpu:
        return "CUDA graphs need an NVIDIA GPU"
    if recipe.from_file:
        return "used on CPUs only" if device.type != "cpu" else runtimes.missing(recipe.runtime)
    if recipe.numbers == "float16" and not is_gpu:
        return "used on GPUs only"
    if recipe.numbers == "bfloat16" and is_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "this GPU has no instructions for bfloat16"
    return ""


def built(recipe: Recipe, model: nn.Module, example: Tensor, files: runtimes.Files) -> Way:
    """A network as a recipe says; nothing is checked.

    Args: model: in evaluation mode; example, files: as in `variants`.
    """
    if recipe.from_file:
        file = files.eight(recipe.sums, recipe.per_channel) if recipe.numbers == "int8" else files.plain
        if recipe.runtime == "ONNX Runtime":
            return runtimes.onnxruntime(file)
        return runtimes.openvino(file, recipe.numbers, recipe.in_parts)
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    dtype = NUMBERS[recipe.numbers]
    net = folded(model, example) if recipe.folded else copy.deepcopy(model)
    net = net.to(dtype, memory_format=layout)
    if recipe.runtime == "compiled":  # frozen weights let the compiler choose their layout
        net = torch.compile(net, **{"mode": "reduce-overhead"} if example.is_cuda else {"options": {"freezing": True}})
    # a copy: what a captured graph returns, its next replay overwrites
    way = lambda x: net(x.to(dtype, memory_format=layout)).to(torch.float32, copy=True)  # noqa: E731
    return _captured(way, example) if recipe.runtime == "CUDA graph" else way


def _captured(way: Way, example: Tensor) -> Way:
    """The same from a CUDA graph, for pictures of the example's shape; others are asked one kernel at a time."""
    given, stream = example.clone(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(3):  # workspaces and chosen algorithms must be there before the capture
            way(given)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        logits = way(given)

    def replayed(x: Tensor) -> Tensor:
        if x.shape != given.shape:
            return way(x)
        given.copy_(x)
        graph.replay()
        return logits.clone()

    return replayed


def _without_gradient(way: Way) -> Way:
    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            return way(images)

    return run


def times(ways: dict[str, Way], images: Tensor, *, rounds: int = ROUNDS, number: int = 0) -> list[dict]:
    """Seconds of single answers, way by way in turn: a row for each way and round; see `bench.bursts`.

    Args: number: answers of a way in a round; 0 takes 12 for one picture, fewer for more, 2 at least.
    """
    number = number or max(2, 12 // len(images))
    return bench.bursts({name: (lambda way=way: way(images)) for name, way in ways.items()}, rounds, number)


def speedup(rows: Iterable[dict], name: str, reference: str = REFERENCE, judging: bool = True) -> stats.Estimate:
    """How many times as fast as the reference a way is: the geometric mean over rounds of the ratio of medians.

    Args: judging: of the rounds that say how fast; else of those that choose.
    """
    rounds: dict[int, dict[str, float]] = {}
    for row in rows:
        if (row["round"] >= CHOOSING_ROUNDS) == judging:
            rounds.setdefault(row["round"], {})[row["name"]] = statistics.median(row["calls_s"])
    return stats.interval([own[reference] / own[name] for own in rounds.values()], method="log-t", unit="times")


def fastest(rows: Iterable[dict], names: Iterable[str], reference: str = REFERENCE) -> str:
    """Of some ways the one that is fastest in the choosing rounds."""
    rows = list(rows)
    return max(names, key=lambda name: speedup(rows, name, reference, judging=False).mean)


def percentiles(rows: Iterable[dict], name: str) -> tuple[float, float]:
    """Median and 95th percentile of a way's seconds an answer, over the judging rounds."""
    own = [t for r in rows if r["name"] == name and r["round"] >= CHOOSING_ROUNDS for t in r["calls_s"]]
    cut = statistics.quantiles(own, n=20, method="inclusive")
    return statistics.median(own), cut[-1]


def judged(ways: dict[str, Way], shown: Sequence[tuple[Tensor, Tensor]]) -> list[dict]:
    """What every way names pictures, beside the truth and what the reference names them.

    Args:    shown: batches of pictures and labels; those labelled UNKNOWN are not judged.
    Returns: a row a way: name, accuracy, same (share with the reference's first guess), lost and gained (shares that
        the reference named rightly and this way does not, and the other way round).
    """
    labels = torch.cat([labels for _, labels in shown])
    known = labels != UNKNOWN
    guesses = {name: torch.cat([way(images).argmax(1) for images, _ in shown])[known] for name, way in ways.items()}
    labels = labels[known]
    first = guesses[REFERENCE]
    share = lambda mask: mask.float().mean().item()  # noqa: E731
    return [
        {
            "name": name,
            "accuracy": share(own == labels),
            "same": share(own == first),
            "lost": share((first == labels) & (own != labels)),
            "gained": share((first != labels) & (own == labels)),
        }
        for name, own in guesses.items()
    ]


def save_network(model: resnets.ResNet, path: str | Path) -> None:
    """Write a network with its shape, so that `load_network` needs nothing else."""
    torch.save({"config": asdict(model.config), "model": model.state_dict()}, path)


def load_network(path: str | Path, architecture: str = "", *, channels: int, classes: int) -> nn.Module:
    """A trained network from a file of `save_network`, or from bare weights and the name of their architecture.

    Nothing in the file is run: it is loaded with weights_only=True.

    Args:    architecture: `resnet20_cifar` or the like, a name in `resnets`, or one of torchvision's.
             channels, classes: of the pictures that it is to name.
    Raises:  ValueError or OSError naming file, value and rule.
    """
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except OSError:
        raise
    except Exception as error:  # reading damaged bytes fails in many ways
        raise ValueError(
            f"{path} holds no weights, or more than weights: with weights_only=True it does not load"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; it must hold weights by name, a state_dict")
    if "config" in content:
        shape = {name: tuple(v) if isinstance(v, list) else v for name, v in content["config"].items()}
        model = resnets.ResNet(resnets.ResNetConfig(**shape))
    elif not architecture:
        raise ValueError(f"{path} holds bare weights: say with --architecture which network they are of")
    else:
        model = _named(architecture, channels, classes)
    try:
        model.load_state_dict(content.get("model", content))
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"the weights of {path} are not those of {architecture or 'its config'}: {said:.200}"
        ) from error
    config = getattr(model, "config", None)
    for name, own, wanted in (("in_channels", channels, "channels"), ("num_classes", classes, "classes")):
        if config and getattr(config, name) != own:
            raise ValueError(f"{path} was made for {getattr(config, name)} {wanted}, and the pictures have {own}")
    return model.eval()


def _named(architecture: str, channels: int, classes: int) -> nn.Module:
    from torchvision import models

    shape = {"in_channels": channels, "num_classes": classes}
    if architecture != "resnet18_cifar" and (found := re.fullmatch(r"resnet(\d+)_cifar", architecture)):
        return resnets.resnet_cifar(int(found[1]), **shape)
    if architecture.endswith(("_cifar", "_imagenet")) and hasattr(resnets, architecture):
        return getattr(resnets, architecture)(**shape)
    if architecture in models.list_models(module=models) and channels == 3:
        return models.get_model(architecture, weights=None, num_classes=classes)
    raise ValueError(
        f"architecture={architecture!r} is not known for pictures of {channels} channel(s); there are "
        "resnet20_cifar and the like, resnet50_imagenet and the like, and torchvision's for colour, as mobilenet_v2"
    )


def compared(model: nn.Module, pictures: data.Dataset, given: argparse.Namespace) -> dict:
    """Every way to run a network on these pictures: how fast, how right; and the files of the fastest that keeps it.

    Returns: rows (for the table), missing (name → why), best (name → per batch size), files.
    """
    device = devices.choose(given.device)
    config = train.TrainConfig(batch_size=1, channels_last=False, device=str(device))
    model = model.to(device)
    calibration = next(train.Batches(pictures, pictures.train, config, device).in_order(given.calibration))[0]
    largest = max(given.batches)
    shown = list(train.Batches(pictures, pictures.test, config, device).in_order(largest))
    files = runtimes.Files(model, shown[0][0], calibration)
    lines: dict[str, dict] = {}
    timed: dict[int, list[dict]] = {}
    for batch in given.batches:
        images = shown[0][0][:batch].contiguous()
        ways, missing = variants(model, images, calibration, compiled=given.compile, files=files)
        if batch == largest:
            for row in judged(ways, shown):
                lines.setdefault(row["name"], {}).update(row)
        timed[batch] = times(ways, images, rounds=given.rounds)
        for name in ways:
            middle, high = percentiles(timed[batch], name)
            row = lines.setdefault(name, {"name": name})
            row[f"ms{batch}"] = f"{1000 * middle:.2f} ({1000 * high:.2f})"
            row[f"rate{batch}"] = f"{batch / middle:,.0f}"
            row[f"times{batch}"] = "1" if name == REFERENCE else str(speedup(timed[batch], name))
    keeps = [name for name, row in lines.items() if row["accuracy"] >= lines[REFERENCE]["accuracy"] - KEPT]
    best = {batch: fastest(rows, keeps) for batch, rows in timed.items()}
    return {"rows": list(lines.values()), "missing": missing, "best": best, "files": files}


def table(rows: list[dict], batches: Sequence[int]) -> page.Table:
    columns = {"name": "way to run it"}
    for batch in batches:
        many = f"{batch} picture{'s' if batch > 1 else ''}"
        columns |= {f"ms{batch}": f"ms for {many}, median (95 %)", f"rate{batch}": "pictures/s"}
        columns |= {f"times{batch}": "times as fast"}
    return page.table(rows, columns | {"accuracy": ("accuracy", ".2%"), "same": ("same first guess", ".2%")})


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m resnet_lib.inference", description="how fast a trained network can answer, and how right"
    )
    made.add_argument("--network", required=True, help="a file of save_network, or a state_dict with --architecture")
    made.add_argument("--dataset", required=True, help="a known name, a folder of class folders, or an archive of one")
    made.add_argument(
        "--architecture", default="", help="of bare weights: resnet20_cifar, resnet50_imagenet, mobilenet_v2"
    )
    made.add_argument("--image-size", type=int, default=None, help="pixels a side to resize to")
    made.add_argument("--colour", default="auto", help="of your own pictures: auto, rgb or grey")
    made.add_argument(
        "--mean", type=float, nargs="+", help="with which the network was trained; default: the pictures' own"
    )
    made.add_argument("--std", type=float, nargs="+", help="as --mean, of pixels between 0 and 1")
    made.add_argument("--batches", type=int, nargs="+", default=[1, 32], help="pictures at a time")
    made.add_argument("--calibration", type=int, default=256, help="training pictures from which 8 bits take ranges")
    made.add_argument("--rounds", type=int, default=ROUNDS, help=f"of timing, {CHOOSING_ROUNDS + 2} at least")
    made.add_argument("--threads", type=int, default=0, help="of the CPU; 0 leaves PyTorch's number")
    made.add_argument("--compile", action="store_true", help="also torch.compile, which takes a minute")
    made.add_argument("--onnx", type=Path, help="write the fastest way that keeps the accuracy, as an ONNX file")
    made.add_argument("--json", type=Path, help="write the table for a program")
    made.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return made


def opened(given: argparse.Namespace) -> tuple[nn.Module, data.Dataset]:
    """The network and the pictures that a command line names. Raises: ValueError or OSError naming what is wrong."""
    counts = {"--calibration": given.calibration, **{"--batches": min(given.batches)}}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} {value} must be at least 1")
    if given.rounds < CHOOSING_ROUNDS + 2:
        raise ValueError(
            f"--rounds {given.rounds} must be at least {CHOOSING_ROUNDS + 2}: the first {CHOOSING_ROUNDS} choose"
        )
    if given.threads < 0:
        raise ValueError(f"--threads {given.threads} must be at least 0")
    pictures = data.load(given.dataset, image_size=given.image_size, colour=given.colour)
    channels = pictures.train.images.shape[1]
    for name in ("mean", "std"):
        if (values := getattr(given, name)) is not None:
            if len(values) != channels or (name == "std" and min(values) <= 0):
                raise ValueError(
                    f"--{name} {values} must be {channels} number(s), one a channel" + (", above 0" * (name == "std"))
                )
            pictures = replace(pictures, **{name: torch.tensor(values)})
    most = len(pictures.test)
    if max(given.batches) > most:
        raise ValueError(f"--batches {max(given.batches)} is more than the {most} pictures to test")
    model = load_network(given.network, given.architecture, channels=channels, classes=len(pictures.class_names))
    return model, pictures


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    before = torch.get_num_threads()
    try:
        model, pictures = opened(given)
        torch.set_num_threads(given.threads or before)
        found = compared(model, pictures, given)
        print(f"{pictures.about()['text']}\n{devices.describe(devices.choose(given.device))['name']}\n")
        print(table(found["rows"], given.batches))
        for name, why in found["missing"].items():
            print(f"not measured: {name}: {why}")
        for batch, name in found["best"].items():
            print(f"fastest at batch {batch} with at most {KEPT:.1%} of accuracy lost: {name}")
        if given.onnx:
            write_onnx(found, given.onnx, max(given.batches))
        if given.json:
            content = {"rows": found["rows"], "missing": found["missing"], "best": found["best"]}
            write_atomically(given.json, json.dumps(content, indent=1))
            print(given.json)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        torch.set_num_threads(before)
    return 0


def write_onnx(found: dict, path: Path, batch: int) -> None:
    """Write the file from which the fastest way answers, and say how. Raises: ValueError where it needs no file."""
    name = found["best"][batch]
    recipe = WAYS[name]
    if not recipe.from_file:
        raise ValueError(f"--onnx: the fastest way at batch {batch} is {name!r}, which answers from no ONNX file")
    path.write_bytes(found["files"].eight() if recipe.numbers == "int8" else found["files"].plain)
    print(f"{path}: for {recipe.runtime}; pictures (N, C, H, W), float32, minus the mean over the std of each channel")


if __name__ == "__main__":
    sys.exit(main())
