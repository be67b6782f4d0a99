"""Structure, hyper-parameters and data in one factorial: which share of the outcome's variance is whose, in which range?"""

from dataclasses import replace
from itertools import product

import numpy as np
import torch

from resnet_lib import data, page, plots, stats
from resnet_lib.experiments.tuning.trainings import SETTINGS, error_of, fitted, network, training
from resnet_lib.study import Experiment

LEVELS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of each lever, times its base: the same rule for all three
RANGES = {"narrow": (0.5, 1.0, 2.0), "wide": LEVELS}
LEVERS = {"structure": "width", "hyper": "learning rate", "data": "pictures"}
DRAWS = 1000  # of the bootstrap


def factored(s, structure: float, hyper: float, data: float, seed: int) -> list[dict]:
    """One training of a fixed number of steps, each lever at its level; validation error.

    A small training set is repeated until it lasts for the steps, so that one epoch is the whole training.
    """
    count, shown = round(s.lever_pictures * data), s.lever_steps * s.batch_size
    config = training(s, learning_rate=s.learning_rate * hyper, epochs=1)
    pictures = replace(s.pictures, train=repeated(s.pictures.train, count, shown))
    fit = fitted(s, lambda: network(s, s.depth, round(s.lever_width * structure)), pictures, config, seed)
    return [
        {
            "what": "run",
            "error": error_of(s, fit, config, s.pictures.val, pictures),
            "diverged": fit.rows[-1]["diverged"],
        }
    ]


def repeated(split: data.Split, count: int, length: int) -> data.Split:
    """The first `count` pictures, again and again up to `length`."""
    places = torch.arange(length) % count
    return data.Split(split.images[places], split.labels[places])


def grid(rows, ranges: dict[str, str]) -> np.ndarray:
    """Accuracies by level of structure, hyper and data, and by seed: (levels, levels, levels, seeds)."""
    of = {tuple(r[lever] for lever in LEVERS) + (r["seed"],): 1 - r["error"] for r in rows}
    levels, seeds = [RANGES[ranges[lever]] for lever in LEVERS], sorted({r["seed"] for r in rows})
    values = [[of[(*at, n)] for n in seeds] for at in product(*levels)]
    return np.array(values).reshape(*map(len, levels), len(seeds))


def shares(values: np.ndarray) -> np.ndarray:
    """Shares of structure, hyper, data and seed in the variance of one run drawn from the grid; they add up to 1.

    The variance of the cells' means is divided into main effects and interactions, each freed of the noise that the
    means still hold; an interaction is shared equally by its levers, which is their Shapley value.
    Args:    values: (..., levels, levels, levels, seeds), at least two seeds; leading axes are draws.
    Source:  Fisher's analysis of variance; Owen 2014, doi:10.1137/130936233: Shapley values of variance.
    """
    levels, seeds = values.shape[-4:-1], values.shape[-1]
    noise = values.var(-1, ddof=1).mean((-3, -2, -1))
    means, axes = values.mean(-1), (-3, -2, -1)
    parts = np.zeros((*values.shape[:-4], 3))
    effects = {(): means.mean(axes, keepdims=True)}
    for size in (1, 2, 3):
        for kept in [k for k in product((0, 1), repeat=3) if sum(k) == size]:
            levers = tuple(i for i in range(3) if kept[i])
            effect = means.mean(tuple(axes[i] for i in range(3) if not kept[i]), keepdims=True)
            effect = effect - sum(e for lower, e in effects.items() if set(lower) < set(levers))
            effects[levers] = effect
            freedom = np.prod([levels[i] - 1 for i in levers]) / np.prod(levels)
            variance = np.square(effect).mean(axes) - noise / seeds * freedom
            for i in levers:
                parts[..., i] += variance / size
    parts = np.concatenate([parts, noise[..., None]], -1)
    return parts / parts.sum(-1, keepdims=True)


def bootstrapped(values: np.ndarray, statistic=lambda found: found) -> list[stats.Estimate]:
    """Estimates of a statistic of the shares, from residuals drawn anew for every run of the grid.

    Residuals of all cells are drawn as one, scaled for the freedom that the cells' means took. What is drawn around means
    holds their noise twice, so the draws lie off the estimate: their quantiles are taken from their own mean, mirrored.
    Source: Davison and Hinkley 1997, Bootstrap methods, §5.2 and §6.2.
    """
    seeds = values.shape[-1]
    means = values.mean(-1, keepdims=True)
    residuals = ((values - means) * (seeds / (seeds - 1)) ** 0.5).ravel()
    drawn = np.random.default_rng(0).choice(residuals, (DRAWS, *values.shape))
    found, again = np.atleast_1d(statistic(shares(values))), statistic(shares(means + drawn)).reshape(DRAWS, -1)
    low, high = np.quantile(again, (0.975, 0.025), axis=0) - again.mean(0)
    return [
        stats.Estimate(float(f), float(f - a), float(f - b), values.size, 0.95, float(sd), "bootstrap", "share")
        for f, a, b, sd in zip(found, low, high, again.std(0), strict=True)
    ]


def choices() -> list[dict[str, str]]:
    """The eight choices of a narrow or a wide range for each lever."""
    return [dict(zip(LEVERS, which, strict=True)) for which in product(RANGES, repeat=len(LEVERS))]


def said(ranges: dict[str, str]) -> str:
    wide = [LEVERS[lever] for lever in LEVERS if ranges[lever] == "wide"]
    return {0: "all narrow", len(LEVERS): "all wide"}.get(len(wide), f"{page.listed(wide)} wide")


def estimates(rows, s):
    found, least = {}, []
    for ranges in choices():
        values = grid(rows, ranges)
        own = dict(zip((*LEVERS, "seed"), bootstrapped(values), strict=True))
        prefix = "" if set(ranges.values()) == {"wide"} else "_".join(r[0] for r in ranges.values()) + "_"
        found |= {f"{prefix}{name}_share": estimate for name, estimate in own.items()}
        least += bootstrapped(values, lambda shares: shares[..., :3].min(-1))
    at_base = [r for r in rows if all(r[lever] == 1 for lever in LEVERS)]
    return found | {
        "least_share": min(least, key=lambda e: e.mean),
        "base_over_chance": stats.interval([s.chance_error - r["error"] for r in at_base], unit="accuracy"),
    }


def finding(rows, s, e):
    wide = "; ".join(f"{LEVERS[lever]} {e[f'{lever}_share']}" for lever in LEVERS)
    narrow = "; ".join(f"{LEVERS[lever]} {e[f'n_n_n_{lever}_share']}" for lever in LEVERS)
    return (
        f"Shares of the variance of validation accuracy with each lever from a quarter to four times its base: {wide}; the seed "
        f"{e['seed_share']}. From half to twice: {narrow}; the seed {e['n_n_n_seed_share']}. The smallest share that a lever has in any of the "
        f"{len(choices())} choices of ranges is {e['least_share']}. So a share is a fact about a lever *and* the range that it was "
        f"given: widen one range, and that lever decides. Intervals come from {DRAWS:,} draws of the residuals; n counts runs."
    )


def draw(rows, s):
    order = sorted(choices(), key=lambda ranges: list(ranges.values()).count("wide"))
    colours = (plots.BLUE, plots.ORANGE, plots.GREEN, "#999999")
    with plots.figure(height=4.4) as (_, ax):
        for place, ranges in enumerate(order):
            start, hatches = 0.0, ("", "//", "..", "")
            found = np.clip(shares(grid(rows, ranges)), 0, None)
            for k, (part, name) in enumerate(zip(found, [*LEVERS.values(), "seed"], strict=True)):
                bar = {
                    "color": colours[k],
                    "hatch": hatches[k],
                    "edgecolor": "white",
                    "label": name if not place else None,
                }
                ax.barh([place], [part], left=start, height=0.75, **bar)
                if part > 0.08:
                    box = {"fc": "white", "ec": "none", "pad": 1.2}
                    ax.text(
                        start + part / 2, place, f"{100 * part:.0f}", ha="center", va="center", fontsize=10, bbox=box
                    )
                start += part
        ax.set_yticks(range(len(order)), [said(ranges) for ranges in order])
        ax.set(xlabel="share of the variance of accuracy, %", ylim=(len(order) - 0.5, -0.5), xlim=(0, 1.001))
        ax.grid(visible=False)
        plots.hundredths(ax.xaxis)
        ax.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=4, fontsize=10, columnspacing=1.0)
    first = {said(r): list(LEVERS.values())[int(shares(grid(rows, r))[:3].argmax())] for r in order}
    return f"Which lever decides most depends on the ranges: {page.listed(list(dict.fromkeys(first.values())))}, each in some choice. Narrow is half to twice, wide a quarter to four times the base."


def table(rows, s):
    shown = []
    for ranges in choices():
        own = bootstrapped(grid(rows, ranges))
        shown.append({"ranges": said(ranges), **dict(zip((*LEVERS, "seed"), map(str, own), strict=True))})
    return page.table(shown, {"ranges": "ranges", **LEVERS, "seed": "seed"})


def _runs(s):
    most, least = s.lever_pictures * max(LEVELS), s.lever_pictures * min(LEVELS)
    if most > s.facts["train"] or least < s.facts["classes"]:
        raise ValueError(
            f"lever_pictures={s.lever_pictures}: four times of it must be no more than the {s.facts['train']} training pictures, and "
            f"a quarter no fewer than the {s.facts['classes']} classes"
        )
    if s.lever_width * min(LEVELS) < 1:
        raise ValueError(f"lever_width={s.lever_width} must be at least 4: a quarter of it is tried")
    levels = product(LEVELS, repeat=len(LEVERS))
    return [dict(zip(LEVERS, at, strict=True)) | {"seed": n} for at in levels for n in s.seeds]


FACTORIAL = Experiment(
    "factorial",
    run=factored,
    conditions=_runs,
    estimates=estimates,
    settings=(*SETTINGS, "lever_width", "lever_pictures", "lever_steps"),
    tiny={"lever_width": 4, "lever_pictures": 64, "lever_steps": 1},
    finding=finding,
    figure=draw,
    table=table,
    alt="Eight stacked bars, one for each choice of a narrow or a wide range for width, learning rate and number of pictures: "
    "the shares of the three levers and of the seed in the variance of accuracy, in percent.",
)
