"""Who is of the family? Additions of an input to its output, and concatenations, counted in four networks' graphs."""

from collections.abc import Callable
from operator import add, iadd

import torch
from torch import nn

from resnet_lib import page, stats
from resnet_lib.study import Experiment

NETWORKS = ("resnet", "resnext", "densenet", "inception_v4")
NAMES = {"resnet": "ResNet-50", "resnext": "ResNeXt-50", "densenet": "DenseNet-121", "inception_v4": "Inception-v4"}
NO_TIMM = "Inception-v4 was not inspected: the package timm, which has it, is not installed."


def constructor(network: str) -> Callable[[], nn.Module] | None:
    """What makes the network; None where the package that has it is missing."""
    import torchvision

    if network == "inception_v4":
        try:
            from timm.models.inception_v4 import InceptionV4
        except ImportError:
            return None
        return InceptionV4
    name = {"resnet": "resnet50", "resnext": "resnext50_32x4d", "densenet": "densenet121"}[network]
    return getattr(torchvision.models, name)


def joins(model: nn.Module) -> dict[str, int]:
    """How often a graph adds a value to what was computed from it, and how often it concatenates.

    The value may be projected on its way: convolved and normalised, without a non-linearity.
    """
    traced = torch.fx.symbolic_trace(model)
    modules, ancestors, counts = dict(traced.named_modules()), {}, {"additions": 0, "concatenations": 0}

    def before_projection(node):
        while isinstance(modules.get(node.target), nn.Conv2d | nn.BatchNorm2d):
            node = node.all_input_nodes[0]
        return node

    for node in traced.graph.nodes:
        inputs = node.all_input_nodes
        ancestors[node] = set(inputs).union(*(ancestors[n] for n in inputs))
        if node.target in (add, iadd, torch.add) and len(inputs) == 2:
            counts["additions"] += any(before_projection(a) in ancestors[b] for a, b in (inputs, inputs[::-1]))
        counts["concatenations"] += node.target is torch.cat
    return counts


def family(s, network: str) -> list[dict]:
    make = constructor(network)
    if make is None:
        return [{"additions": None, "concatenations": None}]
    with torch.device("meta"):  # shapes only: no weights are drawn
        return [joins(make())]


def estimates(rows, s):
    """1 where a network adds some input to its output, else 0."""
    return {r["network"]: stats.exact(float(r["additions"] > 0)) for r in rows if r["additions"] is not None}


def finding(rows, s, e):
    counted = [r for r in rows if r["additions"] is not None]
    with_, without = ([r for r in counted if bool(r["additions"]) is wanted] for wanted in (True, False))
    some = page.listed([f"{NAMES[r['network']]} has {r['additions']} residual additions" for r in with_])
    none = page.listed([f"{NAMES[r['network']]} has {r['concatenations']} concatenations" for r in without])
    return f"{some}. " + (f"{none}, and not a single residual addition." if without else "No network is without.")


def table(rows, s):
    columns = {"network": ("network", NAMES.get), "additions": "additions of an input to its output"}
    return page.table(rows, columns | {"concatenations": "concatenations"})


FAMILY = Experiment(
    "family",
    run=family,
    conditions=lambda s: [{"network": network} for network in NETWORKS],
    estimates=estimates,
    finding=finding,
    table=table,
    notes=lambda rows, s: [f"family/inception_v4: {NO_TIMM}" for r in rows if r["additions"] is None],
)
