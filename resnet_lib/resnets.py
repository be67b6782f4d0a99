"""One `ResNet` from one config; named constructors for the ImageNet and CIFAR shapes."""

from dataclasses import dataclass, replace

from torch import Tensor, nn

from resnet_lib.blocks import BLOCKS, SHORTCUTS, PreActivationBlock, Unit, conv3x3, initialise, make_relu

STEMS = ("imagenet", "cifar")
NORMS = {"batch": nn.BatchNorm2d, "none": nn.Identity}


@dataclass(frozen=True)
class ResNetConfig:
    """The shape of a residual network and of its plain twin."""

    blocks: tuple[int, ...]  # units in each stage
    widths: tuple[int, ...]  # channels of each stage's 3×3 convolutions
    stem: str = "cifar"  # "imagenet": 7×7 stride 2 and 3×3 max-pool stride 2; "cifar": 3×3 stride 1
    block: str = "basic"  # a key of blocks.BLOCKS
    shortcut: str = "A"  # where dimensions differ: "A" zero-pads, "B" projects; "C" projects everywhere
    residual: bool = True  # False: the plain twin, without the additions
    norm: str = "batch"  # "batch" or "none"
    init: str = "he"  # "he" or "pytorch" (see blocks.initialise)
    zero_init_last_norm: bool = False  # start every branch at zero (Goyal et al. 2017, §5.1)
    negative_slope: float = 0.0  # of a LeakyReLU; 0 is ReLU
    groups: int = 1  # ResNeXt's cardinality
    width_per_group: int = 64  # inner channels per group at width 64
    in_channels: int = 3
    num_classes: int = 10

    def __post_init__(self):
        for name, allowed in (("stem", STEMS), ("block", BLOCKS), ("shortcut", SHORTCUTS), ("norm", NORMS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(map(repr, allowed))}")
        if self.init not in ("he", "pytorch"):
            raise ValueError(f"init={self.init!r} is not one of 'he', 'pytorch'")
        if len(self.blocks) != len(self.widths) or not self.blocks:
            raise ValueError(f"blocks={self.blocks} and widths={self.widths} must name the same stages, at least one")
        counts = {"in_channels": self.in_channels, "num_classes": self.num_classes, "groups": self.groups}
        counts["width_per_group"] = self.width_per_group
        counts |= {f"blocks[{i}]": n for i, n in enumerate(self.blocks)}
        counts |= {f"widths[{i}]": n for i, n in enumerate(self.widths)}
        for name, count in counts.items():
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"{name}={count!r} must be a whole number of at least 1")
        if self.zero_init_last_norm and self.norm == "none":
            raise ValueError("zero_init_last_norm=True needs norm='batch': there is no norm whose scale could be zero")
        if self.zero_init_last_norm and not self.residual:
            raise ValueError("zero_init_last_norm=True needs residual=True: a plain network would start as zero")
        if self.zero_init_last_norm and self.block == "preactivation":
            raise ValueError("zero_init_last_norm=True does not fit block='preactivation': its branch ends in a conv")

    @property
    def depth(self) -> int:
        """Layers with weights on the longest path, counted as in the paper: stem, convolutions, classifier."""
        return sum(self.blocks) * BLOCKS[self.block].convolutions + 2


class ResNet(nn.Module):
    """A residual network, or its plain twin.

    Shapes: images (N, in_channels, H, W) → logits (N, num_classes), for any H and W.
    Source: He et al. 2015, arXiv:1512.03385, table 1 (imagenet) and §4.2 (cifar).
    Departs: global average pooling is a mean, which is the same and takes any size of image.
    """

    def __init__(self, config: ResNetConfig):
        super().__init__()
        self.config = config
        block, norm = BLOCKS[config.block], NORMS[config.norm]
        pre_activated = not block.activate_sum
        bias = config.norm == "none"
        first = config.widths[0]
        if config.stem == "imagenet":
            self.conv1 = nn.Conv2d(config.in_channels, first, 7, stride=2, padding=3, bias=bias)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = conv3x3(config.in_channels, first, bias=bias)
            self.maxpool = nn.Identity()
        # A pre-activated unit begins with its own norm and activation; the network then ends with them.
        self.bn1 = norm(first) if not pre_activated else nn.Identity()
        self.relu = make_relu(config.negative_slope, inplace=True) if not pre_activated else nn.Identity()
        channels = first
        for stage, (count, width) in enumerate(zip(config.blocks, config.widths, strict=True)):
            units = []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                unit = block(
                    channels,
                    width,
                    stride,
                    norm=norm,
                    shortcut=config.shortcut,
                    residual=config.residual,
                    groups=config.groups,
                    width_per_group=config.width_per_group,
                    negative_slope=config.negative_slope,
                )
                units.append(unit)
                channels = unit.out_channels
            self.add_module(f"layer{stage + 1}", nn.Sequential(*units))
        self.final = nn.Identity()
        if pre_activated:
            last = norm(channels) if block is PreActivationBlock else nn.Identity()
            self.final = nn.Sequential(last, make_relu(config.negative_slope, inplace=False))
        self.fc = nn.Linear(channels, config.num_classes)
        initialise(self, config.init)
        if config.zero_init_last_norm:
            for unit in self.units():
                nn.init.zeros_(unit.last_norm().weight)

    def units(self) -> list[Unit]:
        """The residual units from first to last."""
        return [module for module in self.modules() if isinstance(module, Unit)]

    def features(self, images: Tensor) -> Tensor:
        """Everything before the pooling: (N, C, H, W) → (N, C', H', W')."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in range(len(self.config.blocks)):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.final(x)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features(images).mean((2, 3)))


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def resnet_cifar(depth: int, **changes) -> ResNet:
    """The CIFAR ResNet of a given depth: three stages of n units, widths 16, 32, 64, shortcut A.

    Raises: ValueError where the depth fits no whole n: 6n + 2 with two convolutions a unit, 9n + 2 with three.
    Source: He et al. 2015, §4.2.
    """
    return ResNet(cifar_config(depth, **changes))


def cifar_config(depth: int, **changes) -> ResNetConfig:
    block = changes.get("block", "basic")
    if block not in BLOCKS:
        raise ValueError(f"block={block!r} is not one of {', '.join(map(repr, BLOCKS))}")
    per_n = 3 * BLOCKS[block].convolutions
    n = (depth - 2) // per_n
    if n < 1 or (depth - 2) % per_n:
        near = sorted({per_n * max(1, n) + 2, per_n * (max(0, n) + 1) + 2})
        raise ValueError(
            f"depth={depth} fits no CIFAR ResNet of {block!r} units: it must be {per_n}n + 2 with n of at least 1; "
            f"nearest: {' or '.join(map(str, near))}"
        )
    return replace(ResNetConfig(blocks=(n, n, n), widths=(16, 32, 64)), **changes)


def resnet20_cifar(**changes) -> ResNet:
    return resnet_cifar(20, **changes)


def resnet18_cifar(**changes) -> ResNet:
    """ResNet-18 with a 3×3 stem, for 32×32 images. Departs: not in the paper; the common CIFAR variant."""
    return _imagenet("basic", (2, 2, 2, 2), **({"stem": "cifar", "num_classes": 10} | changes))


def _imagenet(block: str, blocks: tuple[int, ...], **changes) -> ResNet:
    config = ResNetConfig(blocks, (64, 128, 256, 512), stem="imagenet", block=block, shortcut="B", num_classes=1000)
    return ResNet(replace(config, **changes))


def resnet18_imagenet(**changes) -> ResNet:
    return _imagenet("basic", (2, 2, 2, 2), **changes)


def resnet34_imagenet(**changes) -> ResNet:
    return _imagenet("basic", (3, 4, 6, 3), **changes)


def resnet50_imagenet(**changes) -> ResNet:
    return _imagenet("bottleneck", (3, 4, 6, 3), **changes)


def resnet101_imagenet(**changes) -> ResNet:
    return _imagenet("bottleneck", (3, 4, 23, 3), **changes)


def resnet152_imagenet(**changes) -> ResNet:
    return _imagenet("bottleneck", (3, 8, 36, 3), **changes)


def wide_resnet50_2_imagenet(**changes) -> ResNet:
    """ResNet-50 with twice the inner width: 2048-1024-2048 instead of 2048-512-2048 in the last stage."""
    return _imagenet("bottleneck", (3, 4, 6, 3), **({"width_per_group": 128} | changes))


def resnext50_32x4d_imagenet(**changes) -> ResNet:
    """ResNet-50 with 32 groups of 4 channels (at width 64) in each 3×3 convolution."""
    return _imagenet("bottleneck", (3, 4, 6, 3), **({"groups": 32, "width_per_group": 4} | changes))


def resnext101_32x8d_imagenet(**changes) -> ResNet:
    """ResNet-101 with 32 groups of 8 channels (at width 64) in each 3×3 convolution."""
    return _imagenet("bottleneck", (3, 4, 23, 3), **({"groups": 32, "width_per_group": 8} | changes))
