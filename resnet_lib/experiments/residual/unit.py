"""What a residual unit adds up: it equals its equation, and one of its summands comes out of no convolution."""

from operator import add, iadd

import torch
import torch.nn.functional as F
from torch import nn

from resnet_lib import blocks, page, resnets, stats, train
from resnet_lib.study import Experiment


def equation(x: torch.Tensor, unit: blocks.BasicBlock) -> torch.Tensor:
    """relu(x + F(x)) for equal dimensions, from the unit's weights, in training mode; (N, C, H, W) → the same.

    Source: He et al. 2015, arXiv:1512.03385, equation (1) and figure 2.
    """

    def norm(x: torch.Tensor) -> torch.Tensor:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        return (x - mean) / (variance + unit.bn1.eps).sqrt()

    inner = F.relu(norm(F.conv2d(x, unit.conv1.weight, padding=1)))
    return F.relu(x + norm(F.conv2d(inner, unit.conv2.weight, padding=1)))


def summands(unit: nn.Module) -> dict[str, int]:
    """The operands of a unit's additions, by whether a convolution lies on the way to them."""
    graph, convolved, found = torch.fx.symbolic_trace(unit).graph, {}, []
    for node in graph.nodes:
        inputs = node.all_input_nodes
        is_convolution = isinstance(dict(unit.named_modules()).get(node.target), nn.Conv2d)
        convolved[node] = is_convolution or any(convolved[n] for n in inputs)
        if node.target in (add, iadd, torch.add, "add", "add_"):
            found += [convolved[n] for n in inputs]
    return {"convolved": sum(found), "untouched": len(found) - sum(found)}


def unit(s, kind: str) -> list[dict]:
    """A fresh unit of 16 channels, or its plain twin: its summands, its size, its distance from the equation."""
    with train.seeded(0):
        made = blocks.BasicBlock(16, 16, residual=kind == "residual")
    x = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = (made(x) - equation(x, made)).abs().max().item()
    return [{"parameters": resnets.count_parameters(made), "difference": difference, **summands(made)}]


def estimates(rows, s):
    residual = next(row for row in rows if row["kind"] == "residual")
    return {
        "equals_equation": stats.exact(residual["difference"]),
        "terms_without_convolution": stats.exact(residual["untouched"], "summands"),
    }


def finding(rows, s, e):
    of = {row["kind"]: row for row in rows}
    sizes = [f"{of[kind]['parameters']:,}" for kind in ("residual", "plain")]
    return (
        f"The unit differs from its equation by {of['residual']['difference']:.0e}, which is rounding. "
        f"Of its {of['residual']['convolved'] + of['residual']['untouched']} summands "
        f"{of['residual']['untouched']} comes out of no convolution: the input itself. "
        f"The unit and its plain twin have {' and '.join(dict.fromkeys(sizes))} parameters"
        f"{' each' if len(set(sizes)) == 1 else ''}."
    )


def table(rows, s):
    columns = {
        "kind": "unit",
        "parameters": ("parameters", ","),
        "convolved": "summands that come out of a convolution",
    }
    return page.table(rows, columns | {"untouched": "summands that come out of none"})


UNIT = Experiment(
    "unit",
    run=unit,
    conditions=lambda s: [{"kind": kind} for kind in ("residual", "plain")],
    estimates=estimates,
    finding=finding,
    table=table,
)
