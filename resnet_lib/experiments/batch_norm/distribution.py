"""Does batch normalisation drive all units to one distribution, and does it suppress the gradient?"""

import math
from dataclasses import replace

from resnet_lib import plots, stats
from resnet_lib.experiments.batch_norm.networks import COLOURS
from resnet_lib.experiments.batch_norm.rates import RATES
from resnet_lib.experiments.batch_norm.trainings import (
    at_own_rates,
    at_rate_without,
    best_rates,
    learning_runs,
    reduction,
    seed_means,
    watched_runs,
)

SHOWN = ("none", "batch norm")


def diverged(rows):
    """The arms compared here of which a run diverged, which leaves no trained network to look at."""
    return sorted({r["arm"] for r in rows if r["arm"] in SHOWN and r["spread_trained"] is None})


def estimates(rows, s):
    at_start = {"spread_reduction_at_start": reduction(rows, "spread_init", *SHOWN)}
    return (
        at_start
        if diverged(rows)
        else at_start | {"spread_reduction_trained": reduction(rows, "spread_trained", *SHOWN)}
    )


def notes(rows, s):
    arms = ", ".join(diverged(rows))
    return [f"distribution/spread_reduction_trained: a training diverged ({arms})"] if arms else []


def finding(rows, s, e):
    after = (
        f" and by {e['spread_reduction_trained']} after {s.epochs} epochs" if "spread_reduction_trained" in e else ""
    )
    return f"Batch normalisation lowers the spread over units by {e['spread_reduction_at_start']} at the start{after}."


def draw(rows, s):
    spreads = [
        {"arm": r["arm"], "when": when, "spread": r[column]}
        for column, when in {"spread_init": "before training", "spread_trained": "after"}.items()
        for r in rows
        if r["arm"] in SHOWN and r[column] is not None
    ]
    with plots.figure(width=8.4, height=2.1) as (_, ax):
        plots.dots(ax, spreads, "when", "spread", by="arm", colours=COLOURS, offset=0.1, join=False)
        ax.set(ylabel="spread over units", xlim=(-0.5, 1.5))
        ax.legend()
    means = stats.summarise(spreads, "spread", ("arm", "when"))
    found = "; ".join(f"{r['mean']:.2g} {r['arm']}, {r['when']}" for r in means)
    return f"Spread over units, in units of the layer's mean deviation: {found}. Bars: intervals of 95 %."


DISTRIBUTION = replace(
    RATES,
    name="distribution",
    needs=RATES,
    choose=best_rates,
    conditions=learning_runs,
    estimates=estimates,
    finding=finding,
    figure=draw,
    alt="The spread over units before and after training, with and without batch norm, a dot for each seed and the mean "
    "with its interval.",
    notes=notes,
    kept=("run",),
)


def suppression(rows, column: str) -> stats.Estimate:
    """log10 of the mean gradient norm without batch norm over that with it, by seed."""
    sizes = [r | {"decades": math.log10(r[column])} for r in seed_means(rows, column)]
    return stats.paired_rows(sizes, "decades", "arm", *SHOWN, unit="decades")


def gradient_estimates(rows, s):
    own = at_own_rates(rows, s)
    return {
        "suppression": suppression(own, "weights"),
        "suppression_same_rate": suppression(at_rate_without(rows, s), "weights"),
        "output_suppression": suppression(own, "outputs"),
    }


def gradient_finding(rows, s, e):
    return (
        f"Batch normalisation makes the gradient of the weights smaller by {e['suppression']}, at the same rate by "
        f"{e['suppression_same_rate']}, and that of the layers' outputs by {e['output_suppression']}. "
        "A negative number of decades says that the gradient is larger with it."
    )


def draw_gradients(rows, s):
    own = [r for r in at_own_rates(stats.where(rows, what="size"), s) if r["arm"] in SHOWN]
    layers = sorted({r["layer"] for r in own})
    means = [m | {"layer": k} for k in layers for m in seed_means([r for r in own if r["layer"] == k], "weights")]
    with plots.figure(width=8.4, height=2.1) as (_, ax):
        plots.lines(ax, means, "layer", "weights", by="arm", colours=COLOURS, marker=True)
        ax.set(xlabel="layer", ylabel="norm of the\ngradient", ylim=(0, None))
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend()
    found = "; ".join(f"{r['mean']:.2g} {r['arm']}" for r in stats.summarise(means, "weights", ("arm",)))
    return (
        f"Norm of the gradient of a layer's weights in the first epoch, mean of layers: {found}. Thin lines are seeds."
    )


GRADIENTS = replace(
    DISTRIBUTION,
    name="gradients",
    conditions=watched_runs,
    estimates=gradient_estimates,
    counts=(),
    finding=gradient_finding,
    figure=draw_gradients,
    alt="The gradient of each layer's weights in the first epoch, with and without batch norm, one thin line for each "
    "seed.",
    notes=None,
    kept=("size",),
)
