"""The residual network's relatives at their published shapes: DenseNet, Inception-v4, Inception-ResNet-v2.

ResNeXt is a `resnets.ResNet` whose bottlenecks have groups.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEMS = ("imagenet", "cifar")
SMALLEST = {"densenet": 29, "inception": 75}  # pixels a side that the ImageNet networks need


def _checked(config) -> None:
    """Raise ValueError naming the field, its value and the rule, unless counts are whole numbers of at least 1."""
    if config.stem not in STEMS:
        raise ValueError(f"stem={config.stem!r} is not one of {', '.join(map(repr, STEMS))}")
    counts = {name: value for name, value in vars(config).items() if type(value) is int}
    counts |= {f"blocks[{place}]": count for place, count in enumerate(config.blocks)}
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{name}={count!r} must be a whole number of at least 1")


@torch.fx.wrap  # a tracer has no sizes to judge
def refuse_small(height: int, width: int, least: int) -> None:
    """Raise ValueError where a picture is smaller than what the stem and the halvings leave a pixel of."""
    if min(height, width) < least:
        raise ValueError(f"a picture of {height}×{width} is too small: each side must have at least {least} pixels")


@dataclass(frozen=True)
class DenseNetConfig:
    """The shape of a DenseNet-BC."""

    blocks: tuple[int, ...]  # layers in each dense block
    growth: int = 32  # channels that each layer adds
    first: int = 64  # channels of the stem
    bottleneck: int = 4  # inner channels of a layer, in units of the growth
    compression: float = 0.5  # share of the channels that a transition keeps
    stem: str = "imagenet"  # 7×7 stride 2, norm, ReLU, 3×3 max-pool stride 2; "cifar": one 3×3, stride 1
    in_channels: int = 3
    num_classes: int = 1000

    def __post_init__(self):
        _checked(self)
        if not 0 < self.compression <= 1:
            raise ValueError(f"compression={self.compression} must be above 0 and at most 1")


class DenseLayer(nn.Module):
    """Its input with `growth` new channels behind it: (N, C, H, W) → (N, C + growth, H, W).

    Source: Huang et al. 2017, arXiv:1608.06993, §3: BN-ReLU-conv1×1, BN-ReLU-conv3×3.
    """

    def __init__(self, channels: int, growth: int, inner: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, inner, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(inner), nn.Conv2d(inner, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(new)))], 1)


class Transition(nn.Sequential):
    """Between dense blocks: fewer channels, and half the resolution."""

    def __init__(self, channels: int, kept: int):
        norm, convolution = nn.BatchNorm2d(channels), nn.Conv2d(channels, kept, 1, bias=False)
        super().__init__(norm, nn.ReLU(), convolution, nn.AvgPool2d(2))


class DenseNet(nn.Module):
    """DenseNet-BC: images (N, in_channels, H, W) → logits (N, num_classes).

    Source: Huang et al. 2017, table 1 (imagenet), §4.2 (cifar).
    """

    def __init__(self, config: DenseNetConfig):
        super().__init__()
        self.config, channels = config, config.first
        self.least = SMALLEST["densenet"] if config.stem == "imagenet" else 2 ** (len(config.blocks) - 1)
        if config.stem == "imagenet":
            convolution = nn.Conv2d(config.in_channels, channels, 7, stride=2, padding=3, bias=False)
            stem = [convolution, nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)]
        else:
            stem = [nn.Conv2d(config.in_channels, channels, 3, padding=1, bias=False)]
        self.stem, stages = nn.Sequential(*stem), []
        for stage, count in enumerate(config.blocks):
            if stage:
                kept = int(channels * config.compression)
                stages.append(Transition(channels, kept))
                channels = kept
            for _ in range(count):
                stages.append(DenseLayer(channels, config.growth, config.bottleneck * config.growth))
                channels += config.growth
        self.stages, self.norm = nn.Sequential(*stages), nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        refuse_small(images.shape[-2], images.shape[-1], self.least)
        return self.fc(F.relu(self.norm(self.stages(self.stem(images)))).mean((2, 3)))


class Convolution(nn.Sequential):
    """A convolution without bias, a norm and ReLU; kernels as "3", "1x7"; "same" keeps the resolution."""

    def __init__(self, channels: int, out: int, kernel: str, stride: int = 1, padding: str = "same"):
        sides = tuple(int(side) for side in kernel.split("x")) if "x" in kernel else (int(kernel),) * 2
        border = tuple(side // 2 for side in sides) if padding == "same" else (0, 0)
        super().__init__(
            nn.Conv2d(channels, out, sides, stride, border, bias=False), nn.BatchNorm2d(out, eps=0.001), nn.ReLU()
        )


class Branches(nn.Module):
    """Several ways through, side by side, and their maps joined by concatenation.

    Args: branches: each a sequence of steps: (out, kernel) keeps the resolution, (out, kernel, stride) does not pad,
          "max" halves it, "average" keeps it, and a list of sequences at a branch's end splits it once more.
    """

    def __init__(self, channels: int, *branches):
        super().__init__()
        made = [_branch(channels, steps) for steps in branches]
        self.branches = nn.ModuleList(module for module, _ in made)
        self.out_channels = sum(out for _, out in made)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def _branch(channels: int, steps) -> tuple[nn.Module, int]:
    """A branch as a module, and the channels that leave it."""
    modules = []
    for step in steps:
        if step == "max":
            modules.append(nn.MaxPool2d(3, stride=2))
        elif step == "average":
            modules.append(nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False))
        elif isinstance(step, list):
            modules.append(Branches(channels, *step))
            channels = modules[-1].out_channels
        else:
            out, kernel, stride = (*step, None)[:3]
            modules.append(Convolution(channels, out, kernel, stride or 1, "valid" if stride else "same"))
            channels = out
    return (nn.Sequential(*modules) if len(modules) != 1 else modules[0]), channels


class Added(nn.Module):
    """A residual unit around branches: relu(x + scale · conv1×1(branches(x))), the ReLU left out in the very last.

    Source: Szegedy et al. 2016, arXiv:1602.07261, §3.2 (no norm after the 1×1) and §3.3 (the scale).
    """

    def __init__(self, channels: int, scale: float, *branches, activate: bool = True):
        super().__init__()
        self.branches = Branches(channels, *branches)
        self.expand = nn.Conv2d(self.branches.out_channels, channels, 1)
        self.scale, self.activate, self.out_channels = scale, activate, channels

    def forward(self, x: Tensor) -> Tensor:
        total = x + self.scale * self.expand(self.branches(x))
        return F.relu(total) if self.activate else total


STEM_V4 = (
    [["max"], [(96, "3", 2)]],
    [[(64, "1"), (96, "3", 1)], [(64, "1"), (64, "1x7"), (64, "7x1"), (96, "3", 1)]],
    [[(192, "3", 2)], ["max"]],
)
A_V4 = ([(96, "1")], [(64, "1"), (96, "3")], [(64, "1"), (96, "3"), (96, "3")], ["average", (96, "1")])
TO_B_V4 = ([(384, "3", 2)], [(192, "1"), (224, "3"), (256, "3", 2)], ["max"])
B_V4 = (
    [(384, "1")],
    [(192, "1"), (224, "1x7"), (256, "7x1")],
    [(192, "1"), (192, "7x1"), (224, "1x7"), (224, "7x1"), (256, "1x7")],
    ["average", (128, "1")],
)
TO_C_V4 = ([(192, "1"), (192, "3", 2)], [(256, "1"), (256, "1x7"), (320, "7x1"), (320, "3", 2)], ["max"])
C_V4 = (
    [(256, "1")],
    [(384, "1"), [[(256, "1x3")], [(256, "3x1")]]],
    [(384, "1"), (448, "3x1"), (512, "1x3"), [[(256, "1x3")], [(256, "3x1")]]],
    ["average", (256, "1")],
)

FIRST_RESNET = ([(96, "1")], [(48, "1"), (64, "5")], [(64, "1"), (96, "3"), (96, "3")], ["average", (64, "1")])
A_RESNET = ([(32, "1")], [(32, "1"), (32, "3")], [(32, "1"), (48, "3"), (64, "3")])
TO_B_RESNET = ([(384, "3", 2)], [(256, "1"), (256, "3"), (384, "3", 2)], ["max"])
B_RESNET = ([(192, "1")], [(128, "1"), (160, "1x7"), (192, "7x1")])
TO_C_RESNET = (
    [(256, "1"), (384, "3", 2)],
    [(256, "1"), (288, "3", 2)],
    [(256, "1"), (288, "3"), (320, "3", 2)],
    ["max"],
)
C_RESNET = ([(192, "1")], [(192, "1"), (224, "1x3"), (256, "3x1")])


@dataclass(frozen=True)
class InceptionConfig:
    """The shape of an Inception network."""

    blocks: tuple[int, int, int]  # blocks A, B and C
    residual: bool = False  # False: Inception-v4, which concatenates; True: Inception-ResNet-v2, which also adds
    stem: str = "imagenet"
    in_channels: int = 3
    num_classes: int = 1000

    def __post_init__(self):
        _checked(self)
        if len(self.blocks) != 3:
            raise ValueError(f"blocks={self.blocks} must say how many of A, B and C there are")
        if self.stem != "imagenet":
            raise ValueError(f"stem={self.stem!r}: an Inception network has the stem 'imagenet' alone")


class Inception(nn.Module):
    """Inception-v4 or Inception-ResNet-v2: images (N, in_channels, H, W) → logits (N, num_classes).

    Source: Szegedy et al. 2016, arXiv:1602.07261, figures 3 to 9 (v4) and 10, 15 to 19 (ResNet-v2).
    Departs: scales 0.17, 0.1 and 0.2 and the stem of Inception-ResNet-v2 are the published weights', not figure 3's.
    """

    def __init__(self, config: InceptionConfig):
        super().__init__()
        self.config, channels, modules = config, 64, []
        stem = Convolution(config.in_channels, 32, "3", 2, "valid"), Convolution(32, 32, "3", 1, "valid")
        self.stem = nn.Sequential(*stem, Convolution(32, 64, "3"))

        def add(*branches, **unit) -> None:
            nonlocal channels
            modules.append(Added(channels, *branches, **unit) if "activate" in unit else Branches(channels, *branches))
            channels = modules[-1].out_channels

        a, b, c = config.blocks
        if config.residual:
            modules += [
                nn.MaxPool2d(3, 2),
                Convolution(64, 80, "1"),
                Convolution(80, 192, "3", 1, "valid"),
                nn.MaxPool2d(3, 2),
            ]
            channels = 192
            add(*FIRST_RESNET)
            for count, scale, block, after in ((a, 0.17, A_RESNET, TO_B_RESNET), (b, 0.1, B_RESNET, TO_C_RESNET)):
                for _ in range(count):
                    add(scale, *block, activate=True)
                add(*after)
            for _ in range(c - 1):
                add(0.2, *C_RESNET, activate=True)
            add(1.0, *C_RESNET, activate=False)
            modules.append(Convolution(channels, 1536, "1"))
        else:
            for branches in (*STEM_V4, *[A_V4] * a, TO_B_V4, *[B_V4] * b, TO_C_V4, *[C_V4] * c):
                add(*branches)
        self.blocks, self.fc = nn.Sequential(*modules), nn.Linear(1536, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        refuse_small(images.shape[-2], images.shape[-1], SMALLEST["inception"])
        return self.fc(self.blocks(self.stem(images)).mean((2, 3)))


def densenet121_imagenet(**changes) -> DenseNet:
    return DenseNet(replace(DenseNetConfig((6, 12, 24, 16)), **changes))


def densenet169_imagenet(**changes) -> DenseNet:
    return DenseNet(replace(DenseNetConfig((6, 12, 32, 32)), **changes))


def inception_v4_imagenet(**changes) -> Inception:
    return Inception(replace(InceptionConfig((4, 7, 3)), **changes))


def inception_resnet_v2_imagenet(**changes) -> Inception:
    return Inception(replace(InceptionConfig((10, 20, 10), residual=True), **changes))
