"""Raw, normalised, standardised: does the form of the input matter, with and without batch normalisation?"""

from dataclasses import replace
from statistics import fmean

import torch

from resnet_lib import data, page, plots, stats, train
from resnet_lib.experiments.augmentation.recipes import network, training
from resnet_lib.experiments.depths import refuse
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

FORMS = ("raw", "normalised", "standardised")
NORMS = {"batch": "with", "none": "without"}


def as_input(dataset: data.Dataset, form: str) -> data.Dataset:
    """The data set with its statistics such that the library hands out this form of input."""
    one, zero = torch.ones_like(dataset.std), torch.zeros_like(dataset.mean)
    forms = {
        "raw": (zero, one / 255),  # 0 … 255
        "normalised": (zero, one),  # 0 … 1
        "standardised": (dataset.mean, dataset.std),
    }
    mean, std = forms[form]
    return replace(dataset, mean=mean, std=std)


def inputs(s, form: str, norm: str, rate: float, seed: int) -> list[dict]:
    """Validation error and accuracy of a network trained on one form of input; a run that diverged counts as guessing."""
    dataset, config = as_input(s.pictures, form), training(s, epochs=s.input_epochs, learning_rate=rate)
    make = lambda: network(s.pictures, s.depth, s.width, norm=norm)  # noqa: E731
    made = train.fit(make, dataset, config, seed=seed, on_divergence="record", progress=False)
    last, chance = made.rows[-1], 1 - 1 / s.facts["classes"]
    row = {"diverged": last["diverged"], "val_error": chance, "accuracy": 1 - chance}
    row |= {"train_error": last.get("train_error", chance)}
    if not last["diverged"]:
        model = train.settle(made.model, train.Batches(dataset, dataset.train, config, s.device))
        error = lambda split: train.evaluate(model, dataset, split, config)["error"]  # noqa: E731
        row |= {"val_error": error(dataset.val), "accuracy": 1 - error(dataset.test)}
        row["val_error_running"] = last["val_error"]
    return [row]


def at_best_rates(rows) -> list[dict]:
    """The rows of each form of input and norm at the rate whose mean validation error is lowest."""
    best = {}
    for form, norm in {(r["form"], r["norm"]) for r in rows}:
        own = [r for r in rows if (r["form"], r["norm"]) == (form, norm)]
        best[form, norm] = stats.best_setting(own, "val_error", "rate")
    return [r for r in rows if r["rate"] == best[r["form"], r["norm"]]]


def estimates(rows, s):
    chosen = at_best_rates(rows)

    def gain(norm, a, b):
        own = [r for r in chosen if r["norm"] == norm]
        return stats.paired_rows(own, "accuracy", "form", a, b, unit="accuracy")

    return {
        "gain_without_batch_norm": gain("none", "standardised", "normalised"),
        "gain_with_batch_norm": gain("batch", "standardised", "normalised"),
        "raw_with_batch_norm": gain("batch", "normalised", "raw"),
        "raw_without_batch_norm": gain("none", "normalised", "raw"),
    }


WORDS = "gain", "lose", "make no clear difference"


def finding(rows, s, e):
    normed = [r for r in at_best_rates(rows) if r["norm"] == "batch" and not r["diverged"]]
    words = []
    for name in ("val_error_running", "val_error"):
        means = {form: [r[name] for r in normed if r["form"] == form] for form in FORMS}
        words.append(", ".join(f"{fmean(values):.3f} ({form})" for form, values in means.items() if values))
    return (
        f"Standardised instead of normalised inputs {page.change(e['gain_without_batch_norm'], *WORDS)} of accuracy without "
        f"batch normalisation, and {page.change(e['gain_with_batch_norm'], *WORDS)} with it, each at its own best rate. "
        f"Normalised instead of raw ones {page.change(e['raw_without_batch_norm'], *WORDS)} without it, and "
        f"{page.change(e['raw_with_batch_norm'], *WORDS)} with it; the last is the null. "
        f"Judged by running averages, the mean validation error with batch normalisation would be {words[0]}, instead of "
        f"{words[1]}."
    )


def draw(rows, s):
    with plots.figure(1, 2, height=2.8, sharex=True, sharey=True) as (_, axes):
        rates = sorted({r["rate"] for r in rows})
        for ax, (norm, word) in zip(axes, NORMS.items(), strict=True):
            own = [r for r in rows if r["norm"] == norm]
            plots.lines(ax, own, "rate", "val_error", by="form", marker=True)
            ax.set(xscale="log", title=f"{word} batch norm", xlabel="learning rate")
        axes[0].set_ylabel("validation error, %")
        plots.hundredths(axes[0].yaxis)
        axes[0].legend(fontsize=10)
    found, words = estimates(rows, s), ("better", "worse", "not clearly different")
    without, with_ = (page.trend(found[f"gain_{word}_batch_norm"], *words) for word in ("without", "with"))
    best = dict.fromkeys((r["form"], r["rate"]) for r in at_best_rates(rows))
    ends = list(dict.fromkeys(form for form, rate in best if rate in (rates[0], rates[-1])))
    diverged = {word: sum(r["diverged"] for r in rows if r["norm"] == norm) for norm, word in NORMS.items()}
    lost = page.listed([f"{count or 'no'} {word} batch norm" for word, count in diverged.items()])
    return (
        f"Each at its best rate, standardised inputs are, against normalised ones, {without} without batch norm, and {with_} "
        f"with it. Best at an end of the range: {page.listed(ends)}. Diverged runs, which count as guessing: {lost}. Thin lines "
        "are seeds."
    )


def runs(s):
    refuse(s)
    if not s.input_rates or min(s.input_rates) <= 0:
        raise ValueError(f"input_rates={s.input_rates} must be one or more rates above 0")
    return conditions(form=FORMS, norm=NORMS, rate=s.input_rates, seed=s.seeds)


NORMALISE = Experiment(
    "normalise",
    run=inputs,
    conditions=runs,
    estimates=estimates,
    settings=("depth", "width", "batch_size", "input_rates", "input_epochs", "number_format"),
    tiny={"depth": 8, "width": 2, "batch_size": 64, "input_rates": [0.01, 0.1], "input_epochs": 1, "train_size": 128},
    finding=finding,
    figure=draw,
    alt="Two panels, with and without batch normalisation: validation error against the learning rate for raw, normalised and "
    "standardised inputs, a thin line for each seed.",
)
