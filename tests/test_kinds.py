"""Pictures that are not square, or of more or fewer classes than the book's: chapters run on them as they are."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from resnet_lib import tune
from resnet_lib.experiments.augmentation import cost, learning, recipes
from resnet_lib.experiments.families import accuracy, memory
from resnet_lib.experiments.skip import gan, gradients, reconstruction
from resnet_lib.experiments.tensor_cores import networks
from resnet_lib.parameters import declared_in
from tests.conftest import ROOT
from tests.test_experiments import tiny
from tools import measure

# kind: pictures of each class, then width, height and mode
KINDS = {"oblong grey, two unequal classes": ((120, 60), 28, 20, "L"), "tall colour": ((60, 60), 16, 24, "RGB")}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def study(request, tmp_path, monkeypatch):
    """A function that opens a chapter at its tiny size on pictures of one kind."""
    monkeypatch.setenv("RESNET_LIB_CACHE", str(tmp_path / "cache"))
    counts, width, height, mode = request.param
    draw = np.random.default_rng(0)
    for name, count in zip("abcdef", counts, strict=False):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        pattern = draw.normal(128, 60, (height, width, 3))
        for i in range(count):
            pixels = (pattern + draw.normal(0, 30, pattern.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).convert(mode).save(tmp_path / "pictures" / name / f"{i}.png")

    def opened(chapter, **changes):
        known = declared_in(ROOT / "chapters" / f"{chapter}.ipynb")
        changes = {"dataset": str(tmp_path / "pictures"), "train_size": 0, "test_size": 0} | changes
        wanted = {name: value for name, value in changes.items() if name in known}
        return measure.open_study(chapter, known, tiny(chapter) | wanted)

    return opened


def test_the_augmentation_chapter_crops_and_cuts_pictures_that_are_not_square(study):
    chapter = study("augmentation", batch_size=32)
    experiments = {experiment.name: experiment for experiment in chapter.experiments}
    assert chapter.measure(experiments["one_draw"]) and chapter.measure(experiments["cost"])
    s = chapter._settings(experiments["geometric"], {})
    for recipe in ("crop, one draw", "cutout"):
        (row,) = learning.learn(s, "main", 1.0, recipe, 0)
        assert 0 <= row["accuracy"] <= 1
    images = chapter.pictures.train.images[:8]
    changed = recipes.change("crop, one draw", images, None)
    assert changed.shape == images.shape == cost.PerImage(chapter.pictures.train).transform(images).shape
    for kind in (*learning.SITUATIONS, *learning.UNSEEN):
        assert learning.corrupt(kind, images, 2.0, recipes.seeded_generator()).shape == images.shape


def test_the_tuning_chapter_and_the_search_take_pictures_that_are_not_square(study):
    small = {"batch_size": 16, "batch_sizes": [32], "lever_pictures": 16, "search_pictures": 32}
    chapter = study("tuning", **small)
    experiments = {experiment.name: experiment for experiment in chapter.experiments}
    for name in ("structure_rates", "range_test"):
        rows = chapter.measure(experiments[name])
        assert rows and all(0 <= row.get("error", 0) <= 1 for row in rows)
    search = tune.Search(epochs=1, batch_size=16, width=4, flips=True, device="cpu")
    (row,) = tune.fitted(chapter.pictures, search, search.config(), 0).rows
    assert 0 <= row["val_error"] <= 1


def test_the_families_train_at_equal_cost_on_pictures_that_are_not_square(study):
    chapter = study("families", batch_size=32)
    s = chapter._settings(accuracy.RATES, {})
    for arm in ("grouped", "dense", "added"):
        (row,) = accuracy.tried(s, "flops", arm, 0.1, 0)
        assert 0 < row["loss"] < 10
    for row in memory.memory(chapter._settings(memory.MEMORY, {}), "dense", 2):
        assert row["predicted"] == row["measured"]


def test_square_pictures_are_cropped_and_cut_as_ever():
    images = torch.rand(6, 3, 24, 24, generator=recipes.seeded_generator())
    torch.manual_seed(0)
    expected = v2.RandomCrop(24, 3)(images)  # one number for both sides
    torch.manual_seed(0)
    assert torch.equal(recipes.change("crop, one draw", images, None), expected)
    cut = recipes.change("cutout", images, recipes.seeded_generator(1))
    assert torch.equal(cut, recipes.augment.cutout(images, 12, generator=recipes.seeded_generator(1)))


def test_what_is_made_or_timed_in_place_of_oblong_pictures_is_oblong_too():
    s = SimpleNamespace(facts={"shape": [3, 16, 24], "classes": 7}, widths=[4, 8, 16])
    made = gan.SkipGenerator(True, 4, 3, 16, 24)(torch.randn(2, gan.NOISE))
    assert made.shape == (2, 3, 16, 24)
    assert networks.noise(s, 5, 16, 24)[0].shape == (5, 3, 16, 24)
    assert list(reconstruction.arms(s))[1:3] == ["only 24×16", "only 12×8"]


@pytest.mark.parametrize("side", [8, 16])
def test_square_pictures_are_made_and_timed_as_ever(side):
    s = SimpleNamespace(facts={"shape": [3, side, side], "classes": 7})
    expected = torch.randn(5, 3, side, side, generator=recipes.seeded_generator())
    assert torch.equal(networks.noise(s, 5, side)[0], expected)
    assert torch.equal(networks.noise(s, 5, side, side)[0], expected)
    found = []
    for sides in ((side,), (side, side)):
        torch.manual_seed(0)
        found.append(gan.SkipGenerator(True, 4, 3, *sides).eval()(torch.ones(1, gan.NOISE)))
    assert torch.equal(*found)


def test_the_share_of_gradient_that_borders_take_goes_by_both_sides():
    square, tall, wide = (gradients.predicted_decades([8], side, 2, False) for side in (16, (16, 8), (8, 16)))
    assert tall == pytest.approx(wide) and square == gradients.predicted_decades([8], (16, 16), 2, False)
    assert 2 * tall[0] == pytest.approx(square[0] + gradients.predicted_decades([8], 8, 2, False)[0])
