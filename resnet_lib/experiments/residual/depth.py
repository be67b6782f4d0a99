"""Trained to several depths: does depth hurt, what survives to the last unit, and what does a lost unit cost?"""

from dataclasses import replace

import torch
import torch.nn.functional as F

from resnet_lib import data, page, plots, probes, stats, train
from resnet_lib.experiments.residual.networks import KINDS, network, refuse_depths, trained_gradients, training
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions


def some(units: list, count: int = 12) -> dict[int, object]:
    """At most `count` of the units, evenly spaced, with the first and the last, by their number from 1."""
    places = torch.linspace(0, len(units) - 1, min(count, len(units))).round().long().unique()
    return {int(p) + 1: units[int(p)] for p in places}


def trained(s, kind: str, depth: int, seed: int) -> list[dict]:
    """Train one network; its curve, and of the deepest what its features tell and what it loses with a unit."""
    config = training(s, epochs=s.epochs, learning_rate=s.learning_rate)
    fitted = train.fit(lambda: network(s, kind, depth), s.pictures, config, seed=seed, progress=False)
    model, rows = fitted.model, [row | {"what": "curve"} for row in fitted.rows]
    rows[-1]["test_error"] = train.evaluate(model, s.pictures, s.pictures.test, config)["error"]
    if depth < max(s.depths):
        return rows
    return rows + information(s, model, config) + removal(s, model, config) + trained_gradients(s, model, seed)


def information(s, model, config) -> list[dict]:
    """What linear maps can read out of the features at each depth: the class, and the picture itself."""
    watched, model = some(model.units()), model.eval()
    x, y, picture = {}, {}, {}
    for name, split in (("train", s.pictures.train), ("val", s.pictures.val)):
        part = data.Split(split.images[:2000], split.labels[:2000])
        batches = list(train.Batches(s.pictures, part, config, s.device).in_order(500))
        x[name] = probes.features(model, watched.values(), batches)
        y[name] = torch.cat([labels for _, labels in batches])
        picture[name] = torch.cat([F.adaptive_avg_pool2d(images, 8).flatten(1) for images, _ in batches])
    rows = []
    for unit, fit_on, judge_on in zip(watched, x["train"], x["val"], strict=True):
        probe = probes.probe_accuracy(fit_on, y["train"], judge_on, y["val"], s.facts["classes"])
        rebuilt = probes.explained_variance(fit_on, picture["train"], judge_on, picture["val"])
        row = {"unit": unit, "probe": probe, "reconstruction": rebuilt, "cka_first": probes.cka(judge_on, x["val"][0])}
        rows.append(row | {"what": "information"})
    return rows


def removal(s, model, config) -> list[dict]:
    """Validation error with units taken out after training: each alone, and several at random."""
    whole = enumerate(model.units(), 1)
    units = {k: u for k, u in whole if u.stride == 1 and u.in_channels == u.out_channels}

    def error_without(*gone: int) -> float:
        with probes.removed(*(units[k] for k in gone)):
            return train.evaluate(model, s.pictures, s.pictures.val, config)["error"]

    rows = [{"unit": 0, "removed": 0, "error": error_without()}]
    rows += [{"unit": k, "removed": 1, "error": error_without(k)} for k in some(list(units)).values()]
    order = torch.randperm(len(units), generator=torch.Generator().manual_seed(0)).tolist()
    for count in (2, 4, 8):
        if count <= len(units):
            gone = [list(units)[place] for place in order[:count]]
            rows.append({"unit": 0, "removed": count, "error": error_without(*gone)})
    return [row | {"what": "removal"} for row in rows]


def last_epoch(rows):
    return [r for r in rows if r["epoch"] == max(q["epoch"] for q in rows)]


def ends(s):
    return min(s.depths), max(s.depths)


def degradation_estimates(rows, s):
    """Training error of the deepest minus that of the shallowest, and of plain minus residual at the deepest."""
    final, (shallow, deep) = last_epoch(rows), ends(s)
    change = {
        f"{kind}_change": stats.paired_rows(
            [r for r in final if r["kind"] == kind], "train_error", "depth", deep, shallow, unit="error"
        )
        for kind in KINDS
    }
    at_deepest = [r for r in final if r["depth"] == deep]
    return change | {
        "deepest_gap": stats.paired_rows(at_deepest, "train_error", "kind", "plain", "residual", unit="error")
    }


def degradation_finding(rows, s, e):
    shallow, deep = ends(s)
    noise = stats.interval(
        [r["train_error"] for r in last_epoch(rows) if (r["kind"], r["depth"]) == ("residual", deep)]
    ).sd
    return (
        f"From {shallow} to {deep} layers the training error changes by {e['plain_change']} without the addition and by "
        f"{e['residual_change']} with it. At {deep} layers the plain network's is higher by {e['deepest_gap']}. "
        f"Over seeds that residual network's error has a standard deviation of {noise:.3f}: to see a difference of 0.02 "
        f"one needs {stats.seeds_needed(noise, 0.02)} seeds in each arm."
    )


def degradation_table(rows, s):
    final = last_epoch(rows)
    shown = []
    for cell in conditions(kind=KINDS, depth=s.depths):
        own = [r for r in final if cell.items() <= r.items()]
        shown.append(cell | {name: stats.interval([r[name] for r in own]) for name in ("train_error", "test_error")})
    columns = {"train_error": "training error", "test_error": "test error"}
    return page.table(shown, {"kind": "network", "depth": "layers"} | columns)


def draw_degradation(rows, s):
    final, (shallow, deep) = last_epoch(rows), ends(s)
    with plots.figure(2, 1, height=4.8, sharex=True, sharey=True) as (_, axes):
        for ax, column in zip(axes, ("train_error", "test_error"), strict=True):
            plots.dots(ax, final, "depth", column, by="kind", offset=0.08)
            ax.set(ylabel={"train_error": "training error", "test_error": "test error"}[column], ylim=(0, 1))
        axes[0].legend()
        axes[1].set_xlabel("layers")
    words = {
        kind: page.trend(e, "rises", "falls", "does not clearly change")
        for kind, e in zip(KINDS, degradation_estimates(rows, s).values(), strict=False)
    }
    return (
        f"From {shallow} to {deep} layers the plain network's training error {words['plain']} and the residual one's "
        f"{words['residual']}. Dots are seeds, bars intervals of 95 %."
    )


DEGRADATION = Experiment(
    "degradation",
    run=trained,
    conditions=lambda s: conditions(kind=KINDS, depth=_depths(s), seed=s.seeds),
    estimates=degradation_estimates,
    settings=("depths", "epochs", "learning_rate", "number_format"),
    tiny={"depths": [8, 14], "epochs": 1},
    finding=degradation_finding,
    figure=draw_degradation,
    alt="Two panels on the same axis of error against depth: training error above, test error below, plain and residual, "
    "a small dot for each seed and the mean with its interval.",
    table=degradation_table,
    kept=("curve",),
)


def _depths(s):
    refuse_depths("depths", s.depths, least=2)
    return s.depths


def last_unit(rows):
    return [r for r in rows if r["unit"] == max(q["unit"] for q in rows)]


def information_estimates(rows, s):
    """Residual minus plain at the last unit: what a linear map tells of the class, and of the picture."""
    last = last_unit(rows)
    return {
        "probe_gain": stats.paired_rows(last, "probe", "kind", "residual", "plain", unit="accuracy"),
        "reconstruction_gain": stats.paired_rows(last, "reconstruction", "kind", "residual", "plain", unit="R²"),
    }


def information_finding(rows, s, e):
    return (
        f"After {max(s.depths)} layers, residual minus plain: class by linear probe {e['probe_gain']}; picture rebuilt "
        f"{e['reconstruction_gain']}. The two need not agree: a classifier may throw the picture away and keep the class."
    )


def draw_information(rows, s):
    titles = {
        "probe": "linear probe,\naccuracy",
        "reconstruction": "picture rebuilt,\nR²",
        "cka_first": "similarity to\nthe first unit, CKA",
    }
    with plots.figure(3, 1, height=6, sharex=True) as (_, axes):
        for ax, (column, name) in zip(axes, titles.items(), strict=True):
            plots.lines(ax, rows, "unit", column, by="kind", marker=True)
            ax.set(ylabel=name)
        axes[0].legend()
        axes[-1].set_xlabel(f"unit of {max(s.depths)} layers, from input to output")
    last = last_unit(rows)
    told = {(r["kind"], c): r["mean"] for c in titles for r in stats.summarise(last, c, ("kind",))}
    return (
        f"The last unit's features name the class with accuracy {told['plain', 'probe']:.2f} plain and "
        f"{told['residual', 'probe']:.2f} residual, and rebuild the picture with R² "
        f"{told['plain', 'reconstruction']:.2f} and {told['residual', 'reconstruction']:.2f}. Thin lines are seeds."
    )


INFORMATION = replace(
    DEGRADATION,
    name="information",
    conditions=lambda s: conditions(kind=KINDS, depth=[max(s.depths)], seed=s.seeds),
    estimates=information_estimates,
    finding=information_finding,
    figure=draw_information,
    alt="Three panels under each other against the unit number: accuracy of a linear probe, explained variance of the "
    "rebuilt picture, and similarity to the first unit, plain and residual, one thin line for each seed.",
    table=None,
    kept=("information",),
)


def cost_of_one(rows, kind):
    """By seed, the mean error with one unit missing minus the error of the whole network."""
    own = [r for r in rows if r["kind"] == kind]
    found = []
    for whole in (r for r in own if r["removed"] == 0):
        without = [r["error"] for r in own if r["seed"] == whole["seed"] and r["unit"]]
        found.append({"kind": kind, "seed": whole["seed"], "cost": sum(without) / len(without) - whole["error"]})
    return found


def removal_estimates(rows, s):
    costs = [row for kind in KINDS for row in cost_of_one(rows, kind)]
    own = {
        f"{kind}_cost": stats.interval([r["cost"] for r in costs if r["kind"] == kind], unit="error") for kind in KINDS
    }
    return own | {"cost_saved": stats.paired_rows(costs, "cost", "kind", "plain", "residual", unit="error")}


def removal_finding(rows, s, e):
    return (
        f"Taking out one unit after training costs {e['plain_cost']} in the plain network and {e['residual_cost']} in the "
        f"residual one, which is {e['cost_saved']} less."
    )


def draw_removal(rows, s):
    one, several = [r for r in rows if r["unit"]], [r for r in rows if not r["unit"]]
    with plots.figure(2, 1, height=4.8, sharey=True) as (_, axes):
        plots.lines(axes[0], one, "unit", "error", by="kind", marker=True)
        plots.dots(axes[1], several, "removed", "error", by="kind", offset=0.08)
        axes[0].set(xlabel="the one unit removed", ylabel="validation error")
        axes[1].set(xlabel="units removed at random", ylabel="validation error")
        axes[0].legend()
    e = removal_estimates(rows, s)
    return (
        f"One unit less costs {e['plain_cost'].mean:+.3f} of error plain and {e['residual_cost'].mean:+.3f} residual."
    )


REMOVAL = replace(
    INFORMATION,
    name="removal",
    estimates=removal_estimates,
    finding=removal_finding,
    figure=draw_removal,
    alt="Two panels: above, validation error with one unit removed against the number of that unit; below, against the "
    "number of units removed at random; plain and residual, a line or dot for each seed.",
    kept=("removal",),
)


def trained_estimates(rows, s):
    """Decades by which the first unit's gradient is nearer to the last's with the addition, after training."""
    first = [r | {"spread": abs(r["decades"])} for r in rows if r["unit"] == 1]
    return {"trained_gain": stats.paired_rows(first, "spread", "kind", "plain", "residual", unit="decades")}


def trained_finding(rows, s, e):
    return (
        f"After training with batch normalisation, at {max(s.depths)} layers, the first unit's gradient is nearer to the "
        f"last's by {e['trained_gain']} with the addition."
    )


def draw_trained(rows, s):
    with plots.figure(height=2.8) as (_, ax):
        plots.lines(ax, rows, "unit", "decades", by="kind")
        ax.set(xlabel=f"unit of {max(s.depths)} layers", ylabel="gradient, decades\nover the last unit's")
        ax.legend()
    first = {r["kind"]: r["mean"] for r in stats.summarise([r for r in rows if r["unit"] == 1], "decades", ("kind",))}
    return (
        f"After training, the first unit's gradient is {first['plain']:+.1f} decades from the last's plain and "
        f"{first['residual']:+.1f} residual. Thin lines are seeds."
    )


TRAINED_GRADIENTS = replace(
    INFORMATION,
    name="trained_gradients",
    estimates=trained_estimates,
    finding=trained_finding,
    figure=draw_trained,
    alt="Activation gradient over the last unit's against the unit, after training with batch normalisation; plain and "
    "residual, one thin line for each seed.",
    kept=("trained",),
)
