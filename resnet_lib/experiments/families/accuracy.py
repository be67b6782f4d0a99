"""What cardinality, concatenation, several paths and addition buy: small networks of equal cost, trained alike."""

from dataclasses import replace

import torch

from resnet_lib import page, plots, stats, train
from resnet_lib.experiments.depths import changed
from resnet_lib.experiments.families.networks import (
    ARMS,
    COLOURS,
    build,
    config_of,
    cost,
    equal_arms,
    predicted_bytes,
    shape_of,
    training,
)
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

CHOOSER = 1000  # the seed that chooses the learning rates: none of those that are compared
SETTLING = 20  # batches over which the norms' statistics are taken anew before a network is judged
GAINS = {  # measure → (what is bought, by which arm, over which)
    "cardinality_gain": ("groups, and a wider inside for them", "grouped", "bottleneck"),
    "concatenation_gain": ("concatenating", "dense", "basic"),
    "paths_gain": ("several paths that are added", "added", "basic"),
    "addition_gain": ("adding, with several paths", "added", "paths"),
    "bottleneck_gain": ("bottlenecks", "bottleneck", "basic"),
}


def fitted(s, equal: str, arm: str, rate: float, epochs: int, seed: int) -> train.Fit:
    return train.fit(
        lambda: build(config_of(s, equal, arm)),
        s.pictures,
        training(s, epochs=epochs, learning_rate=rate),
        seed=seed,
        augmentation=lambda images, generator: changed(s, images, generator),
        on_divergence="record",
        progress=False,
    )


def tried(s, equal: str, arm: str, rate: float, seed: int) -> list[dict]:
    """The last epoch of a shorter training: by its validation loss each network's learning rate is chosen."""
    row = fitted(s, equal, arm, rate, s.rate_epochs, seed).rows[-1]
    return [{"loss": 1e9 if row["diverged"] else row["val_loss"], "diverged": row["diverged"]}]


def rates_of(rows: list[dict]) -> dict[str, float]:
    """The learning rate with the lowest validation loss for each arm."""
    return {
        arm: stats.best_setting(stats.where(rows, arm=arm), "loss", "rate")
        for arm in dict.fromkeys(r["arm"] for r in rows)
    }


def trained(s, equal: str, arm: str, rate: float, seed: int) -> list[dict]:
    """Train one network: its curve, its errors with settled norms, and what it costs by its shape."""
    fit = fitted(s, equal, arm, rate, s.epochs, seed)
    if fit.rows[-1]["diverged"]:
        raise ArithmeticError(
            f"{ARMS[arm]} diverged at the learning rate {rate} that a short training chose: give rates smaller values"
        )
    keys = ("epoch", "train_loss", "train_error", "val_loss", "val_error", "time_s")
    rows = [{"what": "curve"} | {key: row[key] for key in keys} for row in fit.rows]
    batches = train.Batches(s.pictures, s.pictures.train, training(s), s.device)
    model = train.settle(fit.model, batches, SETTLING)
    val, test = (train.evaluate(model, s.pictures, split, training(s)) for split in (s.pictures.val, s.pictures.test))
    config = config_of(s, equal, arm)
    end = {"what": "end", "val_accuracy": 1 - val["error"], "accuracy": 1 - test["error"], "loss": test["loss"]}
    return [*rows, end | cost(config, **shape_of(s)) | {"kept_bytes": kept(s, config)}]


def kept(s, config) -> int:
    """Bytes of float32 activations for one picture that a training step keeps for its backward pass."""
    with torch.device("meta"):
        return predicted_bytes(build(config), torch.empty(2, *s.facts["shape"])) // 2


def ends(rows) -> list[dict]:
    return stats.where(rows, what="end")


def estimates(rows, s):
    own = ends(rows)
    found = {
        name: stats.paired_rows(own, "accuracy", "arm", arm, other, unit="accuracy")
        for name, (_, arm, other) in GAINS.items()
    }
    seeds = sorted({r["seed"] for r in own})
    chance = 1 - s.chance_error
    least = [min(r["accuracy"] for r in stats.where(own, seed=seed)) - chance for seed in seeds]
    basic = [r["accuracy"] for r in stats.where(own, arm="basic")]
    found["least_over_chance"] = stats.interval(least, unit="accuracy")
    found["basic_accuracy"] = stats.interval(basic, unit="share")
    costs = {arm: stats.where(own, arm=arm)[0] for arm in ARMS}
    for name in ("parameters", "kept_bytes"):
        for arm in ARMS:
            found[f"{name}_{arm}"] = stats.exact(costs[arm][name] / costs["basic"][name], "times")
    return found


BETTER = "raises it by", "lowers it by", "does not clearly change it"


def finding(rows, s, e):
    gains = "; ".join(
        f"{what} ({ARMS[arm]} over {ARMS[other]}) {page.change(e[name], *BETTER)}"
        for name, (what, arm, other) in GAINS.items()
    )
    amounts = [r["parameters" if rows[0]["equal"] == "parameters" else "madds"] for r in ends(rows)]
    most = max(ARMS, key=lambda arm: e[f"kept_bytes_{arm}"].mean)
    return (
        f"After {s.epochs} epochs {ARMS['basic']} reaches a test accuracy of {e['basic_accuracy']}. What the others make of "
        f"it: {gains}. The {_words(rows)} of the networks differ by {max(amounts) / min(amounts) - 1:.1%} from least to most; "
        f"{ARMS['dense']} has {e['parameters_dense'].mean:.2f} times the parameters of {ARMS['basic']}, and {ARMS[most]} "
        f"keeps {e[f'kept_bytes_{most}'].mean:.1f} times the activations."
    )


def table(rows, s):
    shown = []
    for arm in ARMS:
        own = stats.where(ends(rows), arm=arm)
        accuracy = stats.interval([r["accuracy"] for r in own], unit="share")
        shown.append(own[0] | {"name": ARMS[arm], "test": accuracy, "kib": own[0]["kept_bytes"] / 1024})
    columns = {"name": "network", "rate": ("learning rate", "g"), "madds": ("multiply-adds", ",")}
    columns |= {"parameters": ("parameters", ","), "kib": ("kept for a picture, KiB", ",.0f")}
    return page.table(shown, columns | {"test": "test accuracy"})


def draw_gains(rows, s):
    """What each structure buys, with an interval and every seed."""
    own, shown = ends(rows), []
    found = estimates(rows, s)
    with plots.figure(height=3.2) as (_, ax):
        for place, (name, (_, arm, other)) in enumerate(GAINS.items()):
            of = {(r["arm"], r["seed"]): r["accuracy"] for r in own}
            gains = [of[arm, seed] - of[other, seed] for seed in sorted({r["seed"] for r in own})]
            ax.plot(gains, [place - 0.25] * len(gains), "o", color=plots.BLUE, alpha=0.5, ms=4, mew=0)
            shown.append({"name": f"{ARMS[arm]}\nover {ARMS[other]}", "gain": found[name]})
        plots.forest(ax, shown, "name", "gain")
        ax.set_xlabel("test accuracy, difference in points")
        ax.tick_params(axis="y", labelsize=10)
        plots.hundredths(ax.xaxis)
    clear = [ARMS[arm] for name, (_, arm, _) in GAINS.items() if found[name].low > 0]
    return (
        f"At equal {_words(rows)}, clearly more accurate than what it is compared with: {page.listed(clear)}. "
        "Small dots are seeds, bars intervals of 95 %."
    )


def _words(rows) -> str:
    return {"flops": "multiply-adds", "parameters": "parameters"}[rows[0]["equal"]]


def draw_pareto(rows, s):
    """Accuracy against what a network costs besides: parameters or multiply-adds, and the activations it keeps."""
    own = [r | {"kept_kib": r["kept_bytes"] / 1024} for r in ends(rows)]
    other = "madds" if rows[0]["equal"] == "parameters" else "parameters"
    names = {other: {"madds": "multiply-adds", "parameters": "parameters"}[other]}
    names["kept_kib"] = "kept for the backward pass, KiB a picture"
    with plots.figure(2, 1, height=6.4, sharey=True) as (fig, axes):
        for ax, (column, name) in zip(axes, names.items(), strict=True):
            for (arm, label), marker in zip(ARMS.items(), plots.MARKERS, strict=True):
                of = stats.where(own, arm=arm)
                x, y = of[0][column], [r["accuracy"] for r in of]
                look = {"color": COLOURS[arm], "marker": marker, "linestyle": ""}
                ax.plot([x] * len(y), y, ms=4, alpha=0.5, mew=0, **look)
                ax.plot(x, sum(y) / len(y), ms=9, label=label, **look)
            ax.set(xscale="log", xlabel=name, ylabel="test accuracy, %")
            plots.hundredths(ax.yaxis)
            plots.log_axis(ax.xaxis, [r[column] for r in own])
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=10)
    means = {arm: sum(r["accuracy"] for r in stats.where(own, arm=arm)) for arm in ARMS}
    best = max(means, key=means.get)
    of = {arm: stats.where(own, arm=arm)[0] for arm in ARMS}
    beaten = [
        ARMS[a]
        for a in ARMS
        if not any(
            means[b] >= means[a] and of[b]["kept_kib"] <= of[a]["kept_kib"] and of[b][other] <= of[a][other]
            for b in ARMS
            if b != a
        )
    ]
    return (
        f"At equal {_words(rows)} the highest mean accuracy is that of {ARMS[best]}. No other network is better in accuracy, "
        f"{names[other]} and memory together than {page.listed(beaten)}. Small marks are seeds."
    )


def draw_front(rows, s):
    return f"{draw_gains(rows, s)} {draw_pareto(rows, s)}"


def _rates(s, equal: str) -> list[dict]:
    if len(set(s.rates)) < 2 or min(s.rates) <= 0:
        raise ValueError(f"rates={s.rates} must be at least two different rates above 0")
    return conditions(equal=[equal], arm=equal_arms(s, equal), rate=s.rates, seed=[CHOOSER])


def _arms(s, equal: str) -> list[dict]:
    arms = equal_arms(s, equal)
    return [{"equal": equal, "arm": arm, "rate": s.rate_of[arm], "seed": seed} for arm in arms for seed in s.seeds]


def rates_estimates(rows, s):
    """How many networks chose a rate at an end of those tried, beyond which a better one may lie."""
    chosen, all_rates = rates_of(rows).values(), {r["rate"] for r in rows}
    return {"at_an_end": stats.exact(sum(r in (min(all_rates), max(all_rates)) for r in chosen), "networks")}


def rates_finding(rows, s, e):
    chosen = ", ".join(f"{rate:g} for {ARMS[arm]}" for arm, rate in rates_of(rows).items())
    return (
        f"Of {', '.join(f'{rate:g}' for rate in sorted({r['rate'] for r in rows}))} the validation loss after "
        f"{s.rate_epochs} epochs of a seed of its own chose {chosen}. {e['at_an_end'].mean:.0f} of these "
        f"{len(rates_of(rows))} lie at an end of what was tried."
    )


def rates_table(rows, s):
    shown = {}
    for r in rows:
        shown.setdefault(r["arm"], {"arm": ARMS[r["arm"]]})[f"{r['rate']:g}"] = r["loss"]
    columns = {"arm": "network"}
    columns |= {f"{rate:g}": (f"loss at {rate:g}", ".3f") for rate in sorted({r["rate"] for r in rows})}
    return page.table(list(shown.values()), columns)


RATES = Experiment(
    "rates",
    run=tried,
    conditions=lambda s: _rates(s, "flops"),
    estimates=rates_estimates,
    settings=("network_size", "rate_epochs", "batch_size", "flips", "number_format"),
    counts=("rates",),
    tiny={"network_size": "small", "rates": [0.05, 0.1], "rate_epochs": 1, "batch_size": 64},
    finding=rates_finding,
    table=rates_table,
)
PARAMETER_RATES = replace(RATES, name="parameter_rates", conditions=lambda s: _rates(s, "parameters"))
ACCURACY = Experiment(
    "accuracy",
    run=trained,
    needs=RATES,
    choose=lambda rows, s: {"rate_of": rates_of(rows)},
    conditions=lambda s: _arms(s, "flops"),
    estimates=estimates,
    settings=("network_size", "epochs", "batch_size", "flips", "number_format"),
    tiny={"network_size": "small", "epochs": 1, "batch_size": 64},
    finding=finding,
    figure=draw_pareto,
    alt="Two panels of test accuracy for six small networks, every seed and the mean: against parameters or multiply-adds, "
    "and against the bytes that a training step keeps for one picture, on logarithmic axes.",
    table=table,
)
PARAMETERS = replace(ACCURACY, name="parameters", needs=PARAMETER_RATES, conditions=lambda s: _arms(s, "parameters"))
