"""Who is of the family? Additions of an input to its output, and concatenations, counted in the networks' graphs."""

from operator import add, iadd

import torch
from torch import nn

from resnet_lib import families, page, resnets, stats
from resnet_lib.study import Experiment

NETWORKS = {  # key → name and constructor
    "resnet": ("ResNet-50", resnets.resnet50_imagenet),
    "resnext": ("ResNeXt-50", resnets.resnext50_32x4d_imagenet),
    "resnext101": ("ResNeXt-101", resnets.resnext101_32x8d_imagenet),
    "densenet": ("DenseNet-121", families.densenet121_imagenet),
    "densenet169": ("DenseNet-169", families.densenet169_imagenet),
    "inception_v4": ("Inception-v4", families.inception_v4_imagenet),
    "inception_resnet": ("Inception-ResNet-v2", families.inception_resnet_v2_imagenet),
}


ADDITIONS = (add, iadd, torch.add, "add", "add_")


def joins(model: nn.Module) -> dict[str, int]:
    """How often a graph adds a value to what was computed from it, and how often it concatenates.

    The value may be projected on its way: convolved and normalised, without a non-linearity.
    """
    traced = torch.fx.symbolic_trace(model)
    modules, ancestors, counts = dict(traced.named_modules()), {}, {"additions": 0, "concatenations": 0}

    def before_projection(node):
        while isinstance(modules.get(node.target), nn.Conv2d | nn.BatchNorm2d | nn.Identity):
            node = node.all_input_nodes[0]
        return node

    for node in traced.graph.nodes:
        inputs = node.all_input_nodes
        ancestors[node] = set(inputs).union(*(ancestors[n] for n in inputs))
        if node.target in ADDITIONS and len(inputs) == 2:
            counts["additions"] += any(before_projection(a) in ancestors[b] for a, b in (inputs, inputs[::-1]))
        counts["concatenations"] += node.target is torch.cat
    return counts


def family(s, network: str) -> list[dict]:
    with torch.device("meta"):  # shapes only: no weights are drawn
        model = NETWORKS[network][1]()
    return [joins(model) | {"parameters": resnets.count_parameters(model)}]


def estimates(rows, s):
    """1 where a network adds some input to its output, else 0."""
    return {r["network"]: stats.exact(float(r["additions"] > 0)) for r in rows}


def finding(rows, s, e):
    with_, without = ([r for r in rows if bool(r["additions"]) is wanted] for wanted in (True, False))
    some = page.listed([f"{NETWORKS[r['network']][0]} ({r['additions']})" for r in with_])
    none = page.listed([f"{NETWORKS[r['network']][0]} ({r['concatenations']})" for r in without])
    return f"Residual additions: {some}. " + (
        f"Concatenations and not a single such addition: {none}." if without else ""
    )


def table(rows, s):
    columns = {"network": ("network", lambda key: NETWORKS[key][0]), "parameters": ("parameters", ",")}
    columns |= {"additions": "additions of an input to its output"}
    return page.table(rows, columns | {"concatenations": "concatenations"})


FAMILY = Experiment(
    "family",
    run=family,
    conditions=lambda s: [{"network": network} for network in NETWORKS],
    estimates=estimates,
    finding=finding,
    table=table,
)
