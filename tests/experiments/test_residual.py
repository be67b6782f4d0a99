"""What decides the residual chapter's verdicts, on rows made by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from resnet_lib import blocks
from resnet_lib.experiments import residual
from resnet_lib.experiments.residual import depth, gradients, shortcuts, tasks, tuning, unit
from tests.experiments.conftest import settings

SEEDS = (0, 1, 2)


def by_kind(plain, residual, **common):
    """A row a seed for each network: values for seeds 0, 1, 2."""
    kinds = {"plain": plain, "residual": residual}
    return [common | {"kind": k, "seed": n, "value": v} for k, values in kinds.items() for n, v in enumerate(values)]


def named(rows, name):
    return [{name if k == "value" else k: v for k, v in row.items()} for row in rows]


def test_a_unit_adds_its_input_to_what_two_convolutions_made_of_it_and_its_twin_adds_nothing():
    assert unit.summands(blocks.BasicBlock(4, 4)) == {"convolved": 1, "untouched": 1}
    assert unit.summands(blocks.BasicBlock(4, 4, residual=False)) == {"convolved": 0, "untouched": 0}

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)

        def forward(self, x):
            return self.a(x) + self.b(x).relu()

    assert unit.summands(Both()) == {"convolved": 2, "untouched": 0}


def test_the_equation_is_the_units_and_not_its_twins():
    rows = [{"kind": kind} | unit.unit(None, kind)[0] for kind in ("residual", "plain")]
    assert rows[0]["difference"] < 1e-5 < rows[1]["difference"]
    found = unit.estimates(rows, settings())
    assert found["equals_equation"].mean == rows[0]["difference"]
    assert found["terms_without_convolution"].mean == 1


def test_a_gradient_gain_is_plain_minus_residual_in_distance_from_the_last_unit_at_the_deepest():
    rows = []
    for arm, (plain, with_addition) in zip(
        gradients.ARMS, [((-9, -8, -7), (1, 1, 1)), ((1, 1, 1), (-3, -4, -5)), ((2,) * 3, (2,) * 3)], strict=True
    ):
        for n in (8, 20):
            shift = 0 if n == 20 else 50  # of the shallower network, which must not count
            values = [v + shift for v in plain], [v + shift for v in with_addition]
            rows += named(by_kind(*values, arm=arm, depth=n, unit=1, what="norm"), "decades")
        rows += named(by_kind((70,) * 3, (90,) * 3, arm=arm, depth=20, unit=2, what="norm"), "decades")
    found = gradients.estimates(rows, settings(init_depths=[8, 20]))
    assert found["default_init_gain"].mean == pytest.approx(8 - 1)
    assert found["he_init_gain"].mean == pytest.approx(1 - 4)
    assert found["batch_norm_gain"].mean == 0


def test_a_similarity_gain_is_residual_minus_plain_at_the_deepest():
    rows = []
    for arm in gradients.ARMS:
        rows += named(by_kind((0.1, 0.2, 0.3), (0.5, 0.7, 0.9), arm=arm, depth=20), "similarity")
        rows += named(by_kind((0.9,) * 3, (0.1,) * 3, arm=arm, depth=8), "similarity")
    found = gradients.similarity_estimates(rows, settings(init_depths=[8, 20]))
    assert found["he_init_similarity_gain"].mean == pytest.approx(0.5)


def test_theory_predicts_what_is_known_of_wide_maps():
    wide = [1000] * 20
    end = lambda kind, norm, gain: gradients.predicted_decades(wide, kind, norm, gain)[0]  # noqa: E731
    assert abs(end("plain", "none", 2.0)) < 0.3 and end("plain", "none", 1 / 3) < -10
    assert end("residual", "none", 2.0) > 2 and end("plain", "batch", 2.0) > 2 > abs(end("residual", "batch", 2.0))
    assert gradients.predicted_decades(wide, "plain", "none", 2.0)[-1] == 0


def test_theory_takes_both_sides_of_a_map():
    first = lambda *side: gradients.predicted_decades([side] * 3, "plain", "none", 2.0)[0]  # noqa: E731
    assert first(4, 8) == pytest.approx(first(8, 4)) and first(4, 4) < first(4, 8) < first(8, 8)
    assert first(8, 8) == gradients.predicted_decades([8] * 3, "plain", "none", 2.0)[0]


def ended(kind, depth, errors):
    row = {"what": "end", "kind": kind, "depth": depth, "rate": 0.1}
    return [row | {"seed": n, "train_error": e, "test_error": e + 0.1} for n, e in enumerate(errors)]


LOOKED = settings(looked_depth=14, depth_epochs=1, facts={"classes": 10})


def test_degradation_is_the_deepest_minus_the_base_and_not_minus_the_shallowest():
    rows = ended("plain", 8, (0.5,) * 3) + ended("plain", 20, (0.6, 0.6, 0.6)) + ended("plain", 14, (0.2, 0.3, 0.4))
    rows += ended("residual", 8, (0.5,) * 3) + ended("residual", 20, (0.1,) * 3) + ended("residual", 14, (0.2,) * 3)
    found = depth.degradation_estimates(rows, LOOKED)
    assert found["plain_change"].mean == pytest.approx(0.3)
    assert found["residual_change"].mean == pytest.approx(-0.1)
    assert found["deepest_gap"].mean == pytest.approx(0.5) == found["deepest_test_gap"].mean
    assert found["base_accuracy"].mean == pytest.approx(1 - 0.3)
    assert found["worst_arm"].mean == pytest.approx(0.9 - 0.6)


def test_information_is_residual_minus_plain_at_the_last_unit_of_the_base_the_deepest_and_untrained():
    rows, gains = [], {(14, "trained"): 0.4, (20, "trained"): 0.3, (14, "random"): 0.1, (20, "random"): 0.7}
    for (layers, state), gain in gains.items():
        for place, kinds in {1: (0.9, 0.1), 6: (0.2, 0.2 + gain)}.items():
            cells = by_kind(kinds[:1] * 3, kinds[1:] * 3, unit=place, depth=layers, state=state, what="unit")
            rows += [r | {"reconstruction": r["accuracy"] / 2} for r in named(cells, "accuracy")]
        own = by_kind((0.25,) * 3, (0.25 + gain,) * 3, unit=6, depth=layers, state=state, what="own")
        rows += named(own, "accuracy")
    found = depth.information_estimates(rows, LOOKED)
    assert found["probe_gain"].mean == pytest.approx(0.4) and found["reconstruction_gain"].mean == pytest.approx(0.2)
    assert found["deepest_probe_gain"].mean == pytest.approx(0.3)
    assert found["deepest_reconstruction_gain"].mean == pytest.approx(0.15)
    assert found["untrained_probe_gain"].mean == pytest.approx(0.1)
    assert found["probe_over_own"].mean == pytest.approx(-0.05) and found["probe_over_own"].n == 12


def test_the_cost_of_a_lost_unit_is_the_mean_over_units_minus_the_whole_network():
    rows = []
    for kind, whole, without in (("plain", 0.1, (0.5, 0.7)), ("residual", 0.2, (0.25, 0.35))):
        for seed in SEEDS:
            common = {"kind": kind, "seed": seed}
            rows += [
                common | {"unit": 0, "removed": 0, "error": whole},
                common | {"unit": 0, "removed": 4, "error": 0.99},
            ]
            rows += [common | {"unit": k, "removed": 1, "error": e} for k, e in enumerate(without, 1)]
    found = depth.removal_estimates(rows, settings(depths=[8, 20]))
    assert found["plain_cost"].mean == pytest.approx(0.5) and found["residual_cost"].mean == pytest.approx(0.1)
    assert found["cost_saved"].mean == pytest.approx(0.4)


def test_the_gain_after_training_is_in_distance_from_the_last_unit_whatever_its_sign():
    rows = named(by_kind((-3, 3, 3), (1, -1, 1), unit=1), "decades") + named(
        by_kind((9,) * 3, (0,) * 3, unit=2), "decades"
    )
    assert depth.trained_estimates(rows, settings(depths=[8]))["trained_gain"].mean == pytest.approx(2)


def tried(norm, kind, errors, seeds=SEEDS):
    rates = (0.01, 0.1, 1.0)
    return [
        {"what": "error", "norm": norm, "kind": kind, "rate": rate, "seed": n, "error": e}
        for n in seeds
        for rate, e in zip(rates, errors, strict=True)
    ]


TUNED = settings(tuning_target=0.6, tuning_epochs=1, tuning_depth=8, facts={"classes": 10})


def test_the_range_of_rates_is_where_the_error_between_those_tried_lies_below_the_common_target():
    below = lambda *errors: tuning.decades_below(0.6, dict(zip((0.01, 0.1, 1.0), errors, strict=True)))  # noqa: E731
    assert below(0.5, 0.5, 0.6) == pytest.approx(2)
    assert below(0.7, 0.8, 0.9) == 0
    assert below(0.9, 0.5, 0.7) == pytest.approx(0.25 + 0.5)  # a quarter of the way down, half of the way up
    assert below(0.5, 0.9, 0.5) == pytest.approx(0.25 + 0.25)
    assert tuning.decades_below(0.6, {1.0: 0.5, 0.1: 0.5}) == pytest.approx(1)  # in whatever order


def test_easier_to_tune_is_residual_minus_plain_in_range_and_plain_minus_residual_in_error_at_the_best_rate():
    rows = tried("batch", "plain", (0.5, 0.7, 0.9)) + tried("batch", "residual", (0.3, 0.32, 0.34))
    rows += tried("none", "plain", (0.7, 0.9, 0.9)) + tried("none", "residual", (0.1, 0.5, 0.9))
    rows.append({"norm": "batch", "kind": "plain", "rate": 0.1, "seed": 0, "what": "slice", "error": None})
    found = tuning.estimates(rows, TUNED)
    assert found["lr_range_gain"].mean == pytest.approx(2 - 0.5)
    assert found["no_norm_range_gain"].mean == pytest.approx(1.25)
    assert found["best_error_gain"].mean == pytest.approx(0.5 - 0.3)
    assert found["bn_alone_range_gain"].mean == pytest.approx(0.5)
    assert found["best_accuracy"].mean == pytest.approx(0.7)
    normed = [r for r in rows if r["norm"] == "batch"]
    assert set(tuning.estimates(normed, TUNED)) == {"lr_range_gain", "best_error_gain", "best_accuracy"}


def test_the_best_rate_is_chosen_on_the_other_seeds():
    """Seed 0 is lucky at a rate that the others do not choose."""
    errors = {0: (0.1, 0.5, 0.9), 1: (0.6, 0.3, 0.9), 2: (0.6, 0.3, 0.9)}
    rows = [
        r for n, e in errors.items() for r in tried("batch", "residual", e, (n,)) + tried("batch", "plain", e, (n,))
    ]
    rows += [r | {"norm": "none"} for r in rows]
    assert tuning.estimates(rows, TUNED)["best_accuracy"].mean == pytest.approx(1 - (0.5 + 0.6 + 0.6) / 3)


def test_a_loss_rises_from_where_training_ended_to_one_filter_norm_away():
    rows = [
        {"kind": kind, "seed": n, "distance": d, "loss": loss}
        for kind, losses in {"plain": (5.0, 1.0, 4.0), "residual": (9.0, 1.0, 2.0)}.items()
        for n in SEEDS
        for d, loss in zip((-1.0, 0.0, 1.0), losses, strict=True)
    ]
    assert tuning.slice_estimates(rows, TUNED)["rise_saved"].mean == pytest.approx(3 - 1)


def test_a_shortcuts_gain_is_the_error_it_saves_against_zero_padding():
    values = {"A: zero padding": 0.5, "B: projection where needed": 0.4, "C: projection everywhere": 0.9}
    values["A, zero-initialised branch"] = 0.6
    rows = [{"option": o, "seed": n, "val_error": v + n / 10} for o, v in values.items() for n in SEEDS]
    found = shortcuts.estimates(rows, settings(shortcut_depth=20, facts={"shape": [3, 16, 16]}))
    assert found["projection_gain"].mean == pytest.approx(0.1) and found["zero_init_gain"].mean == pytest.approx(-0.1)
    assert found["unequal_dimensions_needs_projection"].mean == 2


def test_a_tasks_gain_is_the_share_of_the_plain_loss_paired_by_seed_not_by_position():
    rows = []
    for task in tasks.TASKS:
        losses = {"plain": {0: 4.0, 1: 2.0, 2: 1.0}, "residual": {2: 0.5, 0: 1.0, 1: 1.0}}
        rows += [
            {"what": "loss", "task": task, "kind": kind, "seed": n, "val_loss": v}
            for kind, of in losses.items()
            for n, v in of.items()
        ]
    found = tasks.estimates([*rows, {"what": "sample", "task": "generation"}], settings())
    assert found["regression_gain"].mean == pytest.approx(1 - (0.25 * 0.5 * 0.5) ** (1 / 3))
    assert found["classification_gain"].unit == "relative"


def test_regression_asks_for_the_noise_that_was_added_and_generation_for_the_way_to_the_picture():
    images = torch.rand(64, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    generator = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    noise, level = tasks.random_like(images, generator())
    assert noise.std() > 0.9 and 0 <= level.min() < level.max() <= 1
    knows_level = lambda x: ((x - images) / noise).mean((1, 2, 3), keepdim=True).flatten(1)  # noqa: E731
    assert tasks.noise_level(knows_level, images, None, generator())["loss"] < 1e-6
    assert tasks.noise_level(lambda x: 0 * level.flatten(1), images, None, generator())["loss"] > 0.1
    assert tasks.flow(lambda x: images - noise, images, None, generator())["loss"] == 0
    at_start = tasks.flow(lambda x: x[:, :1], images, None, generator())["loss"]
    assert at_start > 0.1


def test_generation_follows_the_velocity_from_noise_and_undoes_the_normalisation():
    pictures = SimpleNamespace(mean=torch.tensor([0.5]), std=torch.tensor([0.25]))
    s = SimpleNamespace(facts={"shape": [1, 2, 2]}, device=torch.device("cpu"), pictures=pictures)

    class One(nn.Module):
        def forward(self, x):
            return torch.ones_like(x[:, :1])

    still = torch.randn((6, 1, 2, 2), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(tasks.generate(s, One()), (still + 1) * 0.25 + 0.5, atol=1e-5)


@pytest.mark.parametrize(
    ("experiment", "changes", "words"),
    [
        (residual.GRADIENTS, {"init_depths": [8, 9]}, "depth=9 fits no CIFAR ResNet"),
        (residual.RATES, {"depths": [8], "depth_rates": [0.1, 0.3]}, r"depths=\[8\]: at least 2 different depths"),
        (residual.RATES, {"depths": [8, 14], "depth_rates": [0.1]}, r"depth_rates=\[0.1\] must be at least two"),
        (
            residual.DEGRADATION,
            {"depths": [8, 14], "looked_depth": 20, "rate_of": {}},
            r"looked_depth=20 must be one of",
        ),
        (residual.TUNING, {"tuning_depth": 20, "tuning_norms": ["group"]}, "must hold 'batch', and may hold 'none'"),
        (
            residual.TUNING,
            {"tuning_depth": 20, "tuning_norms": ["batch"], "tuning_rates": [0.1]},
            "at least two different rates",
        ),
        (
            residual.TUNING,
            {"tuning_depth": 21, "tuning_norms": ["batch"], "tuning_rates": [0.1, 1.0]},
            "depth=21 fits no CIFAR ResNet",
        ),
        (residual.SHORTCUTS, {"shortcut_depth": 10}, "depth=10 fits no CIFAR ResNet"),
    ],
)
def test_settings_that_fit_no_network_or_leave_nothing_to_compare_are_refused(experiment, changes, words):
    with pytest.raises(ValueError, match=words):
        experiment.conditions(settings(**changes))


def test_neighbours_of_the_shattering_control_differ_by_a_tenth_of_a_deviation():
    assert gradients.NOISE == 0.1 and math.isclose(gradients.ARMS["PyTorch's init, no BN"][2], 1 / 3)
