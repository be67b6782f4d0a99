"""How much do the learning rate, weight decay and the other settings matter, and where do good values lie?"""

import math
from collections import Counter
from dataclasses import replace

import numpy as np

from resnet_lib import page, plots, stats, train
from resnet_lib.experiments.tuning.trainings import SETTINGS as OF_A_TRAINING
from resnet_lib.experiments.tuning.trainings import basin, cell, chosen_elsewhere, gain, seeds_of, trained
from resnet_lib.study import Experiment

WORDS = "gains", "loses", "makes no clear difference"


def rates_of(rows) -> list[float]:
    return sorted({r["learning_rate"] for r in rows})


def best_rates(rows, by: str) -> dict[float, list[float]]:
    """For each value of a column the learning rates of its basin, the best first."""
    values = sorted({r[by] for r in rows})
    return {v: [rate for (rate,) in basin([r for r in rows if r[by] == v], ("learning_rate",))] for v in values}


def factor_three_loss(rows) -> stats.Estimate:
    """What the worse neighbour of the best learning rate tried loses; both are named by the other seeds."""
    best, rates, beside = chosen_elsewhere(rows, ("learning_rate",)), rates_of(rows), {}
    for seed, row in best.items():
        place = rates.index(row["learning_rate"])
        near = rates[max(0, place - 1) : place] + rates[place + 1 : place + 2]
        beside |= {
            seed: chosen_elsewhere([r for r in rows if r["learning_rate"] in near], ("learning_rate",), worst=True)[
                seed
            ]
        }
    return gain(best, beside)


def tenth_loss(rows) -> stats.Estimate:
    """What the rate nearest to a tenth of the best one loses; the best is named by the other seeds.

    Described, and judged by no rule: it was added when a first record had shown how wide the basin is.
    """
    best, rates = chosen_elsewhere(rows, ("learning_rate",)), rates_of(rows)
    low = {
        seed: min(rates, key=lambda rate: abs(math.log(10 * rate / row["learning_rate"]))) for seed, row in best.items()
    }
    return gain(best, {seed: stats.where(rows, seed=seed, learning_rate=rate)[0] for seed, rate in low.items()})


def exponents(rows) -> list[float]:
    """By seed, the exponent p with which its best learning rate grows as batch size to the power of p."""
    found = []
    for seed in seeds_of(rows):
        own = stats.where(rows, seed=seed)
        batches = sorted({r["batch_size"] for r in own})
        best = [stats.best_setting(stats.where(own, batch_size=b), "error", "learning_rate") for b in batches]
        found.append(
            round(float(np.polyfit(np.log(batches), np.log(best), 1)[0]), 9) + 0.0
        )  # no rounding error for none
    return found


def rates_estimates(rows, s):
    at_base = stats.where(rows, batch_size=s.batch_size)
    best = chosen_elsewhere(at_base, ("learning_rate",))
    ends = stats.at_an_end((r[0] for r in best_rates(rows, "batch_size").values()), rates_of(rows))
    return {
        "factor_three_loss": factor_three_loss(at_base),
        "tenth_loss": tenth_loss(at_base),
        "best_over_chance": stats.interval([s.chance_error - r["error"] for r in best.values()], unit="accuracy"),
        "exponent": stats.interval(exponents(rows)),
        "at_an_end": stats.exact(ends, "batch sizes"),
    }


def rates_finding(rows, s, e):
    said = "; ".join(f"{min(r):g} to {max(r):g} at {b}" for b, r in best_rates(rows, "batch_size").items())
    return (
        f"At a batch of {s.batch_size} the worse of the two rates next to the best one costs "
        f"{e['factor_three_loss']} of accuracy, and a tenth of the best one {e['tenth_loss']}. Within one standard error of the best lie, by batch size: {said}. "
        f"The best rate grows as batch size to the power of {e['exponent']}: the square-root rule says 0.5, the linear rule "
        f"1. {e['at_an_end'].mean:.0f} of these best rates lie at an end of what was tried."
    )


def draw_map(ax, rows, by: str, label) -> None:
    """Validation error against learning rate, a line for each value of a column; its basin is marked by rings."""
    plots.lines(ax, rows, "learning_rate", "error", by=by, label=label, marker=True)
    for value, rates in best_rates(rows, by).items():
        own = {
            r["learning_rate"]: r["error"]
            for r in stats.cell_means(stats.where(rows, **{by: value}), "error", ("learning_rate",))
        }
        ax.plot(rates, [own[rate] for rate in rates], "o", ms=13, mfc="none", mec="black", mew=1.4, zorder=5)
    ax.set(xscale="log", xlabel="learning rate, highest of the schedule", ylabel="validation error, %")
    plots.log_axis(ax.xaxis, rates_of(rows))
    plots.hundredths(ax.yaxis)
    ax.legend(fontsize=10)


def draw_rates(rows, s):
    with plots.figure(2, 1, height=6.4) as (_, axes):
        draw_map(axes[0], sorted(rows, key=lambda r: r["batch_size"]), "batch_size", lambda b: f"batch of {b}")
        found = best_rates(rows, "batch_size")
        for batch, rates in found.items():
            axes[1].plot([batch] * 2, [min(rates), max(rates)], color=plots.BLUE, linewidth=5, alpha=0.5)
        axes[1].plot(list(found), [r[0] for r in found.values()], "o", color=plots.BLUE, label="best, and its basin")
        anchor, batches = found[s.batch_size][0], sorted(found)
        for power, dash, name in ((0.5, "--", "square-root rule"), (1.0, ":", "linear rule")):
            line = [anchor * (b / s.batch_size) ** power for b in batches]
            axes[1].plot(batches, line, dash, color="black", label=name)
        axes[1].set(xscale="log", yscale="log", xlabel="pictures a batch", ylabel="learning rate")
        plots.log_axis(axes[1].yaxis, [*rates_of(rows), *line])
        axes[1].set_xticks(batches, [str(b) for b in batches])
        axes[1].minorticks_off()
        axes[1].legend(fontsize=10)
    word = page.trend(
        factor_three_loss(stats.where(rows, batch_size=s.batch_size)), "costs accuracy", "gains", "costs nothing clear"
    )
    return (
        f"A factor of about three beside the best learning rate {word}. Rings: within one standard error of the best. "
        f"Thin lines are seeds. Below: where the basin lies, and the two rules, drawn from the batch of {s.batch_size}."
    )


def _checked(name: str, values, least: int = 2, low: float = 0.0, high: float = math.inf):
    if len(set(values)) < least or min(values) <= low or max(values) >= high:
        raise ValueError(
            f"{name}={values}: at least {least} different values, above {low:g} and below {high:g}, are needed"
        )
    return sorted(set(values))


def _rates(s):
    batches = sorted({*s.batch_sizes, s.batch_size})
    if len(batches) < 2 or max(batches) > s.facts["train"]:
        raise ValueError(
            f"batch_sizes={s.batch_sizes}: a size beside {s.batch_size}, none above {s.facts['train']} pictures"
        )
    rates = _checked("rates", s.rates, 3)
    return [cell(s, n, learning_rate=r, batch_size=b) for b in batches for r in rates for n in s.seeds]


TINY = {"epochs": 1, "batch_size": 64, "depth": 8, "width": 4, "train_size": 256}
RATES = Experiment(
    "rates",
    run=trained,
    conditions=_rates,
    estimates=rates_estimates,
    settings=OF_A_TRAINING,
    counts=("rates", "batch_sizes"),
    tiny=TINY | {"rates": [0.03, 0.1, 0.3], "batch_sizes": [128]},
    finding=rates_finding,
    figure=draw_rates,
    alt="Above, validation error against learning rate on a logarithmic axis, a line for each batch size, thin lines for "
    "seeds, rings round the points within one standard error of the lowest. Below, the best learning rate and its basin "
    "against batch size on logarithmic axes, with dashed and dotted lines for the square-root and the linear rule.",
)


def decays_estimates(rows, s):
    none = chosen_elsewhere(stats.where(rows, weight_decay=0.0), ("learning_rate",))
    some = chosen_elsewhere([r for r in rows if r["weight_decay"]], ("learning_rate", "weight_decay"))
    products = {
        cell[0] * cell[1] for cell in basin([r for r in rows if r["weight_decay"]], ("learning_rate", "weight_decay"))
    }
    return {
        "weight_decay_gain": gain(some, none),
        "basin_product_range": stats.exact(math.log10(max(products) / min(products)), "decades"),
        "basin_cells": stats.exact(len(basin(rows, ("learning_rate", "weight_decay"))), "cells"),
    }


def decays_finding(rows, s, e):
    cells = "; ".join(f"{r:g} with {d:g}" for r, d in basin(rows, ("learning_rate", "weight_decay")))
    return (
        f"The best weight decay {page.change(e['weight_decay_gain'], *WORDS)} against none, each at its own learning rate, "
        f"chosen on the other seeds. Within one standard error of the lowest error lie (learning rate with weight decay): {cells}. "
        f"The product of the two spans {e['basin_product_range'].mean:.1f} decades in there: if only the product counted, it "
        "would stand still."
    )


def draw_decays(rows, s):
    rows = sorted(rows, key=lambda r: r["weight_decay"])
    with plots.figure(height=3.8) as (_, ax):
        draw_map(ax, rows, "weight_decay", lambda d: f"weight decay {d:g}")
    word = page.trend(
        decays_estimates(rows, s)["weight_decay_gain"], "gains", "loses", "neither clearly gains nor loses"
    )
    return f"The best weight decay {word} against none. Rings: within one standard error of each line's lowest. Thin lines are seeds."


def _decays(s):
    decays = _checked("weight_decays", s.weight_decays, 1)
    decays = sorted({0.0, s.weight_decay, *decays})
    rates = _checked("rates", s.rates, 3)
    return [cell(s, n, learning_rate=r, weight_decay=d) for d in decays for r in rates for n in s.seeds]


DECAYS = replace(
    RATES,
    name="decays",
    conditions=_decays,
    estimates=decays_estimates,
    counts=("rates", "weight_decays"),
    tiny=TINY | {"rates": [0.03, 0.1, 0.3], "weight_decays": [0.005]},
    finding=decays_finding,
    figure=draw_decays,
    alt="Validation error against learning rate on a logarithmic axis, a line for each weight decay, thin lines for seeds, "
    "rings round the points within one standard error of each line's lowest.",
)


VALUES = ("momentum", "warmup", "schedule", "label_smoothing", "dropout")
REGULARISERS = ("label_smoothing", "dropout")


def base_of(rows) -> dict:
    """The value that each setting has where another one is varied: the most frequent."""
    return {name: Counter(r[name] for r in rows).most_common(1)[0][0] for name in VALUES}


def arms_of(rows) -> dict[tuple, list[dict]]:
    """The rows by what differs from the base: (setting, value); ("base", "") where nothing does."""
    base, found = base_of(rows), {}
    for r in rows:
        changed = [(name, r[name]) for name in VALUES if r[name] != base[name]]
        found.setdefault(changed[0] if changed else ("base", ""), []).append(r)
    return found


def named(setting: str, value) -> str:
    """An arm's name in an estimate: letters, digits and underscores."""
    return f"{setting}_{value if isinstance(value, str) else format(value, 'g').replace('.', '_')}_gain"


def settings_estimates(rows, s):
    """Each arm at its own learning rate against the base at its own; and the best regularisation above 0 against none."""
    arms = arms_of(rows)
    base = chosen_elsewhere(arms.pop(("base", "")), ("learning_rate",))
    found = {named(*arm): gain(chosen_elsewhere(own, ("learning_rate",)), base) for arm, own in arms.items()}
    regular = [r | {"arm": str(arm)} for arm, own in arms.items() if arm[0] in REGULARISERS for r in own]
    return found | {"regularisation_gain": gain(chosen_elsewhere(regular, ("arm", "learning_rate")), base)}


def said(setting: str, value) -> str:
    return f"{setting.replace('_', ' ')} {value if isinstance(value, str) else format(value, 'g')}"


def settings_finding(rows, s, e):
    base = base_of(rows)
    arms = [arm for arm in arms_of(rows) if arm[0] != "base"]
    clear = [
        f"{said(*arm)} {page.change(e[named(*arm)], *WORDS)}"
        for arm in arms
        if e[named(*arm)].low > 0 or e[named(*arm)].high < 0
    ]
    return (
        f"The base has momentum {base['momentum']:g}, a warm-up of {100 * base['warmup']:g} % of the steps, the schedule "
        f"{base['schedule'].replace('_', ' ')}, and neither label smoothing nor dropout. Against it, each arm at its own learning "
        f"rate, clearly different are: {'; '.join(clear) or 'none'}. The best of label smoothing and dropout "
        f"{page.change(e['regularisation_gain'], *WORDS)}. These are {len(arms)} comparisons: of as many that change nothing, "
        f"about {0.05 * len(arms):.1f} would look clear."
    )


def draw_settings(rows, s):
    found, base = settings_estimates(rows, s), None
    arms = arms_of(rows)
    base = chosen_elsewhere(arms.pop(("base", "")), ("learning_rate",))
    with plots.figure(height=0.9 + 0.36 * len(arms)) as (_, ax):
        shown = []
        for place, (arm, own) in enumerate(sorted(arms.items(), key=lambda one: VALUES.index(one[0][0]))):
            best = chosen_elsewhere(own, ("learning_rate",))
            dots = [base[n]["error"] - best[n]["error"] for n in base]
            ax.plot(dots, [place - 0.24] * len(dots), "o", color=plots.BLUE, alpha=0.6, ms=4, mew=0)
            shown.append({"name": said(*arm), "gain": found[named(*arm)]})
        plots.forest(ax, shown, "name", "gain")
        ax.set_xlabel("accuracy gained over the base, points")
        plots.hundredths(ax.xaxis)
    most = max(shown, key=lambda r: abs(r["gain"].mean))
    return (
        f"The largest change is that of {most['name']}: {most['gain']}. Each arm at its own learning rate; dots are seeds, "
        "bars intervals of 95 %."
    )


def settings_table(rows, s):
    shown = []
    for (setting, value), own in arms_of(rows).items():
        best = chosen_elsewhere(own, ("learning_rate",))
        errors = stats.interval([1 - r["error"] for r in best.values()], unit="share")
        rates = page.listed([f"{rate:g}" for rate in sorted({r["learning_rate"] for r in best.values()})])
        shown.append({"name": said(setting, value), "rate": rates, "accuracy": errors})
    return page.table(shown, {"name": "setting", "rate": "its learning rate", "accuracy": "validation accuracy"})


def _settings(s):
    rates = _checked("setting_rates", s.setting_rates, 1)
    if unknown := set(s.schedules) - set(train.SCHEDULES):
        raise ValueError(f"schedules={s.schedules} holds {sorted(unknown)}; there are {', '.join(train.SCHEDULES)}")
    changes = [("momentum", v) for v in _checked("momenta", s.momenta, 1, high=1)]
    changes += [("warmup", v) for v in _checked("warmups", s.warmups, 1, high=1)]
    changes += [("schedule", v) for v in s.schedules]
    changes += [("label_smoothing", v) for v in _checked("smoothings", s.smoothings, 1, high=1)]
    changes += [("dropout", v) for v in _checked("dropouts", s.dropouts, 1, high=1)]
    base = cell(s, 0) | {"label_smoothing": 0.0}  # none, whatever the chapter's base has: it is what is compared with
    changes = [{}, *({name: v} for name, v in changes if base[name] != v)]
    return [base | {"learning_rate": r, "seed": n} | c for c in changes for r in rates for n in s.seeds]


SETTINGS = replace(
    RATES,
    name="settings",
    conditions=_settings,
    estimates=settings_estimates,
    counts=("setting_rates", "momenta", "warmups", "schedules", "smoothings", "dropouts"),
    tiny=TINY
    | {"setting_rates": [0.1], "momenta": [0.5], "warmups": [0.5], "schedules": ["constant"]}
    | {"smoothings": [0.1], "dropouts": [0.2]},
    finding=settings_finding,
    figure=draw_settings,
    table=settings_table,
    alt="A row for each value of momentum, warm-up, schedule, label smoothing and dropout: the accuracy it gains over the "
    "base, a dot for each seed, the mean and its interval, and a line at zero.",
)
