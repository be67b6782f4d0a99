"""Do weights before a norm grow, so that the effective rate falls by itself, and is anything lost if they may not?"""

import math
from dataclasses import replace

from resnet_lib import page, stats
from resnet_lib.experiments.batch_norm.rates import RATES
from resnet_lib.experiments.batch_norm.trainings import best_rates, learning_runs, range_gain, tuning_runs


def growth_of(rows, s, arm: str) -> list[float]:
    """log10 of the squared length of the weights at the end over that at the start, at batch norm's best rate."""
    at_best = [r["growth"] for r in rows if (r["arm"], r["rate"]) == (arm, s.best_rates["batch norm"])]
    return [math.log10(growth) for growth in at_best if growth and math.isfinite(growth)]


def estimates(rows, s):
    tuned, runs = stats.where(rows, what="tuning"), stats.where(rows, what="run")
    grown = growth_of(tuned, s, "batch norm")
    found = {
        "held_range_loss": range_gain(tuned, s, "batch norm", "batch norm, held"),
        "held_loss_cost": stats.paired_rows(runs, "train_loss", "arm", "batch norm, held", "batch norm", unit="nats"),
    }
    return found | ({"growth": stats.interval(grown, unit="decades")} if len(grown) > 1 else {})


RANGE = "narrow the range of rates by", "widen the range of rates by", "do not clearly change the range of rates"


def notes(rows, s):
    if len(growth_of(stats.where(rows, what="tuning"), s, "batch norm")) > 1:
        return []
    return ["rate_scaling/growth: fewer than two trainings with batch norm ended with weights of a finite length"]


def finding(rows, s, e):
    grown = f"The squared length of the weights grows by {e['growth']} at the best rate. " if "growth" in e else ""
    return (
        f"{grown}Held to their first length, they {page.change(e['held_range_loss'], *RANGE)}, and training loss, at that "
        f"network's own best rate, is {page.change(e['held_loss_cost'], 'higher by', 'lower by', 'not clearly different')}."
    )


RATE_SCALING = replace(
    RATES,
    name="rate_scaling",
    needs=RATES,
    choose=best_rates,
    conditions=lambda s: [
        *tuning_runs(s, ("none", "batch norm", "batch norm, held")),
        *learning_runs(s, ("batch norm", "batch norm, held")),
    ],
    estimates=estimates,
    finding=finding,
    figure=None,
    alt="",
    notes=notes,
    kept=("tuning", "run"),
)
