"""Do the layers' inputs shift less with batch normalisation, and does its gain go when the shift is put back?"""

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

WORDS = "lower by", "higher by", "not clearly different"


def lost_share(rows, value: str, control: bool = False) -> stats.Estimate:
    """Share of batch norm's gain in loss over no norm that is lost to the noise, by seed.

    Args: control: less what the same noise costs a network without a norm.
    """
    of = {(r["arm"], r["seed"]): r[value] for r in rows}
    shares = []
    for seed in sorted({r["seed"] for r in rows}):
        noisy, normed, without = (of[arm, seed] for arm in ("batch norm + noise", "batch norm", "none"))
        cost = of["noise alone", seed] - without if control else 0.0
        shares.append((noisy - normed - cost) / (without - normed))
    return stats.interval(shares, unit="share")


def estimates(rows, s):
    runs, own = stats.where(rows, what="run"), at_own_rates(rows, s)
    shifts, turns = (
        seed_means(stats.where(own, what="shift"), "shift"),
        seed_means(stats.where(own, what="turn"), "turn"),
    )
    same_rate = seed_means(stats.where(at_rate_without(rows, s), what="shift"), "shift")
    cost = lambda a, b: stats.paired_rows(runs, "train_loss", "arm", a, b, unit="nats")
    return {
        "reduction": reduction(shifts, "shift", "none", "batch norm"),
        "reduction_same_rate": reduction(same_rate, "shift", "none", "batch norm"),
        "turn_reduction": reduction(turns, "turn", "none", "batch norm"),
        "noise_shift_reduction": reduction(shifts, "shift", "none", "batch norm + noise"),
        "loss_gain": cost("none", "batch norm"),
        "gain_lost_to_noise": lost_share(runs, "train_loss"),
        "gain_lost_beyond_noise": lost_share(runs, "train_loss", control=True),
        "quiet_gain_lost_to_noise": lost_share(runs, "quiet_loss"),
        "noise_alone_cost": cost("noise alone", "none"),
    }


def finding(rows, s, e):
    return (
        "The shift of the layers' inputs, as a share of that without batch normalisation, is with it "
        f"{page.change(e['reduction'], *WORDS)}, and at the rate that is best without it "
        f"{page.change(e['reduction_same_rate'], *WORDS)}; with noise after it it is "
        f"{page.change(e['noise_shift_reduction'], *WORDS)}. The turn of the layers' gradients is with it "
        f"{page.change(e['turn_reduction'], *WORDS)}. "
        f"The gain in training loss is {e['loss_gain']}; the noise takes {e['gain_lost_to_noise']} of it, and "
        f"{e['gain_lost_beyond_noise']} beyond what it costs without batch normalisation, {e['noise_alone_cost']}. "
        f"Judged without the noise, in evaluation mode, {e['quiet_gain_lost_to_noise']} of the gain is lost."
    )


def draw(rows, s):
    own = at_own_rates(rows, s)
    with plots.figure(height=3.2) as (_, ax):
        plots.lines(ax, stats.where(own, what="shift"), "step", "shift", by="arm", colours=COLOURS)
        ax.set(xlabel="step of the first epoch", ylabel="shift of inputs, in\nunits of their spread")
        ax.set_yscale("log")
        plots.log_axis(ax.yaxis, [r["shift"] for r in stats.where(own, what="shift")])
        ax.legend(fontsize=10, ncol=2, loc="lower left", bbox_to_anchor=(0, 1))
    found = estimates(rows, s)
    lower = page.trend(found["reduction"], "shift less", "shift more", "do not clearly shift less")
    noisy = page.trend(found["noise_shift_reduction"], "still less", "more", "about as much")
    return (
        f"With batch norm the layers' inputs {lower} than without; with noise behind it, {noisy}. Each network at its own "
        "best rate. Thin lines are seeds."
    )


SHIFT = replace(
    RATES,
    name="shift",
    needs=RATES,
    choose=best_rates,
    conditions=lambda s: [*watched_runs(s), *learning_runs(s)],
    estimates=estimates,
    finding=finding,
    figure=draw,
    alt="Shift of the layers' inputs at each step of the first epoch on a logarithmic axis, for four networks, one thin "
    "line for each seed.",
    kept=("shift", "turn", "run"),
)
