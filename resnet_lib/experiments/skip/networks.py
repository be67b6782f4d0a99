"""The U-Nets that this chapter measures, how it trains them, and where their gradients flow."""

import math
from collections.abc import Callable

import torch
from torch import nn

from resnet_lib import data, plots, train, unet

KINDS = ("without", "with skips")
COLOURS = {"with skips": plots.BLUE, "without": plots.ORANGE}


def shape(s, **changes) -> unet.UNetConfig:
    """The U-Net from picture to picture; refuses a picture that its levels do not divide."""
    colours, height, width = s.facts["shape"]
    defaults = {"widths": tuple(s.widths), "in_channels": colours, "out_channels": colours}
    config = unet.UNetConfig(**defaults | changes)
    unet.refuse_indivisible(height, width, 2**config.levels)
    return config


def skips_of(kind: str) -> tuple | None:
    """What UNetConfig calls all skips, or none."""
    return None if kind == "with skips" else ()


def training(s, **changes) -> train.TrainConfig:
    return train.TrainConfig(device=str(s.device), precision=s.number_format, **changes)


def level(inputs: int, width: int) -> nn.Sequential:
    """Two 3×3 convolutions, each with batch normalisation and ReLU."""
    unit = lambda c: nn.Sequential(
        nn.Conv2d(c, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
    )
    return nn.Sequential(unit(inputs), unit(width))


def first_batch(s, split: data.Split, seed: int, where: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The first batch of a split in a seed's order, as training sees it."""
    return train.Batches(s.pictures, split, train.TrainConfig(batch_size=s.batch_size), where).first(seed)


def through_skips(model: unet.UNet, loss: Callable[[], torch.Tensor]) -> float:
    """log10 of the first convolution's gradient through the skips over that through the bottleneck.

    With the bottleneck's output detached only the skips are left; the rest of the gradient came through the bottleneck.
    """
    weight, found = model.units()[0][0].weight, []
    for cut in (False, True):
        hook = lambda module, x, y, cut=cut: y.detach() if cut else y
        handle = model.bottleneck.register_forward_hook(hook)
        found.append(torch.autograd.grad(loss(), weight)[0].double())
        handle.remove()
    whole, skips = found
    return math.log10(skips.norm() / (whole - skips).norm())


def to_pixels(s, images: torch.Tensor) -> torch.Tensor:
    """From normalised pictures to values in [0, 1]."""
    mean, std = (v.view(1, -1, 1, 1).to(images.device) for v in (s.pictures.mean, s.pictures.std))
    return (images.float() * std + mean).clamp(0, 1)


def as_bytes(s, images: torch.Tensor) -> list:
    """A few pictures as lists of whole numbers, for a figure."""
    return (to_pixels(s, images) * 255).round().byte().tolist()


def psnr(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each picture in decibels, for values in [0, 1]: (N, C, H, W) twice → (N,)."""
    return -10 * (made - wanted).square().mean((1, 2, 3)).clamp_min(1e-10).log10()
