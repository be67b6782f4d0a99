"""Instruments that watch a network without changing it: gradients, features, similarity, loss slices, removal."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Restore the running statistics that forward passes inside the block change."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


@contextlib.contextmanager
def outputs(modules: Sequence[nn.Module], keep_gradient: bool = False) -> Iterator[list[Tensor]]:
    """Collect what each module returns during forward passes in the block, in the order they run.

    Args: keep_gradient: keep ∂loss/∂output in each tensor's `.grad` after backward.
    Departs: the tensors are the modules' own, not copies: one that an in-place activation overwrites later in the
        pass shows what that left. No later operation of the network overwrites the output of a residual unit.
    """
    kept: list[Tensor] = []

    def hook(module, inputs, output):
        if keep_gradient and output.requires_grad:
            output.retain_grad()
        kept.append(output)

    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def gradient_norms(model: nn.Module, units: Sequence[nn.Module], loss: Callable[[], Tensor]) -> list[dict]:
    """Norms of the loss's gradient by depth, for one batch.

    Args:
        units: the modules to watch, first to last.
        loss: runs the model on a batch and returns the scalar loss.
    Returns: a row per unit: unit (from 1), activation_gradient = the root mean square of ∂loss/∂output over images
        (each image's gradient norm, times the batch size, so that it does not depend on it), weight_gradient = the
        norm of ∂loss/∂weights of all its parameters.
    """
    model.zero_grad(set_to_none=True)
    with _untouched(model), outputs(units, keep_gradient=True) as kept:
        loss().backward()
    rows = []
    for index, (unit, output) in enumerate(zip(units, kept, strict=True), 1):
        per_image = output.grad.double().flatten(1).norm(dim=1) * len(output)
        weights = [p.grad.double().flatten() for p in unit.parameters() if p.grad is not None]
        rows.append(
            {
                "unit": index,
                "activation_gradient": per_image.square().mean().sqrt().item(),
                "weight_gradient": torch.cat(weights).norm().item() if weights else 0.0,
            }
        )
    model.zero_grad(set_to_none=True)
    return rows


def input_gradients(model: nn.Module, images: Tensor) -> Tensor:
    """∂(sum of one fixed random projection of the logits)/∂input for each image: (N, C·H·W)."""
    images = images.detach().clone().requires_grad_(True)
    with _untouched(model):
        logits = model(images)
        direction = torch.randn(logits.shape[1], generator=torch.Generator().manual_seed(0)).to(logits)
        (gradient,) = torch.autograd.grad((logits @ direction).sum(), images)
    return gradient.flatten(1)


@torch.no_grad()
def features(model: nn.Module, units: Sequence[nn.Module], batches, numbers: int = 256) -> list[Tensor]:
    """What each unit puts out, averaged over areas to at most `numbers` numbers a picture: one (N, D) float32 a unit.

    A linear map reads more out of more numbers, so that units which differ in channels are compared at equal ones.

    Args: batches: an iterable of (images, labels); the model is run in the mode it is in.
    """
    collected: list[list[Tensor]] = [[] for _ in units]
    for images, _ in batches:
        with _untouched(model), outputs(units) as kept:
            model(images)
        for store, output in zip(collected, kept, strict=True):
            areas = max(1, numbers // output.shape[1])
            high = min(output.shape[2], 2 ** int(math.log2(areas) / 2))
            size = high, min(output.shape[3], areas // high)
            store.append(nn.functional.adaptive_avg_pool2d(output.float(), size).flatten(1))
    return [torch.cat(store) for store in collected]


STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of a ridge regression's penalty, tried on held-out pictures


def ridge(train_x: Tensor, train_y: Tensor, x: Tensor, strength: float | None = None) -> Tensor:
    """Predict with a linear map fitted by ridge regression on standardised inputs.

    Args:
        train_x: (N, D). train_y: (N, K). x: (M, D). strength: of the penalty, relative to N; None takes the one of
            STRENGTHS whose squared error is lowest on the last fifth of the pairs when fitted to the others.
    Returns: (M, K) predictions.
    Departs: solved in float64 by the normal equations of the smaller side; exact, no iterations to tune.
    """
    train_x, train_y, x = train_x.double(), train_y.double(), x.double()
    if strength is None:
        kept = len(train_x) - len(train_x) // 5
        judged = ((train_x[:kept], train_y[:kept], train_x[kept:], each) for each in STRENGTHS)
        errors = [(ridge(*tried) - train_y[kept:]).square().sum().item() for tried in judged]
        strength = STRENGTHS[errors.index(min(errors))]
    mean, std = train_x.mean(0), train_x.std(0).clamp_min(1e-6)
    a, b = (train_x - mean) / std, (x - mean) / std
    centre = train_y.mean(0)
    penalty = strength * len(a)
    if a.shape[1] <= len(a):
        solution = torch.linalg.solve(
            a.T @ a + penalty * torch.eye(a.shape[1], dtype=a.dtype, device=a.device), a.T @ (train_y - centre)
        )
    else:
        gram = a @ a.T + penalty * torch.eye(len(a), dtype=a.dtype, device=a.device)
        solution = a.T @ torch.linalg.solve(gram, train_y - centre)
    return b @ solution + centre


def probe_accuracy(train_x: Tensor, train_labels: Tensor, x: Tensor, labels: Tensor, num_classes: int) -> float:
    """Share of right answers of a linear probe: ridge regression on one-hot labels, its penalty chosen on held-out."""
    one_hot = nn.functional.one_hot(train_labels, num_classes)
    return (ridge(train_x, one_hot, x).argmax(1) == labels).float().mean().item()


def explained_variance(train_x: Tensor, train_y: Tensor, x: Tensor, y: Tensor) -> float:
    """R² of a linear reconstruction of y from x on held-out pairs, over all outputs together; penalty likewise."""
    residual = (ridge(train_x, train_y, x) - y).square().sum()
    return (1 - residual / (y.double() - train_y.double().mean(0)).square().sum()).item()


def cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment of two sets of features of the same N images: 0 unrelated … 1 the same.

    Source: Kornblith et al. 2019, arXiv:1905.00414, equation (3) with linear kernels.
    """
    x, y = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    cross, own_x, own_y = (x.T @ y).norm(), (x.T @ x).norm(), (y.T @ y).norm()
    return (cross.square() / (own_x * own_y)).item()


@torch.no_grad()
def loss_slice(model: nn.Module, loss: Callable[[], Tensor], distances: Sequence[float], seed: int = 0) -> list[dict]:
    """The loss along one random line through the weights, scaled filter by filter.

    Args:
        loss: runs the model on a fixed batch and returns the scalar loss.
        distances: in units of each filter's own norm.
    Returns: a row per distance: distance, loss. The weights are restored, bit for bit.
    Source: Li et al. 2018, arXiv:1712.09913, §4; norms and biases stay where they are, as there.
    """
    weights = [p for p in model.parameters() if p.ndim > 1]
    before = [p.clone() for p in weights]
    generator = torch.Generator().manual_seed(seed)
    directions = []
    for p in weights:
        d = torch.randn(p.shape, generator=generator).to(p.device)
        per_filter = (len(p),) + (1,) * (p.ndim - 1)
        scale = p.flatten(1).norm(dim=1) / d.flatten(1).norm(dim=1)
        directions.append(d * scale.view(per_filter))
    rows = []
    try:
        for distance in distances:
            for p, start, d in zip(weights, before, directions, strict=True):
                p.copy_(start + distance * d)
            with _untouched(model):
                rows.append({"distance": float(distance), "loss": loss().item()})
    finally:
        for p, start in zip(weights, before, strict=True):
            p.copy_(start)
    return rows


@contextlib.contextmanager
def removed(*units: nn.Module) -> Iterator[None]:
    """Skip units inside the block: the input passes through unchanged, so it must have the output's shape.

    Source: Veit et al. 2016, arXiv:1605.06431, §4.1 (deleting layers at test time).
    """
    for unit in units:
        unit.forward = lambda x: x
    try:
        yield
    finally:
        for unit in set(units):
            del unit.forward
