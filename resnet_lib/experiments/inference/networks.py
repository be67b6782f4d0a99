"""The network that is timed and the one whose accuracy is judged, and on how many of the CPU's cores."""

import contextlib
import functools
import os
from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resnet_lib import inference, resnets, runtimes, train
from resnet_lib.experiments.depths import SETTLING, changed, network

CALIBRATED_ON = 16  # pictures of noise from which the timed network's 8 bits take their ranges


def lived_in(model: resnets.ResNet, side: int, seed: int = 0) -> resnets.ResNet:
    """The network in evaluation mode, after a few batches of noise: its norms have statistics of their own."""
    draw = torch.Generator().manual_seed(seed)
    channels = model.config.in_channels
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.randn(8, channels, side, side, generator=draw))
    return model.eval()


def timed_network() -> resnets.ResNet:
    """ResNet-18 for ImageNet. Its weights are random: time depends on shapes, and not on values."""
    with train.seeded(0):
        return lived_in(resnets.resnet18_imagenet(), 64)


def noise(count: int, side: int, seed: int) -> torch.Tensor:
    """Pictures for it, (count, 3, side, side)."""
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


@functools.cache
def timed_files(side: int) -> runtimes.Files:
    """Its ONNX files, which all batch sizes and numbers of threads share."""
    return runtimes.Files(timed_network(), noise(1, side, 1), noise(CALIBRATED_ON, side, 2))


def flops(model: nn.Module, image: torch.Tensor) -> int:
    """Of one picture's forward pass, by counting; a multiply-add is two."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    return counter.get_total_flops()


def timings(s, batch: int, recipes: dict, others: dict | None = None, compiled: bool = True) -> list[dict]:
    """The timed network by each recipe, in turn: seconds of single answers, how far its logits are off, what it costs.

    Args: others: more networks, by name, that are timed in the same turns.
    """
    model, images = timed_network().to(s.device), noise(batch, s.timed_side, 1).to(s.device)
    files = timed_files(s.timed_side)
    ways, missing = inference.variants(
        model, images, files.calibration, recipes=recipes, compiled=compiled, files=files
    )
    ways |= {name: torch.no_grad()(other.to(s.device).eval()) for name, other in (others or {}).items()}
    expected = ways[inference.REFERENCE](images)
    off = {name: inference.relative_error(way(images), expected) for name, way in ways.items()}
    work = flops(model, images[:1])
    rows = [
        row | {"what": "time", "off": off[row["name"]], "flops": work}
        for row in inference.times(ways, images, rounds=s.rounds)
    ]
    return rows + [{"what": "missing", "name": name, "why": why} for name, why in missing.items()]


@contextlib.contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Inside, PyTorch and the runtimes that follow it compute on so many threads."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def refuse(s) -> None:
    """Raises: ValueError for more threads than cores, or too few rounds to choose a way and to time it."""
    least = inference.CHOOSING_ROUNDS + 3
    if s.rounds < least:
        raise ValueError(
            f"rounds={s.rounds} must be at least {least}: {inference.CHOOSING_ROUNDS} choose, the others time"
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if max(s.threads) > cores:
        raise ValueError(f"threads={s.threads}: this process may use {cores} core(s), and more threads only wait")


def trained(s, seed: int) -> tuple[nn.Module, train.TrainConfig]:
    """ResNet-`depth` for the pictures at hand, trained, in evaluation mode; and how its batches are made."""
    config = train.TrainConfig(
        epochs=s.epochs,
        batch_size=s.batch_size,
        learning_rate=s.learning_rate,
        precision=s.number_format,
        device=str(s.device),
    )
    widths = s.width, 2 * s.width, 4 * s.width
    made = train.fit(
        functools.partial(network, s, "residual", s.depth, widths=widths),
        s.pictures,
        config,
        seed=seed,
        augmentation=lambda images, generator: changed(s, images, generator),
        progress=False,
    )
    batches = train.Batches(s.pictures, s.pictures.train, config, s.device)
    return train.settle(made.model, batches, SETTLING).to(memory_format=torch.contiguous_format), config


def missing_notes(rows) -> list[str]:
    """What could not be made here, and why, each once."""
    return list(dict.fromkeys(f"{r['name']}: {r['why']}" for r in rows if r["what"] == "missing"))


def slug(name: str) -> str:
    """A name as a measure has it."""
    return "_".join("".join(c if c.isalnum() else " " for c in name).split())
