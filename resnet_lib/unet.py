"""U-Net, with skips that can be cut one by one while the number of parameters stays the same."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_lib.blocks import conv1x1, conv3x3, initialise

CHOICES = {"join": ("concatenate", "add"), "cut": ("repeat", "narrow"), "norm": ("batch", "none")}


@dataclass(frozen=True)
class UNetConfig:
    """The shape of a U-Net."""

    widths: tuple[int, ...] = (32, 64, 128)  # channels at each resolution, finest first; the last is the bottleneck's
    skips: tuple[int, ...] | None = None  # levels whose skip is there, 0 the finest; None: all
    join: str = "concatenate"  # "concatenate" the skip to the decoder's map, or "add" it
    cut: str = "repeat"  # for a cut skip of a concatenation: "repeat" the decoder's map, or "narrow" the convolution
    convolutions: int = 2  # at each level, on either side
    norm: str = "batch"  # "batch" or "none"
    in_channels: int = 3
    out_channels: int = 3

    def __post_init__(self):
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(map(repr, allowed))}")
        if len(self.widths) < 2:
            raise ValueError(f"widths={self.widths} must name at least two resolutions, the last is the bottleneck's")
        counts = {name: getattr(self, name) for name in ("convolutions", "in_channels", "out_channels")}
        counts |= {f"widths[{i}]": n for i, n in enumerate(self.widths)}
        for name, count in counts.items():
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"{name}={count!r} must be a whole number of at least 1")
        for level in self.skips or ():
            if level not in range(self.levels):
                raise ValueError(f"skips={self.skips}: there is no level {level}; 0 … {self.levels - 1} have a skip")

    @property
    def levels(self) -> int:
        """Resolutions above the bottleneck, each with a skip; the picture is halved as often."""
        return len(self.widths) - 1

    @property
    def kept(self) -> tuple[int, ...]:
        return tuple(range(self.levels)) if self.skips is None else self.skips


@torch.fx.wrap  # a tracer has no sizes to judge
def refuse_indivisible(height: int, width: int, factor: int) -> None:
    """Raise ValueError unless both sides of a picture are multiples of `factor`."""
    if height % factor or width % factor:
        near = " or ".join(
            f"{height // factor * factor + h}×{width // factor * factor + w}"
            for h, w in ((0, 0), (factor * (height % factor > 0), factor * (width % factor > 0)))
            if height // factor * factor + h and width // factor * factor + w
        )
        raise ValueError(
            f"a picture of {height}×{width} pixels: this U-Net halves it {factor.bit_length() - 1} times, so both "
            f"sides must be multiples of {factor}; resize or pad it to {near}, or give the U-Net fewer widths"
        )


class UNet(nn.Module):
    """An encoder that halves the picture level by level, a decoder that doubles it again, and skips between them.

    Shapes: (N, in_channels, H, W) → (N, out_channels, H, W), H and W multiples of 2^levels.
    Errors: ValueError for any other H or W; nothing is cropped or padded silently.
    Source: Ronneberger et al. 2015, arXiv:1505.04597, figure 1.
    Departs: padded convolutions, so that nothing is cropped; normalisation; any number of levels and widths;
        joins by addition as well; a cut skip is replaced so that parameters and FLOPs stay equal.
    """

    def __init__(self, config: UNetConfig | None = None):
        super().__init__()
        self.config = config = config or UNetConfig()
        finer, coarser = config.widths[:-1], config.widths[1:]
        double = config.join == "concatenate"
        self.encoder = nn.ModuleList(
            self._level(i, o) for i, o in zip((config.in_channels, *finer[:-1]), finer, strict=True)
        )
        self.bottleneck = self._level(finer[-1], config.widths[-1])
        self.up = nn.ModuleList(nn.ConvTranspose2d(c, f, 2, stride=2) for f, c in zip(finer, coarser, strict=True))
        self.decoder = nn.ModuleList(
            self._level(w * (1 + (double and (k in config.kept or config.cut == "repeat"))), w)
            for k, w in enumerate(finer)
        )
        self.head = conv1x1(finer[0], config.out_channels, bias=True)
        initialise(self, "he")
        for layer in (*self.up, self.head):  # no ReLU follows, and one tap a pixel: a variance of 1 / channels keeps it
            nn.init.normal_(layer.weight, std=layer.in_channels**-0.5)
            nn.init.zeros_(layer.bias)

    def _level(self, in_channels: int, width: int) -> nn.Sequential:
        units = []
        for index in range(self.config.convolutions):
            conv = conv3x3(width if index else in_channels, width, bias=self.config.norm == "none")
            norm = nn.BatchNorm2d(width) if self.config.norm == "batch" else nn.Identity()
            units.append(nn.Sequential(conv, norm, nn.ReLU(inplace=True)))
        return nn.Sequential(*units)

    def units(self) -> list[nn.Sequential]:
        """Convolution, norm and ReLU of each place, in the order they run."""
        levels = [*self.encoder, self.bottleneck, *reversed(self.decoder)]
        return [unit for level in levels for unit in level]

    def join(self, x: Tensor, skip: Tensor, level: int) -> Tensor:
        """What goes into the decoder at a level: its own map and, unless it is cut, the skip."""
        kept = level in self.config.kept
        if self.config.join == "add":
            return x + skip if kept else x
        return torch.cat([x, skip if kept else x], 1) if kept or self.config.cut == "repeat" else x

    def forward(self, x: Tensor) -> Tensor:
        refuse_indivisible(x.shape[-2], x.shape[-1], 2**self.config.levels)
        skips = []
        for level in self.encoder:
            skips.append(level(x))
            x = F.max_pool2d(skips[-1], 2)
        x = self.bottleneck(x)
        for level in reversed(range(self.config.levels)):
            x = self.decoder[level](self.join(self.up[level](x), skips[level], level))
        return self.head(x)
