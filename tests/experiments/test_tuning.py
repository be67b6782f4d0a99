"""What decides the tuning chapter's verdicts, on rows made by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnet_lib.experiments.tuning import factorial, maps, noise, optimisers, range_test, search, structure, trainings
from tests.experiments.conftest import FACTS, made_up_pictures, settings

SEEDS = (0, 1, 2)
BASE = {"batch_size": 64, "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "warmup": 0.2}
BASE |= {"label_smoothing": 0.0, "schedule": "one_cycle", "dropout": 0.0}


def runs(errors, **changes):
    """A row a seed with these errors; one number stands for all seeds."""
    errors = errors if isinstance(errors, tuple) else (errors,) * 3
    return [BASE | changes | {"seed": n, "what": "run", "error": e} for n, e in enumerate(errors)]


def base_settings(**changes):
    return settings(**{"batch_size": 64, "learning_rate": 0.1, "epochs": 2, "depth": 8, "width": 4} | changes)


def test_no_result_chooses_itself():
    lucky = runs((0.0, 0.5, 0.5), learning_rate=0.1) + runs(0.3, learning_rate=0.3)
    chosen = trainings.chosen_elsewhere(lucky, ("learning_rate",))
    assert chosen[0]["learning_rate"] == 0.3, "its own lucky seed does not speak for 0.1"
    assert chosen[1]["learning_rate"] == 0.1 and chosen[1]["error"] == 0.5
    worst = trainings.chosen_elsewhere(lucky, ("learning_rate",), worst=True)
    assert worst[0]["learning_rate"] == 0.1 and worst[1]["learning_rate"] == 0.3


def test_the_basin_is_all_within_one_standard_error_of_the_lowest_mean():
    best = (0.28, 0.30, 0.32)  # standard error 0.0115
    rows = runs(best, learning_rate=0.1) + runs(0.311, learning_rate=0.3) + runs(0.312, learning_rate=1.0)
    assert trainings.basin(rows, ("learning_rate",)) == [(0.1,), (0.3,)]


def test_a_factor_of_three_costs_what_the_worse_neighbour_of_the_best_rate_loses():
    errors = {0.01: 0.9, 0.03: 0.36, 0.1: 0.3, 0.3: 0.34, 1.0: 0.8}
    rows = [r for rate, e in errors.items() for r in runs((e - 0.01, e, e + 0.01), learning_rate=rate)]
    assert maps.factor_three_loss(rows).mean == pytest.approx(0.06)
    at_an_end = [r for r in rows if r["learning_rate"] >= 0.1]
    assert maps.factor_three_loss(at_an_end).mean == pytest.approx(0.04), "an end has one neighbour"
    assert maps.tenth_loss(rows).mean == pytest.approx(0.6), "of the rates tried, 0.01 is a tenth of 0.1"


def test_the_exponent_is_the_slope_of_the_best_rate_in_batch_size():
    rows = []
    for batch, best in ((16, 0.1), (64, 0.2), (256, 0.4)):
        for rate in (0.1, 0.2, 0.4):
            rows += runs(0.3 if rate == best else 0.5, learning_rate=rate, batch_size=batch)
    assert maps.exponents(rows) == pytest.approx([0.5] * 3)
    found = maps.rates_estimates(rows, base_settings())
    assert found["best_over_chance"].mean == pytest.approx(0.9 - 0.3)
    assert found["at_an_end"].mean == 2


def test_weight_decay_gains_against_none_each_at_its_own_rate():
    rows = runs(0.4, weight_decay=0.0, learning_rate=0.1) + runs(0.35, weight_decay=0.0, learning_rate=0.3)
    rows += runs(0.3, weight_decay=0.005, learning_rate=0.1) + runs(0.5, weight_decay=0.005, learning_rate=0.3)
    rows += runs(0.3, weight_decay=0.05, learning_rate=0.01)
    found = maps.decays_estimates(rows, base_settings())
    assert found["weight_decay_gain"].mean == pytest.approx(0.05)
    assert found["basin_product_range"].mean == pytest.approx(0.0), "0.1 × 0.005 is 0.01 × 0.05"
    assert found["basin_cells"].mean == 2


def test_settings_are_compared_at_their_own_rates_and_regularisation_by_its_best_value_above_none():
    rows = runs(0.4) + runs(0.35, learning_rate=0.3)
    rows += runs(0.38, momentum=0.5) + runs(0.32, momentum=0.5, learning_rate=0.3)
    rows += runs(0.33, label_smoothing=0.1) + runs(0.36, label_smoothing=0.1, learning_rate=0.3)
    rows += runs((0.34, 0.31, 0.31), dropout=0.3) + runs(0.5, dropout=0.3, learning_rate=0.3)
    found = maps.settings_estimates(rows, base_settings())
    assert found["momentum_0_5_gain"].mean == pytest.approx(0.03)
    assert found["label_smoothing_0_1_gain"].mean == pytest.approx(0.02)
    # seeds 1 and 2 prefer label smoothing or dropout by what the others say: 0.33 vs 0.31, 0.325, 0.325
    assert found["regularisation_gain"].mean == pytest.approx(0.35 - (0.34 + 0.31 + 0.31) / 3)
    assert set(found) == {"momentum_0_5_gain", "label_smoothing_0_1_gain", "dropout_0_3_gain", "regularisation_gain"}


def test_conditions_hold_every_setting_so_that_maps_share_their_runs():
    s = base_settings(
        momentum=0.9, weight_decay=5e-4, warmup=0.2, label_smoothing=0.0, rates=[0.03, 0.1, 0.3], batch_sizes=[16],
        weight_decays=[0.005], setting_rates=[0.1], momenta=[0.5, 0.9], warmups=[0.5], schedules=["step"],
        smoothings=[0.1], dropouts=[0.2],
    )  # fmt: skip
    rates, decays, others = (one.conditions(s) for one in (maps.RATES, maps.DECAYS, maps.SETTINGS))
    key = lambda condition: tuple(sorted(condition.items()))  # noqa: E731
    assert len({*map(key, rates)} & {*map(key, decays)}) == 9 and len({*map(key, others)} & {*map(key, rates)}) == 3
    assert len(others) == 6 * 3, "a value that is the base's is no arm of its own"
    smoothed = maps.SETTINGS.conditions(SimpleNamespace(**{**vars(s), "label_smoothing": 0.05}))
    assert smoothed == others, "regularisation is compared with none, whatever the base has"
    for name, value, words in (
        ("rates", [0.1, 0.1], "rates="),
        ("batch_sizes", [64], "batch_sizes="),
        ("batch_sizes", [1000], "none above 100"),
    ):
        with pytest.raises(ValueError, match=words):
            maps.RATES.conditions(SimpleNamespace(**{**vars(s), name: value}))
    with pytest.raises(ValueError, match="there are one_cycle"):
        maps.SETTINGS.conditions(SimpleNamespace(**{**vars(s), "schedules": ["linear"]}))


def test_the_noise_scale_of_known_gradients_comes_out_whatever_the_batch():
    generator, mean = torch.Generator().manual_seed(0), torch.full((20,), 0.5).double()
    for small in (2, 16):
        drawn = mean + 3 * torch.randn(40000, small, 20, generator=generator).double().mean(1)
        found = noise.scale_of(drawn, small)
        assert found["scale"] == pytest.approx(9 * 20 / (20 * 0.25), rel=0.05)
        assert found["gradient_squared"] == pytest.approx(5, rel=0.05)
    opposite = torch.tensor([[1.0], [-1.0]]).double()
    assert noise.scale_of(opposite, 1)["scale"] is None, "no gradient is left over, only noise"


def test_a_noise_scale_that_chance_made_negative_is_left_out_and_noted():
    rows = [{"epochs": k, "seed": n, "scale": 50.0 * (n + 1)} for k in (0, 2) for n in SEEDS]
    for row in rows[:2]:
        row["scale"] = None
    s = settings(largest_good_batch=64)
    assert set(noise.estimates(rows, s)) == {"scale_after_2", "largest_good_batch"}
    assert noise.notes(rows, s) == ["noise/scale_after_0: fewer than two seeds gave a positive ratio"]


def test_the_largest_good_batch_is_the_largest_of_the_cells_in_the_basin():
    rows = runs((0.29, 0.3, 0.31), batch_size=64) + runs(0.303, batch_size=256) + runs(0.4, batch_size=1024)
    assert noise.NOISE.choose(rows, base_settings()) == {"largest_good_batch": 256}


def test_the_range_test_reads_the_steepest_fall_and_a_tenth_of_the_lowest():
    rates = np.geomspace(1e-3, 10, 200)
    curve = [(float(r), float(2 - math.tanh(math.log(r / 0.03)) + max(0.0, math.log(r / 1.0)) * 3)) for r in rates]
    found = range_test.suggestions(curve)
    assert found["steepest"] == pytest.approx(0.03, rel=0.1) and found["tenth"] == pytest.approx(0.1, rel=0.15)
    exploding = range_test.smoothed([(r, 2.0) for r in rates[:50]] + [(r, 1e6) for r in rates[50:]])
    assert len(exploding) == 50 and all(loss == pytest.approx(2.0) for _, loss in exploding)
    rows = [{"what": "read", "seed": n, "steepest": 0.3, "tenth": 0.1} for n in SEEDS]
    e = range_test.estimates(rows, settings(basin=[0.03, 0.1], edges=[0.02, 0.2]))
    assert e["steepest_distance"].mean == pytest.approx(1) and e["steepest_inside"].mean == 0
    assert e["tenth_inside"].mean == 1


def test_a_basin_reaches_half_way_to_the_next_rate_tried():
    tried = [0.01, 0.04, 0.16, 0.64]
    assert range_test.edges([0.04, 0.16], tried) == pytest.approx([0.02, 0.32])
    assert range_test.edges([0.64], tried) == pytest.approx([0.32, 1.28])
    assert range_test.edges([0.01], tried) == pytest.approx([0.005, 0.02])


def shape_settings(**changes):
    return settings(
        **{"depth": 8, "width": 16, "structure_depths": [14], "structure_widths": [8], "epochs": 1} | changes
    )


def test_shapes_of_equal_cost_are_as_near_as_whole_widths_allow_and_the_base_is_in_all():
    s = shape_settings(facts=FACTS | {"shape": [3, 16, 16]})
    families = structure.shapes(s)
    assert set(families) == set(structure.FAMILIES)
    assert all((8, 16, "ReLU") in family for family in families.values())
    (deep,) = [f for f in families["equal_flops"] if f[0] == 14]
    ratio = lambda w: structure.flops_here(s, 14, w) / structure.flops_here(s, 8, 16)  # noqa: E731
    assert (
        abs(ratio(deep[1]) - 1) <= min(abs(ratio(deep[1] + k) - 1) for k in (-1, 1)) and abs(ratio(deep[1]) - 1) < 0.1
    )
    with pytest.raises(ValueError, match=r"structure_widths=\[16\]"):
        structure._networks(shape_settings(structure_widths=[16]))


def test_a_structure_effect_is_best_minus_worst_on_test_named_by_validation_of_other_seeds():
    s, rows = shape_settings(facts=FACTS | {"shape": [3, 16, 16]}), []
    distinct = dict.fromkeys(shape for family in structure.shapes(s).values() for shape in family)
    for depth, width, activation in distinct:
        bad = {"val": 0.5, "test": 0.6} if width == 8 else {"val": 0.4, "test": 0.3}
        bad = {"val": 0.45, "test": 0.2} if activation == "GELU" else bad
        row = {"depth": depth, "width": width, "activation": activation, "learning_rate": 0.1}
        rows += [row | {"seed": n, "error": bad["val"], "test_error": bad["test"]} for n in SEEDS]
    found = structure.estimates(rows, s)
    assert found["width_effect"].mean == pytest.approx(0.3) and found["depth_effect"].mean == 0
    assert found["activation_effect"].mean == pytest.approx(-0.1), "validation names the best, and test may disagree"
    assert found["worst_over_chance"].mean == pytest.approx(0.9 - 0.6)


@pytest.mark.parametrize("name", trainings.ACTIVATIONS)
def test_a_network_has_the_activation_function_asked_for_and_no_other(name):
    s = SimpleNamespace(facts=FACTS)
    model = trainings.network(s, 8, 4, activation=name, dropout=0.5)
    kinds = {type(m).__name__ for m in model.modules()} & {"ReLU", "LeakyReLU", "GELU", "SiLU"}
    assert kinds == {name} and isinstance(model.fc[0], nn.Dropout)
    loss = F.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_shares_of_an_additive_table_are_its_levers_variances_and_add_up_to_one():
    rng = np.random.default_rng(0)
    a, b, c = (np.array(v, float) for v in ([-2, -1, 0, 1, 2], [-1, 0, 0, 0, 1], [0, 0, 0, 0, 0]))
    table = a[:, None, None] + b[None, :, None] + c[None, None, :]
    found = factorial.shares(table[..., None] + rng.normal(0, 1e-6, (*table.shape, 3)))
    assert found == pytest.approx([2 / 2.4, 0.4 / 2.4, 0, 0], abs=1e-6) and found.sum() == pytest.approx(1)


def test_an_interaction_is_shared_equally_and_noise_goes_to_the_seed():
    sign = np.array([-1.0, 1.0])
    product = sign[:, None, None] * sign[None, :, None] * np.ones(2)
    assert factorial.shares(product[..., None] + np.array([1e-9, -1e-9])) == pytest.approx([0.5, 0.5, 0, 0], abs=1e-6)
    rng = np.random.default_rng(1)
    draws = factorial.shares(product[..., None] + rng.normal(0, 1, (4000, 2, 2, 2, 3)))
    assert draws.mean(0) == pytest.approx([0.25, 0.25, 0, 0.5], abs=0.02), "half of a run's variance is noise"


def test_the_bootstrap_covers_the_true_share_about_as_often_as_it_says():
    rng, hits = np.random.default_rng(2), 0
    effect = np.linspace(-1, 1, 5)[:, None, None, None] * np.ones((5, 5, 5, 3))
    true = effect[..., 0].var() / (effect[..., 0].var() + 0.25)
    for _ in range(60):
        estimate = factorial.bootstrapped(effect + rng.normal(0, 0.5, effect.shape))[0]
        hits += estimate.low <= true <= estimate.high
    assert 0.85 <= hits / 60 <= 1.0


def test_a_wider_range_of_one_lever_raises_its_share_and_the_least_share_is_over_all_choices():
    rows = []
    for structure_at in factorial.LEVELS:
        for hyper in factorial.LEVELS:
            for amount in factorial.LEVELS:
                error = 0.5 - 0.02 * math.log2(structure_at) + 0.01 * math.log2(hyper) ** 2 - 0.03 * math.log2(amount)
                levels = {"structure": structure_at, "hyper": hyper, "data": amount}
                rows += [levels | {"seed": n, "error": error + 0.002 * (n - 1)} for n in SEEDS]
    found = factorial.estimates(rows, settings())
    assert found["w_n_n_structure_share"].mean > found["n_n_n_structure_share"].mean
    assert found["data_share"].mean > found["structure_share"].mean > found["w_n_w_hyper_share"].mean
    named = [found[f"{p}{lever}_share"].mean for p in ("", "n_n_n_", "w_n_w_") for lever in factorial.LEVERS]
    assert found["least_share"].mean <= min(named)
    assert found["base_over_chance"].mean == pytest.approx(0.4)


def test_a_small_training_set_is_repeated_for_as_many_steps():
    split = made_up_pictures(10).train
    longer = factorial.repeated(split, 4, 10)
    assert (
        len(longer) == 10
        and torch.equal(longer.images[4], split.images[0])
        and torch.equal(longer.labels[9], split.labels[1])
    )
    with pytest.raises(ValueError, match="lever_pictures=50"):
        factorial._runs(settings(lever_pictures=50, lever_width=4))
    with pytest.raises(ValueError, match="lever_width=3"):
        factorial._runs(settings(lever_pictures=25, facts=FACTS | {"classes": 4}, lever_width=3))


def test_muon_changes_the_filters_themselves_by_nearly_orthogonal_steps():
    with_last = nn.Conv2d(8, 4, 3).to(memory_format=torch.channels_last)
    before = with_last.weight.detach().clone()
    muon = optimisers.Muon([with_last.weight], lr=0.1, weight_decay=0.0, momentum=0.0, nesterov=False)
    with_last.weight.grad = torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    muon.step()
    taken = optimisers.flat((before - with_last.weight.detach()) / 0.1)
    values = torch.linalg.svdvals(taken.float())
    assert values.min() > 0.5 and values.max() < 1.5
    with pytest.raises(ValueError, match="no flat view"):
        optimisers.Muon([nn.Conv2d(8, 4, 3).weight])


def test_trials_are_equally_many_within_their_ranges_and_the_best_is_each_optimisers_own():
    for kind, ((low, high), (least, most)) in optimisers.TRIED.items():
        found = optimisers.trials(kind, 8)
        assert len(found) == 8 == len({t["learning_rate"] for t in found})
        assert all(low <= t["learning_rate"] <= high and least <= t["weight_decay"] <= most for t in found)
    rows = [
        {"arm": kind, "learning_rate": rate, "weight_decay": 0.1, "error": error}
        for kind, best in zip(optimisers.TRIED, (0.1, 0.2, 0.3), strict=True)
        for rate, error in ((best, 0.2), (9.0, 0.3))
    ]
    assert [b["learning_rate"] for b in optimisers.best_of(rows).values()] == [0.1, 0.2, 0.3]


def test_steps_to_the_error_that_every_run_reached_are_read_between_checks():
    rows = []
    for arm in optimisers.ARMS:
        ends = (0.6, 0.2) if arm == "Muon" else (0.8, 0.4)
        for n in SEEDS:
            rows += [
                {"what": "curve", "arm": arm, "seed": n, "step": 10 * k, "error": e} for k, e in enumerate(ends, 1)
            ]
            rows.append(
                {"what": "end", "arm": arm, "seed": n, "step": 20, "error": ends[1], "test_error": ends[1] + 0.05}
            )
    assert optimisers.target_of(rows) == 0.4
    found = optimisers.estimates(rows, settings(epochs=1))
    assert found["muon_steps"].mean == pytest.approx(15 / 20) and found["adamw_steps"].mean == 1
    assert found["muon_gain"].mean == pytest.approx(0.2) and found["sgd_accuracy"].mean == pytest.approx(0.55)


def test_a_search_is_compared_with_the_random_one_of_the_same_repeat():
    rows = []
    for method, (first, last) in {"random": (0.6, 0.4), "tpe": (0.5, 0.3)}.items():
        for n in SEEDS:
            row = {"method": method, "seed": n, "what": "trial"}
            rows += [row | {"trial": k, "spent": k + 1.0, "best": b} for k, b in enumerate((first, last))]
            rows.append(
                {"method": method, "seed": n, "what": "end", "trials": 2, "best": last, "test_error": last + 0.1 * n}
            )
    found = search.estimates(rows, settings(search_trials=2))
    assert found["tpe_gain"].mean == pytest.approx(0.1) and found["random_progress"].mean == pytest.approx(0.2)
    assert search.best_after(rows, "tpe", 0, 1) == 0.5
    assert found["tpe_test_gain"].mean == pytest.approx(0.1)


def test_a_grid_has_as_many_points_as_the_budget_and_most_values_of_the_learning_rate():
    for count in (2, 16, 32):
        sizes = {name: len(values) for name, values in search.grid_of(count).items()}
        assert count <= math.prod(sizes.values()) < 2 * count and sizes["learning_rate"] == max(sizes.values())
    assert math.prod(len(v) for v in search.grid_of(16).values()) == 16
    momenta = [1 - v for v in search.grid_of(16)["one_minus_momentum"]]
    assert all(0.5 < m < 0.99 for m in momenta)


def test_a_search_without_random_or_with_too_few_pictures_is_refused():
    s = {"batch_size": 64, "search_pictures": 80, "search_methods": ["random", "tpe"], "search_repeats": 5}
    assert len(search._runs(settings(**s))) == 10
    for change, words in (
        ({"search_methods": ["tpe", "gp"]}, "must hold random"),
        ({"search_methods": ["random", "luck"]}, "holds"),
        ({"search_pictures": 32}, "search_pictures=32"),
    ):
        with pytest.raises(ValueError, match=words):
            search._runs(settings(**s | change))
