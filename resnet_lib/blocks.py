"""Residual units and their plain twins.

Every unit computes `activation(shortcut(x) + branch(x))` or, pre-activated, `shortcut(x) + branch(x)`.
Its plain twin (`residual=False`) is the same unit without the shortcut, so the two differ in one addition.
Attribute names (`conv1`, `bn1`, `downsample`, …) are torchvision's, so that its weights load unchanged.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHORTCUTS = ("A", "B", "C")


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, groups=groups, bias=bias)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=bias)


def make_relu(negative_slope: float, inplace: bool) -> nn.Module:
    return nn.LeakyReLU(negative_slope, inplace) if negative_slope else nn.ReLU(inplace)


class PadShortcut(nn.Module):
    """Shortcut A: take every `stride`-th pixel and fill the new channels with zeros; no parameters.

    Source: He et al. 2015, arXiv:1512.03385, §3.3 and §4.2.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride, self.new_channels = stride, out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.new_channels))


def make_shortcut(kind: str, in_channels: int, out_channels: int, stride: int, norm: Callable) -> nn.Module:
    """The shortcut of a unit; an `nn.Identity` wherever `kind` adds nothing.

    Args:
        kind: "A" pads with zeros where the dimensions differ, "B" projects there, "C" projects everywhere.
    Source: He et al. 2015, §4.1, "Identity vs. Projection Shortcuts".
    """
    same = stride == 1 and in_channels == out_channels
    if same and kind != "C":
        return nn.Identity()
    if kind == "A":
        if out_channels < in_channels:
            raise ValueError(
                f"shortcut A can only add channels, not go from {in_channels} to {out_channels}; use 'B' or 'C'"
            )
        return PadShortcut(in_channels, out_channels, stride)
    bias = norm is nn.Identity
    return nn.Sequential(conv1x1(in_channels, out_channels, stride, bias=bias), norm(out_channels))


class Unit(nn.Module):
    """What all units share: the shortcut, and a `branch` that each subclass defines.

    Shapes: (N, in_channels, H, W) → (N, width · expansion, ⌈H/stride⌉, ⌈W/stride⌉).
    """

    expansion = 1  # out_channels / width
    convolutions = 2  # convolutions in the branch
    activate_sum = True  # an activation follows the addition
    add_in_place = True  # saves a pass over memory; no good after a ReLU, whose backward needs its output

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int = 1,
        *,
        norm: Callable = nn.BatchNorm2d,
        shortcut: str = "B",
        residual: bool = True,
        groups: int = 1,
        width_per_group: int = 64,
        negative_slope: float = 0.0,
    ):
        if shortcut not in SHORTCUTS:
            raise ValueError(f"shortcut={shortcut!r} is not one of {', '.join(SHORTCUTS)}")
        super().__init__()
        self.in_channels, self.out_channels, self.stride = in_channels, width * self.expansion, stride
        self.norm, self.bias = norm, norm is nn.Identity  # a convolution needs its own bias where no norm follows
        self.residual = residual
        self.relu = make_relu(negative_slope, inplace=True)
        self.relu_first = make_relu(negative_slope, inplace=False)  # on x itself, which the shortcut still needs
        self.build(width, stride, groups, width_per_group)
        if residual:
            self.downsample = make_shortcut(shortcut, in_channels, self.out_channels, stride, norm)

    def build(self, width: int, stride: int, groups: int, width_per_group: int) -> None:
        raise NotImplementedError

    def branch(self, x: Tensor) -> Tensor:
        """F(x), what the unit adds to its shortcut."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        if self.residual:
            shortcut = self.downsample(x)
            out = out.add_(shortcut) if self.add_in_place else out + shortcut
        return self.relu(out) if self.activate_sum else out

    def last_norm(self) -> nn.Module | None:
        """The norm whose scale of zero makes the branch zero, or None where the branch ends in a convolution."""
        return None


def _refuse_groups(unit: Unit, groups: int, width_per_group: int) -> None:
    if groups != 1 or width_per_group != 64:
        raise ValueError(
            f"{type(unit).__name__} has no grouped form (groups={groups}, width_per_group={width_per_group}); "
            "use block='bottleneck'"
        )


class BasicBlock(Unit):
    """The original unit: relu(x + BN(conv(relu(BN(conv(x)))))).

    Source: He et al. 2015, arXiv:1512.03385, figure 2 and equation (1).
    """

    def build(self, width, stride, groups, width_per_group):
        _refuse_groups(self, groups, width_per_group)
        self.conv1 = conv3x3(self.in_channels, width, stride, bias=self.bias)
        self.bn1 = self.norm(width)
        self.conv2 = conv3x3(width, width, bias=self.bias)
        self.bn2 = self.norm(width)

    def branch(self, x):
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))

    def last_norm(self):
        return self.bn2


class Bottleneck(Unit):
    """1×1 down, 3×3 (grouped in ResNeXt), 1×1 up by four.

    Source: He et al. 2015, figure 5; grouped: Xie et al. 2017, arXiv:1611.05431; wide: arXiv:1605.07146.
    Departs: the stride sits on the 3×3 convolution, as in torchvision (V1.5), not on the first 1×1.
    """

    expansion = 4
    convolutions = 3

    def build(self, width, stride, groups, width_per_group):
        inner = width * width_per_group // 64 * groups
        if inner < 1:
            raise ValueError(f"width_per_group={width_per_group} leaves no channel a group at width {width}")
        self.conv1 = conv1x1(self.in_channels, inner, bias=self.bias)
        self.bn1 = self.norm(inner)
        self.conv2 = conv3x3(inner, inner, stride, groups, bias=self.bias)
        self.bn2 = self.norm(inner)
        self.conv3 = conv1x1(inner, self.out_channels, bias=self.bias)
        self.bn3 = self.norm(self.out_channels)

    def branch(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(out))

    def last_norm(self):
        return self.bn3


class PreActivationBlock(Unit):
    """x + conv(relu(BN(conv(relu(BN(x)))))): nothing follows the addition.

    Source: He et al. 2016, arXiv:1603.05027, figure 1(b).
    """

    activate_sum = False

    def build(self, width, stride, groups, width_per_group):
        _refuse_groups(self, groups, width_per_group)
        self.bn1 = self.norm(self.in_channels)
        self.conv1 = conv3x3(self.in_channels, width, stride, bias=self.bias)
        self.bn2 = self.norm(width)
        self.conv2 = conv3x3(width, width, bias=self.bias)

    def branch(self, x):
        return self.conv2(self.relu(self.bn2(self.conv1(self.relu_first(self.bn1(x))))))


class SurveyBlock(Unit):
    """The survey's block in its words: LeakyReLU(x + BN(LeakyReLU(conv(BN(LeakyReLU(conv(x))))))).

    Its first formula is the same without the last activation.
    Departs: from He et al., each activation comes before its norm, so the branch ends in a norm of an activation.
    """

    add_in_place = False

    def build(self, width, stride, groups, width_per_group):
        _refuse_groups(self, groups, width_per_group)
        self.conv1 = conv3x3(self.in_channels, width, stride, bias=self.bias)
        self.bn1 = self.norm(width)
        self.conv2 = conv3x3(width, width, bias=self.bias)
        self.bn2 = self.norm(width)
        self.relu = self.relu_first  # in place, the plain unit's last one without a norm would overwrite the one before

    def branch(self, x):
        return self.bn2(self.relu(self.conv2(self.bn1(self.relu(self.conv1(x))))))

    def last_norm(self):
        return self.bn2


class SurveyPreActivationBlock(Unit):
    """The survey's second formula: x + BN(conv(BN(relu(conv(BN(relu(conv(BN(relu(x))))))))).

    Three convolutions, pre-activated, with a norm after the last one.
    """

    convolutions = 3
    activate_sum = False

    def build(self, width, stride, groups, width_per_group):
        _refuse_groups(self, groups, width_per_group)
        self.bn1 = self.norm(self.in_channels)
        self.conv1 = conv3x3(self.in_channels, width, stride, bias=self.bias)
        self.bn2 = self.norm(width)
        self.conv2 = conv3x3(width, width, bias=self.bias)
        self.bn3 = self.norm(width)
        self.conv3 = conv3x3(width, width, bias=self.bias)
        self.bn4 = self.norm(width)

    def branch(self, x):
        out = self.conv1(self.bn1(self.relu_first(x)))
        out = self.conv2(self.bn2(self.relu(out)))
        return self.bn4(self.conv3(self.bn3(self.relu(out))))

    def last_norm(self):
        return self.bn4


BLOCKS: dict[str, type[Unit]] = {
    "basic": BasicBlock,
    "bottleneck": Bottleneck,
    "preactivation": PreActivationBlock,
    "survey": SurveyBlock,
    "survey_preactivation": SurveyPreActivationBlock,
}


def initialise(module: nn.Module, scheme: str) -> None:
    """Draw new weights for every convolution of `module`, in place, from torch's global generator.

    Args:
        scheme: "he" is normal with variance 2 / fan-out (He et al. 2015, arXiv:1502.01852, equation 14), as in
            torchvision's ResNets; "pytorch" keeps what the layers drew when they were made: uniform with
            variance 1 / (3 · fan-in), six times too small for ReLU layers to keep their signal. Linear layers
            keep what they drew under both, as in torchvision.
    """
    if scheme == "pytorch":
        return
    if scheme != "he":
        raise ValueError(f"init={scheme!r} is not one of 'he', 'pytorch'")
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
