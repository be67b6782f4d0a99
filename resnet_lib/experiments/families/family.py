"""Who is built on residual addition? Additions and concatenations between branches, counted in each network's graph."""

from operator import add, iadd

import torch
from torch import nn

from resnet_lib import page, plots, stats
from resnet_lib.experiments.families.networks import IMAGENET, counted, published
from resnet_lib.study import Experiment

NETWORKS = {  # the survey's word → the network that stands for it; the last two are no part of its list
    "resnet": "resnet50",
    "resnext": "resnext50_32x4d",
    "inception_v4": "inception_v4",
    "densenet": "densenet121",
    "inception_resnet_v2": "inception_resnet_v2",
    "densenet169": "densenet169",
}
NAMES = IMAGENET | {"densenet169": "DenseNet-169"}
SIDES = {"inception_v4": 299, "inception_resnet_v2": 299}  # of the pictures; the others' is 224
KINDS = {
    "additions": "an input added to what was made of it",
    "dense": "an input set beside what was made of it",
    "siblings": "results of one input set side by side",
}


def joins(model: nn.Module) -> dict[str, int]:
    """How often a graph adds a value to what was computed from it, and how often it concatenates.

    On its way the value may be projected: convolved and normalised, without a non-linearity. That is how a residual unit
    adds its input where the dimensions change, and there neither summand was computed from the other.

    Returns: additions; dense, concatenations of a value with what was computed from it; siblings, other concatenations.
    """
    traced = torch.fx.symbolic_trace(model)
    modules, ancestors, counts = dict(traced.named_modules()), {}, dict.fromkeys(KINDS, 0)

    def before_projection(node):
        while isinstance(modules.get(node.target), nn.Conv2d | nn.BatchNorm2d | nn.Identity):
            node = node.all_input_nodes[0]
        return node

    def one_made_the_other(nodes) -> bool:
        return any(before_projection(a) in ancestors[b] for a in nodes for b in nodes if a is not b)

    for node in traced.graph.nodes:
        inputs = node.all_input_nodes
        ancestors[node] = set(inputs).union(*(ancestors[n] for n in inputs))
        if len(inputs) < 2:
            continue
        if node.target in (add, iadd, torch.add, "add", "add_"):
            counts["additions"] += one_made_the_other(inputs)
        elif node.target is torch.cat:
            counts["dense" if one_made_the_other(inputs) else "siblings"] += 1
    return counts


def family(s, network: str) -> list[dict]:
    side = SIDES.get(network, 224)
    with torch.device("meta"):  # shapes only: no weights are drawn
        model = published(NETWORKS[network]).eval()
        return [{"units": len(model.units())} | joins(model) | counted(model, torch.empty(1, 3, side, side))]


def estimates(rows, s):
    """1 where a network adds some input to its output, else 0; and how many units add, of those that there are."""
    found = {r["network"]: stats.exact(float(r["additions"] > 0)) for r in rows}
    of = {r["network"]: r for r in rows}
    return found | {
        "resnet_units_without_addition": stats.exact(of["resnet"]["units"] - of["resnet"]["additions"], "units")
    }


def finding(rows, s, e):
    named = lambda r: NAMES[NETWORKS[r["network"]]]  # noqa: E731
    some = page.listed([f"{named(r)} adds {r['additions']} times" for r in rows if r["additions"]])
    none = page.listed([named(r) for r in rows if not r["additions"]])
    dense = page.listed([f"{named(r)} {r['dense']} times" for r in rows if r["dense"]])
    return (
        f"An input is added to what was made of it: {some}. {none} never add. Instead an input is set beside what was made "
        f"of it, by concatenation: {dense}. Concatenating results of one input, as Inception does, is no skip at all."
    )


def table(rows, s):
    shown = [r | {"name": NAMES[NETWORKS[r["network"]]], "gmac": r["madds"] / 1e9} for r in rows]
    columns = {"name": "network", "additions": "additions of an input", "dense": "concatenations of an input"}
    columns |= {"siblings": "concatenations of siblings", "parameters": ("parameters", ",")}
    return page.table(shown, columns | {"gmac": ("billions of multiply-adds", ".3f")})


def draw(rows, s):
    colours = dict(zip(KINDS, (plots.BLUE, plots.ORANGE, plots.SKY), strict=True))
    with plots.figure(height=3.4) as (fig, ax):
        left = [0] * len(rows)
        for kind, words in KINDS.items():
            ax.barh(range(len(rows)), [r[kind] for r in rows], left=left, color=colours[kind], label=words)
            left = [a + r[kind] for a, r in zip(left, rows, strict=True)]
        ax.set_yticks(range(len(rows)), [NAMES[NETWORKS[r["network"]]] for r in rows])
        ax.set_xlabel("joins in the graph")
        ax.invert_yaxis()
        ax.set_axisbelow(True)
        fig.legend(loc="outside upper center", fontsize=10)
    adding = page.listed([NAMES[NETWORKS[r["network"]]] for r in rows if r["additions"]])
    return f"Of these networks, {adding} add an input to what was made of it; the others join by concatenation alone."


FAMILY = Experiment(
    "family",
    run=family,
    conditions=lambda s: [{"network": network} for network in NETWORKS],
    estimates=estimates,
    finding=finding,
    figure=draw,
    alt="Horizontal bars for six ImageNet networks: how many joins of each kind its graph has. Additions, concatenations of "
    "an input with what was made of it, and concatenations of siblings have a colour each.",
    table=table,
)
