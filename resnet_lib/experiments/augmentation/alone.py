"""Each operation alone and together, on all and on few pictures: what it does for test pictures as they are."""

from dataclasses import replace
from statistics import fmean

from resnet_lib import page, plots
from resnet_lib.experiments.augmentation.gains import ALT, SHARES, WORDS, caption, draw_gains, name_of
from resnet_lib.experiments.augmentation.learning import (
    ALL_FIVE,
    BASE,
    GEOMETRY,
    MODERN,
    SETTINGS,
    SMALL,
    TINY,
    TOGETHER,
    WITHOUT,
    all_runs,
    digit_world,
    gain,
    learn,
    of_runs,
    photo_runs,
    photo_world,
)
from resnet_lib.study import Experiment

ENDINGS = {1.0: "", SMALL: "_at_a_tenth"}


def geometric_estimates(rows, s):
    photos = photo_world(s)
    found = {f"{name}_gain": gain(rows, "main", name) for name in ("crop", "rotation", "scaling")}
    found["flip_gain"] = gain(rows, photos, "flip")
    found["digits_flip_gain"] = gain(rows, digit_world(s), "flip")
    found["together_gain"] = gain(rows, photos, TOGETHER)
    found |= {f"{name}_gain_at_a_tenth": gain(rows, "main", name, share=SMALL) for name in GEOMETRY}
    found["together_gain_at_a_tenth"] = gain(rows, photos, TOGETHER, share=SMALL)
    return found | {"one_draw_loss": gain(rows, "main", "crop", "crop, one draw")}


def photometric_estimates(rows, s):
    return {
        f"{name}_gain{ending}": gain(rows, photo_world(s), name, share=share)
        for share, ending in ENDINGS.items()
        for name in ("colour", "noise")
    }


def modern_estimates(rows, s):
    return {
        f"{name}_gain{ending}": gain(rows, photo_world(s), recipe, BASE, share)
        for share, ending in ENDINGS.items()
        for name, recipe in MODERN.items()
    }


def train_error(rows, world: str, recipe: str, share: float) -> float:
    return fmean(r["train_error"] for r in of_runs(rows, world, share) if r["recipe"] == recipe)


def left_out(rows, share: float) -> str:
    """Which of the five variations training is best without, on unchanged pictures, and what that gains over all five."""
    gains = {name: gain(rows, "main", rest, ALL_FIVE, share) for name, rest in WITHOUT.items()}
    best = max(gains, key=lambda name: gains[name].mean)
    return f"{best}, {gains[best]}"


def geometric_finding(rows, s, e):
    works = page.trend(e["digits_flip_gain"], "fails, flips help there", "works, flips hurt", "shows no clear effect")
    return (
        f"On {name_of(s, photo_world(s))}, crops, flips, rotations and scaling together "
        f"{page.change(e['together_gain'], *WORDS)} of accuracy, and on a tenth of the pictures "
        f"{page.change(e['together_gain_at_a_tenth'], *WORDS)}; flips alone, on all, {page.change(e['flip_gain'], *WORDS)}. "
        f"On handwritten digits flips {page.change(e['digits_flip_gain'], *WORDS)}: the control {works}. "
        f"A draw for each picture instead of one for the batch is worth {e['one_draw_loss']}. "
        f"Of the five variations of experiment 1, the one best left out is {left_out(rows, 1.0)} over all five, and "
        f"on a tenth {left_out(rows, SMALL)}."
    )


def photometric_finding(rows, s, e):
    return (
        f"Of the accuracy on unchanged pictures, on {name_of(s, photo_world(s))}, changes of colour "
        f"{page.change(e['colour_gain'], *WORDS)}, and on a tenth of the pictures they "
        f"{page.change(e['colour_gain_at_a_tenth'], *WORDS)}; changes by noise {page.change(e['noise_gain'], *WORDS)}, and on a "
        f"tenth they {page.change(e['noise_gain_at_a_tenth'], *WORDS)}."
    )


def modern_finding(rows, s, e):
    photos = photo_world(s)
    best = {share: max(MODERN, key=lambda name: e[f"{name}_gain{end}"].mean) for share, end in ENDINGS.items()}
    words = [
        f"{best[share].replace('_', ' ')} {where}, {e[f'{best[share]}_gain{ENDINGS[share]}']}"
        for share, where in SHARES.items()
    ]
    errors = [
        f"{train_error(rows, photos, 'none', share):.3f} without augmentation and "
        f"{train_error(rows, photos, BASE, share):.3f} with {BASE} {where}"
        for share, where in SHARES.items()
    ]
    return (
        f"Of the five, the best over {BASE}, by the mean change, is {', and '.join(words)}. "
        f"At the end of training the training error is {', and '.join(errors)}."
    )


def draw_geometric(rows, s):
    photos = [("flip", "flip", "none"), ("all four", TOGETHER, "none"), (BASE, BASE, "none")]
    with plots.figure(2, 1, height=4.2, height_ratios=(4, 3), sharex=True) as (figure, axes):
        clear = [draw_gains(axes[0], rows, "main", [(name, name, "none") for name in GEOMETRY])]
        clear.append(draw_gains(axes[1], rows, photo_world(s), photos))
        axes[0].set(title="alone, against none", xlabel="")
        axes[1].set_title("on photographs, against none")
        figure.legend(*axes[0].get_legend_handles_labels(), ncols=2, loc="outside upper center")
    return caption(clear)


def draw_modern(rows, s):
    with plots.figure(height=3.2) as (figure, ax):
        pairs = [(name.replace("_", " "), recipe, BASE) for name, recipe in MODERN.items()]
        clear = draw_gains(ax, rows, photo_world(s), pairs)
        figure.legend(*ax.get_legend_handles_labels(), ncols=2, loc="outside upper center")
    return caption([clear])


GEOMETRIC = Experiment(
    "geometric",
    run=learn,
    conditions=all_runs,
    estimates=geometric_estimates,
    settings=SETTINGS,
    tiny=TINY,
    finding=geometric_finding,
    figure=draw_geometric,
    alt=f"{ALT}interval: crops, flips, rotations and scaling alone; then flips and two combinations on photographs.",
    kept=("run",),
)

PHOTOMETRIC = replace(
    GEOMETRIC,
    name="photometric",
    conditions=photo_runs,
    estimates=photometric_estimates,
    finding=photometric_finding,
    figure=None,
)

MODERN_OPERATIONS = replace(
    GEOMETRIC,
    name="modern",
    conditions=photo_runs,
    estimates=modern_estimates,
    finding=modern_finding,
    figure=draw_modern,
    alt=f"{ALT}interval: cutout, mixup, CutMix, TrivialAugment and alternating flips over crop and flip.",
)
