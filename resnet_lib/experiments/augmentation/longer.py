"""Augment, or train longer? Both recipes for once and several times the epochs, compared at equal time on the clock."""

from statistics import fmean

import numpy as np

from resnet_lib import page, plots, stats
from resnet_lib.experiments.augmentation.recipes import NETWORK, accuracy, fitted, refuse_standard, training
from resnet_lib.experiments.depths import refuse
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions


def lengths(s, recipe: str, times: int, seed: int) -> list[dict]:
    """A network trained for several times the epochs, with a schedule of its own: seconds and accuracy."""
    config = training(s, epochs=times * s.epochs)
    model, last = fitted(s.pictures, recipe, seed, s.depth, s.width, config)
    found = {name: last[name] for name in ("train_error", "time_s")}
    return [found | {"accuracy": accuracy(model, s.pictures, s.pictures.test, config)}]


def at_equal_time(rows, recipe: str) -> list[float]:
    """By seed: accuracy of a recipe at the time that the longest run without augmentation took, minus its."""
    gains = []
    for seed in sorted({r["seed"] for r in rows}):
        own = [r for r in rows if r["seed"] == seed]
        curve = sorted((r["time_s"], r["accuracy"]) for r in own if r["recipe"] == recipe)
        rival = max((r for r in own if r["recipe"] == "none"), key=lambda r: r["times"])
        times, scores = np.array(curve).T
        reached = np.interp(np.log(rival["time_s"]), np.log(times), scores)
        gains.append(float(reached) - rival["accuracy"])
    return gains


def longer_gain(rows, s, recipe: str) -> stats.Estimate:
    own = [r for r in rows if r["recipe"] == recipe]
    return stats.paired_rows(own, "accuracy", "times", max(s.longer), 1, unit="accuracy")


def estimates(rows, s):
    return {
        "gain_at_equal_time": stats.interval(at_equal_time(rows, s.standard), unit="accuracy"),
        "longer_gain": longer_gain(rows, s, "none"),
        "longer_augmented_gain": longer_gain(rows, s, s.standard),
    }


WORDS = "gains", "loses", "makes no clear difference"


def finding(rows, s, e):
    return (
        f"Training {max(s.longer)} times as long {page.change(e['longer_gain'], *WORDS)} of accuracy without augmentation, and "
        f"{page.change(e['longer_augmented_gain'], *WORDS)} with {s.standard}. "
        "At the time of the longest run without augmentation, augmentation "
        f"{page.change(e['gain_at_equal_time'], *WORDS)}."
    )


def draw(rows, s):
    with plots.figure(height=2.8) as (_, ax):
        for name, colour in {"none": plots.ORANGE, s.standard: plots.BLUE}.items():
            own = sorted((r for r in rows if r["recipe"] == name), key=lambda r: r["times"])
            ax.plot([r["time_s"] for r in own], [r["accuracy"] for r in own], "o", color=colour, alpha=0.5)
            centres = [
                [fmean(r[column] for r in own if r["times"] == times) for column in ("time_s", "accuracy")]
                for times in dict.fromkeys(r["times"] for r in own)
            ]
            ax.plot(*zip(*centres, strict=True), color=colour, marker="s", label=name)
        ax.set(xscale="log", xlabel="seconds of training", ylabel="test accuracy, %")
        plots.log_axis(ax.xaxis, [r["time_s"] for r in rows])
        plots.hundredths(ax.yaxis)
        ax.legend()
    word = page.trend(estimates(rows, s)["gain_at_equal_time"], "better", "worse", "not clearly different")
    return f"At equal time, training with {s.standard} is {word} than without. Dots are seeds, squares their means."


def runs(s):
    refuse(s)
    refuse_standard(s)
    if not s.longer or min(s.longer) < 2:
        raise ValueError(f"longer={s.longer} must be one or more whole numbers of at least 2")
    return conditions(recipe=["none", s.standard], times=[1, *s.longer], seed=s.seeds)


LONGER = Experiment(
    "time",
    run=lengths,
    conditions=runs,
    estimates=estimates,
    settings=(*NETWORK, "standard", "longer"),
    tiny={"depth": 8, "width": 2, "batch_size": 64, "epochs": 1, "train_size": 128, "longer": [2]},
    finding=finding,
    figure=draw,
    alt="Test accuracy against seconds of training on a logarithmic axis, with and without augmentation, a dot for each seed "
    "and squares for their means.",
)
