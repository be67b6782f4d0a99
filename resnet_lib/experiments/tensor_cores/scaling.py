"""Gradients that fall off the bottom of a short format, and the factor on the loss that keeps them."""

import itertools
import math
from dataclasses import replace
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import nn

from resnet_lib import page, plots, precision, resnets, stats, train
from resnet_lib.experiments.tensor_cores.formats import running
from resnet_lib.experiments.tensor_cores.networks import small_network, whole_network
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

UNDER = ("fp8", "fp16", "bf16")  # formats whose smallest number gradients are held to
SCALES = list(range(-24, 41, 8))  # powers of two by which the loss is multiplied
WAYS = {  # name → (format, power of two, or None for PyTorch's scaler)
    "fp32": ("fp32", 0),
    "fp16, loss × 2⁻²⁰": ("fp16", -20),
    "fp16, loss as it is": ("fp16", 0),
    "fp16, loss × 2³⁰": ("fp16", 30),
    "fp16, loss scaled by PyTorch": ("fp16", None),
    "fp16, scaled, fused SGD": ("fp16", None),
}
BROKEN_STEPS = 16


def training(s) -> train.TrainConfig:
    return train.TrainConfig(
        batch_size=s.batch_size, learning_rate=s.learning_rate, precision=s.number_format, device=str(s.device)
    )


def backward(s, model: nn.Module, seed: int, form: str, scale: float = 1.0) -> None:
    """One backward pass on a training batch; gradients are left in the model's parameters."""
    images, labels = train.Batches(s.pictures, s.pictures.train, training(s), s.device).first(seed)
    with precision.number_format(form), precision.autocast(form, s.device):
        loss = F.cross_entropy(model(images).float(), labels)
    (loss * scale).backward()


def gradients(s, seed: int) -> list[dict]:
    """Gradients of a trained network by power of two, and the share that each format rounds to zero."""
    config = replace(training(s), epochs=s.accuracy_epochs)
    fitted = train.fit(lambda: whole_network(s), s.pictures, config, seed=seed, progress=False)
    model, seen, rows = fitted.model.train(), [], []

    def watch(layer, given, made):
        made.register_hook(lambda gradient: seen.append(gradient.flatten()))

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(watch)
    backward(s, model, seed, "fp32")
    weights = [p.grad.flatten() for p in model.parameters()]
    for of, found in (("signals", torch.cat(seen)), ("weights", torch.cat(weights))):
        rows += sizes(found, of)
    return rows


def sizes(found: torch.Tensor, of: str) -> list[dict]:
    """Of the gradients that are not zero: the share that each format rounds to zero, and the share by power of two."""
    size = found[found != 0].abs().double().cpu()
    powers, counts = size.log2().floor().clamp(-60, 10).int().unique(return_counts=True)
    ends = {name: precision.FORMATS[name].smallest_subnormal / 2 for name in UNDER}
    shares = {name: (size <= end).double().mean().item() for name, end in ends.items()}
    rows = [{"what": "lost", "of": of, "n": len(size), **shares}]
    for power, count in zip(powers.tolist(), counts.tolist(), strict=True):
        rows.append({"what": "bin", "of": of, "power": power, "share": count / len(size)})
    return rows


def scaled(s, power: int, seed: int) -> list[dict]:
    """Shares of a network's fp16 gradients that are lost or not finite when the loss is multiplied by 2^power."""
    found = []
    for form, scale in (("fp32", 1.0), ("fp16", 2.0**power)):
        with train.seeded(seed):
            model = small_network(s).to(s.device, memory_format=torch.channels_last)
        backward(s, model, seed, form, scale)
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    return [{"what": "scale", **damage(*found)}]


def damage(exact: torch.Tensor, short: torch.Tensor) -> dict[str, float]:
    """Of the gradients that are not zero in float32: the shares that became zero, and that are no longer finite."""
    short = short[exact != 0]
    shares = {"zero": short == 0, "not finite": ~short.isfinite()}
    return {k: v.float().mean().item() for k, v in shares.items()}


def broken(s, way: str, seed: int) -> list[dict]:
    """Training loss over the last quarter of a few steps; None where it is not finite."""
    form, power = WAYS[way]
    config = training(s)
    with train.seeded(seed):
        model = small_network(s).to(s.device, memory_format=torch.channels_last).train()
    optimizer = train.make_optimizer(model, replace(config, precision=form))  # not fused in fp16
    if "fused" in way:
        trap = {"momentum": config.momentum, "nesterov": True, "fused": True}
        optimizer = torch.optim.SGD(model.parameters(), s.learning_rate, **trap)
    scaler = torch.amp.GradScaler(s.device.type, init_scale=2.0**22, enabled=power is None)
    loaded = train.Batches(s.pictures, s.pictures.train, config, s.device)
    endless = itertools.chain.from_iterable(loaded.training(seed, e) for e in itertools.count())
    losses = []
    for images, labels in itertools.islice(endless, BROKEN_STEPS):
        optimizer.zero_grad(set_to_none=True)
        with precision.number_format(form), precision.autocast(form, s.device):
            loss = F.cross_entropy(model(images).float(), labels)
        scaler.scale(loss * 2.0 ** (power or 0)).backward()
        for p in model.parameters():
            p.grad.mul_(2.0 ** -(power or 0))
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    last = fmean(losses[-BROKEN_STEPS // 4 :])
    return [{"what": "trained", "last": last if math.isfinite(last) else None}]


PARTS = {"gradients": gradients, "scales": scaled, "ways": broken}


def scaling(s, part: str, **condition) -> list[dict]:
    """Gradients by size after training; what a factor on the loss does to them; trainings with the wrong factor."""
    return PARTS[part](s, **condition)


def runs(s):
    resnets.cifar_config(s.depth)
    if s.accuracy_width < 1:
        raise ValueError(f"accuracy_width={s.accuracy_width} must be at least 1")
    here = running(s.device)
    found = conditions(part=["gradients"], seed=s.seeds)
    if "fp16" in here:
        found += conditions(part=["scales"], power=SCALES, seed=s.seeds)
    return found + conditions(part=["ways"], way=[w for w, (form, _) in WAYS.items() if form in here], seed=s.seeds)


def estimates(rows, s):
    return {
        f"{form}_{of}_lost": stats.interval(
            [r[form] for r in stats.where(rows, what="lost") if r["of"] == of], unit="share"
        )
        for of in ("signals", "weights")
        for form in UNDER
    }


def safe_powers(rows) -> str:
    """In words: the factors with which fp16 loses less than one gradient in a hundred."""
    lost = {}
    for r in stats.where(rows, what="scale"):
        lost.setdefault(r["power"], []).append(r["zero"] + r["not finite"])
    safe = [power for power, shares in lost.items() if max(shares) < 0.01]
    none = "none of those tried" if lost else "fp16 does not run here"
    return f"from 2^{min(safe)} to 2^{max(safe)}" if safe else none


def trapped(rows, classes: int) -> int:
    """Runs with fused SGD that ended in numbers that are not finite, or in a loss of twice what guessing has."""
    fused = [r["last"] for r in stats.where(rows, what="trained") if "fused" in r["way"]]
    return sum(last is None or last > 2 * math.log(classes) for last in fused)


def finding(rows, s, e):
    classes, scales = s.facts["classes"], [r["zero"] for r in stats.where(rows, what="scale") if r["power"] == 0]
    unscaled = (
        f"Without scaling, fp16 loses {fmean(scales):.2%} of the small network's at its first step. " if scales else ""
    )
    fused = (
        f"With fused SGD the same scaler ended in numbers that are not finite, or in a loss above "
        f"{2 * math.log(classes):.1f}, in {trapped(rows, classes)} of {len(s.seeds)} runs; `train.make_optimizer` does "
        f"not fuse SGD in float16."
    )
    return (
        f"Of the gradients of the signals that are not zero, rounding to fp8 makes {e['fp8_signals_lost'].mean:.1%} "
        f"zero, to fp16 {e['fp16_signals_lost']}, to bf16 {e['bf16_signals_lost'].mean:.2%}; of the weights' fp16 makes "
        f"{e['fp16_weights_lost'].mean:.2g} of all zero. {unscaled}"
        f"Factors with which fewer than one in a hundred is lost: {safe_powers(rows)}. "
        f"A scale that is too small loses gradients silently; one that is too large ends in numbers that are not finite; "
        f"PyTorch's scaler finds its own. {fused if scales else ''}"
    ).strip()


def table(rows, s):
    ends = []
    for way in dict.fromkeys(r["way"] for r in stats.where(rows, what="trained")):
        losses = [r["last"] for r in stats.where(rows, what="trained") if r["way"] == way]
        good = [value for value in losses if value is not None]
        mean = stats.interval(good) if len(good) > 1 else None
        ends.append({"way": way, "last": mean, "dead": len(losses) - len(good)})
    headings = {"way": "way", "last": f"loss over the last {BROKEN_STEPS // 4} of {BROKEN_STEPS} steps"}
    return page.table(ends, headings | {"dead": "runs that end in NaN or infinity"})


def draw(rows, s):
    kinds = ("zero", "not finite")
    curves = [r | {"kind": k, "share": r[k]} for r in stats.where(rows, what="scale") for k in kinds]
    with plots.figure(1, 2, width=8.4, height=3.2) as (_, (left, right)):
        plots.lines(left, stats.where(rows, what="bin"), "power", "share", by="of")
        for name, colour in zip(UNDER[:2], (plots.PINK, plots.GREEN), strict=True):
            edge = math.log2(precision.FORMATS[name].smallest_subnormal / 2)
            left.axvline(edge, color=colour, linestyle="--", linewidth=1.5, label=f"{name}'s end")
        left.set(xlabel="power of two of the gradient's size", ylabel="share of gradients, %")
        plots.hundredths(left.yaxis, right.yaxis)
        left.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=10)
        plots.lines(right, curves, "power", "share", by="kind", marker=True)
        right.set(xlabel="the loss is multiplied by 2 to this power")
        right.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=10) if curves else right.text(
            0.1, 0.5, "fp16 does not run here"
        )
    lost = [r["fp16"] for r in stats.where(rows, what="lost") if r["of"] == "signals"]
    return (
        f"What lies left of a format's end is rounded to zero: {'some' if fmean(lost) > 0.001 else 'hardly any'} of the signals' "
        f"gradients in fp16; bf16's end lies far to the left. Right: factors with which less than one gradient in a hundred is lost: {safe_powers(rows)}."
    )


SCALING = Experiment(
    "scaling",
    run=scaling,
    conditions=runs,
    estimates=estimates,
    settings=("depth", "accuracy_width", "accuracy_epochs", "batch_size", "learning_rate", "number_format"),
    tiny={"depth": 8, "accuracy_width": 2, "accuracy_epochs": 1, "batch_size": 16},
    finding=finding,
    figure=draw,
    alt="Left, the share of gradients in each power of two, of signals and of weights, with vertical lines where fp8 and "
    "fp16 round to zero. Right, the share of fp16 gradients that are zero and that are not finite against the power of "
    "two by which the loss was multiplied, a thin line for each seed.",
    table=table,
)
