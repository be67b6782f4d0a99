"""Trained to several depths: does depth hurt, what survives to the last unit, and what does a lost unit cost?"""

from dataclasses import replace

from resnet_lib import page, plots, stats
from resnet_lib.experiments import depths
from resnet_lib.experiments.depths import KINDS, arms
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

RATES = depths.rates("depth_rates", KINDS, [8, 14])


def base(s, rows):
    """The depth that others are compared with, and the deepest."""
    return s.looked_depth, max(r["depth"] for r in rows)


def degradation_estimates(rows, s):
    """Error in the last epoch of training: the deepest minus the base, by kind; plain minus residual at the deepest."""
    middle, deep = base(s, rows)
    found = {
        f"{kind}_change": stats.paired_rows(
            stats.where(rows, kind=kind), "train_error", "depth", deep, middle, unit="error"
        )
        for kind in KINDS
    }
    at_deepest = stats.where(rows, depth=deep)
    found["deepest_gap"] = stats.paired_rows(at_deepest, "train_error", "kind", "plain", "residual", unit="error")
    found["deepest_test_gap"] = stats.paired_rows(at_deepest, "test_error", "kind", "plain", "residual", unit="error")
    own = stats.where(rows, kind="residual", depth=middle)
    found["base_accuracy"] = stats.interval([1 - r["test_error"] for r in own], unit="share")
    cells = [stats.where(rows, kind=kind, depth=depth) for kind in KINDS for depth in {r["depth"] for r in rows}]
    learnt = [stats.interval([s.chance_error - r["train_error"] for r in cell], unit="error") for cell in cells]
    return found | {"worst_arm": min(learnt, key=lambda estimate: estimate.mean)}


def degradation_finding(rows, s, e):
    middle, deep = base(s, rows)
    noise = stats.interval([r["train_error"] for r in stats.where(rows, kind="residual", depth=deep)]).sd
    rises = "rises by", "falls by", "does not clearly change"
    apart = "higher by", "lower by", "not clearly different"
    return (
        f"From {middle} to {deep} layers the training error {page.change(e['plain_change'], *rises)} without the addition; "
        f"with it, it {page.change(e['residual_change'], *rises)}. At {deep} layers the plain network's is "
        f"{page.change(e['deepest_gap'], *apart)}, and its test error is {page.change(e['deepest_test_gap'], *apart)}. "
        f"The residual network of {middle} layers reaches a test accuracy of {e['base_accuracy']} in {s.depth_epochs} epochs "
        f"on pictures of {s.facts['shape'][2]} pixels, and the worst of all networks is better than guessing by "
        f"{e['worst_arm']}. Over seeds the deep residual network's error has a standard deviation of {100 * noise:.1f} points: "
        f"to see a difference of 2 points one needs {stats.seeds_needed(noise, 0.02)} seeds in each arm."
    )


def degradation_table(rows, s):
    shown = []
    for cell in conditions(kind=KINDS, depth=sorted({r["depth"] for r in rows})):
        own = [r for r in rows if cell.items() <= r.items()]
        shown.append(cell | {name: stats.interval([r[name] for r in own]) for name in ("train_error", "test_error")})
        shown[-1]["rate"] = own[0]["rate"]
    columns = {"rate": ("learning rate", "g"), "train_error": "training error", "test_error": "test error"}
    return page.table(shown, {"kind": "network", "depth": "layers"} | columns)


def draw_degradation(rows, s):
    middle, deep = base(s, rows)
    with plots.figure(2, 1, height=4.8, sharex=True, sharey=True) as (_, axes):
        for ax, column in zip(axes, ("train_error", "test_error"), strict=True):
            plots.dots(ax, rows, "depth", column, by="kind", offset=0.08)
            ax.set(ylabel={"train_error": "training error, %", "test_error": "test error, %"}[column], ylim=(0, None))
        plots.hundredths(*(ax.yaxis for ax in axes))
        axes[0].legend()
        axes[1].set_xlabel("layers")
    words = {
        kind: page.trend(e, "rises", "falls", "does not clearly change")
        for kind, e in zip(KINDS, degradation_estimates(rows, s).values(), strict=False)
    }
    return (
        f"From {middle} to {deep} layers the plain network's training error {words['plain']} and the residual one's "
        f"{words['residual']}; each network at its own learning rate. Dots are seeds, bars intervals of 95 %."
    )


DEGRADATION = Experiment(
    "degradation",
    run=depths.trained,
    conditions=lambda s: arms(s, KINDS, s.depths),
    estimates=degradation_estimates,
    settings=("looked_depth", "depth_epochs", "flips", "number_format"),
    counts=("depths",),
    tiny={"depths": [8, 14], "looked_depth": 8, "depth_epochs": 1},
    finding=degradation_finding,
    figure=draw_degradation,
    alt="Two panels on the same axis of error against depth: training error above, test error below, plain and residual, "
    "a small dot for each seed and the mean with its interval.",
    table=degradation_table,
    kept=("end",),
    needs=RATES,
    choose=lambda rows, s: {"rate_of": depths.rates_of(rows)},
)


def last_units(rows, **wanted):
    """Of each run the row of its last unit that fits."""
    own = stats.where(rows, what="unit", **wanted)
    return [r for r in own if r["unit"] == max(q["unit"] for q in own if q["depth"] == r["depth"])]


def information_estimates(rows, s):
    """Residual minus plain at the last unit: what a linear map tells of the class, and of the picture.

    At the base depth and the deepest after training, and at the base depth before.
    """
    middle, deep = base(s, rows)
    places = {"": (middle, "trained"), "deepest_": (deep, "trained"), "untrained_": (middle, "random")}
    found = {}
    for name, (depth, state) in places.items():
        own = last_units(rows, depth=depth, state=state)
        found[f"{name}probe_gain"] = stats.paired_rows(own, "accuracy", "kind", "residual", "plain", unit="accuracy")
        found[f"{name}reconstruction_gain"] = stats.paired_rows(
            own, "reconstruction", "kind", "residual", "plain", unit="R²"
        )
    own = stats.where(rows, state="trained")
    ends = [r | {"of": "own"} for r in stats.where(own, what="own")] + [r | {"of": "probe"} for r in last_units(own)]
    pair = ("kind", "depth", "seed")
    found["probe_over_own"] = stats.paired_rows(ends, "accuracy", "of", "probe", "own", pair=pair, unit="accuracy")
    return found


def information_finding(rows, s, e):
    middle, deep = base(s, rows)
    return (
        f"At the last unit, residual minus plain. After training at {middle} layers: class by linear probe {e['probe_gain']}, "
        f"picture rebuilt {e['reconstruction_gain']}. At {deep} layers: {e['deepest_probe_gain']} and "
        f"{e['deepest_reconstruction_gain']}. Before training at {middle} layers: {e['untrained_probe_gain']} and "
        f"{e['untrained_reconstruction_gain']}. The two need not agree: a classifier may throw the picture away and keep the "
        f"class. As a check, the last unit's probe is as good as its network to within {e['probe_over_own']}."
    )


def draw_information(rows, s):
    titles = {
        "accuracy": "linear probe,\naccuracy",
        "reconstruction": "picture rebuilt,\nR²",
        "cka_first": "similarity to\nthe first unit, CKA",
    }
    own = stats.where(rows, what="unit", state="trained", depth=s.looked_depth)
    with plots.figure(3, 1, height=6, sharex=True) as (_, axes):
        for ax, (column, name) in zip(axes, titles.items(), strict=True):
            plots.lines(ax, own, "unit", column, by="kind", marker=True)
            ax.set(ylabel=name)
        axes[0].legend()
        axes[-1].set_xlabel(f"unit of {s.looked_depth} layers, from input to output")
    e = information_estimates(rows, s)
    words = {
        name: page.trend(e[f"{name}_gain"], "more", "less", "not clearly more or less")
        for name in ("probe", "reconstruction")
    }
    return (
        f"With the addition the last unit tells {words['probe']} of the class and {words['reconstruction']} of the picture. "
        "Thin lines are seeds."
    )


INFORMATION = replace(
    DEGRADATION,
    name="information",
    conditions=lambda s: arms(s, KINDS, sorted({s.looked_depth, max(s.depths)})),
    estimates=information_estimates,
    finding=information_finding,
    figure=draw_information,
    alt="Three panels under each other against the unit number: accuracy of a linear probe, explained variance of the "
    "rebuilt picture, and similarity to the first unit, plain and residual, one thin line for each seed.",
    table=None,
    kept=("unit", "own", "pixels", "shuffled"),
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
        f"At {s.looked_depth} layers, taking out one unit after training costs {e['plain_cost']} in the plain network and {e['residual_cost']} in the "
        f"residual one, which is {page.change(e['cost_saved'], 'less by', 'more by', 'not clearly different')}."
    )


def draw_removal(rows, s):
    one, several = [r for r in rows if r["unit"]], [r for r in rows if not r["unit"]]
    with plots.figure(2, 1, height=4.8, sharey=True) as (_, axes):
        plots.lines(axes[0], one, "unit", "error", by="kind", marker=True)
        plots.dots(axes[1], several, "removed", "error", by="kind", offset=0.08)
        axes[0].set(xlabel="the one unit removed", ylabel="validation error, %")
        axes[1].set(xlabel="units removed at random", ylabel="validation error, %")
        axes[0].legend()
        plots.hundredths(*(ax.yaxis for ax in axes))
    less = page.trend(removal_estimates(rows, s)["cost_saved"], "less", "more", "not clearly less")
    return f"A lost unit costs the residual network {less} than the plain one. Thin lines and dots are seeds."


REMOVAL = replace(
    INFORMATION,
    name="removal",
    conditions=lambda s: arms(s, KINDS, [s.looked_depth]),
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
        f"After training with batch normalisation, at {rows[0]['depth']} layers, the first unit's gradient is "
        f"{page.change(e['trained_gain'], 'nearer to the last by', 'farther from the last by', 'not clearly nearer to the last')} "
        "with the addition."
    )


def draw_trained(rows, s):
    with plots.figure(height=2.8) as (_, ax):
        plots.lines(ax, rows, "unit", "decades", by="kind")
        ax.set(xlabel=f"unit of {rows[0]['depth']} layers", ylabel="gradient, decades\nover the last unit's")
        ax.legend()
    nearer = page.trend(trained_estimates(rows, s)["trained_gain"], "nearer", "farther", "not clearly nearer")
    return (
        f"After training the first unit's gradient is {nearer} to the last's with the addition. Thin lines are seeds."
    )


TRAINED_GRADIENTS = replace(
    INFORMATION,
    name="trained_gradients",
    conditions=lambda s: arms(s, KINDS, [max(s.depths)]),
    estimates=trained_estimates,
    finding=trained_finding,
    figure=draw_trained,
    alt="Activation gradient over the last unit's against the unit, after training with batch normalisation; plain and "
    "residual, one thin line for each seed.",
    kept=("trained",),
)
