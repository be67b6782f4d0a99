"""Is the network easier to tune? The range of learning rates that train it, and its loss around where it ends."""

import itertools
import math
from dataclasses import replace

import torch.nn.functional as F

from resnet_lib import page, plots, probes, stats, train
from resnet_lib.experiments.depths import KINDS, SETTLING, checked, network, training
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

NORMS = ("batch", "none")
WIDENS = "widens by", "narrows by", "does not clearly change"


def tuning(s, norm: str, kind: str, rate: float, seed: int) -> list[dict]:
    """Errors after a short training at one learning rate; a loss that becomes infinite counts as guessing."""
    config = training(s, epochs=s.tuning_epochs, learning_rate=rate)
    make = lambda: network(s, kind, s.tuning_depth, norm=norm)  # noqa: E731
    fitted = train.fit(make, s.pictures, config, seed=seed, on_divergence="record", progress=False)
    row, model = fitted.rows[-1], fitted.model
    if row["diverged"]:
        return [{"what": "error", "train_error": s.chance_error, "error": s.chance_error, "diverged": True}]
    batches = train.Batches(s.pictures, s.pictures.train, config, s.device)
    rows = []
    if rate == s.learning_rate and norm == "batch":
        images, labels = batches.first(seed)
        distances = [d / 10 for d in range(-10, 11, 2)]
        along = probes.loss_slice(model, lambda: F.cross_entropy(model(images), labels), distances)
        rows = [r | {"what": "slice"} for r in along]
    error = train.evaluate(train.settle(model, batches, SETTLING), s.pictures, s.pictures.val, config)["error"]
    row = {"what": "error", "train_error": row["train_error"], "error": min(error, s.chance_error), "diverged": False}
    return [row, *rows]


def decades_below(target: float, errors: dict[float, float]) -> float:
    """Decades of learning rate whose error is at most the target, the error running straight between rates tried.

    Args: errors: by learning rate.
    """
    found, tried = 0.0, sorted(errors)
    for low, high in itertools.pairwise(tried):
        a, b = errors[low] - target, errors[high] - target
        below = 1.0 if a <= 0 and b <= 0 else 0.0 if a > 0 and b > 0 else min(a, b) / (min(a, b) - max(a, b))
        found += below * math.log10(high / low)
    return found


def estimates(rows, s):
    """Decades of rates that reach the common target, residual minus plain, and each network's error at its best rate."""
    rows, ranges = stats.where(rows, what="error"), []
    norms = [norm for norm in NORMS if stats.where(rows, norm=norm)]
    for cell in conditions(norm=norms, kind=KINDS, seed=sorted({r["seed"] for r in rows})):
        errors = {r["rate"]: r["error"] for r in stats.where(rows, **cell)}
        ranges.append(cell | {"decades": decades_below(s.tuning_target, errors)})
    with_bn = stats.where(rows, norm="batch")
    at_best = []
    for kind in KINDS:  # the rate is chosen on the other seeds
        own = stats.where(with_bn, kind=kind)
        for seed in sorted({r["seed"] for r in own}):
            rate = stats.best_setting([r for r in own if r["seed"] != seed], "error", "rate")
            at_best += stats.where(own, seed=seed, rate=rate)

    def wider(rows, *sides):
        return stats.paired_rows(rows, "decades", *sides, unit="decades")

    accuracy = [1 - r["error"] for r in stats.where(at_best, kind="residual")]
    found = {
        "lr_range_gain": wider(stats.where(ranges, norm="batch"), "kind", "residual", "plain"),
        "best_error_gain": stats.paired_rows(at_best, "error", "kind", "plain", "residual", unit="error"),
        "best_accuracy": stats.interval(accuracy, unit="share"),
    }
    if "none" in norms:
        found["no_norm_range_gain"] = wider(stats.where(ranges, norm="none"), "kind", "residual", "plain")
        found["bn_alone_range_gain"] = wider(stats.where(ranges, kind="plain"), "norm", "batch", "none")
    return found


def finding(rows, s, e):
    falls = "falls by", "rises by", "does not clearly fall"
    without = ""
    if "no_norm_range_gain" in e:
        without = (
            f"Without it, it {page.change(e['no_norm_range_gain'], *WIDENS)}; and by batch normalisation alone, in the plain "
            f"network, it {page.change(e['bn_alone_range_gain'], *WIDENS)}. "
        )
    return (
        f"A rate trains if the validation error after {s.tuning_epochs} epoch{'s' * (s.tuning_epochs > 1)} is at most {100 * s.tuning_target:g} %. "
        f"By the addition the range of such rates, at {s.tuning_depth} layers with batch normalisation, "
        f"{page.change(e['lr_range_gain'], *WIDENS)}. {without}At each network's own best rate, chosen on the other seeds, the "
        f"validation error {page.change(e['best_error_gain'], *falls)}; the residual network then reaches an accuracy of "
        f"{e['best_accuracy']}."
    )


def draw(rows, s):
    titles = {"batch": "with batch normalisation", "none": "without"}
    titles = {norm: title for norm, title in titles.items() if stats.where(rows, norm=norm)}
    with plots.figure(len(titles), 1, height=0.4 + 2.2 * len(titles), sharex=True, sharey=True) as (_, axes):
        axes = axes if len(titles) > 1 else [axes]
        for ax, (norm, title) in zip(axes, titles.items(), strict=True):
            plots.lines(ax, stats.where(rows, norm=norm), "rate", "error", by="kind", marker=True)
            ax.axhline(s.tuning_target, color="grey", linestyle=":", linewidth=1)
            ax.set(title=title, ylabel="validation error, %", xscale="log")
        plots.hundredths(*(ax.yaxis for ax in axes))
        axes[0].legend()
        axes[-1].set_xlabel("learning rate, highest of the schedule")
    word = page.trend(estimates(rows, s)["lr_range_gain"], "widens", "narrows", "does not clearly change")
    return (
        f"With batch normalisation the addition {word} the range of learning rates that train. "
        "Dotted: the common target. Thin lines are seeds."
    )


TUNING = Experiment(
    "tuning",
    run=tuning,
    conditions=lambda s: conditions(norm=_norms(s), kind=KINDS, rate=_rates(s), seed=s.seeds),
    estimates=estimates,
    settings=("tuning_depth", "tuning_target", "tuning_epochs", "learning_rate", "number_format"),
    counts=("tuning_norms", "tuning_rates"),
    tiny={"tuning_depth": 8, "tuning_norms": ["batch", "none"], "tuning_rates": [0.1, 0.3], "tuning_epochs": 1},
    finding=finding,
    figure=draw,
    alt="Validation error against learning rate on a logarithmic axis for four networks: plain and residual, with and "
    "without batch normalisation, one thin line for each seed.",
    kept=("error",),
)


def _norms(s):
    if set(s.tuning_norms) - set(NORMS) or "batch" not in s.tuning_norms:
        raise ValueError(f"tuning_norms={s.tuning_norms} must hold 'batch', and may hold 'none'")
    return s.tuning_norms


def _rates(s):
    checked("tuning_depth", [s.tuning_depth])
    if len(set(s.tuning_rates)) < 2 or min(s.tuning_rates) <= 0:
        raise ValueError(f"tuning_rates={s.tuning_rates} must be at least two different rates above 0")
    return s.tuning_rates


def rise(rows):
    """By kind and seed, how much higher the loss is one filter norm away from where training ended."""
    of = {(r["kind"], r["seed"], r["distance"]): r["loss"] for r in rows}
    seeds = sorted({r["seed"] for r in rows})
    return [{"kind": kind, "seed": n, "rise": of[kind, n, 1.0] - of[kind, n, 0.0]} for kind in KINDS for n in seeds]


def slice_estimates(rows, s):
    return {"rise_saved": stats.paired_rows(rise(rows), "rise", "kind", "plain", "residual", unit="nats")}


def slice_finding(rows, s, e):
    return (
        f"One filter norm away from the trained weights the loss of the residual network rises "
        f"{page.change(e['rise_saved'], 'less than the plain one by', 'more than the plain one by', 'not clearly less')}, at a "
        f"learning rate of {s.learning_rate:g} and {s.tuning_depth} layers; Li and others compare at 56 layers and more."
    )


def draw_slice(rows, s):
    with plots.figure(height=2.8) as (_, ax):
        plots.lines(ax, rows, "distance", "loss", by="kind", marker=True)
        ax.set(xlabel="distance along the line, in norms of each filter", ylabel="loss, nats")
        ax.legend()
    steeper = page.trend(slice_estimates(rows, s)["rise_saved"], "less", "more", "not clearly less")
    return f"Away from the trained weights the residual network's loss rises {steeper}. Thin lines are seeds."


LOSS_SLICE = replace(
    TUNING,
    name="loss_slice",
    conditions=lambda s: conditions(norm=["batch"], kind=KINDS, rate=[s.learning_rate], seed=s.seeds),
    estimates=slice_estimates,
    finding=slice_finding,
    figure=draw_slice,
    alt="Loss along one random line through the trained weights, scaled filter by filter, plain and residual on the same "
    "axes, one thin line for each seed.",
    kept=("slice",),
)
