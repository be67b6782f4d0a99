"""DenseNet, Inception-v4 and Inception-ResNet-v2, each from one config; ResNeXt is a `ResNet` with groups."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from resnet_lib.blocks import conv1x1, conv3x3, initialise
from resnet_lib.resnets import STEMS, ResNetConfig


def resnext_config(blocks: tuple[int, ...], width: int, inner: int, cardinality: int, **changes) -> ResNetConfig:
    """A ResNeXt for small pictures, whose widths double from stage to stage.

    Args:
        width: of the first stage, a quarter of the channels between its units.
        inner: channels of its 3×3 convolutions, all groups together.
        cardinality: groups of each 3×3 convolution.
    Raises: ValueError where the groups would not be equal.
    Source: Xie et al. 2017, arXiv:1611.05431, §5.2: (3, 3, 3), 64, 512, 8 is ResNeXt-29, 8×64d.
    """
    if inner < 1 or cardinality < 1 or inner % cardinality:
        allowed = ", ".join(str(n) for n in range(1, inner + 1) if inner % n == 0)
        raise ValueError(
            f"cardinality={cardinality} must divide the inner={inner} channels; allowed: {allowed or 'none'}"
        )
    if 64 * (inner // cardinality) % width:
        raise ValueError(
            f"inner={inner} over cardinality={cardinality} must be a multiple of width / 64 = {width / 64:g}"
        )
    widths = tuple(width * 2**stage for stage in range(len(blocks)))
    shape = {"groups": cardinality, "width_per_group": 64 * (inner // cardinality) // width, "shortcut": "B"}
    return ResNetConfig(blocks, widths, block="bottleneck", **shape | changes)


def _check(config: object, counts: dict[str, int], choices: dict[str, tuple]) -> None:
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{name}={count!r} must be a whole number of at least 1")
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise ValueError(f"{name}={getattr(config, name)!r} is not one of {', '.join(map(repr, allowed))}")


@dataclass(frozen=True)
class DenseNetConfig:
    """The shape of a DenseNet with bottlenecks and compression (DenseNet-BC)."""

    blocks: tuple[int, ...]  # layers in each dense block
    growth: int = 32  # channels that each layer appends
    stem_channels: int = 64  # before the first layer
    bottleneck: int = 4  # channels of a layer's 1×1 convolution, in growths
    compression: float = 0.5  # share of the channels that a transition between blocks keeps
    stem: str = "imagenet"  # "imagenet": 7×7 stride 2 and 3×3 max-pool stride 2; "cifar": 3×3 stride 1
    in_channels: int = 3
    num_classes: int = 1000

    def __post_init__(self):
        names = ("growth", "stem_channels", "bottleneck", "in_channels", "num_classes")
        counts = {name: getattr(self, name) for name in names}
        counts |= {f"blocks[{i}]": n for i, n in enumerate(self.blocks)} or {"len(blocks)": 0}
        _check(self, counts, {"stem": STEMS})
        if not 0 < self.compression <= 1:
            raise ValueError(f"compression={self.compression!r} must be above 0 and at most 1")


class DenseLayer(nn.Module):
    """W₂ relu(BN(W₁ relu(BN(cat(features))))): several (N, Cᵢ, H, W) → (N, growth, H, W).

    Source: Huang et al. 2017, arXiv:1608.06993, equation (2) and §3, "Bottleneck layers".
    """

    def __init__(self, channels: int, growth: int, inner: int):
        super().__init__()
        self.norm1, self.relu = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        self.conv1 = conv1x1(channels, inner)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv2 = conv3x3(inner, growth)

    def forward(self, *features: Tensor) -> Tensor:
        made = self.conv1(self.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(self.relu(self.norm2(made)))


class DenseBlock(nn.Sequential):
    """Layers of which each sees what all before it made: (N, C, H, W) → (N, C + layers · growth, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self:
            features.append(layer(*features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    """A DenseNet-BC. Attribute names are torchvision's, so that its weights load unchanged.

    Shapes: images (N, in_channels, H, W) → logits (N, num_classes), for any H and W.
    Source: Huang et al. 2017, table 1 (imagenet) and §3, "Implementation details" (cifar).
    Departs: pooling between blocks keeps the last row of an odd map; weights start as in our ResNets.
    """

    def __init__(self, config: DenseNetConfig):
        super().__init__()
        self.config = config
        channels, layers = config.stem_channels, nn.Sequential()
        if config.stem == "imagenet":
            layers.conv0 = nn.Conv2d(config.in_channels, channels, 7, stride=2, padding=3, bias=False)
            layers.norm0, layers.relu0 = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
            layers.pool0 = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            layers.conv0 = conv3x3(config.in_channels, channels)
        for number, count in enumerate(config.blocks, 1):
            block = DenseBlock()
            for layer in range(1, count + 1):
                made = DenseLayer(channels, config.growth, config.bottleneck * config.growth)
                block.add_module(f"denselayer{layer}", made)
                channels += config.growth
            layers.add_module(f"denseblock{number}", block)
            if number < len(config.blocks):
                kept = max(1, int(channels * config.compression))
                between = nn.Sequential()
                between.norm, between.relu = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
                between.conv, between.pool = conv1x1(channels, kept), nn.AvgPool2d(2, ceil_mode=True)
                layers.add_module(f"transition{number}", between)
                channels = kept
        layers.norm5, self.features = nn.BatchNorm2d(channels), layers
        self.classifier = nn.Linear(channels, config.num_classes)
        initialise(self, "he")

    def units(self) -> list[DenseLayer]:
        """The dense layers from first to last."""
        return [module for module in self.modules() if isinstance(module, DenseLayer)]

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).relu().mean((2, 3)))


def densenet121_imagenet(**changes) -> DenseNet:
    return DenseNet(replace(DenseNetConfig((6, 12, 24, 16)), **changes))


def densenet169_imagenet(**changes) -> DenseNet:
    return DenseNet(replace(DenseNetConfig((6, 12, 32, 32)), **changes))


# A path is a list of steps: (channels, kernel), (channels, kernel, stride[, padding]), "max" (stride 2), "avg"
# (stride 1), or a list of paths that are concatenated. A kernel is a side or (height, width).
V4_STEM = [
    (32, 3, 2),
    (32, 3, 1, 0),
    (64, 3),
    [["max"], [(96, 3, 2)]],
    [[(64, 1), (96, 3, 1, 0)], [(64, 1), (64, (1, 7)), (64, (7, 1)), (96, 3, 1, 0)]],
    [[(192, 3, 2)], ["max"]],
]
FORK = [[(256, (1, 3))], [(256, (3, 1))]]
V4 = (  # A, its reduction, B, its reduction, C
    [[(96, 1)], [(64, 1), (96, 3)], [(64, 1), (96, 3), (96, 3)], ["avg", (96, 1)]],
    [[(384, 3, 2)], [(192, 1), (224, 3), (256, 3, 2)], ["max"]],
    [
        [(384, 1)],
        [(192, 1), (224, (1, 7)), (256, (7, 1))],
        [(192, 1), (192, (7, 1)), (224, (1, 7)), (224, (7, 1)), (256, (1, 7))],
        ["avg", (128, 1)],
    ],
    [[(192, 1), (192, 3, 2)], [(256, 1), (256, (1, 7)), (320, (7, 1)), (320, 3, 2)], ["max"]],
    [[(256, 1)], [(384, 1), FORK], [(384, 1), (448, (3, 1)), (512, (1, 3)), FORK], ["avg", (256, 1)]],
)
RESNET_STEM = [(32, 3, 2), (32, 3, 1, 0), (64, 3), "max", (80, 1), (192, 3, 1, 0), "max"]
RESNET_FIRST = [[(96, 1)], [(48, 1), (64, 5)], [(64, 1), (96, 3), (96, 3)], ["avg", (64, 1)]]
RESNET_V2 = (
    [[(32, 1)], [(32, 1), (32, 3)], [(32, 1), (48, 3), (64, 3)]],
    [[(384, 3, 2)], [(256, 1), (256, 3), (384, 3, 2)], ["max"]],
    [[(192, 1)], [(128, 1), (160, (1, 7)), (192, (7, 1))]],
    [[(256, 1), (384, 3, 2)], [(256, 1), (288, 3, 2)], [(256, 1), (288, 3), (320, 3, 2)], ["max"]],
    [[(192, 1)], [(192, 1), (224, (1, 3)), (256, (3, 1))]],
)


@dataclass(frozen=True)
class InceptionConfig:
    """The shape of an Inception-v4 or an Inception-ResNet-v2."""

    kind: str = "v4"  # "v4": modules concatenate; "resnet_v2": modules concatenate, project and add
    modules: tuple[int, int, int] = (4, 7, 3)  # of the kinds A, B and C
    width: float = 1.0  # of all channels, over the published ones
    stem: str = "imagenet"  # "imagenet" as published; "cifar": one 3×3 convolution, and maps are never cropped
    residual: bool = True  # of "resnet_v2": False leaves the additions out
    scales: tuple[float, float, float] = (0.17, 0.10, 0.20)  # of what the modules A, B and C add
    in_channels: int = 3
    num_classes: int = 1000

    def __post_init__(self):
        counts = {"in_channels": self.in_channels, "num_classes": self.num_classes}
        counts |= {f"modules[{i}]": n for i, n in enumerate(self.modules)}
        _check(self, counts, {"kind": ("v4", "resnet_v2"), "stem": STEMS})
        if len(self.modules) != 3 or len(self.scales) != 3:
            raise ValueError(f"modules={self.modules} and scales={self.scales} must name three kinds: A, B and C")
        if not 0 < self.width <= 16:
            raise ValueError(f"width={self.width!r} must be above 0 and at most 16")
        if self.kind == "v4" and not self.residual:
            raise ValueError("residual=False fits kind='resnet_v2' only: the other has no additions")

    @property
    def least_side(self) -> int:
        """Pixels that height and width of a picture must have, so that convolutions without padding leave one."""
        return 75 if self.stem == "imagenet" else 1


class Paths(nn.ModuleList):
    """Several paths from one input, their outputs concatenated: (N, C, H, W) → (N, sum of channels, H', W')."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([path(x) for path in self], 1)


class AddedPaths(nn.Module):
    """relu(x + scale · W paths(x)), W a 1×1 convolution with bias and without norm; its plain twin leaves x out.

    Source: Szegedy et al. 2017, arXiv:1602.07261, figures 16, 17, 19 and §3.3 (scale).
    """

    def __init__(self, paths: Paths, inner: int, channels: int, scale: float, residual: bool, activate: bool = True):
        super().__init__()
        self.paths, self.conv = paths, conv1x1(inner, channels, bias=True)
        self.scale, self.residual, self.relu = scale, residual, nn.ReLU(inplace=True) if activate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        made = self.conv(self.paths(x))
        return self.relu(x + made * self.scale if self.residual else made)


class Inception(nn.Module):
    """Inception-v4 or Inception-ResNet-v2.

    Shapes: images (N, in_channels, H, W) → logits (N, num_classes), for H and W of at least `config.least_side`.
    Raises: ValueError for smaller pictures.
    Source: Szegedy et al. 2017, arXiv:1602.07261, figures 3 to 9 and 15.
    Departs: Inception-ResNet-v2 is the one whose weights were published, with the stem of Inception-v3, a first
        module that does not add, and one module C more than the paper's figure, without its ReLU. No dropout.
    """

    def __init__(self, config: InceptionConfig):
        super().__init__()
        self.config, self.channels, small = config, config.in_channels, config.stem == "cifar"
        added = config.kind == "resnet_v2"
        a, to_b, b, to_c, c = RESNET_V2 if added else V4
        stem = [(192, 3)] if small else RESNET_STEM if added else V4_STEM
        layers = self._path([*stem, RESNET_FIRST] if added else stem)
        for kind, (paths, reduction) in enumerate(((a, to_b), (b, to_c), (c, None))):
            for _ in range(config.modules[kind]):
                layers.append(self._module(paths, config.scales[kind]))
            layers.extend(self._path([reduction]) if reduction else [])
        if added:
            layers.append(self._module(c, 1.0 if not small else config.scales[2], activate=False))
            layers.extend(self._path([(1536, 1)]))
        self.features = layers
        self.classifier = nn.Linear(self.channels, config.num_classes)
        initialise(self, "he")
        self.register_forward_pre_hook(_refuse_small)

    def _path(self, steps: list) -> nn.Sequential:
        """The layers of one path from `self.channels` on, which are then those that it ends with."""
        made = nn.Sequential()
        for step in steps:
            if isinstance(step, list):
                before, ends, paths = self.channels, [], Paths()
                for path in step:
                    self.channels = before
                    paths.append(self._path(path))
                    ends.append(self.channels)
                made.append(paths)
                self.channels = sum(ends)
            elif step == "max":
                made.append(nn.MaxPool2d(3, stride=2, padding=self._cropped(1)))
            elif step == "avg":
                made.append(nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False))
            else:
                made.append(self._convolution(*step))
        return made

    def _cropped(self, padding: int) -> int:
        return 0 if self.config.stem == "imagenet" else padding

    def _convolution(self, channels: int, kernel: int | tuple, stride: int = 1, padding: int | None = None):
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        same = tuple(side // 2 for side in sides)
        if stride > 1:
            padding = tuple(map(self._cropped, same))
        out = max(1, round(channels * self.config.width))
        made = nn.Conv2d(self.channels, out, sides, stride, same if padding is None else padding, bias=False)
        self.channels = out
        return nn.Sequential(made, nn.BatchNorm2d(out, eps=1e-3), nn.ReLU(inplace=True))

    def _module(self, paths: list, scale: float, activate: bool = True) -> nn.Module:
        before = self.channels
        made = self._path([paths])[0]
        if self.config.kind == "v4":
            return made
        inner, self.channels = self.channels, before
        return AddedPaths(made, inner, before, scale, self.config.residual, activate)

    def units(self) -> list[nn.Module]:
        """Modules and reductions from first to last."""
        return [layer for layer in self.features if isinstance(layer, Paths | AddedPaths)]

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).mean((2, 3)))


def _refuse_small(model: Inception, inputs: tuple[Tensor]) -> None:
    """Before the network's own code, so that its graph can be traced."""
    least, sides = model.config.least_side, tuple(inputs[0].shape[2:])
    if min(sides) < least:
        raise ValueError(
            f"pictures of {sides[0]}×{sides[1]} pixels are too small for the stem of Inception-{model.config.kind}: "
            f"each side must be at least {least}; resize them, or use stem='cifar'"
        )


def inception_v4_imagenet(**changes) -> Inception:
    return Inception(replace(InceptionConfig(), **changes))


def inception_resnet_v2_imagenet(**changes) -> Inception:
    return Inception(replace(InceptionConfig("resnet_v2", (10, 20, 9)), **changes))
