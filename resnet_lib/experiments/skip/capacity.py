"""Do skips add capacity? Parameters and FLOPs counted, and random labels learnt by heart at equal parameters."""

from dataclasses import replace

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resnet_lib import data, page, plots, resnets, stats, train, unet
from resnet_lib.experiments.skip.networks import COLOURS, KINDS, shape, training
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

CHOOSING_SEED = 1000  # not among the seeds that estimate the difference


def small_shape(s) -> unet.UNetConfig:
    """The U-Net whose output, averaged over the picture, is read as the class."""
    colours, height, width = s.facts["shape"]
    config = unet.UNetConfig(tuple(s.capacity_widths), in_channels=colours, out_channels=s.facts["classes"])
    unet.refuse_indivisible(height, width, 2**config.levels)
    return config


def memorised(s, kind: str, rate: float, seed: int) -> list[dict]:
    """Accuracy on pictures with random labels, after training on them."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(s.facts["classes"], (s.capacity_pictures,), generator=draw)
    learnt = data.Split(s.pictures.train.images[: s.capacity_pictures], labels)
    shuffled = replace(s.pictures, train=learnt, val=learnt)
    body = replace(small_shape(s), skips=None if kind == "with skips" else ())
    make = lambda: nn.Sequential(unet.UNet(body), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    options = {"epochs": s.capacity_epochs, "batch_size": s.batch_size, "optimizer": "adamw", "weight_decay": 0.0}
    config = training(s, learning_rate=rate, **options)
    fitted = train.fit(make, shuffled, config, seed=seed, on_divergence="record", progress=False)
    row = fitted.rows[-1]
    if row["diverged"]:
        return [{"accuracy": 0.0, "diverged": True}]
    return [{"accuracy": 1 - row["val_error"], "diverged": False}]


def choose(rows, s):
    """The rate at which each kind learns most by heart, on a seed of its own."""
    tried = [r for r in rows if r["seed"] == CHOOSING_SEED]
    own = {kind: [r for r in tried if r["kind"] == kind] for kind in KINDS}
    return {"chosen": {kind: stats.best_setting(of, "accuracy", "rate", highest=True) for kind, of in own.items()}}


def _choosing(s):
    small_shape(s)
    if not s.batch_size <= s.capacity_pictures <= s.facts["train"]:
        raise ValueError(
            f"capacity_pictures={s.capacity_pictures} must lie between the batch of {s.batch_size} and "
            f"the {s.facts['train']} training pictures"
        )
    return conditions(kind=KINDS, rate=s.capacity_rates, seed=[CHOOSING_SEED])


CAPACITY_RATES = Experiment(
    "capacity_rates",
    run=memorised,
    conditions=_choosing,
    estimates=lambda rows, s: {
        f"rate_{kind.replace(' ', '_')}": stats.exact(rate) for kind, rate in choose(rows, s)["chosen"].items()
    },
    settings=(
        "widths",
        "capacity_widths",
        "capacity_pictures",
        "capacity_epochs",
        "capacity_rates",
        "batch_size",
        "number_format",
    ),
    tiny={"widths": [4, 8], "capacity_widths": [4, 8], "capacity_pictures": 64, "capacity_epochs": 1}
    | {"capacity_rates": [1e-2]},
)


def cost_added(s, join: str, cut: str) -> list[float]:
    """Shares of parameters and of FLOPs that skips add to the U-Net from picture to picture."""
    costs = []
    for kept in (None, ()):
        with torch.device("meta"):
            made = unet.UNet(replace(shape(s), join=join, cut=cut, skips=kept))
            image = torch.empty(1, *s.facts["shape"])
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            made(image)
        costs.append((resnets.count_parameters(made), counter.get_total_flops()))
    return [with_skips / without - 1 for with_skips, without in zip(*costs, strict=True)]


def counted(rows):
    return [r for r in rows if r["seed"] != CHOOSING_SEED]


def estimates(rows, s):
    concatenated, summed = cost_added(s, "concatenate", "narrow"), cost_added(s, "add", "repeat")
    return {
        "parameters_added_by_concatenation": stats.exact(concatenated[0], "relative"),
        "parameters_added_by_addition": stats.exact(summed[0], "relative"),
        "flops_added_by_concatenation": stats.exact(concatenated[1], "relative"),
        "flops_added_by_addition": stats.exact(summed[1], "relative"),
        "memorisation_gain": stats.paired_rows(
            counted(rows), "accuracy", "kind", "with skips", "without", unit="accuracy"
        ),
    }


def finding(rows, s, e):
    return (
        "With its layers otherwise the same, a U-Net gains "
        f"{e['parameters_added_by_concatenation'].mean:.1%} of parameters and "
        f"{e['flops_added_by_concatenation'].mean:.1%} of FLOPs by concatenating skips, and "
        f"{e['parameters_added_by_addition'].mean:.1%} and {e['flops_added_by_addition'].mean:.1%} by adding them. The share of "
        f"{s.capacity_pictures:,} random labels that is learnt by heart, at equal parameters, skips "
        f"{page.change(e['memorisation_gain'], 'raise by', 'lower by', 'do not clearly change')}."
    )


def table(rows, s):
    shown = [
        {"kind": kind, "rate": s.chosen[kind]}
        | {"accuracy": stats.interval([r["accuracy"] for r in counted(rows) if r["kind"] == kind], unit="share")}
        for kind in KINDS
    ]
    return page.table(shown, {"kind": "skips", "rate": "its best rate", "accuracy": "random labels learnt by heart"})


def draw_figure(rows, s):
    tried = [r for r in rows if r["seed"] == CHOOSING_SEED]
    with plots.figure(height=3) as (_, ax):
        plots.lines(ax, tried, "rate", "accuracy", by="kind", colours=COLOURS, marker=True)
        for row in counted(rows):
            ax.plot(row["rate"], row["accuracy"], "o", color=COLOURS[row["kind"]], mfc="white", ms=8, alpha=0.8)
        ax.axhline(1 / s.facts["classes"], color="grey", linestyle=":")
        ax.set(xlabel="learning rate", xscale="log", ylabel="labels learnt\nby heart, %", ylim=(0, 1.02))
        plots.hundredths(ax.yaxis)
        rates = sorted({r["rate"] for r in tried})
        ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
        ax.set_xticks([], minor=True)
        ax.legend()
    gained = stats.paired_rows(counted(rows), "accuracy", "kind", "with skips", "without", unit="accuracy")
    return (
        f"At equal parameters skips {page.trend(gained, 'raise', 'lower', 'do not clearly change')} the share of "
        "random labels learnt by heart. Lines: the seed that chose the rate. Circles: the others, at that rate. Dotted: guessing."
    )


def _both(s):
    return _choosing(s) + [{"kind": k, "rate": rate, "seed": n} for k, rate in s.chosen.items() for n in s.seeds]


CAPACITY = replace(
    CAPACITY_RATES,
    name="capacity",
    conditions=_both,
    estimates=estimates,
    finding=finding,
    figure=draw_figure,
    alt="Share of random labels learnt by heart against the learning rates tried, with and without skips; a line for the "
    "seed that chose the rate, and a circle for each of the other seeds at the chosen rate; a dotted line marks guessing.",
    table=table,
    needs=CAPACITY_RATES,
    choose=choose,
)
