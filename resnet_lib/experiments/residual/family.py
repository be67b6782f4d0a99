"""Who is of the family? Additions of an input to its output, and concatenations, counted in four networks' graphs."""

from collections.abc import Callable
from operator import add, iadd

import torch
from torch import nn

from resnet_lib import page, stats
from resnet_lib.study import Experiment

NETWORKS = ("resnet", "resnext", "densenet", "inception_v4")
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
    """How often a graph adds a value to what was computed from it, and how often it concatenates."""
    graph = torch.fx.symbolic_trace(model).graph
    ancestors, counts = {}, {"additions": 0, "concatenations": 0}
    for node in graph.nodes:
        inputs = node.all_input_nodes
        ancestors[node] = set(inputs).union(*(ancestors[n] for n in inputs))
        if node.target in (add, iadd, torch.add) and len(inputs) == 2:
            counts["additions"] += inputs[0] in ancestors[inputs[1]] or inputs[1] in ancestors[inputs[0]]
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
    without = [r["network"] for r in rows if r["additions"] == 0]
    return f"Without a single residual addition: {', '.join(without) or 'none'}; what they have in its place is concatenation."


def table(rows, s):
    columns = {"network": "network", "additions": "additions of an input to its output"}
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
