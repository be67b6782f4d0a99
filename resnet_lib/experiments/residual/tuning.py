"""Is the network easier to tune? The range of learning rates that train it, and its loss around where it ends."""

import math
from dataclasses import replace

import torch.nn.functional as F

from resnet_lib import plots, probes, stats, train
from resnet_lib.experiments.residual.networks import KINDS, network, refuse_depths, trained_gradients, training
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

NORMS = ("batch", "none")
TOLERANCE = 0.05  # of error: how near to its own best a network still trains well; and to guessing, learns nothing


def tuning(s, norm: str, kind: str, rate: float, seed: int) -> list[dict]:
    """Training error after a short training at one learning rate; a loss that becomes infinite counts as guessing."""
    config = training(s, epochs=s.tuning_epochs, learning_rate=rate)
    make = lambda: network(s, kind, s.tuning_depth, norm=norm)  # noqa: E731
    fitted = train.fit(make, s.pictures, config, seed=seed, on_divergence="record", progress=False)
    row, model = fitted.rows[-1], fitted.model
    if row["diverged"]:
        return [{"what": "error", "error": s.chance_error, "diverged": True}]
    rows = [{"what": "error", "error": min(row["train_error"], s.chance_error), "diverged": False}]
    rows += trained_gradients(s, model, seed)
    if rate == s.learning_rate and norm == "batch":
        images, labels = train.Batches(s.pictures, s.pictures.train, config, s.device).first(seed)
        distances = [d / 10 for d in range(-10, 11, 2)]
        along = probes.loss_slice(model, lambda: F.cross_entropy(model(images), labels), distances)
        rows += [r | {"what": "slice"} for r in along]
    return rows


def spacing(s) -> float:
    """Decades between neighbouring rates: the smallest difference in a range of rates that can be seen."""
    return math.log10(max(s.tuning_rates) / min(s.tuning_rates)) / (len(s.tuning_rates) - 1)


def usable_decades(rows, s):
    """Of one network and seed: its best error, and the decades of rates that train it well, and that train it at all."""
    best = min(r["error"] for r in rows)
    learns = [r["error"] for r in rows if r["error"] < s.chance_error - TOLERANCE]
    usable = sum(error <= best + TOLERANCE for error in learns)
    return {"best": best, "decades": spacing(s) * usable, "trains": spacing(s) * len(learns)}


def estimates(rows, s):
    ranges = [
        cell | usable_decades([r for r in rows if cell.items() <= r.items()], s)
        for cell in conditions(norm=NORMS, kind=KINDS, seed=s.seeds)
    ]
    with_bn = [r for r in ranges if r["norm"] == "batch"]
    plain = [r for r in ranges if r["kind"] == "plain"]
    return {
        "lr_range_gain": stats.paired_rows(with_bn, "decades", "kind", "residual", "plain", unit="decades"),
        "best_error_gain": stats.paired_rows(with_bn, "best", "kind", "plain", "residual", unit="error"),
        "trains_range_gain": stats.paired_rows(with_bn, "trains", "kind", "residual", "plain", unit="decades"),
        "bn_alone_range_gain": stats.paired_rows(plain, "decades", "norm", "batch", "none", unit="decades"),
    }


def finding(rows, s, e):
    return (
        f"At {s.tuning_depth} layers with batch normalisation the addition widens the range of rates that train well by "
        f"{e['lr_range_gain']}, and the range in which the network learns anything at all by {e['trains_range_gain']}. "
        f"At each network's own best rate it lowers the training error by {e['best_error_gain']}. "
        f"Batch normalisation alone, in the plain network, widens the range by {e['bn_alone_range_gain']}. "
        f"The rates tried lie {spacing(s):.2f} decades apart, so a smaller difference cannot be seen."
    )


def draw(rows, s):
    with plots.figure(2, 1, height=4.8, sharex=True, sharey=True) as (_, axes):
        titles = {"batch": "with batch normalisation", "none": "without"}
        for ax, (norm, title) in zip(axes, titles.items(), strict=True):
            plots.lines(ax, [r for r in rows if r["norm"] == norm], "rate", "error", by="kind", marker=True)
            ax.axhline(s.chance_error, color="grey", linestyle=":", linewidth=1)
            ax.set(title=title, ylabel="training error", xscale="log")
        axes[0].legend()
        axes[1].set_xlabel("learning rate, highest of the schedule")
    lowest = {}
    for cell in conditions(norm=NORMS, kind=KINDS):
        own = [r for r in rows if cell.items() <= r.items()]
        rate = stats.best_setting(own, "error", "rate")
        mean = stats.interval([r["error"] for r in own if r["rate"] == rate]).mean
        lowest[cell["norm"], cell["kind"]] = f"{mean:.2f} at {rate:g}"
    return (
        f"Lowest mean training error with BN {lowest['batch', 'plain']} plain and {lowest['batch', 'residual']} residual; "
        f"without, {lowest['none', 'plain']} plain and {lowest['none', 'residual']} residual. "
        "Dotted: guessing. Thin lines are seeds."
    )


TUNING = Experiment(
    "tuning",
    run=tuning,
    conditions=lambda s: conditions(norm=NORMS, kind=KINDS, rate=_rates(s), seed=s.seeds),
    estimates=estimates,
    settings=("tuning_depth", "tuning_rates", "tuning_epochs", "learning_rate", "number_format"),
    tiny={"tuning_depth": 8, "tuning_rates": [0.1, 0.3], "tuning_epochs": 1},
    finding=finding,
    figure=draw,
    alt="Training error against learning rate on a logarithmic axis for four networks: plain and residual, with and "
    "without batch normalisation, one thin line for each seed.",
    kept=("error",),
)


def _rates(s):
    refuse_depths("tuning_depth", [s.tuning_depth])
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
        f"One filter norm away from the trained weights the plain network's loss rises by {e['rise_saved']} more than the "
        f"residual one's, at a learning rate of {s.learning_rate:g}."
    )


def draw_slice(rows, s):
    with plots.figure(height=2.8) as (_, ax):
        plots.lines(ax, rows, "distance", "loss", by="kind", marker=True)
        ax.set(xlabel="distance along the line, in norms of each filter", ylabel="loss, nats", yscale="log")
        ax.legend()
    mean = {r["kind"]: r["mean"] for r in stats.summarise(rise(rows), "rise", ("kind",))}
    return (
        f"One filter norm away from the trained weights the loss is higher by {mean['plain']:.2f} plain and "
        f"{mean['residual']:.2f} residual. Thin lines are seeds."
    )


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
