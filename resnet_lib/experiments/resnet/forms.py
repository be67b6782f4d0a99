"""Which block, and why: ten forms at one depth, a ladder of single changes, and what they do to the signal."""

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import nn

from resnet_lib import bench, blocks, page, plots, resnets, stats, train
from resnet_lib.experiments.resnet.networks import (
    ROUNDS,
    batches,
    cifar,
    counted_cost,
    draw_effects,
    judge,
    step_of,
    training,
)
from resnet_lib.experiments.resnet.units import SLOPE, PreActivationBottleneck, built_as_written, orders
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

FORMS = {  # changes to the original; "end": an activation follows the addition
    "original": {"block": "basic"},
    "LeakyReLU": {"block": "basic", "negative_slope": SLOPE},
    "activation before norm": {"block": "survey"},
    "nothing after sum": {"block": "basic", "end": False},
    "survey, words": {"block": "survey", "negative_slope": SLOPE},
    "survey, formula": {"block": "survey", "negative_slope": SLOPE, "end": False},
    "pre-activation": {"block": "preactivation"},
    "bottleneck": {"block": "bottleneck"},
    "pre-activation bottleneck": {"block": "preactivation_bottleneck"},
    "survey, second formula": {"block": "survey_preactivation"},
}
SECOND = ("pre-activation bottleneck", "survey, second formula", "bottleneck")
SHOWN = ("original", "survey, words", "survey, formula", "pre-activation")
WINDOW = 5  # steps whose mean loss must reach the target
TARGET = 0.8  # of the loss of guessing
ONE_SIDED = 0.05  # a channel with less than this share of its values on one side of zero bends nothing


@contextlib.contextmanager
def also_built(name: str, block: type[blocks.Unit]) -> Iterator[None]:
    """Inside the block the library builds networks of this unit too; its first use is this chapter."""
    blocks.BLOCKS[name] = block
    try:
        yield
    finally:
        del blocks.BLOCKS[name]


def form_network(s, form: str) -> resnets.ResNet:
    changes = cifar(s) | FORMS[form]
    ends = changes.pop("end", True)
    with also_built("preactivation_bottleneck", PreActivationBottleneck):
        model = resnets.resnet_cifar(s.form_depth, **changes)
    if changes["block"] == "preactivation_bottleneck":  # ends in norm and activation, as the paper's
        model.final[0] = nn.BatchNorm2d(model.fc.in_features)
    for unit in model.units():
        unit.activate_sum = unit.activate_sum and ends
    return model


@torch.no_grad()
def signals(model: resnets.ResNet, images: torch.Tensor, when: str) -> list[dict]:
    """By unit, on one batch in training mode: what it puts out, what its branch adds, where its activation bends."""
    model, rows = copy.deepcopy(model).float().train(), []
    x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    for number, unit in enumerate(model.units(), 1):
        bends = []  # what the activation between two convolutions is given
        keep = lambda module, given, bends=bends: bends.append(given[0].clone())
        handle = unit.relu.register_forward_pre_hook(keep)
        branch = unit.branch(x)
        handle.remove()
        open_share = (bends[0] > 0).float().mean((0, 2, 3))
        centred = branch - branch.mean((0, 2, 3), keepdim=True)
        skewness = (centred / branch.std((0, 2, 3), keepdim=True)).pow(3).mean()
        x = unit(x)
        row = {"what": "signal", "when": when, "unit": number}
        row |= {"mean": x.mean(), "std": x.std(), "negative": (x < 0).float().mean()}
        row |= {"branch_std": branch.std(), "branch_negative": (branch < 0).float().mean()}
        row |= {"skewness": skewness}
        row |= {"one_sided": ((open_share < ONE_SIDED) | (open_share > 1 - ONE_SIDED)).float().mean()}
        rows.append({k: v.item() if torch.is_tensor(v) else v for k, v in row.items()})
    return rows


def target_loss(s) -> float:
    return TARGET * math.log(s.facts["classes"])


def steps_to(target: float, losses: list[torch.Tensor]) -> dict:
    """Steps until the mean loss of five in a row is at most the target; all of them if that never happens."""
    smooth = torch.stack(losses).cpu().unfold(0, min(WINDOW, len(losses)), 1).mean(1)
    below = (smooth <= target).nonzero()
    found = {"reached": len(below) > 0, "steps": len(losses)}
    return found | {"steps_to_target": int(below[0]) + WINDOW if len(below) else len(losses)}


def forms(s, form: str, rate: float, seed: int) -> list[dict]:
    """Train one form; its errors, the steps to a loss, and its signals at initialisation and after training."""
    config, losses = training(s, epochs=s.form_epochs, learning_rate=rate), []
    with train.seeded(seed):
        fresh = form_network(s, form).to(s.device)  # the weights that fit draws from this seed
    images, _ = next(train.Batches(s.pictures, s.pictures.train, config, s.device).in_order(128))
    rows = signals(fresh, images, "init")
    make = lambda: form_network(s, form)
    task = train.recording(train.classification(), losses)
    fitted = train.fit(make, s.pictures, config, seed=seed, task=task, on_divergence="record", progress=False)
    model, last = fitted.model, fitted.rows[-1]
    row = {"what": "run", "diverged": last["diverged"]} | steps_to(target_loss(s), losses)
    if last["diverged"]:
        worst = s.chance_error
        return [*rows, row | {"train_loss": None, "val_error": worst, "test_error": worst}]
    row |= {name: last[name] for name in ("train_loss", "train_error")} | judge(s, model)
    row["val_error_running"] = last["val_error"]
    return [*rows, row, *signals(model, images, "trained")]


def chosen_rates(rows) -> dict[str, float]:
    """For each form the learning rate with the lowest mean validation error."""
    names = dict.fromkeys(r["form"] for r in rows)
    return {form: stats.best_setting([r for r in rows if r["form"] == form], "val_error", "rate") for form in names}


def at_chosen(rows):
    """The runs at each form's own rate, with their accuracy."""
    rates = chosen_rates(rows)
    return [r | {"accuracy": 1 - r["test_error"]} for r in rows if r["rate"] == rates[r["form"]]]


def effect(rows, form, against="original"):
    return stats.paired_rows(at_chosen(rows), "accuracy", "form", form, against, unit="accuracy")


def survey_block_estimates(rows, s):
    off, kinds = built_as_written(), orders()
    return {
        "formula_difference": stats.exact(off["formula"]),
        "words_difference": stats.exact(off["words"]),
        "same_as_original": stats.exact(float(kinds["survey, words"] == kinds["original"])),
        "accuracy_change": effect(rows, "survey, words"),
        "formula_accuracy_change": effect(rows, "survey, formula"),
        "slope_effect": effect(rows, "LeakyReLU"),
        "order_effect": effect(rows, "activation before norm"),
        "end_effect": effect(rows, "nothing after sum"),
    }


def survey_block_finding(rows, s, e):
    names = {
        "accuracy_change": "the survey's block in words",
        "formula_accuracy_change": "its formula",
        "slope_effect": "LeakyReLU alone",
        "order_effect": "activation before norm alone",
        "end_effect": "nothing after the sum alone",
    }
    words = "gains", "loses", "makes no clear difference"
    told = [f"{name} {page.change(e[measure], *words)}" for measure, name in names.items()]
    return (
        f"At {s.form_depth} layers, in test accuracy against the original block, paired by seed: {'; '.join(told)}. The order of "
        f"the survey's block is {'' if e['same_as_original'].mean else 'not '}the original's."
    )


def forms_table(rows, s):
    rates, shown = chosen_rates(rows), []
    for form in dict.fromkeys(r["form"] for r in rows):
        own = [r for r in at_chosen(rows) if r["form"] == form]
        found = {
            "form": form,
            "rate": rates[form],
            "accuracy": stats.interval([r["accuracy"] for r in own], unit="share"),
        }
        found["trained"] = f"{sum(not r['diverged'] for r in own)} of {len(own)}"
        found["to_target"] = fmean(r["steps_to_target"] for r in own)
        shown.append(found | {"reached": f"{sum(r['reached'] for r in own)} of {len(own)}"})
    columns = {"form": "block", "rate": ("rate chosen", "g"), "accuracy": "test accuracy", "trained": "finite loss"}
    columns |= {"to_target": (f"steps to loss {target_loss(s):.2f}", ".0f"), "reached": "reached"}
    return page.table(shown, columns)


def draw_forms(rows, s):
    with plots.figure(height=4.2) as (_, ax):
        draw_effects(ax, at_chosen(rows), "form", "original")
        ax.set(xlabel="test accuracy minus the original's, points")
    words = "better than the original", "worse than the original", "not clearly different from the original"
    told, formula = (page.trend(effect(rows, f"survey, {form}"), *words) for form in ("words", "formula"))
    return (
        f"The survey's block as it is put in words is {told}, and its formula is {formula}. Dots are seeds, bars intervals of "
        "95 %."
    )


def _depth(s):
    if s.form_depth < 20 or s.form_depth % 18 != 2:
        raise ValueError(f"form_depth={s.form_depth} must be 18n + 2: 20, 38, 56, …; other blocks differ in depth")
    return s.form_depth


def _forms(s, names=tuple(FORMS)):
    _depth(s)
    return conditions(form=names, rate=s.form_rates, seed=s.seeds)


SURVEY_BLOCK = Experiment(
    "survey_block",
    run=forms,
    conditions=_forms,
    estimates=survey_block_estimates,
    settings=("form_depth", "form_rates", "form_epochs", "batch_size", "learning_rate", "number_format"),
    tiny={"form_depth": 20, "form_rates": [0.05], "form_epochs": 1, "batch_size": 64},
    finding=survey_block_finding,
    figure=draw_forms,
    alt="One line for each block: a small dot for each seed and the mean with its interval of test accuracy minus that of "
    "the original block, with a vertical line at zero.",
    table=forms_table,
    kept=("run",),
)


def formula2_estimates(rows, s):
    kinds = orders()
    same = kinds["survey, second formula"] == kinds["pre-activation bottleneck"]
    return {
        "formula_difference": stats.exact(built_as_written()["formula2"]),
        "same_as_preactivation": stats.exact(float(same)),
        "accuracy_change": effect(rows, "survey, second formula", "pre-activation bottleneck"),
    }


def formula2_finding(rows, s, e):
    return (
        "In test accuracy, against the pre-activation bottleneck, the survey's second formula "
        f"{page.change(e['accuracy_change'], 'gains', 'loses', 'makes no clear difference')}. Its order is {'' if e['same_as_preactivation'].mean else 'not '}that of the pre-activation bottleneck, and its 3×3 "
        "convolutions have more parameters."
    )


SURVEY_FORMULA2 = replace(
    SURVEY_BLOCK,
    name="survey_formula2",
    conditions=lambda s: _forms(s, SECOND),
    estimates=formula2_estimates,
    finding=formula2_finding,
    figure=None,
    alt="",
)


def rectified_theory(slope: float, draws: int = 5_000, channels: int = 2_000) -> dict[str, float]:
    """A norm of a LeakyReLU of Gaussian channels whose means differ: its shape, and one-sided channels."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *size: torch.randn(*size, dtype=torch.float64, generator=generator)
    positive = F.relu(draw(draws))  # a stream after its last activation
    offset = (positive.mean().square() / positive.var()).sqrt()
    rectified = F.leaky_relu(draw(draws, 1) + offset * draw(channels), slope)
    branch = (rectified - rectified.mean(0)) / rectified.std(0)
    # one-sided: 95 % of a channel's values on one side of zero
    one_sided = 2 * (1 - torch.special.ndtr(torch.special.ndtri(torch.tensor(1 - ONE_SIDED)) / offset))
    shape = {"skewness": branch.pow(3).mean().item(), "branch_negative": (branch < 0).double().mean().item()}
    return shape | {"one_sided": one_sided.item()}


def fresh_mean(rows, form, column, unit=None):
    """Mean over seeds, and over units where none is named, at initialisation."""
    own = [r for r in rows if r["when"] == "init" and r["form"] == form and unit in (None, r["unit"])]
    return fmean(r[column] for r in own)


def by_seed(rows, form, column):
    """Of each seed the mean over units at initialisation."""
    own = [r for r in rows if r["when"] == "init" and r["form"] == form]
    return [fmean(r[column] for r in own if r["seed"] == seed) for seed in sorted({r["seed"] for r in own})]


def signal_estimates(rows, s):
    return {
        "survey_skewness": stats.interval(by_seed(rows, "survey, words", "skewness")),
        "original_skewness": stats.interval(by_seed(rows, "original", "skewness")),
        "survey_one_sided": stats.interval(by_seed(rows, "survey, words", "one_sided"), unit="share"),
        "original_one_sided": stats.interval(by_seed(rows, "original", "one_sided"), unit="share"),
    }


def signal_finding(rows, s, e):
    theory, last = rectified_theory(SLOPE), max(r["unit"] for r in rows if r["form"] == "original")
    at_last = [fresh_mean(rows, f, "one_sided", last) for f in ("survey, words", "original", "survey, formula")]
    return (
        f"At initialisation the branch of the survey's block has a skewness of {e['survey_skewness']} (predicted "
        f"{theory['skewness']:.2f}), that of the original {e['original_skewness']}. At the last unit {at_last[0]:.1%} of the "
        f"survey's channels are one-sided before any training, against {at_last[1]:.1%} in the original and "
        f"{at_last[2]:.1%} without the last activation."
    )


def signal_table(rows, s):
    shown = [{"form": "predicted, survey"} | rectified_theory(SLOPE) | {"growth": None}]
    for form in dict.fromkeys(r["form"] for r in rows):
        final = max(r["unit"] for r in rows if r["form"] == form)
        row = {name: fresh_mean(rows, form, name) for name in ("skewness", "branch_negative", "one_sided")}
        growth = fresh_mean(rows, form, "std", final) / fresh_mean(rows, form, "std", 1)
        shown.append({"form": form} | row | {"growth": growth})
    columns = {"form": "block", "skewness": ("skewness of the branch", ".2f")}
    columns |= {"branch_negative": ("negative share of the branch", ".0%"), "one_sided": ("one-sided channels", ".1%")}
    return page.table(shown, columns | {"growth": ("std of the signal, last unit over first", ".1f")})


def draw_signals(rows, s):
    theory = rectified_theory(SLOPE)
    panels = {
        "std": "std of the\noutput",
        "negative": "negative share\nof the output, %",
        "skewness": "skewness of\nthe branch",
        "one_sided": "one-sided\nchannels, %",
    }
    shown = [r for r in rows if r["form"] in SHOWN]
    with plots.figure(4, 2, height=7.2, width=7.6, sharex=True, sharey="row") as (figure, axes):
        for column_axes, when in zip(axes.T, ("init", "trained"), strict=True):
            own = [r for r in shown if r["when"] == when]
            for ax, (column, name) in zip(column_axes, panels.items(), strict=True):
                plots.lines(ax, own, "unit", column, by="form", marker=True)
                if column in theory and when == "init":
                    ax.axhline(theory[column], color="black", linestyle="--", linewidth=1.2)
                if when == "init":
                    ax.set_ylabel(name)
            column_axes[0].set_title({"init": "at initialisation", "trained": "after training"}[when])
            column_axes[-1].set_xlabel("unit")
        plots.hundredths(*(ax.yaxis for ax in (axes[1, 0], axes[3, 0])))
        figure.legend(*axes[0, 0].get_legend_handles_labels(), ncols=4, loc="outside upper center")
    means = {r["form"]: r["mean"] for r in stats.summarise(shown, "skewness", ("form",))}
    skewed = [f"“{form}”" for form in SHOWN if means[form] > 1]
    return (
        f"The branch is skewed in {page.listed(skewed)}, at initialisation and after training. Left, dashed: predicted for the "
        "survey's order. Thin lines are seeds."
    )


SIGNALS = replace(
    SURVEY_BLOCK,
    name="signals",
    conditions=lambda s: [
        {"form": form, "rate": rate, "seed": n} for form, rate in s.rate_of.items() if form in SHOWN for n in s.seeds
    ],
    estimates=signal_estimates,
    finding=signal_finding,
    figure=draw_signals,
    alt="Four panels under each other against the number of the unit: standard deviation of the unit's output, share of "
    "negative values, skewness of what the branch adds, and share of one-sided channels, for four forms of the block, one "
    "thin line for each seed; on the left at initialisation, on the right after training.",
    table=signal_table,
    kept=("signal",),
    needs=SURVEY_BLOCK,
    choose=lambda rows, s: {"rate_of": chosen_rates(rows)},
)


def form_times(s) -> list[dict]:
    """Seconds of one training step of each form, taking turns, and what each form costs by counting."""
    colours, *sides = s.facts["shape"]
    images, labels = batches(s, s.pictures.train).first()
    steps, rows = {}, []
    for form in FORMS:
        model = form_network(s, form).to(s.device, memory_format=torch.channels_last)
        steps[form] = step_of(s, model, images, labels)
    for row in bench.compare(steps, reference="original", rounds=ROUNDS, warmup=1):
        counts, _ = counted_cost(row["name"], lambda form=row["name"]: form_network(s, form), sides, colours)
        kept = {name: row[name] for name in ("time_s", "ratio", "ratio_min", "ratio_max")}
        rows.append({"what": "time", "form": row["name"]} | kept | counts)
    return rows


def time_finding(rows, s, e):
    slowest = min(rows, key=lambda r: r["ratio"])
    return (
        f"The slowest form, {slowest['form']}, has {slowest['ratio']:.2f} of the original's speed in a training step."
    )


def time_table(rows, s):
    columns = {"form": "block", "ratio": ("speed, original = 1", ".2f"), "parameters": ("parameters", ",")}
    return page.table(rows, columns | {"flops": ("MFLOPs", lambda flops: f"{flops / 1e6:.1f}")})


FORM_TIMES = Experiment(
    "form_times",
    run=form_times,
    conditions=lambda s: [{}] if _depth(s) else [],
    estimates=lambda rows, s: {
        "survey_speed": stats.exact(next(r["ratio"] for r in rows if r["form"] == "survey, words"), "times")
    },
    settings=("form_depth", "batch_size", "learning_rate", "number_format"),
    tiny={"form_depth": 20, "batch_size": 64},
    finding=time_finding,
    table=time_table,
    timed=True,
)
