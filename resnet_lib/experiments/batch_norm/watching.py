"""The first epoch of a training, watched: what layers are fed, how gradients turn, how far they reach, how large."""

import copy
import itertools
import math

import torch
import torch.nn.functional as F

from resnet_lib import probes, train
from resnet_lib.experiments.batch_norm.networks import ARMS, Network, network, steps, training

PROBE = 64  # pictures of the fixed batch
WATCHED = 2  # steps of the epoch that are probed in depth
STRETCHES = {"own rate": (0.5, 1, 2, 4), "share of length": (0.01, 0.03, 0.1)}  # unit → lengths of a step along it


def layer_inputs(model: Network, images: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Mean and variance (C,) of each unit of what every layer after the first is fed, in training mode."""
    model = copy.deepcopy(model).train()
    with torch.no_grad(), probes.outputs(model.layers) as kept:
        model(images)
    return [torch.var_mean(x.transpose(0, 1).flatten(1), 1)[::-1] for x in kept]


def shift_between(before, after) -> float:
    """Change of means in units of deviations and of variances in units of variances, mean of layers."""
    found = []
    for (mean, var), (new_mean, new_var) in zip(before, after, strict=True):
        found.append(((new_mean - mean).norm() / var.sum().sqrt() + (new_var - var).norm() / var.norm()) / 2)
    return torch.stack(found).mean().item()


def gradients_of(model: Network, images, labels) -> tuple[float, list[torch.Tensor]]:
    """The loss on one batch and the gradients of the layers' weights; the same noise every time, no trace left."""
    twin = copy.deepcopy(model).train()  # keeps running statistics of its own
    weights = dict(model.named_parameters())
    with train.seeded(0):
        loss = F.cross_entropy(torch.func.functional_call(twin, weights, (images,)), labels)
    return loss.item(), list(torch.autograd.grad(loss, [layer.linear.weight for layer in model.layers]))


def gradient_turn(old: Network, new: Network, images, labels) -> float:
    """How far each layer's gradient moves when only the layers before it take their step, over its length.

    Source: Santurkar et al. 2018, arXiv:1805.11604, §2.2. Departs: relative to the gradient's length.
    """
    mixed, turns = copy.deepcopy(old), []
    _, reference = gradients_of(old, images, labels)
    for place in range(1, len(old.layers)):
        mixed.layers[place - 1].load_state_dict(new.layers[place - 1].state_dict())
        moved = gradients_of(mixed, images, labels)[1][place]
        turns.append((moved - reference[place]).norm() / reference[place].norm().clamp_min(1e-30))
    return torch.stack(turns).mean().item()


def along_gradient(model: Network, images, labels, rate: float) -> list[dict]:
    """Loss and gradient at points along the gradient: change of the loss, relative change of the gradient."""
    loss, gradient = gradients_of(model, images, labels)
    length = lambda tensors: math.sqrt(sum(t.square().sum().item() for t in tensors))
    size = max(length(gradient), 1e-30)
    unit = {"own rate": rate, "share of length": length(layer.linear.weight.detach() for layer in model.layers) / size}
    rows = []
    for kind, stretch in [(kind, stretch) for kind, stretches in STRETCHES.items() for stretch in stretches]:
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for layer, g in zip(moved.layers, gradient, strict=True):
                layer.linear.weight.sub_(stretch * unit[kind] * g)
        new_loss, new = gradients_of(moved, images, labels)
        change = length([a - b for a, b in zip(new, gradient, strict=True)]) / size
        row = {"what": "smooth", "unit": kind, "stretch": stretch, "gradient_change": change}
        rows.append(row | {"loss_change": new_loss - loss})
    return rows


def gradient_sizes(model: Network, images, labels) -> list[dict]:
    """Norms of the loss's gradient by layer: with respect to its weights, and to what it puts out."""
    found = probes.gradient_norms(model, model.layers, lambda: F.cross_entropy(model.train()(images), labels))
    keep = {"unit": "layer", "weight_gradient": "weights", "activation_gradient": "outputs"}
    return [{"what": "size"} | {new: row[name] for name, new in keep.items()} for row in found]


def watched(s, arm: str, rate: float, seed: int) -> list[dict]:
    """One epoch of training: the shift at every step, and at a few steps what is costly to look at."""
    count, rows, old, before = len(s.pictures.train) // s.batch_size, [], None, None
    config = training(s, s.batch_size, learning_rate=rate)
    fixed = next(train.Batches(s.pictures, s.pictures.train, config, s.device).in_order(PROBE))
    with train.seeded(seed):
        model = network(s, **ARMS[arm]).to(s.device, memory_format=torch.channels_last)
        for step in steps(s, model, config, seed, count):
            now = layer_inputs(model, fixed[0])
            if before:
                rows.append({"what": "shift", "step": step, "shift": shift_between(before, now)})
            if old:
                rows.append({"what": "turn", "step": step, "turn": gradient_turn(old, model, *fixed)})
            before, old = now, None
            if step % max(1, count // WATCHED) == 0 and step + 1 < count:
                old = copy.deepcopy(model)
                deep = itertools.chain(along_gradient(model, *fixed, rate), gradient_sizes(model, *fixed))
                rows += [row | {"step": step} for row in deep]
    return finite(rows)


def finite(rows: list[dict]) -> list[dict]:
    """Rows without those that hold a number that is none, which would be a training that broke."""
    return [r for r in rows if all(math.isfinite(v) for v in r.values() if isinstance(v, float))]
