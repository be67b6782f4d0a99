"""Does a small sample generalise better? Accuracy against the number of pictures, at equal epochs and at equal steps."""

from statistics import fmean

import numpy as np

from resnet_lib import data, page, plots, stats
from resnet_lib.experiments.depths import refuse
from resnet_lib.experiments.downsampling.training import (
    NETWORK,
    TINY,
    best_rates,
    configured,
    converged,
    judged,
    key_of,
    rates_experiment,
    taught,
    tried,
    with_training,
)
from resnet_lib.study import Experiment

REGIMES = ("steps", "epochs")
SMALL = 0.1  # by the rules in claims.yml
UNSEEN = 2  # of the sizes, the largest, are kept from the power law that must foretell them
SETTINGS = (*NETWORK, "epochs")


def trained(s, share: float, regime: str, rate: float, seed: int):
    """A network trained on the first pictures, for the steps or the epochs that the whole training set takes.

    A sample smaller than a batch is repeated until it fills one; it is then shown in fewer epochs, so that each of its
    pictures is seen as often.
    """
    whole = s.pictures.train
    count = round(share * len(whole))
    length = len(whole) if regime == "steps" else max(count, s.batch_size)
    epochs = s.epochs if regime == "steps" else max(1, round(s.epochs * count / length))
    dataset = with_training(s.pictures, whole.images[:count], whole.labels[:count], length)
    return count, taught(s, dataset, configured(s, rate, epochs), seed)


def rate_trial(s, share: float, regime: str, rate: float, seed: int) -> list[dict]:
    """A trial of one learning rate."""
    return tried(s, trained(s, share, regime, rate, seed)[1])


def learn(s, share: float, regime: str, rate: float, seed: int) -> list[dict]:
    """Accuracy on training and test pictures of a network that saw a share of the training set."""
    count, made = trained(s, share, regime, rate, seed)
    last = converged(made, f"a network on {share:g} of the pictures").rows[-1]
    first = slice(None, min(count, len(s.pictures.test)))
    own = data.Split(s.pictures.train.images[first], s.pictures.train.labels[first])
    row = {"pictures": count, "steps": last["step"], "time_s": last["time_s"]}
    row["accuracy"] = judged(s, made.model, s.pictures.test)["accuracy"]
    return [row | {"train_accuracy": judged(s, made.model, own)["accuracy"]}]


def arms(s) -> list[dict]:
    refuse(s)
    if (
        not {SMALL, 1.0} <= set(s.shares)
        or len(set(s.shares)) < UNSEEN + 2
        or not 0 < min(s.shares) <= max(s.shares) <= 1
    ):
        raise ValueError(
            f"shares={s.shares} must be {UNSEEN + 2} or more, above 0 and at most 1, among them {SMALL} and 1.0, which the "
            "rules in claims.yml compare"
        )
    if round(min(s.shares) * s.facts["train"]) < 2:
        raise ValueError(f"shares={s.shares}: of {s.facts['train']} pictures the smallest is less than two")
    cells = [{"share": share, "regime": regime} for share in sorted(s.shares) for regime in REGIMES]
    return [cell for cell in cells if cell["share"] < 1 or cell["regime"] == "steps"]  # of the whole set they are one


NAMES = ("share", "regime")
CURVE_TINY = TINY | {"epochs": 1, "shares": [0.05, 0.1, 0.6, 1.0]}
CURVE_RATES = rates_experiment("curve_rates", rate_trial, arms, NAMES, SETTINGS, ("shares",), CURVE_TINY)


def rates_of(rows, s) -> dict:
    return {"rate_of": best_rates(rows, NAMES)}


def runs(s) -> list[dict]:
    return [arm | {"rate": s.rate_of[key_of(arm, NAMES)], "seed": seed} for arm in arms(s) for seed in s.seeds]


def of_regime(rows, regime: str) -> list[dict]:
    """The rows of one regime; the run on the whole set belongs to both."""
    return [r | {"regime": regime} for r in rows if r["regime"] == regime or r["share"] == 1]


def power_law(points) -> tuple[float, float]:
    """a and b of error = a · pictures^−b, by least squares of logarithms; points: (pictures, error) pairs."""
    sizes, errors = np.log(np.array(points, dtype=float)).T
    slope, start = np.polyfit(sizes, errors, 1)
    return float(np.exp(start)), float(-slope)


def laws(rows) -> list[dict]:
    """For each seed the power law of its smaller sizes at equal steps, and how far it is off at the largest."""
    found = []
    own = of_regime(rows, "steps")
    sizes = sorted({r["pictures"] for r in own})
    for seed in sorted({r["seed"] for r in own}):
        error = {r["pictures"]: max(1e-3, 1 - r["accuracy"]) for r in own if r["seed"] == seed}
        a, b = power_law([(n, error[n]) for n in sizes[:-UNSEEN]])
        whole = sizes[-1]
        found.append({"seed": seed, "a": a, "b": b, "off": a * whole**-b - error[whole]})
    return found


def estimates(rows, s):
    found = {}
    for regime in REGIMES:
        own = of_regime(rows, regime)
        own = [r | {"gap": r["train_accuracy"] - r["accuracy"]} for r in own]
        found[f"gain_equal_{regime}"] = stats.paired_rows(own, "accuracy", "share", SMALL, 1.0, unit="accuracy")
        found[f"gap_saved_equal_{regime}"] = stats.paired_rows(own, "gap", "share", 1.0, SMALL, unit="accuracy")
        found[f"steps_ratio_{regime}"] = stats.paired_ratio(own, "steps", "share", SMALL, 1.0)
    whole = [r["accuracy"] for r in rows if r["share"] == 1]
    found["whole_accuracy"] = stats.interval(whole, unit="share")
    found["whole_over_chance"] = stats.interval([a - 1 + s.chance_error for a in whole], unit="accuracy")
    fitted = laws(rows)
    found["exponent"] = stats.interval([one["b"] for one in fitted])
    found["law_off_at_whole"] = stats.interval([one["off"] for one in fitted], unit="error")
    return found


WORDS = "gains", "loses", "makes no clear difference"


def finding(rows, s, e):
    law = page.change(e["law_off_at_whole"], "too high by", "too low by", "right within its interval")
    return (
        f"All {s.facts['train']:,} pictures reach {e['whole_accuracy']} of test accuracy. "
        f"A tenth of them, against all, {page.change(e['gain_equal_epochs'], *WORDS)} at equal epochs and "
        f"{page.change(e['gain_equal_steps'], *WORDS)} at equal steps. "
        f"At equal steps the gap between training and test accuracy "
        f"{page.change(e['gap_saved_equal_steps'], 'shrinks by', 'grows by', 'does not clearly change')}, at equal epochs it "
        f"{page.change(e['gap_saved_equal_epochs'], 'shrinks by', 'grows by', 'does not clearly change')}. "
        f"At equal steps the error of the smaller sizes falls as the number of pictures to the power of −{e['exponent']}; carried "
        f"on to all pictures, that law is {law}."
    )


def draw(rows, s):
    looks = {"steps": plots.BLUE, "epochs": plots.ORANGE}
    sizes = sorted({r["pictures"] for r in rows})
    with plots.figure(height=3.2) as (_, ax):
        own = [r | {"error": 1 - r["accuracy"]} for regime in REGIMES for r in of_regime(rows, regime)]
        plots.lines(
            ax, own, "pictures", "error", by="regime", marker=True, colours=looks, label=lambda name: f"equal {name}"
        )
        law = laws(rows)
        for cut, style in ((sizes[:-UNSEEN], "-"), (sizes[-UNSEEN - 1 :], ":")):
            ax.plot(cut, [fmean(one["a"] * n ** -one["b"] for one in law) for n in cut], style, color="black", linewidth=1.2,
                    label="power law" if style == "-" else "the law carried on")  # fmt: skip
        ax.axhline(s.chance_error, color="grey", linewidth=1, linestyle="--")
        ax.set(xscale="log", yscale="log", xlabel="training pictures", ylabel="test error, %")
        ticks = [t for t in (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9) if _within(t, own, s)]
        ax.set_yticks(ticks, [f"{100 * t:g}" for t in ticks])
        ax.set_xticks(sizes, [f"{n:,}" for n in sizes], fontsize=10)
        ax.minorticks_off()
        ax.legend(fontsize=10)
    e = estimates(rows, s)
    words = "less", "more", "no clearly different"
    return (
        f"A tenth of the pictures, against all of them, leaves {page.trend(e['gain_equal_epochs'], *words)} error at equal epochs "
        f"and {page.trend(e['gain_equal_steps'], *words)} at equal steps. Dotted: what the smaller sizes foretell. Dashed grey: "
        "guessing. Thin lines are seeds."
    )


def _within(tick: float, rows, s) -> bool:
    errors = [r["error"] for r in rows] + [s.chance_error]
    return min(errors) / 1.2 <= tick <= max(errors) * 1.05


def table(rows, s):
    columns = ("share", "pictures", "regime", "rate")
    cells = stats.cell_means(rows, "accuracy", columns)
    for name in ("train_accuracy", "steps", "time_s"):
        for cell, other in zip(cells, stats.cell_means(rows, name, columns), strict=True):
            cell[name] = other[name]
    heads = {
        "pictures": ("pictures", ","),
        "regime": "equal",
        "rate": ("learning rate", "g"),
        "steps": ("steps", ".0f"),
    }
    heads |= {
        "train_accuracy": ("training accuracy", ".1%"),
        "accuracy": ("test accuracy", ".1%"),
        "time_s": ("s", ".1f"),
    }
    return page.table(cells, heads)


LEARNING_CURVE = Experiment(
    "learning_curve",
    run=learn,
    conditions=runs,
    estimates=estimates,
    settings=SETTINGS,
    counts=("shares",),
    needs=CURVE_RATES,
    choose=rates_of,
    tiny=CURVE_RATES.tiny,
    finding=finding,
    figure=draw,
    table=table,
    alt="Test error against the number of training pictures, both on logarithmic axes: a curve at equal steps and one at equal "
    "epochs, a thin line for each seed, and a straight line fitted to the smaller sizes and carried on to the largest.",
)
