"""What is a skip between different sizes? Every join in the graphs of four networks."""

from operator import add, iadd

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.fx.passes.shape_prop import ShapeProp

from resnet_lib import page, plots, stats, unet
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions


class Pyramid(nn.Module):
    """ResNet-18 with torchvision's feature pyramid on its four stages."""

    def __init__(self):
        super().__init__()
        self.body = torchvision.models.resnet18()
        self.pyramid = torchvision.ops.FeaturePyramidNetwork([64, 128, 256, 512], 256)

    def forward(self, x):
        x, maps = self.body.maxpool(self.body.relu(self.body.bn1(self.body.conv1(x)))), {}
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = maps[name] = getattr(self.body, name)(x)
        return self.pyramid(maps)


def original_unet():
    return unet.UNet(unet.UNetConfig((64, 128, 256, 512, 1024)))


NETWORKS = {
    "ResNet-18": torchvision.models.resnet18,
    "DenseNet-121": torchvision.models.densenet121,
    "U-Net": original_unet,
    "FPN on ResNet-18": Pyramid,
}
BACKBONE, PYRAMID = "ResNet-18", "FPN on ResNet-18"
NONLINEAR = (nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU)
NONLINEAR_CALLS = (F.relu, torch.relu, torch.sigmoid, torch.tanh, F.gelu, F.silu)


def size(node):
    """Height and width of what a traced node returns, or None if that is no map."""
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape[2:]) if len(getattr(meta, "shape", ())) == 4 else None


def joins_in(model: nn.Module, picture: tuple = (1, 3, 224, 224)) -> list[dict]:
    """A row for each join of maps with a common origin; the network and the picture are on the meta device."""
    traced = torch.fx.symbolic_trace(model)
    ShapeProp(traced).propagate(torch.zeros(*picture, device="meta"))
    modules, order, known, rows = dict(traced.named_modules()), {}, {}, []
    for number, node in enumerate(traced.graph.nodes):
        order[node] = number
        known[node] = {node}.union(*(known[n] for n in node.all_input_nodes))
        maps = [n for n in node.all_input_nodes if size(n)]
        kind = "add" if node.target in (add, iadd, torch.add) else "concatenate"
        if len(maps) < 2 or (kind == "concatenate" and node.target is not torch.cat):
            continue
        origin = max(set.intersection(*(known[n] for n in maps)), key=order.get)
        row = {"kind": kind, "other_size": size(origin) != size(node)}
        row["direct"] = len({size(n) for n in maps}) > 1
        follows = [isinstance(modules.get(n.target), NONLINEAR) or n.target in NONLINEAR_CALLS for n in node.users]
        rows.append(row | {"nonlinear": any(follows)})
    return rows


def joins(s, network: str) -> list[dict]:
    """The joins of one network; shapes only, so no weights are drawn."""
    with torch.device("meta"):
        return joins_in(NETWORKS[network]())


def estimates(rows, s):
    """Networks with a skip that began at another size, joins of different sizes, and joins straight into an activation.

    The pyramid's backbone is a network of its own here, so its joins count once.
    """
    counted = [row for row in without_backbone(by_network(rows)) if row["network"] != PYRAMID]
    total = {name: sum(row[name] for row in counted) for name in ("joins", "direct", "nonlinear")}
    return {
        "networks_of_different_sizes": stats.exact(sum(row["other_size"] > 0 for row in counted), "networks"),
        "direct": stats.exact(total["direct"], "joins"),
        "nonlinearity_share": stats.exact(total["nonlinear"] / total["joins"], "share"),
    }


def finding(rows, s, e):
    counted = by_network(rows)
    other, nonlinear = (
        page.listed([f"{row[asked]} of {row['joins']} in {row['network']}" for row in counted if row[asked]])
        for asked in ("other_size", "nonlinear")
    )
    direct = f"{e['direct'].mean:.0f} joins take" if e["direct"].mean else "No join takes"
    return (
        f"{direct} maps of different sizes as they are: sizes are matched first. Joins whose skip began at another size: "
        f"{other}. Joins whose result goes straight into a non-linearity: {nonlinear}. The pyramid's counts hold its backbone's, which is "
        "a ResNet-18; the table shows what the pyramid adds."
    )


ASKED = {
    "other_size": "origin of another size",
    "direct": "operands of different sizes",
    "nonlinear": "straight into a non-linearity",
}


def by_network(rows):
    """For each network how many joins it has, and of how many each question is answered with yes."""
    found = []
    for name in dict.fromkeys(r["network"] for r in rows):
        own = [r for r in rows if r["network"] == name]
        row = {"network": name, "joins": len(own), "kinds": ", ".join(sorted({r["kind"] for r in own}))}
        found.append(row | {k: sum(r[k] for r in own) for k in ASKED})
    return found


def without_backbone(counted):
    """By network, with the pyramid's own joins in a row of their own: all of it, less those of its backbone."""
    of = {row["network"]: row for row in counted}
    if not {BACKBONE, PYRAMID} <= set(of):
        return counted
    whole, body = of[PYRAMID], of[BACKBONE]
    own = {name: whole[name] - body[name] for name in ("joins", *ASKED)}
    return [*counted, whole | own | {"network": "of these the pyramid's own"}]


def table(rows, s):
    headings = {"network": "network", "kinds": "joins by", "joins": "joins"}
    return page.table(without_backbone(by_network(rows)), headings | ASKED)


def draw(rows, s):
    counted = by_network(rows)
    with plots.figure(height=2.8) as (_, ax):
        for place, (column, name) in enumerate(ASKED.items()):
            at = [k + 0.26 * (place - 1) for k in range(len(counted))]
            shares = [row[column] / row["joins"] for row in counted]
            ax.barh(at, shares, height=0.24, color=plots.PALETTE[place], label=name)
            for y, row, share in zip(at, counted, shares, strict=True):
                ax.text(share + 0.01, y, str(row[column]), va="center", fontsize=9)
        ax.set_yticks(range(len(counted)), [f"{row['network']}\n{row['joins']} joins" for row in counted], fontsize=10)
        ax.set(xlabel="share of the network's joins, %", xlim=(0, 1.05), ylim=(len(counted) - 0.5, -0.5))
        plots.hundredths(ax.xaxis)
        ax.legend(loc="lower center", bbox_to_anchor=(0.4, 1), fontsize=10, ncols=2)
    direct = "Some joins take" if any(row["direct"] for row in counted) else "No join takes"
    return (
        f"{direct} maps of different sizes, and only an addition in a ResNet goes straight into a non-linearity. "
        "Numbers are joins; the pyramid's hold its backbone's, a ResNet-18's."
        if {row["network"] for row in counted if row["nonlinear"]} <= {BACKBONE, PYRAMID}
        else f"{direct} maps of different sizes. Numbers are joins; the pyramid's hold its backbone's, a ResNet-18's."
    )


JOINS = Experiment(
    "joins",
    run=joins,
    conditions=lambda s: conditions(network=list(NETWORKS)),
    estimates=estimates,
    finding=finding,
    figure=draw,
    alt="For each of four networks three bars: the share of its joins whose origin has another size, whose operands differ "
    "in size, and whose result goes straight into a non-linearity. No operands differ in size.",
    table=table,
)
