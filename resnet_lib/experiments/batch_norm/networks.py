"""The networks that this chapter trains, alike but for their norm, and how it trains them."""

import itertools
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from resnet_lib import blocks, plots, train

ARMS = {
    "none": {"norm": "none"},
    "batch norm": {"norm": "batch"},
    "batch norm + noise": {"norm": "batch", "noise": True},
    "noise alone": {"norm": "none", "noise": True},
    "batch norm, held": {"norm": "batch"},
}
COLOURS = dict(zip(ARMS, (plots.ORANGE, plots.BLUE, plots.PINK, plots.YELLOW, plots.GREEN), strict=True))
UPDATE_RATE = 0.1  # of running averages in PyTorch, which calls it momentum


class ShiftingNoise(nn.Module):
    """Scales and shifts each unit by numbers drawn anew at every step, in training only; (N, C, …) → the same.

    Source: Santurkar et al. 2018, arXiv:1805.11604, appendix A.
    Departs: mean and scale are drawn for each channel, the small noise around them for each value.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        spread = [1, -1] + [1] * (x.ndim - 2)
        units = torch.zeros(x.shape[1], device=x.device)
        mean = units.uniform_(-0.5, 0.5).view(spread)
        scale = torch.empty_like(units).uniform_(1.0, 1.25).view(spread)
        mean = mean + 0.1 * (2 * torch.rand_like(x) - 1)
        scale = scale + 0.1 * torch.randn_like(x)
        return scale * x + mean


def make_norm(norm: str, units: int, flat: bool) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm1d(units) if flat else nn.BatchNorm2d(units)
    groups = {"group": units // 8, "layer": 1}  # layer norm is one group
    return nn.GroupNorm(groups[norm], units) if norm in groups else nn.Identity()


class Layer(nn.Module):
    """A convolution or a fully connected layer, a norm or a bias, perhaps noise, and ReLU; He's weights."""

    def __init__(self, before: int, after: int, stride: int, norm: str, flat: bool, noise: bool):
        super().__init__()
        self.linear = nn.Linear(before, after, bias=False) if flat else blocks.conv3x3(before, after, stride)
        nn.init.kaiming_normal_(self.linear.weight, nonlinearity="relu")
        if norm == "none":
            self.linear.bias = nn.Parameter(torch.zeros(after))
        self.norm = make_norm(norm, after, flat)
        self.noise = ShiftingNoise() if noise else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.noise(self.norm(self.linear(x))))


class Network(nn.Module):
    """Plain layers and a classifier; convolutions in three stages of doubling width, or half as many flat layers.

    Every variant draws the same first weights from the same seed.

    Args: shape: of a picture, (C, H, W); width: channels of the first convolution.
    """

    def __init__(
        self,
        shape: list[int],
        classes: int,
        layers: int,
        width: int,
        norm: str = "batch",
        flat: bool = False,
        noise: bool = False,
    ):
        super().__init__()
        before = math.prod(shape) if flat else shape[0]
        sizes = [8 * width] * (layers // 2) if flat else [width << (3 * k // layers) for k in range(layers)]
        self.flat, self.layers = flat, nn.ModuleList()
        for place, after in enumerate(sizes):
            stride = 2 if place and after != before else 1
            self.layers.append(Layer(before, after, stride, norm, flat, noise))
            before = after
        self.fc = nn.Linear(before, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1) if self.flat else x
        for layer in self.layers:
            x = layer(x)
        return self.fc(x if self.flat else x.mean((2, 3)))


def network(s, norm: str = "batch", flat: bool = False, noise: bool = False) -> Network:
    return Network(s.facts["shape"], s.facts["classes"], s.layers, s.width, norm, flat, noise)


def training(s, batch_size: int, **changes) -> train.TrainConfig:
    options = {"schedule": "constant", "precision": s.number_format, "device": str(s.device)}
    return train.TrainConfig(batch_size=batch_size, **options | changes)


def refuse_networks(s) -> None:
    """Refuse at once sizes of which no network of three stages and groups of eight channels can be made."""
    if s.layers < 3 or s.width < 8 or s.width % 8:
        raise ValueError(f"layers={s.layers} must be at least 3, and width={s.width} a multiple of 8")


def steps(s, model: nn.Module, config: train.TrainConfig, seed: int, count: int) -> Iterator[int]:
    """Train for `count` steps of a constant rate; gives the number of each step, from 0, before it is taken."""
    optimizer = train.make_optimizer(model, config)
    batches = train.Batches(s.pictures, s.pictures.train, config, s.device)
    endless = itertools.chain.from_iterable(batches.training(seed, epoch) for epoch in itertools.count())
    for step, (images, labels) in enumerate(itertools.islice(endless, count)):
        yield step
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model.train()(images), labels).backward()
        optimizer.step()
