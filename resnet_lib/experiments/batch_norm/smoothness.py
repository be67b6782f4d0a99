"""Is the loss smoother with batch normalisation: does the gradient change less along itself?"""

from dataclasses import replace

from resnet_lib import page, plots
from resnet_lib.experiments.batch_norm.networks import COLOURS
from resnet_lib.experiments.batch_norm.rates import RATES
from resnet_lib.experiments.batch_norm.trainings import at_own_rates, best_rates, reduction, seed_means, watched_runs

LENGTH = 0.03  # of the step at which networks are compared, as a share of the length of the weights


def changes_at(rows, s, unit: str, stretch: float):
    """For each arm at its own rate and each seed, how far the gradient has changed after a step of this length."""
    own = [r for r in at_own_rates(rows, s) if (r["unit"], r["stretch"]) == (unit, stretch)]
    return seed_means(own, "gradient_change")


def estimates(rows, s):
    at_rate, at_length = changes_at(rows, s, "own rate", 1), changes_at(rows, s, "share of length", LENGTH)
    return {
        "own_rate_reduction": reduction(at_rate, "gradient_change", "none", "batch norm"),
        "length_reduction": reduction(at_length, "gradient_change", "none", "batch norm"),
        "noise_length_reduction": reduction(at_length, "gradient_change", "none", "batch norm + noise"),
    }


WORDS = "less by", "more by", "neither clearly less nor more"


def finding(rows, s, e):
    without, normed = (s.best_rates[arm] for arm in ("none", "batch norm"))
    return (
        "In a smoother loss the gradient changes less along a step. "
        f"After a step as long as {LENGTH} of the weights it has changed, with batch normalisation, "
        f"{page.change(e['length_reduction'], *WORDS)}, and with noise after it "
        f"{page.change(e['noise_length_reduction'], *WORDS)}. After a step of each network's own best rate, {without:g} "
        f"without and {normed:g} with the norm, it has changed {page.change(e['own_rate_reduction'], *WORDS)}."
    )


def draw(rows, s):
    titles = {
        "own rate": "step, in multiples of the own rate",
        "share of length": "step, as a share of the weights' length",
    }
    with plots.figure(1, 2, width=8.4, height=2.8, sharey=True) as (figure, axes):
        for ax, (unit, title) in zip(axes, titles.items(), strict=True):
            stretches = sorted({r["stretch"] for r in rows if r["unit"] == unit})
            part = [r | {"stretch": stretch} for stretch in stretches for r in changes_at(rows, s, unit, stretch)]
            plots.lines(ax, part, "stretch", "gradient_change", by="arm", colours=COLOURS, marker=True)
            ax.set(xscale="log", yscale="log", xlabel=title)
            ax.set_xticks(stretches, [f"{stretch:g}" for stretch in stretches])
            ax.minorticks_off()
        axes[0].set_ylabel("change of the gradient\nover its length")
        plots.log_axis(axes[0].yaxis, [r["gradient_change"] for r in rows])
        figure.legend(*axes[0].get_legend_handles_labels(), fontsize=10, ncol=4, loc="outside upper left")
    found, words = estimates(rows, s), ("less", "more", "not clearly less")
    own, length = (page.trend(found[name], *words) for name in ("own_rate_reduction", "length_reduction"))
    return (
        f"With batch norm the gradient changes {own} along a step of the network's own rate, and {length} along one of "
        f"{LENGTH} of the weights' length: the answer depends on the unit. Thin lines are seeds."
    )


SMOOTHNESS = replace(
    RATES,
    name="smoothness",
    needs=RATES,
    choose=best_rates,
    conditions=watched_runs,
    estimates=estimates,
    counts=(),
    finding=finding,
    figure=draw,
    alt="Two panels on logarithmic axes: relative change of the gradient along itself against the length of the step, "
    "left in multiples of each network's own learning rate, right as a share of the length of its weights; four "
    "networks, one thin line for each seed.",
    kept=("smooth",),
)
