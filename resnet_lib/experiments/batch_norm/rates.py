"""Which learning rates train, with a norm and without, and which is best for each network?"""

import itertools
import math
from statistics import fmean

from resnet_lib import page, plots
from resnet_lib.experiments.batch_norm.networks import ARMS, COLOURS
from resnet_lib.experiments.batch_norm.trainings import (
    SETTINGS,
    TINY,
    best_rates,
    range_gain,
    refuse,
    trained,
    tuning_runs,
)
from resnet_lib.study import Experiment

WORDS = "higher by", "lower by", "not clearly higher or lower"


def rates_runs(s):
    refuse(s)
    return tuning_runs(s)


def estimates(rows, s):
    return {
        "range_gain": range_gain(rows, s, "batch norm", "none"),
        "held_range_loss": range_gain(rows, s, "batch norm", "batch norm, held"),
    }


def trains_at_the_top(rows, s):
    """The arms that train even at the largest rate tried, so that their range is a lower bound."""
    return [arm for arm in ARMS if any(r["trains"] for r in rows if (r["arm"], r["rate"]) == (arm, max(s.rates)))]


def finding(rows, s, e):
    apart = max(math.log10(b / a) for a, b in itertools.pairwise(s.rates))
    bounded = trains_at_the_top(rows, s)
    return (
        f"With batch normalisation the largest rate that trains is {page.change(e['range_gain'], *WORDS)}. "
        f"With the weights' lengths held it is {page.change(e['held_range_loss'], *WORDS[1::-1], WORDS[2])}. "
        f"A decade is a factor of ten; the rates tried lie up to {apart:.1f} decades apart. "
        f"{page.listed(bounded, 'No network')} trained at the largest of them"
        f"{', so that its range is a lower bound' if bounded else ''}."
    )


def draw(rows, s):
    grown = [r for r in rows if r["trains"] and r["growth"]]
    with plots.figure(1, 2, width=8.4, height=2.8) as (figure, axes):
        plots.lines(axes[0], rows, "rate", "train_error", by="arm", colours=COLOURS, marker=True)
        plots.lines(axes[1], grown, "rate", "growth", by="arm", colours=COLOURS, marker=True)
        axes[0].axhline(s.chance_error, color="grey", linestyle=":", linewidth=1)
        axes[0].set(xscale="log", ylabel="training error, %", xlabel="learning rate, constant")
        plots.hundredths(axes[0].yaxis)
        figure.legend(*axes[0].get_legend_handles_labels(), fontsize=10, ncol=5, loc="outside upper left")
        axes[1].set(xscale="log", ylabel="length² of weights,\nend over start")
        axes[1].set_xlabel("learning rate, constant")
    best, by_rate = best_rates(rows, s)["best_rates"], {}
    for arm, rate in best.items():
        by_rate.setdefault(rate, []).append(arm)
    told = "; ".join(f"{rate:g} of {page.listed(arms)}" for rate, arms in sorted(by_rate.items()))
    return (
        f"Best rates: {told}. {growth_told(grown)} Right: only runs that train. Dotted: guessing. Thin lines are seeds."
    )


def growth_told(grown) -> str:
    normalised = [r for r in grown if r["arm"] == "batch norm"]
    if not normalised:
        return "Batch norm trains at none of the rates."
    top = max(r["rate"] for r in normalised)
    times = fmean(r["growth"] for r in normalised if r["rate"] == top)
    return f"At {top:g} batch norm multiplied the squared length of its weights by {times:.2g}."


RATES = Experiment(
    "rates",
    run=trained,
    conditions=rates_runs,
    estimates=estimates,
    settings=SETTINGS,
    counts=("spread_seeds",),  # read to be refused before the first run, not after the last
    tiny=TINY,
    finding=finding,
    figure=draw,
    alt="Two panels against the learning rate on a logarithmic axis: left, training error of five networks; right, the "
    "squared length of the weights at the end over that at the start. One thin line for each seed.",
)
