"""All situations? Networks trained on some variations, judged on test pictures changed in these ways and others."""

import itertools
from statistics import fmean

import numpy as np

from resnet_lib import page, plots, stats
from resnet_lib.experiments.augmentation.learning import (
    ALL_FIVE,
    FIVE,
    SETTINGS,
    SITUATIONS,
    TINY,
    UNSEEN,
    WITHOUT,
    label,
    learn,
    robust_runs,
)
from resnet_lib.study import Experiment

BOUND = 0.02  # of accuracy: the smallest gain that matters, by the rules in claims.yml


def mean_over_severities(rows) -> dict:
    """Accuracy by recipe, kind of test picture and seed, the mean over severities."""
    found = {}
    for row in rows:
        kind = row.get("kind", "unchanged")
        found.setdefault((row["recipe"], kind, row["seed"]), []).append(row["accuracy"])
    return {key: fmean(values) for key, values in found.items()}


def gain_on(scores: dict, recipes, kinds, against: str = "none") -> stats.Estimate:
    """Paired gain of recipes over no augmentation, recipe by kind in turn, the mean over the pairs."""
    seeds = sorted({seed for _, _, seed in scores})
    pairs = list(zip(recipes, kinds, strict=True))
    with_ = [fmean(scores[recipe, kind, seed] for recipe, kind in pairs) for seed in seeds]
    without = [fmean(scores[against, kind, seed] for _, kind in pairs) for seed in seeds]
    return stats.paired(with_, without, unit="accuracy")


def estimates(rows, s):
    scores = mean_over_severities(rows)
    seen = list(zip(FIVE, SITUATIONS, strict=True))
    found = {f"{kind}_gain": gain_on(scores, [name], [kind]) for name, kind in seen}
    found["unseen_gain"] = gain_on(scores, [WITHOUT[name] for name in FIVE], SITUATIONS)
    found |= {f"{kind}_left_out_gain": gain_on(scores, [WITHOUT[name]], [kind]) for name, kind in seen}
    found |= {f"{kind}_gain": gain_on(scores, [ALL_FIVE], [kind]) for kind in UNSEEN}
    return found | {"unchanged_gain": gain_on(scores, [ALL_FIVE], ["unchanged"])}


def clear_gains(e, names) -> int:
    return sum(e[name].low > 0 for name in names)


def finding(rows, s, e):
    scores = mean_over_severities(rows)
    errors = {
        recipe: fmean(r["train_error"] for r in rows if r["what"] == "run" and r["recipe"] == recipe)
        for recipe in ("none", ALL_FIVE)
    }
    own, others, never = (
        clear_gains(e, [f"{kind}_{ending}" for kind in kinds])
        for kinds, ending in ((SITUATIONS, "gain"), (SITUATIONS, "left_out_gain"), (UNSEEN, "gain"))
    )
    price = page.trend(e["unchanged_gain"], "so it helps there too", "so it has a price", "so no price is seen")
    return (
        f"Trained on a variation and tested on it, {own} of {len(SITUATIONS)} kinds gain clearly; trained on the four others, "
        f"{others} do, and the mean gain is {e['unseen_gain']}. "
        f"Trained on all five, {never} of {len(UNSEEN)} kinds that no network saw gain clearly. "
        f"On unchanged pictures that {page.change(e['unchanged_gain'], 'gains', 'costs', 'makes no clear difference')}, {price}. "
        f"Turning helps against shear by {gain_on(scores, ['rotation'], ['shear'])}, and noise against blur by "
        f"{gain_on(scores, ['noise'], ['blur'])}. "
        f"The training error is {errors['none']:.3f} without augmentation and {errors[ALL_FIVE]:.3f} with all five: where it is "
        "high, training was too short for so much variation."
    )


def draw_front(rows, s):
    """Kind by kind, what training on it gains, and what training on all others gains."""
    found, kinds = estimates(rows, s), [*SITUATIONS, *UNSEEN, "unchanged"]
    series = {
        "trained on it": (plots.BLUE, "s", {kind: f"{kind}_gain" for kind in SITUATIONS}),
        "trained on the others": (
            plots.ORANGE,
            "o",
            {kind: f"{kind}_left_out_gain" for kind in SITUATIONS} | {kind: f"{kind}_gain" for kind in kinds[-4:]},
        ),
    }
    with plots.figure(height=2.7) as (figure, ax):
        for shift, (label, (colour, shape, names)) in zip((-0.15, 0.15), series.items(), strict=True):
            gains = [found[name] for name in names.values()]
            bars = [[e.mean - e.low for e in gains], [e.high - e.mean for e in gains]]
            places = [kinds.index(kind) + shift for kind in names]
            look = {"color": colour, "label": label, "capsize": 2, "elinewidth": 1.5, "markersize": 5}
            ax.errorbar([e.mean for e in gains], places, xerr=bars, fmt=shape, **look)
        ax.axvline(0, color="grey", linewidth=1)
        ax.axvline(BOUND, color="grey", linewidth=1, linestyle="--")
        ax.set(xlabel="change of test accuracy, points", ylim=(len(kinds) - 0.5, -0.5))
        ax.set_yticks(range(len(kinds)), kinds, fontsize=10)
        plots.hundredths(ax.xaxis)
        figure.legend(*ax.get_legend_handles_labels(), ncols=2, fontsize=10, loc="outside upper center")
    return (
        "What training gains under each kind of change; no network drew blur, shear and hole. Dashed: the smallest gain that "
        "matters. Bars: intervals of 95 %."
    )


def draw(rows, s):
    matrix, severities = draw_matrix(rows), draw_severities(rows)
    return f"Above: {matrix} Below: {severities}"


def draw_matrix(rows):
    scores = mean_over_severities(rows)
    recipes, kinds = (list(dict.fromkeys(key[place] for key in scores)) for place in (0, 1))
    cells = {(r, k): gain_on(scores, [r], [k]) for r in recipes if r != "none" for k in kinds}
    gains = {cell: 100 * found.mean for cell, found in cells.items()}
    most = max(map(abs, gains.values())) or 1.0
    colours = np.array([[gains.get((r, k), np.nan) for r in recipes] for k in kinds])
    with plots.figure(height=5.0, width=7.6) as (_, ax):
        ax.imshow(colours, cmap="PuOr_r", vmin=-most, vmax=most, aspect="auto")
        for (y, kind), (x, recipe) in itertools.product(enumerate(kinds), enumerate(recipes)):
            base, style = fmean(v for key, v in scores.items() if key[:2] == (recipe, kind)), {}
            text = f"{100 * base:.0f}"
            if recipe != "none":
                found = cells[recipe, kind]
                text = f"{gains[recipe, kind]:+.0f}\n±{50 * (found.high - found.low):.0f}"
                sure, dark = found.low > 0 or found.high < 0, abs(gains[recipe, kind]) > 0.65 * most
                style = {"weight": "bold" if sure else "normal", "color": "wk"[not dark]}
            ax.text(x, y, text, ha="center", va="center", fontsize=9.5, linespacing=0.95, **style)
        ax.set_yticks(range(len(kinds)), kinds, fontsize=11)
        ax.set_xticks(range(len(recipes)), map(label, recipes), rotation=50, ha="left", fontsize=11)
        ax.xaxis.tick_top()
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
    return (
        "a recipe gains most under the kinds of change that it draws. First column: accuracy without augmentation in percent; "
        "others: gain over it in points (orange better, violet worse) ± half of its 95 % interval, the mean over severities. "
        f"Bold: clear; of {len(cells)} gains chance alone would show about {0.05 * len(cells):.0f}."
    )


def draw_severities(rows):
    levels = sorted({r["severity"] for r in rows if r["what"] == "situation"})
    looks = {"none": plots.ORANGE, "this one": plots.BLUE, "the other four": plots.GREEN, "all five": plots.PINK}
    with plots.figure(2, 4, height=4.0, width=7.6, sharex=True, sharey=True) as (fig, axes):
        for place, (ax, kind) in enumerate(zip(axes.flat, SITUATIONS + UNSEEN, strict=True)):
            arms = {"none": "none", ALL_FIVE: "all five"}
            if kind in SITUATIONS:
                arms |= {FIVE[place]: "this one", WITHOUT[FIVE[place]]: "the other four"}
                ax.axvspan(0, 1, color=plots.YELLOW, alpha=0.12, linewidth=0)
            shown = [
                r | {"arm": arms[r["recipe"]], "severity": r.get("severity", 0.0)}
                for r in rows
                if r["recipe"] in arms and r.get("kind", kind) == kind
            ]
            plots.lines(ax, shown, "severity", "accuracy", by="arm", marker=True, colours=looks)
            ax.set_title(kind if kind in SITUATIONS else f"{kind}, not drawn", fontsize=11)
        handles = dict(zip(*axes[0, 0].get_legend_handles_labels()[::-1], strict=True))
        fig.legend(handles.values(), handles, loc="outside upper center", ncols=4, fontsize=11)
        fig.supxlabel("severity of the test pictures", fontsize=12)
        fig.supylabel("accuracy, %", fontsize=12)
        plots.hundredths(axes[0, 0].yaxis)
        axes[-1, 0].set_xticks([0.0, levels[-1]])
    return (
        "accuracy falls with severity, and least for the networks that were trained on the tested change; in yellow the range "
        "seen in training. Thin lines are seeds."
    )


ROBUSTNESS = Experiment(
    "robustness",
    run=learn,
    conditions=robust_runs,
    estimates=estimates,
    settings=SETTINGS,
    tiny=TINY,
    finding=finding,
    figure=draw,
    alt="A heat map: a column for each recipe of training, a row for each kind of test picture; the first "
    "column gives accuracies without augmentation, the others the gain over it in points with the half-width of its interval. "
    "Below eight panels, one for each kind of change: accuracy against severity for networks trained with nothing, with this "
    "variation, with the four others, and with all five; a thin line for each seed.",
)
