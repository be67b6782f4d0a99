"""The one sweep that five records share: a network for each data set, share of it, recipe and seed, judged on all."""

import io
import itertools
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import torch

from resnet_lib import augment, data, stats
from resnet_lib.experiments.augmentation.recipes import (
    NETWORK,
    accuracy,
    fitted,
    reach_of,
    refuse_standard,
    seeded_generator,
    stretched,
    training,
)
from resnet_lib.experiments.depths import refuse
from resnet_lib.sweep import conditions

FIVE = ("crop", "rotation", "scaling", "colour", "noise")  # a random crop is a shift
SITUATIONS = ("shift", "rotation", "scale", "colour", "noise")  # by the same five
UNSEEN = ("blur", "shear", "hole")
ALL_FIVE = "+".join(FIVE)
WITHOUT = {left_out: "+".join(name for name in FIVE if name != left_out) for left_out in FIVE}
ROBUST = ("none", *FIVE, ALL_FIVE, *WITHOUT.values())
GEOMETRY = ("crop", "flip", "rotation", "scaling")
TOGETHER, BASE = "+".join(GEOMETRY), "crop+flip"
MODERN = {
    "cutout": f"{BASE}+cutout",
    "mixup": f"{BASE}+mixup",
    "cutmix": f"{BASE}+cutmix",
    "trivial_augment": f"{BASE}+trivial",
    "alternating_flip": "alternating+crop",
}
ON_PHOTOGRAPHS = ("none", "flip", "colour", "noise", TOGETHER)
SMALL = 0.1  # of the training set, where recipes are compared on little data
PHOTOGRAPHS = 1200  # tiles to train on at most
DIGITS = "handwritten digits"  # how data.load describes scikit-learn's

SETTINGS = (*NETWORK, "standard", "shares", "severities", "situations_size", "val_fraction", "test_size")
TINY = {
    "depth": 8,
    "width": 2,
    "batch_size": 64,
    "epochs": 1,
    "train_size": 128,
    "test_size": 40,
    "situations_size": 20,
    "severities": [2.0],
    "shares": [0.08, 0.1, 0.5],
}


def photo_world(s) -> str:
    """Where rules that speak of photographs are tried: on the data at hand if it has colours."""
    return "main" if s.facts["shape"][0] == 3 else "photographs"


def digit_world(s) -> str:
    return "main" if s.facts["note"].startswith(DIGITS) else "digits"


def world_of(s, name: str) -> data.Dataset:
    """The data at hand, scikit-learn's photographs in tiles of the same size, or its digits."""
    if name == "main":
        return s.pictures
    made = (
        photographs(min(s.facts["shape"][1:]), min(s.facts["train"], PHOTOGRAPHS))
        if name == "photographs"
        else digits(s.val_fraction)
    )
    return data.with_test_size(made, min(s.test_size, len(made.test)))


@cache
def digits(val_fraction: float) -> data.Dataset:
    return data.load("digits", val_fraction=val_fraction)


@cache
def photographs(side: int, count: int) -> data.Dataset:
    with tempfile.TemporaryDirectory() as folder:
        photo_tiles(Path(folder, "photographs.zip"))
        return data.load(Path(folder, "photographs.zip"), image_size=side, train_size=count, progress=False)


def photo_tiles(file: Path, tile: int = 16) -> None:
    """Write scikit-learn's two photographs as an archive of tiles in class folders.

    The class of a tile is the photograph and the third of its height that it is from.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_images

    with zipfile.ZipFile(file, "w") as archive:
        for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
            height, breadth, _ = photo.shape
            places = itertools.product(range(0, height - tile + 1, tile), range(0, breadth - tile + 1, tile))
            for top, left in places:
                content, third = io.BytesIO(), ("top", "middle", "bottom")[3 * top // height]
                Image.fromarray(photo[top : top + tile, left : left + tile]).save(content, "PNG")
                place = zipfile.ZipInfo(f"{name}-{third}/{top}-{left}.png")
                archive.writestr(place, content.getvalue())


def corrupt(kind: str, images: torch.Tensor, severity: float, generator) -> torch.Tensor:
    """Images, uint8, changed by one amount and a drawn sign; at severity 1 the most seen in training."""
    sign = lambda: 2.0 * torch.randint(2, (len(images),), generator=generator, device=images.device) - 1  # noqa: E731
    match kind:
        case "shift":
            reach = severity * reach_of(images)
            return augment.translate(images, reach * sign(), reach * sign())
        case "rotation":
            return augment.rotate(images, 15 * severity * sign())
        case "scale":
            return augment.scale(images, 1 + 0.2 * severity * sign())
        case "colour":
            factors = [1 + 0.4 * severity * sign() for _ in range(3)]
            return augment.jitter(images, *factors, 0.1 * severity * sign())
        case "noise":
            return augment.noise(images, 0.1 * severity, generator)
        case "blur":
            return augment.blur(images, severity * min(images.shape[-2:]) / 20)
        case "shear":
            return augment.shear(images, 15 * severity * sign(), 0.0)
        case "hole":
            return augment.cutout(images, max(1, round(severity * min(images.shape[-2:]) / 4)), 0.0, generator)
    raise ValueError(f"kind={kind!r} is unknown")


def learn(s, world: str, share: float, recipe: str, seed: int) -> list[dict]:
    """A network trained by a recipe on a share of a data set: its accuracy, and for robustness under each change."""
    dataset, config = world_of(s, world), training(s)
    count = round(share * len(dataset.train))
    part = stretched(dataset, dataset.train.images[:count], dataset.train.labels[:count])
    model, last = fitted(part, recipe, seed, s.depth, s.width, config)
    run = {"what": "run", "pictures": count, "accuracy": accuracy(model, dataset, dataset.test, config)}
    rows = [run | {name: last[name] for name in ("train_loss", "train_error", "val_error", "time_s")}]
    if world != "main" or share < 1 or recipe not in ROBUST:
        return rows
    images, labels = (part[: s.situations_size or None] for part in (dataset.test.images, dataset.test.labels))
    for kind, level in itertools.product((*SITUATIONS, *UNSEEN), s.severities):
        generator = seeded_generator(0, s.device)  # the same changed pictures for every network
        changed = data.Split(corrupt(kind, images.to(s.device), level, generator), labels)
        found = accuracy(model, dataset, changed, config)
        rows.append({"what": "situation", "kind": kind, "severity": level, "accuracy": found})
    return rows


def each(s, world: str, shares, recipes) -> list[dict]:
    return conditions(world=[world], share=shares, recipe=recipes, seed=s.seeds)


def robust_runs(s) -> list[dict]:
    refuse(s)
    if not s.severities or not 0 < min(s.severities) <= max(s.severities) <= 2:
        raise ValueError(f"severities={s.severities} must be one or more, each above 0 and at most 2")
    if s.situations_size < 0:
        raise ValueError(f"situations_size={s.situations_size} must be at least 1, or 0 for all of them")
    return each(s, "main", [1.0], ROBUST)


def curve_runs(s) -> list[dict]:
    refuse_standard(s)
    if not {SMALL, 0.5} <= set(s.shares) or not 0 < min(s.shares) < SMALL or max(s.shares) >= 1:
        raise ValueError(
            f"shares={s.shares} must hold {SMALL} and 0.5, by the rules in claims.yml, one below {SMALL}, none from 1 on"
        )
    return each(s, "main", [1.0, *sorted(s.shares)], ["none", s.standard])


def photo_runs(s) -> list[dict]:
    refuse(s)
    return each(s, photo_world(s), [1.0, SMALL], [*ON_PHOTOGRAPHS, BASE, *MODERN.values()])


def all_runs(s) -> list[dict]:
    """Every run of the sweep, each once: on colour pictures the worlds are one."""
    wanted = [
        *robust_runs(s),
        *each(s, "main", [1.0], [*GEOMETRY, "crop, one draw"]),
        *curve_runs(s),
        *each(s, "main", [SMALL], [*GEOMETRY, ALL_FIVE, *WITHOUT.values()]),
        *photo_runs(s),
        *each(s, digit_world(s), [1.0], ["none", "flip"]),
    ]
    return list({tuple(run.values()): run for run in wanted}.values())


def of_runs(rows, world: str, share: float = 1.0) -> list[dict]:
    return [r for r in rows if (r["what"], r["world"], r["share"]) == ("run", world, share)]


def gain(rows, world: str, recipe: str, against: str = "none", share: float = 1.0) -> stats.Estimate:
    """Test accuracy with a recipe minus that with another, on unchanged pictures, paired by seed."""
    return stats.paired_rows(of_runs(rows, world, share), "accuracy", "recipe", recipe, against, unit="accuracy")


def label(recipe: str) -> str:
    """A recipe's name on the page."""
    if recipe == ALL_FIVE:
        return "all five"
    left_out = [name for name, rest in WITHOUT.items() if rest == recipe]
    return f"all but {left_out[0]}" if left_out else recipe
