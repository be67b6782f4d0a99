"""What is a changed picture worth in pictures? Learning curves with and without augmentation, read horizontally."""

import numpy as np

from resnet_lib import plots, stats
from resnet_lib.experiments.augmentation.learning import SETTINGS, SMALL, TINY, curve_runs, learn
from resnet_lib.study import Experiment

SIZES = {"worth_at_a_tenth": SMALL, "worth_at_a_half": 0.5}


def worth(curve, reached: float, count: int) -> float:
    """Pictures that reach an accuracy without augmentation, over a count; curve: (pictures, accuracy) pairs.

    Between two sizes the curve is a line in the logarithm of the size; it never falls, so a size that does worse by
    chance counts as the best before it. What beats the whole curve is worth all of it: a lower bound.
    """
    sizes, scores = np.array(sorted(curve)).T
    rising = np.maximum.accumulate(scores)
    return float(np.exp(np.interp(reached, rising, np.log(sizes))) / count)


def worth_by_seed(rows, recipe: str) -> list[dict]:
    """For each size and seed, what augmentation is worth; and whether that is only a lower bound."""
    found = []
    for row in (r for r in rows if r["recipe"] == recipe):
        plain = [r for r in rows if r["recipe"] == "none" and r["seed"] == row["seed"]]
        curve = [(r["pictures"], r["accuracy"]) for r in plain]
        kept = {name: row[name] for name in ("share", "pictures", "seed")}
        bounded = row["accuracy"] > max(score for _, score in curve)
        found.append(kept | {"worth": worth(curve, row["accuracy"], row["pictures"]), "bounded": bounded})
    return found


def worth_at(worths, share: float) -> stats.Estimate:
    return stats.interval([r["worth"] for r in worths if r["share"] == share], method="log-t", unit="times")


def estimates(rows, s):
    worths = worth_by_seed(rows, s.standard)
    return {name: worth_at(worths, share) for name, share in SIZES.items()}


def finding(rows, s, e):
    tenth, half = e["worth_at_a_tenth"], e["worth_at_a_half"]
    worths = [r for r in worth_by_seed(rows, s.standard) if r["share"] in SIZES.values()]
    bounded = sum(r["bounded"] for r in worths)
    return (
        f"With {s.standard}, a tenth of the pictures is worth {tenth} as many real ones, and a half of them {half} as many. "
        f"The most that can be read off is {1 / SMALL:.0f} times at a tenth and {1 / 0.5:.0f} times at a half, where the curve "
        f"ends; {bounded or 'none'} of these {len(worths)} worths {'is such a lower bound' if bounded < 2 else 'are such lower bounds'}."
    )


def draw(rows, s):
    recipe = s.standard
    means = stats.summarise(rows, "accuracy", ("recipe", "pictures"))
    mean = {(r["recipe"], r["pictures"]): r["mean"] for r in means}
    curve = [(n, score) for (name, n), score in mean.items() if name == "none"]
    worths = worth_by_seed(rows, recipe)
    with plots.figure(height=2.7) as (_, ax):
        looks = {"none": plots.ORANGE, recipe: plots.BLUE}
        plots.lines(ax, rows, "pictures", "accuracy", by="recipe", marker=True, colours=looks)
        for share in SIZES.values():
            count = next(r["pictures"] for r in worths if r["share"] == share)
            reached = mean[recipe, count]
            end = count * worth(curve, reached, count)
            ax.annotate("", (end, reached), (count, reached), arrowprops={"arrowstyle": "->", "lw": 1.5})
        sizes = sorted(n for n, _ in curve)
        ax.set(xscale="log", xlabel="training pictures", ylabel="test accuracy, %")
        plots.hundredths(ax.yaxis)
        ax.set_xticks(sizes, [f"{n:,}" for n in sizes])
        ax.minorticks_off()
        ax.legend()
    more = all(worth_at(worths, share).low > 1 for share in SIZES.values())
    return (
        "Read along the arrows: an augmented picture is "
        f"{'worth more than one real picture' if more else 'not clearly worth more than one real picture'}, at a tenth and at a "
        "half of them. Thin lines are seeds."
    )


AMOUNT = Experiment(
    "amount",
    run=learn,
    conditions=curve_runs,
    estimates=estimates,
    settings=SETTINGS,
    tiny=TINY,
    finding=finding,
    figure=draw,
    alt="Learning curves: test accuracy against the number of training pictures on a logarithmic axis, with and without "
    "augmentation, a thin line for each seed, and horizontal arrows from the augmented curve to the other.",
    kept=("run",),
)
