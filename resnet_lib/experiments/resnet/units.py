"""The survey's blocks to the letter, and what can be read from a unit's graph: the order of its operations."""

import copy
from collections.abc import Callable
from operator import add, iadd
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import nn

from resnet_lib import blocks, page, resnets, stats, train
from resnet_lib.study import Experiment

SLOPE = 0.01  # PyTorch's default for LeakyReLU; the survey gives none
BASIC = ("resnet18", "resnet34")
BOTTLENECKS = ("resnet50", "resnet101", "resnet152")
VARIANTS = ("wide_resnet50_2", "resnext50_32x4d")


def survey_formula(x: torch.Tensor, unit: blocks.Unit) -> torch.Tensor:
    """Z = X + BN(LeakyReLU(Conv2(BN(LeakyReLU(Conv1(X))))))."""
    inner = unit.bn1(F.leaky_relu(unit.conv1(x), SLOPE))
    return x + unit.bn2(F.leaky_relu(unit.conv2(inner), SLOPE))


def survey_words(x: torch.Tensor, unit: blocks.Unit) -> torch.Tensor:
    """… plus the input, then LeakyReLU."""
    return F.leaky_relu(survey_formula(x, unit), SLOPE)


def survey_formula2(x: torch.Tensor, unit: blocks.Unit) -> torch.Tensor:
    """Y = BN(Conv(BN(ReLU(Conv(BN(ReLU(Conv(BN(ReLU(X))))))))) + X."""
    first = unit.conv1(unit.bn1(F.relu(x)))
    second = unit.conv2(unit.bn2(F.relu(first)))
    return unit.bn4(unit.conv3(unit.bn3(F.relu(second)))) + x


class PreActivationBottleneck(blocks.Unit):
    """x + conv1(relu(BN(conv3(relu(BN(conv1(relu(BN(x)))))))), kernels 1, 3, 1; four times as wide outside.

    Source: He et al. 2016, arXiv:1603.05027, figure 1(b) and §5.
    """

    expansion = 4
    convolutions = 3
    activate_sum = False

    def build(self, width, stride, groups, width_per_group):
        self.bn1 = self.norm(self.in_channels)
        self.conv1 = blocks.conv1x1(self.in_channels, width, bias=self.bias)
        self.bn2 = self.norm(width)
        self.conv2 = blocks.conv3x3(width, width, stride, bias=self.bias)
        self.bn3 = self.norm(width)
        self.conv3 = blocks.conv1x1(width, self.out_channels, bias=self.bias)

    def branch(self, x):
        x = self.conv1(self.relu_first(self.bn1(x)))
        x = self.conv2(self.relu(self.bn2(x)))
        return self.conv3(self.relu(self.bn3(x)))


def operations(unit: nn.Module) -> list[str]:
    """The kinds of a unit's operations in the order of its graph; the shortcut's own are left out."""
    kinds = []
    for node in torch.fx.symbolic_trace(unit).graph.nodes:
        if node.op == "call_module" and not node.target.startswith("downsample"):
            layer = unit.get_submodule(node.target)
            size = layer.kernel_size[0] if isinstance(layer, nn.Conv2d) else ""
            kinds.append(f"{type(layer).__name__}{size}")
        elif node.target in (add, iadd, torch.add, "add_"):
            kinds.append("add")
    return kinds


def scrambled(unit: nn.Module) -> nn.Module:
    """The unit with norms that do something: fresh norms multiply by one and add zero."""
    for name, p in unit.named_parameters():
        if name.startswith("bn"):
            nn.init.normal_(p, mean=0.5)
    return unit


def difference(ours: Callable, theirs: Callable) -> float:
    """Largest absolute difference of two functions of one batch."""
    x = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return (ours(x) - theirs(x)).abs().max().item()


def survey_units() -> dict[str, blocks.Unit]:
    """The library's units of the survey's words, its first and its second formula, with norms that do something."""
    with train.seeded(0):
        words = scrambled(blocks.SurveyBlock(16, 16, negative_slope=SLOPE))
        formula2 = scrambled(blocks.SurveyPreActivationBlock(16, 16))
    formula = copy.deepcopy(words)
    formula.activate_sum = False  # the library's switch for what follows the addition
    return {"words": words, "formula": formula, "formula2": formula2}


def built_as_written() -> dict[str, float]:
    """How far each unit is from its formula, and the words from the first formula."""
    made = survey_units()
    return {
        "formula": difference(made["formula"], lambda x: survey_formula(x, made["formula"])),
        "built_words": difference(made["words"], lambda x: survey_words(x, made["words"])),
        "words": difference(made["words"], lambda x: survey_formula(x, made["words"])),
        "formula2": difference(made["formula2"], lambda x: survey_formula2(x, made["formula2"])),
    }


def orders() -> dict[str, list[str]]:
    """The operations of each form of the unit, in their order."""
    import torchvision

    made = survey_units()
    return {
        "original": operations(torchvision.models.resnet.BasicBlock(16, 16)),
        "library's original": operations(blocks.BasicBlock(16, 16)),
        "survey, words": operations(made["words"]),
        "survey, formula": operations(made["formula"]),
        "pre-activation bottleneck": operations(PreActivationBottleneck(64, 16)),
        "survey, second formula": operations(made["formula2"]),
    }


def census(s, network: str) -> list[dict]:
    """What the blocks of an ImageNet network have in common, as shares of its blocks."""
    with torch.device("meta"):
        units = getattr(resnets, f"{network}_imagenet")().units()
    kinds = [operations(unit) for unit in units]
    convolutions = [sum(kind.startswith("Conv2d") for kind in of_unit) for of_unit in kinds]
    two = [c == 2 and k.count("add") == 1 for c, k in zip(convolutions, kinds, strict=True)]
    changes = [unit.out_channels - unit.in_channels for unit in units]
    row = {"units": len(units), "most_convolutions": max(convolutions), "two_convolutions": fmean(two)}
    row |= {"narrowing": fmean(c < 0 for c in changes), "equal": fmean(c == 0 for c in changes)}
    return [row | {"widening": fmean(c > 0 for c in changes)}]


def share(rows, names, column):
    """A share over the blocks of several networks together."""
    own = [r for r in rows if r["network"] in names]
    return stats.exact(sum(r[column] * r["units"] for r in own) / sum(r["units"] for r in own), "share")


def estimates(rows, s):
    return {
        "two_convolutions_basic": share(rows, BASIC, "two_convolutions"),
        "two_convolutions_bottleneck": share(rows, BOTTLENECKS + VARIANTS, "two_convolutions"),
        "narrowing_basic": share(rows, BASIC, "narrowing"),
        "narrowing_bottleneck": share(rows, BOTTLENECKS, "narrowing"),
        "widening_bottleneck": share(rows, BOTTLENECKS, "widening"),
    }


def finding(rows, s, e):
    narrow = e["narrowing_basic"].mean, e["narrowing_bottleneck"].mean
    fewer = (
        f"Fewer channels out than in have {narrow[0]:.0%} of the basic blocks and {narrow[1]:.0%} of the bottlenecks"
        if any(narrow)
        else "No block puts out fewer channels than it takes in"
    )
    return (
        f"Two convolutions and one addition are {e['two_convolutions_basic'].mean:.0%} of the basic blocks and "
        f"{e['two_convolutions_bottleneck'].mean:.0%} of the bottlenecks. {fewer}. "
        "Inside a bottleneck the 1×1 convolution narrows before the 3×3 one, and a last 1×1 convolution widens again."
    )


def table(rows, s):
    columns = {"network": "network", "units": "blocks", "two_convolutions": ("two convolutions, one addition", ".0%")}
    shares = {"narrowing": ("fewer channels out", ".0%"), "equal": ("as many", ".0%"), "widening": ("more", ".0%")}
    return page.table(rows, columns | shares)


BLOCKS = Experiment(
    "blocks",
    run=census,
    conditions=lambda s: [{"network": name} for name in BASIC + BOTTLENECKS + VARIANTS],
    estimates=estimates,
    finding=finding,
    table=table,
)
