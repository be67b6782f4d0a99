"""The networks that this chapter trains, how it trains them, and how it looks at their gradients."""

import math

import torch.nn.functional as F
from torch import nn

from resnet_lib import probes, resnets, train

KINDS = ("plain", "residual")


def network(s, kind: str, depth: int, **changes) -> resnets.ResNet:
    """ResNet-`depth` for the pictures at hand, or its plain twin."""
    shape = {"in_channels": s.facts["shape"][0], "num_classes": s.facts["classes"]}
    return resnets.resnet_cifar(depth, residual=kind == "residual", **shape, **changes)


def training(s, **changes) -> train.TrainConfig:
    return train.TrainConfig(device=str(s.device), precision=s.number_format, **changes)


def trained_gradients(s, model: nn.Module, seed: int) -> list[dict]:
    """Activation gradients by unit on the first training batch, in decades over the last unit's."""
    images, labels = train.Batches(s.pictures, s.pictures.train, train.TrainConfig(), s.device).first(seed)
    rows = probes.gradient_norms(model.train(), model.units(), lambda: F.cross_entropy(model(images), labels))
    size = [math.log10(max(row["activation_gradient"], 1e-30)) for row in rows]
    return [{"what": "trained", "unit": k, "decades": d - size[-1]} for k, d in enumerate(size, 1)]


def refuse_depths(name: str, depths: list[int], least: int = 1) -> None:
    """Refuse at once, not after an hour, depths that fit no network, or too few of them to compare."""
    for depth in depths:
        resnets.cifar_config(depth)
    if len(set(depths)) < least:
        raise ValueError(f"{name}={depths}: at least {least} different depths are needed to compare them")
