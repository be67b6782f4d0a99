"""Does batch normalisation drive all units to one distribution, and does it suppress the gradient?"""

import math
from dataclasses import replace

from resnet_lib import page, plots, stats
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
    words = "lower by", "higher by", "not clearly different"
    trained = e.get("spread_reduction_trained")
    after = f"; after {s.epochs} epochs it is {page.change(trained, *words)}" if trained else ""
    start = page.change(e["spread_reduction_at_start"], *words)
    return f"With batch normalisation the spread over units is {start} at the start{after}."


def draw(rows, s):
    spreads = [
        {"arm": r["arm"], "when": when, "spread": r[column]}
        for column, when in {"spread_init": "before training", "spread_trained": "after"}.items()
        for r in rows
        if r["arm"] in SHOWN and r[column] is not None
    ]
    with plots.figure(height=2.8) as (_, ax):
        plots.dots(ax, spreads, "when", "spread", by="arm", colours=COLOURS, offset=0.1, join=False)
        ax.set(ylabel="spread over units", xlim=(-0.5, 1.5))
        ax.legend()
    found = estimates(rows, s).get("spread_reduction_trained")
    left = "a good part of it comes back" if found and found.mean < 0.5 else "it stays small"
    return (
        "Spread over units, in units of the layer's mean deviation: batch norm takes it away before training, and "
        f"{left if found else 'what is left after it was not measured'} after. Dots are seeds, bars intervals of 95 %."
    )


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
    words = "smaller by", "larger by", "not clearly different"
    return (
        f"With batch normalisation the gradient of the weights is {page.change(e['suppression'], *words)}; at the same rate "
        f"it is {page.change(e['suppression_same_rate'], *words)}. That of the layers' outputs is "
        f"{page.change(e['output_suppression'], *words)}."
    )


def draw_gradients(rows, s):
    own = [r for r in at_own_rates(stats.where(rows, what="size"), s) if r["arm"] in SHOWN]
    layers = sorted({r["layer"] for r in own})
    means = [m | {"layer": k} for k in layers for m in seed_means([r for r in own if r["layer"] == k], "weights")]
    with plots.figure(height=2.8) as (_, ax):
        plots.lines(ax, means, "layer", "weights", by="arm", colours=COLOURS, marker=True)
        ax.set(xlabel="layer", ylabel="norm of the\ngradient", ylim=(0, None))
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend()
    found = gradient_estimates(rows, s)["suppression"]
    word = page.trend(found, "smaller", "larger", "neither clearly smaller nor larger")
    return f"In the first epoch the gradient of the weights is {word} with batch norm, over all layers. Thin lines are seeds."


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
