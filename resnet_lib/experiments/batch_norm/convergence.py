"""Is training faster with batch normalisation, each network at its own best learning rate, and is it steadier?"""

from dataclasses import replace
from statistics import fmean

import numpy as np

from resnet_lib import page, plots, stats
from resnet_lib.experiments.batch_norm.networks import ARMS, COLOURS
from resnet_lib.experiments.batch_norm.rates import RATES
from resnet_lib.experiments.batch_norm.trainings import best_rates, learning_runs, loss_level, range_gain, tuning_runs

LEAST_SPREAD = 1e-4  # below this share of the test pictures nothing can be told apart


def spread_ratio(rows, value: str, a: str, b: str, draws: int = 4000, confidence: float = 0.95) -> stats.Estimate:
    """Standard deviation over seeds in arm a over that in arm b, with a bootstrap interval.

    Departs: the ratio of two spreads is skewed, so seeds are drawn again, pairs together, and a percentile interval
        is taken of the ratio's logarithm.
    """
    of = {(r["arm"], r["seed"]): r[value] for r in rows}
    seeds = sorted(seed for arm, seed in of if arm == a)
    over, under = (np.array([of[arm, seed] for seed in seeds]) for arm in (a, b))
    deviation = lambda values: max(values.std(ddof=1), LEAST_SPREAD)
    log_ratio = lambda chosen: np.log(deviation(over[chosen])) - np.log(deviation(under[chosen]))
    draw = np.random.default_rng(0)
    drawn = np.array([log_ratio(draw.integers(0, len(seeds), len(seeds))) for _ in range(draws)])
    tail = (1 - confidence) / 2
    low, high = np.exp(np.quantile(drawn, (tail, 1 - tail)))
    middle, sd = float(np.exp(log_ratio(np.arange(len(seeds))))), float(np.exp(drawn).std())
    ends = float(min(low, middle)), float(max(high, middle))
    return stats.Estimate(middle, *ends, len(seeds), confidence, sd, "bootstrap", "times")


def estimates(rows, s):
    runs = stats.where(rows, what="run")
    return {
        "step_ratio": stats.paired_ratio(runs, "steps_to_loss", "arm", "none", "batch norm"),
        "spread_ratio": spread_ratio(runs, "accuracy", "none", "batch norm"),
        "lr_range_gain": range_gain(stats.where(rows, what="tuning"), s, "batch norm", "none"),
        "accuracy_gain": stats.paired_rows(runs, "accuracy", "arm", "batch norm", "none", unit="accuracy"),
    }


def finding(rows, s, e):
    spreads = [
        stats.interval([r["accuracy"] for r in stats.where(rows, what="run") if r["arm"] == arm]).sd
        for arm in ("none", "batch norm")
    ]
    return (
        f"Without batch normalisation the same loss takes {e['step_ratio']} as many steps. With it test accuracy "
        f"{page.change(e['accuracy_gain'], 'is higher by', 'is lower by', 'is not clearly different')}. "
        f"The spread of the accuracy over seeds is {100 * spreads[0]:.1f} points without and {100 * spreads[1]:.1f} with "
        f"it: a ratio of {e['spread_ratio']}."
    )


def table(rows, s):
    shown = []
    for arm in ARMS:
        runs = [r for r in stats.where(rows, what="run") if r["arm"] == arm]
        row = {"arm": arm, "rate": s.best_rates[arm]}
        row |= {name: fmean(r[name] for r in runs) for name in ("steps_to_loss", "time_to_accuracy", "train_loss")}
        reached, arrived = (sum(r[name] for r in runs) for name in ("reached", "arrived"))
        row["reached"] = f"{reached}, {arrived} of {len(runs)}"
        shown.append(row | {"accuracy": stats.interval([r["accuracy"] for r in runs], unit="share")})
    columns = {
        "arm": "network",
        "rate": ("rate", "g"),
        "steps_to_loss": (f"steps to loss {loss_level(s):.2f}", ".0f"),
        "time_to_accuracy": (f"s to accuracy {s.target_accuracy:g}", ".2f"),
        "reached": "reached the loss, the accuracy",
        "train_loss": ("training loss at the end", ".3f"),
        "accuracy": "test accuracy",
    }
    return page.table(shown, columns)


def curves(ax, rows, s):
    plots.lines(ax, stats.where(rows, what="curve"), "step", "loss", by="arm", colours=COLOURS, band=True)
    ax.axhline(loss_level(s), color="grey", linestyle=":", linewidth=1.2)
    ax.set(xlabel="step", ylabel="training loss, nats,\nmean of five steps")


def told(rows, s) -> str:
    ratio = stats.paired_ratio(stats.where(rows, what="run"), "steps_to_loss", "arm", "none", "batch norm")
    clearly = "sooner" if ratio.low > 1 else "later" if ratio.high < 1 else "not clearly sooner"
    return (
        f"With batch norm the loss comes {clearly} to the level of {loss_level(s):.2f} (dotted), each network at its own best "
        f"rate. Bands are 95 % intervals of the mean over {ratio.n} seeds."
    )


def draw(rows, s):
    with plots.figure(height=3.6) as (figure, ax):
        curves(ax, rows, s)
        figure.legend(*ax.get_legend_handles_labels(), fontsize=10, ncol=3, loc="outside upper left")
    return told(rows, s)


def draw_front(rows, s):
    """With and without batch norm, and with noise behind it, for the first screen."""
    rows = [r for r in rows if r["arm"] in ("none", "batch norm", "batch norm + noise")]
    with plots.figure(width=7.6, height=2.4) as (_, ax):
        curves(ax, rows, s)
        ax.legend(fontsize=10)
    return told(rows, s)


CONVERGENCE = replace(
    RATES,
    name="convergence",
    needs=RATES,
    choose=best_rates,
    conditions=lambda s: [*learning_runs(s), *tuning_runs(s, ("none", "batch norm"))],
    estimates=estimates,
    counts=("spread_seeds",),
    finding=finding,
    figure=draw,
    alt="Training loss against the step for five networks, each at its own best learning rate: the mean and a band, its "
    "interval, with a dotted line at the level to reach.",
    table=table,
    kept=("run", "curve", "tuning"),
)
