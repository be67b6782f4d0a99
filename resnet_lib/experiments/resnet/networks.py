"""The networks of this chapter: how they are trained and judged, and what they cost, by formula and by counting."""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resnet_lib import blocks, ceilings, plots, precision, resnets, stats, train
from resnet_lib.experiments.shapes import Side, both

ROUNDS, COST_BATCH = 3, 8  # repetitions of each timing; pictures in a step whose cost is measured
SETTLING = 8  # batches over which the norms' statistics are taken anew


def cifar(s) -> dict[str, int]:
    """What the pictures at hand decide of a CIFAR network."""
    return {"in_channels": s.facts["shape"][0], "num_classes": s.facts["classes"]}


def training(s, **changes) -> train.TrainConfig:
    defaults = {"batch_size": s.batch_size, "learning_rate": s.learning_rate, "precision": s.number_format}
    return train.TrainConfig(**defaults | {"device": str(s.device)} | changes)


def batches(s, split, batch_size: int | None = None) -> train.Batches:
    return train.Batches(s.pictures, split, training(s, batch_size=batch_size or s.batch_size), s.device)


def judge(s, model: nn.Module) -> dict[str, float]:
    """Validation error, test error and test loss with settled statistics; the test split decides nothing.

    Running averages remember their starting values for some tens of steps. In a short training that would judge a
    network by statistics it never had, and more so the deeper it is.
    """
    train.settle(model, batches(s, s.pictures.train), SETTLING)
    val, test = (train.evaluate(model, s.pictures, split, training(s)) for split in (s.pictures.val, s.pictures.test))
    return {"val_error": val["error"], "test_error": test["error"], "test_loss": test["loss"]}


def convolutions(shape: resnets.ResNetConfig, side: Side) -> Iterator[tuple[int, int, int, int, int]]:
    """Every convolution of a network as (in, out, kernel, groups, pixels of the map it writes)."""
    size, channels = both(side), shape.widths[0]
    half = lambda of: tuple((n + 1) // 2 for n in of)  # noqa: E731
    if shape.stem == "imagenet":
        size = half(size)
        yield shape.in_channels, channels, 7, 1, math.prod(size)
        size = half(size)  # the pooling
    else:
        yield shape.in_channels, channels, 3, 1, math.prod(size)
    for stage, (count, width) in enumerate(zip(shape.blocks, shape.widths, strict=True)):
        for index in range(count):
            new = half(size) if stage and not index else size
            before, after = math.prod(size), math.prod(new)
            if shape.block == "basic":
                out = width
                yield channels, width, 3, 1, after
                yield width, width, 3, 1, after
            else:
                out, inner = 4 * width, width * shape.width_per_group // 64 * shape.groups
                yield channels, inner, 1, 1, before
                yield inner, inner, 3, shape.groups, after
                yield inner, out, 1, 1, after
            if shape.shortcut == "B" and (channels != out or size != new):
                yield channels, out, 1, 1, after
            channels, size = out, new


def predicted(shape: resnets.ResNetConfig, side: Side) -> tuple[int, int]:
    """Parameters and FLOPs; every convolution is followed by a norm."""
    walk, classes = list(convolutions(shape, side)), shape.num_classes
    channels = shape.widths[-1] * blocks.BLOCKS[shape.block].expansion
    parameters = sum(k * k * i * o // g + 2 * o for i, o, k, g, _ in walk)
    flops = sum(2 * k * k * i * o // g * pixels for i, o, k, g, pixels in walk)
    return parameters + (channels + 1) * classes, flops + 2 * channels * classes


def counted_cost(name: str, make: Callable[[], nn.Module], side: Side, channels: int = 3) -> tuple[dict, object]:
    """Parameters and FLOPs of a network by counting, on the meta device; and its config."""
    with torch.device("meta"):
        model, image = make().eval(), torch.empty(1, channels, *both(side))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    found = {"parameters": resnets.count_parameters(model), "flops": counter.get_total_flops()}
    return {"network": name} | found, model.config


def step_of(s, model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """One training step without the optimiser, as a callable to time; in the number format of training."""
    dtype = ceilings.choose_precision(s.number_format, s.device)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with precision.autocast(dtype, s.device):
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()

    return step


def draw_effects(ax, rows, by: str, baseline: str):
    """Accuracy minus the baseline's, paired by seed: a dot a seed, and the mean with its interval."""
    others = [name for name in dict.fromkeys(r[by] for r in rows) if name != baseline]
    zero = {r["seed"]: r["accuracy"] for r in rows if r[by] == baseline}
    shown = []
    for place, name in enumerate(others):
        gains = [r["accuracy"] - zero[r["seed"]] for r in rows if r[by] == name]
        ax.plot(gains, [place - 0.22] * len(gains), "o", color=plots.BLUE, alpha=0.6, markersize=4, mew=0)
        shown.append({"name": name, "gain": stats.interval(gains)})
    plots.forest(ax, shown, "name", "gain")
    ax.locator_params(axis="x", nbins=5)
    plots.hundredths(ax.xaxis)
    return ax
