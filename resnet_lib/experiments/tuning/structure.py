"""Do depth, width and activation function decide: alone, and at equal computation or parameters?"""

from resnet_lib import page, plots, resnets, stats
from resnet_lib.experiments.shapes import flops_here, nearest_width, parameters_here
from resnet_lib.experiments.tuning.trainings import (
    ACTIVATIONS,
    CHOOSER,
    SETTINGS,
    chosen_elsewhere,
    error_of,
    fitted,
    gain,
    network,
    training,
)
from resnet_lib.study import Experiment

FAMILIES = {
    "depth": "depth, at one width",
    "width": "width, at one depth",
    "equal_flops": "depth against width, equal FLOPs",
    "equal_parameters": "depth against width, equal parameters",
    "activation": "activation function",
}


def shapes(s) -> dict[str, list[tuple[int, int, str]]]:
    """The networks of each comparison as (depth, width, activation); the base is in all of them."""
    base, depths = (s.depth, s.width), sorted({s.depth, *s.structure_depths})
    by = {
        "equal_flops": lambda depth: nearest_width(lambda w: flops_here(s, depth, w), flops_here(s, *base)),
        "equal_parameters": lambda depth: nearest_width(
            lambda w: parameters_here(s, depth, w), parameters_here(s, *base)
        ),
    }
    found = {
        "depth": [(d, s.width) for d in depths],
        "width": [(s.depth, w) for w in sorted({s.width, *s.structure_widths})],
    }
    found |= {name: [(d, width(d)) for d in depths] for name, width in by.items()}
    shaped = {name: [(d, w, "ReLU") for d, w in family] for name, family in found.items()}
    return shaped | {"activation": [(*base, name) for name in ACTIVATIONS]}


def structured(s, depth: int, width: int, activation: str, learning_rate: float, seed: int) -> list[dict]:
    """One network trained; validation and test error."""
    config = training(s, learning_rate=learning_rate)
    fit = fitted(s, lambda: network(s, depth, width, activation), s.pictures, config, seed)
    row = {"error": error_of(s, fit, config, s.pictures.val), "time_s": fit.rows[-1]["time_s"], "what": "run"}
    return [row | ({} if seed == CHOOSER else {"test_error": error_of(s, fit, config, s.pictures.test)})]


def rates_of(rows) -> dict[str, float]:
    """The learning rate with the lowest validation error of each network, by its name."""
    own = {}
    for r in rows:
        own.setdefault(name_of(r), []).append(r)
    return {name: stats.best_setting(found, "error", "learning_rate") for name, found in own.items()}


def name_of(row: dict) -> str:
    return f"{row['depth']} layers, width {row['width']}, {row['activation']}"


def _networks(s) -> list[dict]:
    for depth in s.structure_depths:
        resnets.cifar_config(depth)
    for name, base in (("structure_depths", s.depth), ("structure_widths", s.width)):
        if not set(getattr(s, name)) - {base}:
            raise ValueError(f"{name}={getattr(s, name)}: a value beside the base's is needed to compare with it")
    distinct = dict.fromkeys(shape for family in shapes(s).values() for shape in family)
    return [dict(zip(("depth", "width", "activation"), shape, strict=True)) for shape in distinct]


def _tried(s):
    if len(set(s.structure_rates)) < 2 or min(s.structure_rates) <= 0:
        raise ValueError(f"structure_rates={s.structure_rates} must be at least two different rates above 0")
    return [one | {"learning_rate": r, "seed": CHOOSER} for one in _networks(s) for r in sorted(s.structure_rates)]


def rates_estimates(rows, s):
    ends = stats.at_an_end(rates_of(rows).values(), (r["learning_rate"] for r in rows))
    return {"at_an_end": stats.exact(ends, "networks")}


def rates_finding(rows, s, e):
    chosen = rates_of(rows)
    tried = page.listed([f"{r:g}" for r in sorted({r["learning_rate"] for r in rows})])
    said = "; ".join(
        f"{sum(r == rate for r in chosen.values())} chose {rate:g}" for rate in sorted(set(chosen.values()))
    )
    return f"Of the rates {tried}, by validation pictures of a seed that is not compared: {said}. {e['at_an_end'].mean:.0f} lie at an end."


STRUCTURE_RATES = Experiment(
    "structure_rates",
    run=structured,
    conditions=_tried,
    estimates=rates_estimates,
    settings=SETTINGS,
    counts=("structure_depths", "structure_widths", "structure_rates"),
    tiny={"structure_depths": [14], "structure_widths": [6], "structure_rates": [0.03, 0.1]},
    finding=rates_finding,
)


def families(rows, s) -> dict[str, list[dict]]:
    """The rows of each comparison."""
    of = {}
    for r in rows:
        of.setdefault((r["depth"], r["width"], r["activation"]), []).append(r)
    return {name: [r for shape in family for r in of[shape]] for name, family in shapes(s).items()}


def estimates(rows, s):
    """Test accuracy of the best network of each comparison minus that of the worst, named by the other seeds' validation."""
    by, found = ("depth", "width", "activation"), {}
    for name, own in families(rows, s).items():
        best, worst = (chosen_elsewhere(own, by, worst=w) for w in (False, True))
        found[f"{name}_effect"] = gain(best, worst, "test_error")
    worst = chosen_elsewhere(rows, by, worst=True)
    base = stats.where(rows, depth=s.depth, width=s.width, activation="ReLU")
    return found | {
        "worst_over_chance": stats.interval(
            [s.chance_error - r["test_error"] for r in worst.values()], unit="accuracy"
        ),
        "base_accuracy": stats.interval([1 - r["test_error"] for r in base], unit="share"),
    }


def finding(rows, s, e):
    told = "; ".join(f"{words}: {e[f'{name}_effect']}" for name, words in FAMILIES.items())
    return (
        f"Best minus worst in test accuracy, each network at its own learning rate: {told}. "
        f"The base, {s.depth} layers of width {s.width}, reaches {e['base_accuracy']} in {s.epochs} epochs."
    )


def label(row: dict, name: str) -> str:
    return {"depth": f"{row['depth']} layers", "width": f"w={row['width']}", "activation": row["activation"]}.get(
        name, f"{row['depth']}, w={row['width']}"
    )


def draw(rows, s):
    with plots.figure(3, 2, height=7.2, sharey=True) as (_, axes):
        panels = list(axes.flat)
        for ax, (name, own) in zip(panels, families(rows, s).items(), strict=False):
            shown = [r | {"label": label(r, name), "accuracy": 1 - r["test_error"], "kind": name} for r in own]
            plots.dots(ax, shown, "label", "accuracy", by="kind", join=name != "activation")
            ax.set_title(FAMILIES[name].replace(", ", ",\n"), fontsize=11)
            ax.tick_params(axis="x", labelsize=9)
        panels[-1].axis("off")
        for ax in axes[:, 0]:
            ax.set_ylabel("test accuracy, %")
        plots.hundredths(axes[0, 0].yaxis)
    e = estimates(rows, s)
    largest = max(FAMILIES, key=lambda name: e[f"{name}_effect"].mean)
    return f"The largest distance between best and worst is that of {FAMILIES[largest]}. Dots are seeds, bars intervals of 95 %."


def table(rows, s):
    shown = []
    for name, own in families(rows, s).items():
        for shape in dict.fromkeys((r["depth"], r["width"], r["activation"]) for r in own):
            mine = [r for r in own if (r["depth"], r["width"], r["activation"]) == shape]
            row = {"family": FAMILIES[name], "network": name_of(mine[0]), "rate": mine[0]["learning_rate"]}
            row |= {"flops": flops_here(s, *shape[:2]) / flops_here(s, s.depth, s.width)}
            row |= {"parameters": parameters_here(s, *shape[:2]) / parameters_here(s, s.depth, s.width)}
            shown.append(row | {"accuracy": stats.interval([1 - r["test_error"] for r in mine], unit="share")})
    columns = {
        "family": "comparison",
        "network": "network",
        "rate": ("learning rate", "g"),
        "flops": ("FLOPs, times the base's", ".2f"),
    }
    return page.table(
        shown, columns | {"parameters": ("parameters, times the base's", ".2f"), "accuracy": "test accuracy"}
    )


STRUCTURE = Experiment(
    "structure",
    run=structured,
    conditions=lambda s: [
        one | {"learning_rate": s.rate_of[name_of(one)], "seed": n} for one in _networks(s) for n in s.seeds
    ],
    estimates=estimates,
    settings=(*SETTINGS, "structure_depths", "structure_widths"),
    tiny=STRUCTURE_RATES.tiny,
    finding=finding,
    figure=draw,
    table=table,
    alt="Five panels of test accuracy, a dot for each seed and the mean with its interval: against depth, against width, "
    "against depth with the width that keeps FLOPs or parameters equal, and for four activation functions.",
    needs=STRUCTURE_RATES,
    choose=lambda rows, s: {"rate_of": rates_of(rows)},
)
