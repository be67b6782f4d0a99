"""The newer operations where the pictures are learnt by heart: every recipe trained until crop and flip are fitted."""

from resnet_lib import page, plots, stats
from resnet_lib.experiments.augmentation.gains import ALT, WORDS, caption, draw_gains, name_of
from resnet_lib.experiments.augmentation.learning import BASE, MODERN, TINY, gain, photo_world, world_of
from resnet_lib.experiments.augmentation.recipes import accuracy, fitted, training
from resnet_lib.experiments.depths import refuse
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

# Alternating flips are left out: what is published of them is a tenth of a point.
NEWER = {name: recipe for name, recipe in MODERN.items() if name != "alternating_flip"}
ALONE = ("colour", "noise")
ONE = "gains", "loses", "makes no clear difference"  # said of one operation
LOOKS = ((1.0, plots.BLUE, 0.0),)  # share, colour and place on its line
SETTINGS = (
    "depth",
    "width",
    "batch_size",
    "learning_rate",
    "fitted_epochs",
    "number_format",
    "val_fraction",
    "test_size",
)


def learn_long(s, world: str, recipe: str, seed: int) -> list[dict]:
    """A network trained by a recipe for as many epochs as it takes to fit the pictures."""
    dataset, config = world_of(s, world), training(s, epochs=s.fitted_epochs)
    model, last = fitted(dataset, recipe, seed, s.depth, s.width, config)
    run = {"what": "run", "share": 1.0, "accuracy": accuracy(model, dataset, dataset.test, config)}
    return [run | {name: last[name] for name in ("train_loss", "train_error", "val_error", "time_s")}]


def runs(s) -> list[dict]:
    refuse(s)
    if s.fitted_epochs < 1:
        raise ValueError(f"fitted_epochs={s.fitted_epochs} must be at least 1")
    return conditions(world=[photo_world(s)], recipe=["none", *ALONE, BASE, *NEWER.values()], seed=s.seeds)


def estimates(rows, s):
    photos = photo_world(s)
    base = [row["train_error"] for row in rows if row["recipe"] == BASE]
    found = {"base_train_error": stats.interval(base, unit="share"), "standard_gain": gain(rows, photos, BASE)}
    found |= {f"{name}_gain": gain(rows, photos, name) for name in ALONE}
    return found | {f"{name}_gain": gain(rows, photos, recipe, BASE) for name, recipe in NEWER.items()}


def finding(rows, s, e):
    newer = [f"{name.replace('_', ' ')} {page.change(e[f'{name}_gain'], *ONE)}" for name in NEWER]
    return (
        f"After {s.fitted_epochs} epochs of {name_of(s, photo_world(s))}, {BASE} leaves a training error of "
        f"{e['base_train_error']} and {page.change(e['standard_gain'], *ONE)} of accuracy over none. "
        f"On top of it {', '.join(newer)}. Alone, changes of colour {page.change(e['colour_gain'], *WORDS)} and noise "
        f"{page.change(e['noise_gain'], *ONE)}."
    )


def draw(rows, s):
    photos = photo_world(s)
    pairs = [(BASE, BASE, "none"), *((name, name, "none") for name in ALONE)]
    over = [(name.replace("_", " "), recipe, BASE) for name, recipe in NEWER.items()]
    with plots.figure(2, 1, height=3.6, height_ratios=(len(pairs), len(over)), sharex=True) as (_, axes):
        clear = [draw_gains(ax, rows, photos, which, LOOKS) for ax, which in zip(axes, (pairs, over), strict=True)]
        axes[0].set(title="against none", xlabel="")
        axes[1].set_title(f"on top of {BASE}")
    return caption(clear, {1.0: f"after {s.fitted_epochs} epochs"})


FITTED = Experiment(
    "fitted",
    run=learn_long,
    conditions=runs,
    estimates=estimates,
    settings=SETTINGS,
    tiny={name: value for name, value in TINY.items() if name in (*SETTINGS, "train_size")} | {"fitted_epochs": 1},
    finding=finding,
    figure=draw,
    alt=f"{ALT}interval: crop and flip, colour and noise against none; cutout, mixup, CutMix and TrivialAugment over crop and "
    "flip.",
    kept=("run",),
)
