"""Which way of searching finds good settings soonest, on a real objective and at an equal budget of training?"""

from dataclasses import replace
from statistics import median

import numpy as np

from resnet_lib import page, plots, stats, train, tune
from resnet_lib.experiments.tuning.trainings import CHOOSER, SETTINGS, first
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

NAMES = ("learning_rate", "weight_decay", "momentum")  # the settings searched, over tune.SPACE
METHODS = ("grid", *tune.SAMPLERS, "random, pruned", "tpe, pruned")
COLOURS = dict(zip(METHODS, ("#999999", *plots.PALETTE[:5], plots.BLUE, plots.GREEN), strict=True))


def grid_of(count: int) -> dict[str, list[float]]:
    """A grid of at least `count` points over the space, at the middles of equal parts on logarithmic scales.

    The learning rate gets the most values, as one would choose who knows nothing but which setting matters most.
    """
    sizes = [1, 1, 1]
    while np.prod(sizes) < count:
        sizes[min(range(3), key=lambda k: (sizes[k] / (2, 1, 1)[k], k))] += 1
    axes = {}
    for name, size in zip(NAMES, sizes, strict=True):
        low, high = tune.SPACE[name]
        key, low, high = ("one_minus_momentum", 1 - high, 1 - low) if name == "momentum" else (name, low, high)
        axes[key] = [low * (high / low) ** ((k + 0.5) / size) for k in range(size)]
    return axes


def searched(s, method: str, seed: int) -> list[dict]:
    """One search: validation error of each trial and the best so far, by training spent; and the best one's test error.

    The objective is a real training of a small network on a part of the pictures. A pruned trial costs the epochs that it
    was given, so a search with a pruner makes more trials of the same budget.
    """
    optuna = tune.library()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    name, _, pruned = method.partition(", ")
    search = tune.Search(
        epochs=s.search_epochs,
        batch_size=s.batch_size,
        depth=s.depth,
        width=s.search_width,
        names=NAMES,
        pruned=bool(pruned),
        device=str(s.device),
    )
    small = replace(
        s.pictures, train=first(s.pictures.train, s.search_pictures), val=first(s.pictures.val, s.search_pictures)
    )
    sampler = (
        optuna.samplers.GridSampler(grid_of(s.search_trials), seed=seed) if name == "grid" else tune.sampler(name, seed)
    )
    study = optuna.create_study(sampler=sampler, pruner=tune.pruner(search.pruned, search.epochs))
    rows, spent, objective = [], 0, tune.objective(small, search, seed)
    while spent < s.search_trials * s.search_epochs:
        study.optimize(objective, n_trials=1)
        trial = study.trials[-1]
        stopped = trial.state.name == "PRUNED"
        spent += trial.last_step if stopped else search.epochs
        row = {"what": "trial", "trial": trial.number, "spent": spent / search.epochs, "stopped": stopped}
        rows.append(row | {"error": None if stopped else trial.value, "best": study.best_value} | trial.params)
    config = tune.best_config(study, search)
    fit = tune.fitted(small, search, config, CHOOSER + seed)
    failed = fit.rows[-1]["diverged"]
    test_error = s.chance_error if failed else train.evaluate(fit.model, small, s.pictures.test, config)["error"]
    return [*rows, {"what": "end", "trials": len(rows), "best": study.best_value, "test_error": test_error}]


def best_after(rows, method: str, seed: int, budget: int) -> float:
    """The lowest validation error after so many full trainings' worth of epochs."""
    own = stats.where(rows, what="trial", method=method, seed=seed)
    return min((r["best"] for r in own if r["spent"] <= budget), default=own[0]["best"])


def seeds_of(rows) -> list[int]:
    return sorted({r["seed"] for r in rows})


def methods_of(rows) -> list[str]:
    return list(dict.fromkeys(r["method"] for r in rows))


def slug(method: str) -> str:
    return method.replace(", ", "_")


def estimates(rows, s):
    """What each search saves against a random one, in validation error reached and in test error when trained anew."""
    ends, found = stats.where(rows, what="end"), {}
    for method in methods_of(rows):
        if method != "random":
            found[f"{slug(method)}_gain"] = stats.paired_rows(ends, "best", "method", "random", method, unit="error")
            found[f"{slug(method)}_test_gain"] = stats.paired_rows(
                ends, "test_error", "method", "random", method, unit="error"
            )
    found["random_error"] = stats.interval([r["best"] for r in stats.where(ends, method="random")], unit="share")
    firsts = [best_after(rows, "random", n, 1) for n in seeds_of(rows)]
    lasts = [r["best"] for r in stats.where(ends, method="random")]
    return found | {"random_progress": stats.paired(firsts, lasts, unit="error")}


def finding(rows, s, e):
    words = "gains", "loses", "makes no clear difference"
    told = "; ".join(f"{m} {page.change(e[f'{slug(m)}_gain'], *words)}" for m in methods_of(rows) if m != "random")
    return (
        f"With a budget of {s.search_trials} trainings a random search reaches a validation error of {e['random_error']}, "
        f"{e['random_progress']} below its first trial. Against it: {told}. "
        f"Each is repeated {len(seeds_of(rows))} times, with another seed for proposals, training and split."
    )


def draw(rows, s):
    budgets = list(range(1, s.search_trials + 1))
    shown = methods_of(rows)
    with plots.figure(height=4.2) as (_, ax):
        for place, method in enumerate(shown):
            table = [[best_after(rows, method, n, b) for n in seeds_of(rows)] for b in budgets]
            style = {"color": COLOURS[method], "linestyle": "--" if "pruned" in method else "-"}
            marker = plots.MARKERS[place % len(plots.MARKERS)]
            ax.plot(budgets, [median(v) for v in table], marker=marker, ms=5, label=method, **style)
            if method in ("random", "tpe"):
                low, high = np.quantile(table, (0.25, 0.75), axis=1)
                ax.fill_between(budgets, low, high, color=COLOURS[method], alpha=0.18, linewidth=0)
        ax.set(xlabel="training spent, in full trainings", ylabel="lowest validation error so far, %")
        plots.hundredths(ax.yaxis)
        ax.locator_params(axis="x", integer=True)
        ax.legend(fontsize=9, ncols=2)
    e = estimates(rows, s)
    clear = [m for m in shown if m != "random" and e[f"{slug(m)}_gain"].low > 0]
    return (
        f"Clearly better than random at the end: {page.listed(clear)}. Medians of {len(seeds_of(rows))} searches; the bands of random and "
        "TPE hold the middle half."
    )


def table(rows, s):
    shown = []
    for method in methods_of(rows):
        ends = stats.where(rows, what="end", method=method)
        row = {"method": method, "trials": float(np.mean([r["trials"] for r in ends]))}
        row |= {"best": stats.interval([r["best"] for r in ends], unit="share")}
        shown.append(row | {"test": stats.interval([r["test_error"] for r in ends], unit="share")})
    columns = {"method": "search", "trials": ("trials, mean", ".1f"), "best": "lowest validation error"}
    return page.table(shown, columns | {"test": "its settings' test error"})


def _runs(s):
    if unknown := set(s.search_methods) - set(METHODS):
        raise ValueError(f"search_methods={s.search_methods} holds {sorted(unknown)}; there are {', '.join(METHODS)}")
    if "random" not in s.search_methods or len(set(s.search_methods)) < 2:
        raise ValueError(
            f"search_methods={s.search_methods} must hold random, against which the others are compared, and another"
        )
    if s.batch_size > s.search_pictures or s.search_pictures > s.facts["train"]:
        raise ValueError(
            f"search_pictures={s.search_pictures} must lie between batch_size={s.batch_size} and the {s.facts['train']} training pictures"
        )
    return conditions(method=s.search_methods, seed=list(range(max(s.search_repeats, len(s.seeds)))))


SEARCH = Experiment(
    "search",
    run=searched,
    conditions=_runs,
    estimates=estimates,
    settings=(*SETTINGS, "search_trials", "search_epochs", "search_pictures", "search_width"),
    counts=("search_methods", "search_repeats"),
    tiny={"search_trials": 2, "search_epochs": 1, "search_pictures": 128, "search_width": 4}
    | {"search_methods": ["grid", "random", "tpe, pruned"], "search_repeats": 2},
    finding=finding,
    figure=draw,
    table=table,
    alt="The lowest validation error so far against training spent, the median of each search's repeats: grid, random, "
    "quasi-random, TPE, Gaussian process, CMA-ES, and two with a pruner; bands for random and TPE.",
)
