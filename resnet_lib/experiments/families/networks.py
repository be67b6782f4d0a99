"""The networks of this chapter: equal multiply-adds or equal parameters, how they are trained, what they keep."""

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resnet_lib import families, plots, resnets, stats, train
from resnet_lib.experiments import depths
from resnet_lib.families import DenseNetConfig, InceptionConfig, resnext_config
from resnet_lib.resnets import ResNetConfig

Config = ResNetConfig | DenseNetConfig | InceptionConfig
ARMS = {  # in the order of every table and figure
    "basic": "basic ResNet",
    "bottleneck": "bottleneck ResNet",
    "grouped": "ResNeXt",
    "dense": "DenseNet",
    "paths": "Inception without additions",
    "added": "Inception-ResNet",
}
COLOURS = dict(zip(ARMS, plots.PALETTE, strict=True))
TOLERANCE = 0.03  # by which networks of one budget may differ from ResNet's basic units


def _dense(layers: int, growth: int, stem_channels: int) -> DenseNetConfig:
    return DenseNetConfig((layers,) * 3, growth, stem_channels, stem="cifar")


def _paths(b: int, width: float) -> dict[str, Config]:
    """Inception-ResNet of a given width and its plain twin; nothing is scaled, so that they differ in additions alone."""
    added = InceptionConfig("resnet_v2", (1, b, 1), width, "cifar", scales=(1.0, 1.0, 1.0))
    return {"paths": replace(added, residual=False), "added": added}


def _residual(units: int, width: int) -> ResNetConfig:
    return ResNetConfig((units,) * 3, (width, 2 * width, 4 * width), shortcut="B")


SMALL = {"basic": _residual(1, 16), "bottleneck": resnext_config((1, 1, 1), 8, 16, 1)}
LARGE = {"basic": _residual(2, 16), "bottleneck": resnext_config((2, 2, 2), 16, 13, 1)}
NETWORKS: dict[str, dict[str, dict[str, Config]]] = {  # size → what is equal → arm → config
    "small": {
        "flops": SMALL
        | {"grouped": resnext_config((1, 1, 1), 8, 32, 8), "dense": _dense(6, 5, 10), **_paths(1, 0.066)},
        "parameters": SMALL
        | {"grouped": resnext_config((1, 1, 1), 8, 28, 4), "dense": _dense(5, 9, 18), **_paths(1, 0.07)},
    },
    "large": {
        "flops": LARGE
        | {"grouped": resnext_config((2, 2, 2), 12, 24, 4), "dense": _dense(8, 6, 12), **_paths(2, 0.09)},
        "parameters": LARGE
        | {"grouped": resnext_config((2, 2, 2), 16, 20, 4), "dense": _dense(6, 12, 24), **_paths(2, 0.102)},
    },
}
IMAGENET = {
    "resnet50": "ResNet-50",
    "resnext50_32x4d": "ResNeXt-50 32×4d",
    "densenet121": "DenseNet-121",
    "inception_v4": "Inception-v4",
    "inception_resnet_v2": "Inception-ResNet-v2",
}


def build(config: Config) -> nn.Module:
    kinds = {ResNetConfig: resnets.ResNet, DenseNetConfig: families.DenseNet, InceptionConfig: families.Inception}
    return kinds[type(config)](config)


def published(name: str) -> nn.Module:
    """One of IMAGENET at its published shape."""
    return getattr(families if hasattr(families, f"{name}_imagenet") else resnets, f"{name}_imagenet")()


def config_of(s, equal: str, arm: str) -> Config:
    """The network of an arm for the pictures at hand."""
    if s.network_size not in NETWORKS:
        raise ValueError(f"network_size={s.network_size!r} is not one of {', '.join(map(repr, NETWORKS))}")
    return replace(
        NETWORKS[s.network_size][equal][arm], in_channels=s.facts["shape"][0], num_classes=s.facts["classes"]
    )


@cache
def cost(config: Config, height: int, width: int) -> dict[str, int]:
    """Parameters and multiply-adds a picture, counted; of which `budget` are those of convolutions."""
    with torch.device("meta"):
        return counted(build(config).eval(), torch.empty(1, config.in_channels, height, width))


def counted(model: nn.Module, image: torch.Tensor) -> dict[str, int]:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    whole = counter.get_flop_counts()["Global"]
    convolved = sum(flops for operation, flops in whole.items() if "convolution" in str(operation))
    parameters = resnets.count_parameters(model)
    return {"parameters": parameters, "madds": sum(whole.values()) // 2, "budget": convolved // 2}


def shape_of(s) -> dict[str, int]:
    return {"height": s.facts["shape"][1], "width": s.facts["shape"][2]}


def equal_arms(s, equal: str) -> list[str]:
    """The arms, of which each has the multiply-adds or the parameters of the first within TOLERANCE.

    The classifier, whose size the number of classes decides, is left out.
    Raises: ValueError naming the arm for pictures on which they are not.
    """
    costs = {}
    for arm in ARMS:
        config = replace(config_of(s, equal, arm), num_classes=1)
        costs[arm] = cost(config, **shape_of(s))["budget" if equal == "flops" else "parameters"]
    for arm, amount in costs.items():
        if abs(amount / costs["basic"] - 1) > TOLERANCE:
            raise ValueError(
                f"on pictures of {s.facts['shape']} {ARMS[arm]} has {amount / costs['basic']:.3f} times the {equal} of "
                f"{ARMS['basic']}; the comparison allows {TOLERANCE:.0%}: give image_size a multiple of 4"
            )
    return list(ARMS)


def training(s, **changes) -> train.TrainConfig:
    return depths.training(s, **{"batch_size": s.batch_size} | changes)


def inverse(ratio: stats.Estimate) -> stats.Estimate:
    """One over a ratio: a speed from a time."""
    return replace(ratio, mean=1 / ratio.mean, low=1 / ratio.high, high=1 / ratio.low)


class WholeUnits(torch.fx.Tracer):
    """Traces a network with its units as single steps."""

    def __init__(self, units: Iterable[nn.Module]):
        super().__init__()
        self.units = set(units)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return module in self.units or super().is_leaf_module(module, name)


def predicted_bytes(model: nn.Module, images: torch.Tensor, recomputed: Iterable[nn.Module] = ()) -> int:
    """Bytes that a step keeps between its forward and backward pass, from the graph and the shapes alone.

    A convolution, a linear map, a norm and a pooling keep what they read, a ReLU what it writes, a norm two numbers a
    channel besides, a max-pooling the places of its maxima; sums and concatenations keep nothing. What is written in
    place is no new map. A unit whose inside is recomputed keeps what it reads.

    Args: model: on the meta device, where nothing is computed; images: likewise.
    """
    recomputed = set(recomputed)
    tracer = WholeUnits(recomputed)
    graph = tracer.trace(model)
    modules = dict(model.named_modules())
    torch.fx.passes.shape_prop.ShapeProp(torch.fx.GraphModule(model, graph)).propagate(images)
    place, kept, extra = {}, {}, 0

    def size(node) -> int:
        found = node.meta["tensor_meta"]
        return math.prod(found.shape) * found.dtype.itemsize

    for node in graph.nodes:
        module = modules.get(node.target) if node.op == "call_module" else None
        in_place = getattr(module, "inplace", False) or isinstance(module, nn.Identity) or node.target == "add_"
        place[node] = place[node.all_input_nodes[0]] if in_place else node
        reads = isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.MaxPool2d | nn.AvgPool2d)
        if reads or module in recomputed:
            kept |= {place[one]: size(place[one]) for one in node.all_input_nodes}
        if isinstance(module, nn.ReLU) or node.target == "relu":
            kept[place[node]] = size(place[node])
        if isinstance(module, nn.BatchNorm2d):
            extra += 2 * module.num_features * 4
        if isinstance(module, nn.MaxPool2d):
            extra += math.prod(node.meta["tensor_meta"].shape) * 8
    return sum(kept.values()) + extra


def measured_bytes(model: nn.Module, images: torch.Tensor, recomputed: Iterable[nn.Module] = ()) -> int:
    """Bytes that a step in float32 does keep between its forward and backward pass, beside weights and buffers.

    Args: recomputed: units that run under torch.utils.checkpoint; changed in place.
    """
    from torch.utils.checkpoint import checkpoint

    saved = {}

    def keep(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    for unit in recomputed:

        def again(*given, inside=unit.forward):
            for tensor in given:
                keep(tensor)
            return checkpoint(inside, *given, use_reentrant=False)

        unit.forward = again
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(images).sum()
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    loss.backward()  # only now may what was kept be freed, and its addresses be used again
    return sum(size for at, size in saved.items() if at not in own)
