"""What decides the augmentation chapter's verdicts, on rows made by hand and on a few pictures."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnet_lib import data
from resnet_lib.experiments.augmentation import (
    alone,
    amount,
    clean,
    cost,
    inputs,
    learning,
    longer,
    one_draw,
    recipes,
    robustness,
)
from tests.experiments.conftest import settings

COLOUR = {"note": "made up", "shape": [3, 16, 16]}
GREY_DIGITS = {"note": "handwritten digits, 8x8, from scikit-learn", "shape": [1, 8, 8]}
SEEDS = (0, 1, 2)


def pictures(count=16, side=16, channels=3):
    return torch.randint(
        20, 236, (count, channels, side, side), generator=recipes.seeded_generator(), dtype=torch.uint8
    )


def dataset(count=30, side=8, classes=3):
    images, labels = pictures(count, side), torch.arange(count) % classes
    split = data.Split(images, labels)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.1, 0.3])
    return data.Dataset("made up", split, split, split, ("a", "b", "c")[:classes], "f", mean, std, "made up")


# --- what is drawn


@pytest.mark.parametrize(
    "name", ["crop", "flip", "rotation", "scaling", "colour", "noise", "cutout", "trivial", "alternating"]
)
def test_every_change_of_a_recipe_changes_pictures_and_keeps_their_shape(name):
    images = pictures() / 255
    made = recipes.change(name, images, recipes.seeded_generator(1))
    assert made.shape == images.shape and made.dtype == images.dtype
    assert (made - images).abs().flatten(1).amax(1).gt(0.01).float().mean() > 0.3, "at least a third of the pictures"


def test_crops_draw_for_each_picture_and_their_wrong_twin_once_for_all():
    copies = (pictures(1) / 255).expand(64, -1, -1, -1)
    kinds = lambda name: len(recipes.change(name, copies, recipes.seeded_generator()).flatten(1).unique(dim=0))  # noqa: E731
    assert kinds("crop") > 10 and kinds("crop, one draw") == 1


def test_an_unknown_change_is_refused():
    with pytest.raises(ValueError, match="'zoom' is unknown"):
        recipes.change("zoom", pictures() / 255, None)


def test_an_alternating_flip_shows_both_sides_in_two_epochs_and_repeats_after_them():
    images = pictures(400) / 255
    first, second, third = (recipes.change("alternating", images, None, 5, epoch) for epoch in range(3))
    assert torch.equal(second, first.flip(3)) and torch.equal(third, first)
    coins = recipes.first_side(images, 5).float()
    assert abs(coins.mean() - 0.5) < 4 / math.sqrt(4 * len(coins)), "the coin is fair"
    assert not torch.equal(coins, recipes.first_side(images, 6).float()), "and another one for another seed"


class Remembers(nn.Module):
    """Says no class, keeps the pictures it was shown."""

    def forward(self, images):
        self.seen = images
        return torch.zeros(len(images), 3) + images.mean() * 0


def test_the_task_changes_pictures_while_training_and_leaves_them_alone_when_judged():
    images, labels, model = pictures() / 255, torch.arange(16) % 3, Remembers()
    task = recipes.Augmented("crop+noise", 3, 1, 0)
    task(model.eval(), images, labels, recipes.seeded_generator())
    assert torch.equal(model.seen, images)
    task(model.train(), images, labels, recipes.seeded_generator())
    generator = recipes.seeded_generator()
    by_hand = recipes.change("noise", recipes.change("crop", images, generator), generator)
    assert torch.equal(model.seen, by_hand)
    recipes.Augmented("none", 3, 1, 0)(model, images, labels, recipes.seeded_generator())
    assert torch.equal(model.seen, images)


def test_mixed_pictures_are_trained_on_mixed_labels():
    images, labels = pictures() / 255, torch.arange(16) % 3
    mixed, shares = recipes.Augmented("mixup", 3, 1, 0).changed(images, labels, recipes.seeded_generator())
    assert shares.shape == (16, 3) and torch.allclose(shares.sum(1), torch.ones(16))
    assert not torch.equal(mixed, images) and shares.amax(1).min() < 0.99


def test_a_task_counts_epochs_so_that_sides_alternate():
    images, labels, model = pictures() / 255, torch.arange(16) % 3, Remembers().train()
    task = recipes.Augmented("alternating", 3, epoch_steps=2, seed=0)
    shown = []
    for _ in range(4):
        task(model, images, labels, None)
        shown.append(model.seen)
    assert torch.equal(shown[0], shown[1]) and torch.equal(shown[2], shown[0].flip(3))


def test_the_network_standardises_what_comes_in_the_unit_range():
    made = dataset()
    model = recipes.Standardised(made, 8, 2).eval()
    images = made.train.images[:4] / 255
    by_hand = (images - torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)) / torch.tensor([0.2, 0.1, 0.3]).view(1, 3, 1, 1)
    assert torch.allclose(model(images), model.net(by_hand), atol=1e-6)
    unit = recipes.in_unit_range(made)
    assert unit.mean.tolist() == [0, 0, 0] and unit.std.tolist() == [1, 1, 1]


def test_a_small_training_set_is_repeated_to_the_length_of_the_whole():
    made = dataset(30)
    part = recipes.stretched(made, made.train.images[:4], made.train.labels[:4])
    assert len(part.train) == 30 and torch.equal(part.train.images[4], part.train.images[0])
    assert torch.equal(part.train.labels[:4], made.train.labels[:4]) and part.test is made.test


# --- what is tested under


@pytest.mark.parametrize("kind", [*learning.SITUATIONS, *learning.UNSEEN])
def test_every_test_picture_is_changed_and_more_at_a_higher_severity(kind):
    smooth = F.interpolate(
        torch.rand(8, 3, 4, 4, generator=recipes.seeded_generator(3)) * 180 + 30, 16, mode="bilinear"
    )
    images = smooth.to(torch.uint8)
    weak, strong = (learning.corrupt(kind, images, level, recipes.seeded_generator(0)) for level in (0.5, 2.0))
    distance = lambda made: (made.float() - images.float()).abs().mean((1, 2, 3))  # noqa: E731
    assert weak.dtype == torch.uint8 and weak.shape == images.shape
    assert distance(strong).mean() > distance(weak).mean() > 0.2
    if kind != "hole":  # a hole may lie mostly beyond the border
        assert (distance(strong) > 1).all()


def test_a_hole_hides_a_square_and_nothing_else():
    images = pictures(8)
    made = learning.corrupt("hole", images, 1.0, recipes.seeded_generator())
    hidden = (made != images).any(1)
    assert (made[hidden[:, None].expand_as(made)] == 0).all() and hidden.flatten(1).sum(1).max() == 16


def test_shifts_at_severity_1_are_those_of_the_most_shifted_crop_and_of_either_sign():
    images = pictures(64)
    made = learning.corrupt("shift", images, 1.0, recipes.seeded_generator())
    found = set()
    for before, after in zip(images, made, strict=True):
        for y in (-2, 2):  # an eighth of 16 pixels
            for x in (-2, 2):
                moved = before.roll((y, x), (1, 2))
                if torch.equal(moved[:, 2:-2, 2:-2], after[:, 2:-2, 2:-2]):
                    found.add((y, x))
    assert len(found) == 4


def test_the_same_changed_pictures_for_the_same_draws_and_an_unknown_kind_is_refused():
    images = pictures(4)
    one, two = (learning.corrupt("noise", images, 1.0, recipes.seeded_generator()) for _ in range(2))
    assert torch.equal(one, two)
    with pytest.raises(ValueError, match="'fog' is unknown"):
        learning.corrupt("fog", images, 1.0, recipes.seeded_generator())


def test_each_four_of_five_variations_leave_exactly_one_out():
    assert set(learning.WITHOUT) == set(learning.FIVE)
    for left_out, rest in learning.WITHOUT.items():
        assert set(rest.split("+")) == set(learning.FIVE) - {left_out}


# --- the shared sweep


def sweep_settings(facts, **changes):
    values = {"depth": 8, "standard": "rotation", "shares": [0.05, 0.1, 0.5], "severities": [1.0], "situations_size": 5}
    return settings(facts=facts, **(values | changes))


def test_photographs_are_the_data_itself_where_it_has_colours_and_digits_where_it_is_digits():
    colour, digits = settings(facts=COLOUR), settings(facts=GREY_DIGITS)
    assert (learning.photo_world(colour), learning.digit_world(colour)) == ("main", "digits")
    assert (learning.photo_world(digits), learning.digit_world(digits)) == ("photographs", "main")


@pytest.mark.parametrize("facts", [COLOUR, GREY_DIGITS])
def test_every_run_of_the_sweep_is_made_once_and_holds_those_of_every_question(facts):
    s = sweep_settings(facts)
    wanted = [tuple(run.items()) for run in learning.all_runs(s)]
    assert len(wanted) == len(set(wanted))
    for part in (learning.robust_runs(s), learning.curve_runs(s), learning.photo_runs(s)):
        assert {tuple(run.items()) for run in part} <= set(wanted)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shares": [0.1, 0.5]}, "one below 0.1"),
        ({"shares": [0.05, 0.1]}, "must hold 0.1 and 0.5"),
        ({"shares": [0.05, 0.1, 0.5, 1.0]}, "none from 1 on"),
        ({"standard": "zoom"}, "must join some of crop"),
        ({"standard": ""}, "must join some of crop"),
        ({"severities": []}, "must be one or more"),
        ({"severities": [2.5]}, "at most 2"),
        ({"situations_size": -1}, "at least 1, or 0"),
        ({"depth": 9}, "9"),
    ],
)
def test_settings_that_allow_no_sweep_are_refused_with_the_value(changes, words):
    with pytest.raises(ValueError, match=words):
        learning.all_runs(sweep_settings(COLOUR, **changes))


def test_pictures_too_small_to_change_are_refused():
    with pytest.raises(ValueError, match="6 pixels"):
        learning.robust_runs(sweep_settings({"shape": [3, 6, 6], "note": ""}))


def scored(recipe, accuracies, world="main", share=1.0, **more):
    """A run a seed with these accuracies."""
    common = {"what": "run", "world": world, "share": share, "recipe": recipe} | more
    return [common | {"seed": n, "accuracy": a} for n, a in enumerate(accuracies)]


def test_a_gain_is_paired_by_seed_within_one_data_set_and_share():
    rows = scored("none", (0.1, 0.2, 0.3)) + list(reversed(scored("flip", (0.2, 0.3, 0.4))))
    rows += scored("none", (0.9,) * 3, share=0.1) + scored("flip", (0.1,) * 3, share=0.1)
    rows += scored("none", (0.8,) * 3, world="digits") + scored("flip", (0.0,) * 3, world="digits")
    rows += [{"what": "situation", "world": "main", "share": 1.0, "recipe": "flip", "seed": 0, "accuracy": 0.7}]
    found = learning.gain(rows, "main", "flip")
    assert found.mean == pytest.approx(0.1) and found.low == pytest.approx(0.1) and found.unit == "accuracy"
    assert learning.gain(rows, "main", "flip", share=0.1).mean == pytest.approx(-0.8)
    assert learning.gain(rows, "digits", "flip").mean == pytest.approx(-0.8)


def alone_rows(photos, digits):
    """Every comparison with an accuracy of its own: a wrong recipe, data set or share gives another number."""
    values, rows = {}, []
    worlds = dict.fromkeys(["main", photos, digits])
    recipes_ = dict.fromkeys(
        ["none", *learning.GEOMETRY, "colour", "noise", learning.TOGETHER, learning.BASE, *learning.MODERN.values()]
    )
    for world in worlds:
        for share in (1.0, learning.SMALL):
            for recipe in [*recipes_, "crop, one draw"]:
                values[world, share, recipe] = 0.1 + len(values) ** 2 * 1e-4
                rows += scored(recipe, [values[world, share, recipe]] * 3, world, share)
    return rows, lambda world, a, b="none", share=1.0: pytest.approx(values[world, share, a] - values[world, share, b])


@pytest.mark.parametrize(
    ("facts", "photos", "digits"), [(COLOUR, "main", "digits"), (GREY_DIGITS, "photographs", "main")]
)
def test_each_operation_is_compared_on_the_data_that_its_rule_names(facts, photos, digits):
    rows, gain = alone_rows(photos, digits)
    s = settings(facts=facts)
    found = alone.geometric_estimates(rows, s)
    assert found["crop_gain"].mean == gain("main", "crop")
    assert found["rotation_gain"].mean == gain("main", "rotation")
    assert found["scaling_gain"].mean == gain("main", "scaling")
    assert found["flip_gain"].mean == gain(photos, "flip")
    assert found["digits_flip_gain"].mean == gain(digits, "flip")
    assert found["together_gain"].mean == gain(photos, "crop+flip+rotation+scaling")
    assert found["together_gain_at_a_tenth"].mean == gain(photos, "crop+flip+rotation+scaling", share=0.1)
    assert found["flip_gain_at_a_tenth"].mean == gain("main", "flip", share=0.1)
    assert found["one_draw_loss"].mean == gain("main", "crop", "crop, one draw")
    found = alone.photometric_estimates(rows, s)
    assert found["colour_gain"].mean == gain(photos, "colour") and found["noise_gain"].mean == gain(photos, "noise")
    assert found["noise_gain_at_a_tenth"].mean == gain(photos, "noise", share=0.1)
    found = alone.modern_estimates(rows, s)
    assert found["cutout_gain"].mean == gain(photos, "crop+flip+cutout", "crop+flip")
    assert found["mixup_gain"].mean == gain(photos, "crop+flip+mixup", "crop+flip")
    assert found["cutmix_gain"].mean == gain(photos, "crop+flip+cutmix", "crop+flip")
    assert found["trivial_augment_gain"].mean == gain(photos, "crop+flip+trivial", "crop+flip")
    assert found["alternating_flip_gain"].mean == gain(photos, "alternating+crop", "crop+flip")
    assert found["cutmix_gain_at_a_tenth"].mean == gain(photos, "crop+flip+cutmix", "crop+flip", 0.1)


# --- robustness


def test_accuracy_by_kind_is_the_mean_over_severities_and_unchanged_stands_apart():
    row = {"recipe": "crop", "seed": 0}
    rows = [row | {"what": "run", "accuracy": 0.9}]
    rows += [row | {"kind": "shift", "severity": v, "accuracy": a} for v, a in ((1.0, 0.6), (2.0, 0.2))]
    assert robustness.mean_over_severities(rows) == {
        ("crop", "unchanged", 0): 0.9,
        ("crop", "shift", 0): pytest.approx(0.4),
    }


def robust_rows():
    """Accuracy 0.5 without augmentation; with it, a gain of its own for each recipe and kind of test picture."""
    gains, rows = {}, []
    for recipe in learning.ROBUST:
        for kind in ("unchanged", *learning.SITUATIONS, *learning.UNSEEN):
            gains[recipe, kind] = 0.0 if recipe == "none" else len(gains) ** 2 * 1e-5
            for seed in SEEDS:
                level = 0.1 * seed + gains[recipe, kind]
                row = {"recipe": recipe, "seed": seed, "train_error": 0.1}
                if kind == "unchanged":
                    rows.append(row | {"what": "run", "accuracy": level})
                else:
                    both = ((1.0, level + 0.05), (2.0, level - 0.05))
                    rows += [row | {"what": "situation", "kind": kind, "severity": v, "accuracy": a} for v, a in both]
    return rows[::-1], gains


def test_robustness_compares_each_kind_with_the_recipe_that_its_rule_names():
    rows, gains = robust_rows()
    found = robustness.estimates(rows, settings())
    for recipe, kind in zip(learning.FIVE, learning.SITUATIONS, strict=True):
        assert found[f"{kind}_gain"].mean == pytest.approx(gains[recipe, kind])
        assert found[f"{kind}_gain"].sd == pytest.approx(0, abs=1e-9), "seeds cancel in pairs"
        assert found[f"{kind}_left_out_gain"].mean == pytest.approx(gains[learning.WITHOUT[recipe], kind])
    left_out = [gains[learning.WITHOUT[r], k] for r, k in zip(learning.FIVE, learning.SITUATIONS, strict=True)]
    assert found["unseen_gain"].mean == pytest.approx(sum(left_out) / 5)
    for kind in learning.UNSEEN:
        assert found[f"{kind}_gain"].mean == pytest.approx(gains[learning.ALL_FIVE, kind])
    assert found["unchanged_gain"].mean == pytest.approx(gains[learning.ALL_FIVE, "unchanged"])


def test_a_clear_gain_has_its_whole_interval_above_zero():
    of = lambda low, high: SimpleNamespace(low=low, high=high)  # noqa: E731
    found = {"a": of(0.01, 0.1), "b": of(-0.01, 0.1), "c": of(-0.2, -0.1)}
    assert robustness.clear_gains(found, "abc") == 1


# --- worth


def test_worth_is_read_horizontally_on_a_line_in_the_logarithm():
    curve = [(400, 0.7), (100, 0.5)]
    assert amount.worth(curve, 0.5, 100) == pytest.approx(1.0)
    assert amount.worth(curve, 0.6, 100) == pytest.approx(2.0), "half way in accuracy is half way in log n"
    assert amount.worth(curve, 0.6, 50) == pytest.approx(4.0)
    assert amount.worth(curve, 0.9, 100) == pytest.approx(4.0), "beyond the curve: the whole set, a lower bound"
    assert amount.worth(curve, 0.1, 100) == pytest.approx(1.0), "below the curve: its smallest size"


def test_a_size_that_does_worse_by_chance_counts_as_the_best_before_it():
    assert amount.worth([(100, 0.5), (200, 0.3), (400, 0.7)], 0.5, 200) == pytest.approx(1.0)


def test_worth_uses_each_seeds_own_curve_at_its_own_share():
    rows = []
    for seed in (0, 1):
        for share, pictures_, accuracy in ((0.1, 100, 0.3), (0.5, 500, 0.5), (1.0, 1000, 0.7)):
            row = {"share": share, "pictures": pictures_, "seed": seed}
            rows.append(row | {"recipe": "none", "accuracy": accuracy + 0.1 * seed})
    augmented = {(0.1, 0): 0.6, (0.1, 1): 0.7 + 0.1, (0.5, 0): 0.5, (0.5, 1): 0.9}
    for (share, seed), accuracy in augmented.items():
        row = {"share": share, "pictures": round(1000 * share), "seed": seed}
        rows.append(row | {"recipe": "rotation", "accuracy": accuracy})
    found = amount.estimates(rows, settings(standard="rotation"))
    assert (
        found["worth_at_a_tenth"].mean == pytest.approx(math.sqrt(math.sqrt(5 * 10) * 10))
        and found["worth_at_a_tenth"].unit == "times"
    )
    assert found["worth_at_a_half"].mean == pytest.approx(math.sqrt(1 * 2))
    bounded = {(r["share"], r["seed"]): r["bounded"] for r in amount.worth_by_seed(rows, "rotation")}
    assert bounded == {(0.1, 0): False, (0.1, 1): False, (0.5, 0): False, (0.5, 1): True}


# --- time


def test_equal_time_is_that_of_the_longest_run_without_augmentation():
    rows = []
    for seed in SEEDS:
        for recipe, times, time_s, accuracy in (
            ("none", 1, 10.0, 0.9),
            ("none", 3, 30.0, 0.5),
            ("flip", 1, 10.0, 0.4),
            ("flip", 3, 90.0, 0.8),
        ):
            row = {"recipe": recipe, "times": times, "seed": seed, "time_s": time_s}
            rows.append(row | {"accuracy": accuracy + 0.1 * seed})
    found = longer.estimates(rows[::-1], settings(standard="flip", longer=[2, 3]))
    assert found["gain_at_equal_time"].mean == pytest.approx(0.6 - 0.5), "30 s: half way from 10 to 90 on a log axis"
    assert found["longer_gain"].mean == pytest.approx(0.5 - 0.9)
    assert found["longer_augmented_gain"].mean == pytest.approx(0.8 - 0.4)


def test_a_length_that_is_no_longer_is_refused():
    with pytest.raises(ValueError, match=r"longer=\[1\]"):
        longer.runs(sweep_settings(COLOUR, longer=[1]))


# --- one draw


def test_the_variance_ratio_is_of_one_draw_for_all_over_one_for_each():
    rows = [{"seed": n, "change": "crop", "loss_sd": 0.1 * (n + 1)} for n in SEEDS]
    rows += [{"seed": n, "change": "crop, one draw", "loss_sd": 1.0 * (n + 1)} for n in reversed(SEEDS)]
    found = one_draw.estimates(rows, settings())["variance_ratio"]
    assert found.mean == pytest.approx(2.0) and found.sd == pytest.approx(0, abs=1e-9) and found.unit == "decades"


# --- cost


def test_the_share_is_of_the_change_in_change_and_step_together():
    times = {name: [1.0, 1.0] for name in cost.COSTED} | {
        "step of 8 layers": [3.0, 4.0],
        "step of 20 layers": [9.0, 19.0],
    }
    times["crop+flip"] = [1.0, 1.0]
    rows = cost.shares([{"name": name, "times_s": t} for name, t in times.items()], [8, 20])
    own = {(r["depth"], r["round"]): r["share"] for r in rows if r["recipe"] == "crop+flip"}
    assert own == {(8, 0): 0.25, (8, 1): 0.2, (20, 0): 0.1, (20, 1): 0.05}
    rows += [{"name": "workers", "times_s": [4.0, 9.0]}, {"name": "batches", "times_s": [2.0, 3.0]}]
    found = cost.estimates(rows, settings(cost_depths=[20, 8]))
    assert found["crop_flip_share"].mean == pytest.approx(0.075), "at the deepest network"
    assert found["loader_ratio"].mean == pytest.approx(math.sqrt(2 * 3)), "round by round"


# --- forms of input


def test_forms_of_input_are_the_whole_range_the_unit_range_and_standardised():
    made = dataset()
    pixel = made.train.images.float()
    for form, wanted in {
        "raw": pixel,
        "normalised": pixel / 255,
        "standardised": (pixel / 255 - made.mean.view(1, 3, 1, 1)) / made.std.view(1, 3, 1, 1),
    }.items():
        given = inputs.as_input(made, form)
        found = (pixel / 255 - given.mean.view(1, 3, 1, 1)) / given.std.view(1, 3, 1, 1)
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-4), form


def test_each_form_is_judged_at_the_rate_of_its_lowest_validation_error():
    best = {("raw", "batch"): 0.1, ("raw", "none"): 1.0, ("normalised", "batch"): 1.0, ("normalised", "none"): 0.1}
    best |= {("standardised", "batch"): 0.1, ("standardised", "none"): 0.1}
    test = {("raw", "batch"): 0.6, ("normalised", "batch"): 0.5, ("standardised", "batch"): 0.8}
    test |= {("raw", "none"): 0.1, ("normalised", "none"): 0.4, ("standardised", "none"): 0.7}
    rows = []
    for (form, norm), rate in best.items():
        for tried in (0.1, 1.0):
            for seed in SEEDS:
                row = {"form": form, "norm": norm, "rate": tried, "seed": seed, "diverged": False}
                chosen = {"val_error": 0.3, "accuracy": test[form, norm] + 0.1 * seed}
                tempting = {"val_error": 0.2 if seed == 0 else 0.5, "accuracy": 0.99}  # on the test set, or by one seed
                rows.append(row | (chosen if tried == rate else tempting))
    found = inputs.estimates(rows, settings())
    assert found["gain_without_batch_norm"].mean == pytest.approx(0.7 - 0.4)
    assert found["gain_with_batch_norm"].mean == pytest.approx(0.8 - 0.5)
    assert found["raw_with_batch_norm"].mean == pytest.approx(0.5 - 0.6)
    assert found["raw_without_batch_norm"].mean == pytest.approx(0.4 - 0.1)


# --- cleaning


def test_a_tenth_are_copies_of_kept_pictures_with_their_labels():
    images, labels = pictures(100, 8), torch.arange(100) % 7
    made, named, copies = clean.with_copies(images, labels, recipes.seeded_generator())
    assert len(made) == 100 and copies.sum() == 10
    kept = made[~copies]
    exact, other_contrast = made[copies][1::2], made[copies][::2]
    assert torch.equal(exact, kept[1:10:2]), "half of them are exact"
    assert not (other_contrast.float() - kept[0:10:2].float()).abs().mean((1, 2, 3)).lt(1).any()
    assert torch.equal(named[copies], named[~copies][:10])
    assert len(kept.flatten(1).unique(dim=0)) == 90, "and a tenth of the real ones is gone"


def test_twins_finds_every_copy_once_exact_or_in_another_contrast():
    images, labels = pictures(100, 8), torch.zeros(100, dtype=torch.int64)
    made, _, copies = clean.with_copies(images, labels, recipes.seeded_generator())
    index, cosine, found = clean.twins(made, made, clean.LEAST)
    assert torch.equal(found, copies), "the first of a group stays"
    assert torch.equal(index[copies], torch.arange(10)) and cosine[copies].min() > 0.995


def test_twins_between_two_sets_names_the_most_alike_of_the_other():
    others = pictures(20, 8)
    index, cosine, found = clean.twins(others[[7, 3]].clone(), others, clean.LEAST)
    assert index.tolist() == [7, 3] and found.all() and cosine.min() > 0.999


def test_precision_is_of_the_suspects_and_recall_of_the_dirt():
    suspects, dirty = torch.tensor([1, 1, 1, 0, 0]).bool(), torch.tensor([1, 0, 0, 1, 0]).bool()
    found = clean.found_among(suspects, dirty)
    assert (found["suspects"], found["dirty"]) == (3, 2)
    assert found["precision"] == pytest.approx(1 / 3) and found["recall"] == pytest.approx(1 / 2)
    assert clean.found_among(~torch.ones(5).bool(), dirty)["precision"] == 0


def test_held_out_networks_judge_only_pictures_that_they_were_not_trained_on(monkeypatch):
    made, trained_on = dataset(30), []

    class Names(nn.Module):
        def forward(self, images):
            assert not set(images[:, 0, 0, 0].tolist()) & trained_on[-1]
            return torch.zeros(len(images), 3)

    def fitted(part, recipe, seed, depth, width, config):
        assert recipe == "flip"
        trained_on.append(set((part.train.images[:, 0, 0, 0] / 255).tolist()))
        return Names(), {}

    made.train.images[:, 0, 0, 0] = torch.arange(30, dtype=torch.uint8)
    monkeypatch.setattr(clean, "fitted", fitted)
    monkeypatch.setattr(clean, "training", lambda s: None)
    s = SimpleNamespace(pictures=made, standard="flip", depth=8, width=2, device="cpu")
    found = clean.held_out(s, made.train.images, made.train.labels, 0)
    assert [len(part) for part in trained_on] == [20] * 3, "two thirds"
    assert torch.allclose(found.sum(1), torch.ones(30)), "and every picture is judged"


def test_each_removal_is_compared_with_none_of_its_own_dirt():
    values = {
        ("wrong labels", "nothing"): 0.5,
        ("wrong labels", "suspects"): 0.55,
        ("wrong labels", "at random, as many as suspects"): 0.4,
        ("wrong labels", "least believed"): 0.7,
        ("wrong labels", "at random, as many as least believed"): 0.45,
        ("wrong labels", "all the dirt"): 0.8,
        ("copies", "nothing"): 0.6,
        ("copies", "suspects"): 0.63,
        ("copies", "at random, as many as suspects"): 0.1,
        ("copies", "all the dirt"): 0.2,
    }
    rows = [
        {"what": "run", "dirt": dirt, "removed": removed, "seed": n, "accuracy": a + 0.01 * n}
        for (dirt, removed), a in values.items()
        for n in SEEDS
    ]
    quality = {("wrong labels", "suspects"): (0.2, 0.9), ("wrong labels", "least believed"): (0.4, 0.5)}
    quality["copies", "suspects"] = (1.0, 0.8)
    rows += [
        {"what": "found", "dirt": dirt, "by": by, "seed": n, "precision": p + 0.01 * n, "recall": r + 0.01 * n}
        for (dirt, by), (p, r) in quality.items()
        for n in SEEDS
    ]
    found = {name: round(estimate.mean, 6) for name, estimate in clean.estimates(rows[::-1], settings()).items()}
    assert found == {
        "label_errors_gain": 0.05,
        "ranked_labels_gain": 0.2,
        "duplicates_gain": 0.03,
        "random_gain": -0.1,
        "random_tenth_gain": -0.05,
        "all_errors_gain": 0.3,
        "labels_precision": 0.21,
        "labels_recall": 0.91,
        "ranked_precision": 0.41,
        "ranked_recall": 0.51,
        "copies_precision": 1.01,
        "copies_recall": 0.81,
    }


def test_removal_removes_what_was_found_and_at_random_as_much(monkeypatch):
    made, kept = dataset(60), {}
    images = pictures(60, 8)
    dirty = torch.arange(60) < 6
    suspects = torch.arange(60) < 12
    monkeypatch.setattr(
        clean, "dirtied", lambda s, dirt, seed: (images, torch.zeros(60), {"suspects": suspects}, dirty)
    )
    monkeypatch.setattr(clean, "training", lambda s: None)
    monkeypatch.setattr(clean, "accuracy", lambda *a: 0.5)

    def fitted(part, recipe, *more):
        kept[len(kept)] = {tuple(image.flatten().tolist()) for image in part.train.images}
        assert recipe == "none" and len(part.train) == 60, "equally many steps"
        return None, {"train_error": 0.0}

    monkeypatch.setattr(clean, "fitted", fitted)
    rows = clean.clean(SimpleNamespace(pictures=made, depth=8, width=2), "copies", 0)
    removed = [r["removed"] for r in rows if r["what"] == "run"]
    assert removed == ["nothing", "suspects", "at random, as many as suspects", "all the dirt"]
    every = {tuple(image.flatten().tolist()) for image in images}
    gone = [every - part for part in kept.values()]
    assert [len(part) for part in gone] == [0, 12, 12, 6]
    assert gone[3] < gone[1] != gone[2]


def test_suspects_among_real_labels_are_a_share_of_them():
    rows = [
        {"what": "count", "seed": n, "suspects": k, "labels": 100, "alike_in_train": 3, "alike_in_test": 2}
        | {"highest_cosine": 0.99}
        for n, k in enumerate((10, 20, 30))
    ]
    found = clean.real_estimates([*rows, {"what": "suspect", "suspects": 99, "labels": 1}], settings())
    assert found["suspects"].mean == pytest.approx(0.2)
    assert (found["alike_in_train"].mean, found["alike_in_test"].mean, found["highest_cosine"].mean) == (3, 2, 0.99)
