"""What decides the verdicts on batch normalisation: estimates on rows worked by hand, and the parts of the runs."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnet_lib import data, stats, train
from resnet_lib.experiments import batch_norm
from resnet_lib.experiments.batch_norm import (
    anywhere,
    convergence,
    cost,
    distribution,
    networks,
    rate_scaling,
    rates,
    shift,
    smoothness,
    statistics,
    trainings,
    watching,
)
from tests.experiments.conftest import settings

BEST = {"none": 0.1, "batch norm": 1.0, "batch norm + noise": 1.0, "noise alone": 0.1, "batch norm, held": 1.0}


def lower_by(*shares):
    """By what share something is lower on average, over ratios: 1 minus their geometric mean."""
    return 1 - math.prod(1 - share for share in shares) ** (1 / len(shares))


def close(value):
    return pytest.approx(value, rel=1e-6, abs=1e-9)


def by_seed(values, **columns):
    """A row for each value, of seeds 0, 1, …; `values` is a column's name and its values."""
    name, numbers = values
    return [columns | {"seed": seed, name: number} for seed, number in enumerate(numbers)]


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", train_size=256)


def measuring(digits, **values):
    """An `s` as a run has it."""
    values = {"layers": 3, "width": 8, "batch_size": 64, "number_format": "fp32"} | values
    s = settings(seeds=(0, 1), facts=digits.about(), **values)
    s.pictures, s.device = digits, torch.device("cpu")
    return s


def net(norm="batch", **options):
    with train.seeded(0):
        return networks.Network([1, 8, 8], 10, 3, 8, norm, **options)


# The networks


@pytest.mark.parametrize("flat", [False, True])
def test_every_variant_of_a_network_draws_the_same_first_weights_and_has_a_bias_only_without_a_norm(flat):
    with_norm, without, noisy = net("batch", flat=flat), net("none", flat=flat), net("batch", flat=flat, noise=True)
    for one, other, third in zip(with_norm.layers, without.layers, noisy.layers, strict=True):
        assert torch.equal(one.linear.weight, other.linear.weight) and torch.equal(
            one.linear.weight, third.linear.weight
        )
        assert one.linear.bias is None and torch.equal(other.linear.bias, torch.zeros_like(other.linear.bias))
    assert torch.equal(with_norm.fc.weight, without.fc.weight)


def test_the_widths_double_in_three_stages_and_the_maps_halve():
    model = networks.Network([3, 16, 16], 10, 6, 16)
    assert [layer.linear.out_channels for layer in model.layers] == [16, 16, 32, 32, 64, 64]
    assert [layer.linear.stride[0] for layer in model.layers] == [1, 1, 2, 1, 2, 1]


@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm2d), ("group", nn.GroupNorm), ("none", nn.Identity)])
def test_each_norm_is_the_one_it_is_called(norm, kind):
    assert isinstance(networks.make_norm(norm, 16, flat=False), kind)


def test_group_norm_has_eight_channels_a_group_and_layer_norm_one_group():
    assert networks.make_norm("group", 32, False).num_groups == 4
    assert networks.make_norm("layer", 32, False).num_groups == 1


def test_the_noise_gives_each_unit_a_new_mean_and_scale_at_every_step_and_is_off_in_evaluation():
    noise, x = networks.ShiftingNoise(), torch.randn(500, 6)
    first, second = noise(x), noise(x)
    for moved in (first, second):
        assert moved.mean(0).std() > 0.1, "the units' means are shifted apart"
        assert (moved.std(0) > 0.9).all() and (moved.std(0) < 1.6).all(), "and their scales only a little"
    assert (first.mean(0) - second.mean(0)).abs().max() > 0.1, "anew at every step"
    assert torch.equal(noise.eval()(x), x)


def test_the_noise_arms_have_noise_in_every_layer_and_the_others_none():
    for arm, options in networks.ARMS.items():
        noisy = [isinstance(layer.noise, networks.ShiftingNoise) for layer in net(**options).layers]
        assert set(noisy) == {"noise" in arm}, arm
    assert {arm for arm, options in networks.ARMS.items() if options["norm"] == "none"} == {"none", "noise alone"}


def test_a_step_is_given_before_it_is_taken_and_changes_the_weights(digits):
    s = measuring(digits)
    config, model = networks.training(s, 64, learning_rate=0.1), net()
    weights = [model.fc.weight.clone() for _ in networks.steps(s, model, config, 0, 3)]
    assert [*networks.steps(s, model, config, 0, 6)] == [0, 1, 2, 3, 4, 5], "beyond one epoch of four batches too"
    assert torch.equal(weights[0], net().fc.weight)
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])


@pytest.mark.parametrize("values", [{"layers": 2}, {"width": 4}, {"width": 12}])
def test_networks_that_cannot_be_made_are_refused(values):
    with pytest.raises(ValueError, match="layers=.* and width="):
        networks.refuse_networks(settings(**{"layers": 4, "width": 16} | values))


# The trainings


@pytest.mark.parametrize("held", [True, False])
def test_held_weights_are_scaled_back_to_their_first_lengths_before_every_step_and_others_are_not(held):
    model, images, task = (
        net().train(),
        torch.randn(4, 1, 8, 8),
        trainings.holding_lengths() if held else train.classification(),
    )
    first = torch.stack(trainings.weight_lengths(model))
    for factor in (1, 3):
        with torch.no_grad():
            for layer in model.layers:
                layer.linear.weight.mul_(factor)
        task(model, images, torch.arange(4), None)
    assert torch.allclose(torch.stack(trainings.weight_lengths(model)), first if held else 3 * first)


def test_a_fitted_arm_comes_with_a_loss_for_every_step_and_the_network_as_it_was_at_first(digits):
    s = measuring(digits)
    for arm in networks.ARMS:
        rows, model, losses, fresh = trainings.fit_arm(s, arm, networks.training(s, 64, epochs=2, learning_rate=0.1), 0)
        assert len(losses) == 8 and losses[-1] < losses[0] and len(rows) == 2
        with train.seeded(0):
            assert torch.equal(fresh.fc.weight, networks.network(s, **networks.ARMS[arm]).fc.weight)
        assert not torch.equal(fresh.fc.weight, model.fc.weight)


@pytest.mark.parametrize(
    ("values", "level", "place", "reached"),
    [
        ([0.0, 0.5, 1.0], 0.25, 1.0, True),
        ([0.0, 0.5, 1.0], 0.75, 4.0, True),
        ([0.0, 0.5, 0.2], 0.5, 2.0, True),
        ([0.0, 0.5, 0.2], 0.6, 6.0, False),
        ([0.9, 0.9, 0.9], 0.5, 2.0, True),
    ],
)
def test_a_level_is_crossed_where_values_first_reach_it_linear_between_places(values, level, place, reached):
    assert trainings.crossing([0.0, 2.0, 6.0], values, level) == (close(place), reached)


def test_the_level_of_the_loss_is_a_share_of_the_loss_of_guessing():
    assert trainings.loss_level(settings(target_loss=0.3)) == close(0.3 * math.log(10))


def test_units_after_batch_norm_do_not_differ_at_the_start_and_without_it_they_do():
    images = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert trainings.unit_spread(net("batch"), images) < 1e-4
    assert trainings.unit_spread(net("none"), images) > 0.1
    noisy = net("none", noise=True)
    assert trainings.unit_spread(noisy, images) == trainings.unit_spread(noisy, images), "noise is the same every time"


def test_the_spread_over_units_is_that_of_their_means_and_deviations_over_the_mean_deviation():
    class Unit(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.Identity()

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([Unit()])

        def forward(self, x):
            return self.layers[0].norm(x)

    # two units: means 0 and 4, deviations √2 and 3√2; standard deviations over units 2√2 and 2; mean deviation 2√2
    values = torch.tensor([[-1.0, 1.0], [1.0, 7.0]])
    assert trainings.unit_spread(One(), values) == close((2 * math.sqrt(2) + 2) / 2 / (2 * math.sqrt(2)))


def tuned(arm, rate, errors, trains=None, growth=1.0):
    trains = trains or [True] * len(errors)
    return [
        {"what": "tuning", "arm": arm, "rate": rate, "seed": seed, "val_error": error, "trains": ok, "growth": growth}
        for seed, (error, ok) in enumerate(zip(errors, trains, strict=True))
    ]


def test_an_arms_rate_is_that_of_lowest_mean_error_among_those_at_which_every_seed_trains():
    rows = [
        row
        for arm in networks.ARMS
        for row in [
            *tuned(arm, 0.1, [0.5, 0.7]),
            *tuned(arm, 0.3, [0.4, 0.6]),
            *tuned(arm, 1.0, [0.1, 0.2], [True, False]),  # better, but one seed does not train
            *tuned(arm, 3.0, [0.6, 0.4]),  # as good as 0.3, and higher
        ]
    ]
    assert trainings.best_rates(rows, settings())["best_rates"] == dict.fromkeys(networks.ARMS, 0.3)
    hopeless = [row | {"trains": False} if row["arm"] == "none" else row for row in rows]
    chosen = trainings.best_rates(hopeless, settings())["best_rates"]
    assert chosen["none"] == 1.0 and chosen["batch norm"] == 0.3, "an arm that never trains chooses among all"


def test_the_largest_rate_that_trains_is_taken_by_arm_and_seed_and_is_the_lowest_tried_where_none_does():
    rows = [
        *tuned("none", 0.1, [0.5, 0.5], [True, False]),
        *tuned("none", 1.0, [0.5, 0.5], [False, False]),
        *tuned("batch norm", 0.1, [0.5, 0.5], [False, True]),
        *tuned("batch norm", 1.0, [0.5, 0.5], [True, True]),
        *tuned("batch norm", 10.0, [0.5, 0.5], [True, False]),
    ]
    s = settings(rates=[0.1, 1.0, 10.0])
    found = {(r["arm"], r["seed"]): r["decades"] for r in trainings.largest_rates(rows, s)}
    assert found == {("none", 0): -1, ("none", 1): -1, ("batch norm", 0): 1, ("batch norm", 1): 0}
    assert trainings.range_gain(rows, s, "batch norm", "none").mean == close(1.5)


def test_a_reduction_is_the_share_of_the_first_arms_value_by_which_the_seconds_is_lower():
    rows = by_seed(("x", [4.0, 2.0]), arm="none") + by_seed(("x", [1.0, 1.0]), arm="batch norm")
    found = trainings.reduction(rows[::-1], "x", "none", "batch norm")
    assert found.mean == close(lower_by(0.75, 0.5)) and found.unit == "relative" and found.n == 2
    left = stats.interval([0.25, 0.5], method="log-t")
    assert (found.low, found.high) == (close(1 - left.high), close(1 - left.low))


def test_means_of_a_seed_are_over_its_own_steps_alone():
    rows = [{"arm": "none", "seed": seed, "x": x} for seed, x in [(0, 1.0), (0, 3.0), (1, 10.0)]]
    assert trainings.seed_means(rows, "x") == [
        {"arm": "none", "seed": 0, "x": 2.0},
        {"arm": "none", "seed": 1, "x": 10.0},
    ]


def test_each_arm_is_watched_at_its_own_best_rate_and_batch_norm_at_that_of_none_once():
    def pairs(best):
        return [(r["arm"], r["rate"]) for r in trainings.watched_runs(settings(seeds=[0], best_rates=best))]

    own = [("none", 0.1), ("batch norm", 1.0), ("batch norm + noise", 1.0), ("noise alone", 0.1)]
    assert pairs(BEST) == [*own, ("batch norm", 0.1)]
    assert pairs(BEST | {"batch norm": 0.1}) == [("none", 0.1), ("batch norm", 0.1), *own[2:]]


def test_arms_take_turns_seed_by_seed_each_at_its_own_best_rate():
    runs = trainings.learning_runs(settings(spread_seeds=2, best_rates=BEST))
    assert [(r["seed"], r["arm"], r["rate"]) for r in runs] == [(n, *pair) for n in (0, 1) for pair in BEST.items()]


@pytest.mark.parametrize(
    "values",
    [
        {"rates": [0.1]},
        {"rates": [0.3, 0.1]},
        {"rates": [0.0, 0.1]},
        {"target_loss": 1.0},
        {"target_accuracy": 0.0},
        {"spread_seeds": 1},
        {"batch_size": 257},
        {"layers": 1},
    ],
)
def test_settings_with_which_no_comparison_can_end_are_refused_before_the_first_run(digits, values):
    good = {"rates": [0.1, 1.0], "target_loss": 0.3, "target_accuracy": 0.7, "spread_seeds": 2}
    assert len(rates.RATES.conditions(measuring(digits, **good))) == 5 * 2 * 2
    with pytest.raises(ValueError, match=next(iter(values))):
        rates.RATES.conditions(measuring(digits, **good | values))


def test_a_diverged_training_counts_as_guessing_and_as_one_that_does_not_train(digits):
    s = measuring(digits, tuning_epochs=1, epochs=1, target_loss=0.3, target_accuracy=0.7)
    (row,) = trainings.tuning(s, "none", 1e9, 0)
    assert row == {"what": "tuning", "trains": False, "train_error": 0.9, "val_error": 0.9, "growth": None}
    run = trainings.learning(s, "none", 1e9, 0)[0]
    assert run["diverged"] and not run["reached"] and not run["arrived"] and run["accuracy"] == close(0.1)
    assert run["train_loss"] == close(math.log(10)) and run["steps_to_loss"] == run["steps"]


def test_a_training_that_reaches_the_loss_says_after_how_many_steps(digits):
    s = measuring(digits, epochs=5, target_loss=0.8, target_accuracy=0.2)
    run, *curve = trainings.learning(s, "batch norm", 0.1, 0)
    assert run["reached"] and run["arrived"] and 5 <= run["steps_to_loss"] < run["steps"] == 20
    before = [r["loss"] for r in curve if r["step"] < run["steps_to_loss"]]
    assert min(before) > trainings.loss_level(s), "and not before"
    assert next(r["loss"] for r in curve if r["step"] == run["steps_to_loss"]) <= trainings.loss_level(s)


# Watching


def test_the_shift_is_the_change_of_means_in_deviations_and_of_variances_in_variances():
    before = [(torch.tensor([0.0, 0.0]), torch.tensor([3.0, 4.0]))]
    after = [(torch.tensor([0.0, math.sqrt(7)]), torch.tensor([3.0, 9.0]))]
    assert watching.shift_between(before, after) == close((math.sqrt(7) / math.sqrt(7) + 5 / 5) / 2)
    assert watching.shift_between(before, before) == 0


def test_what_layers_are_fed_is_taken_in_training_mode_and_leaves_the_network_as_it_was():
    model, images = net(), torch.randn(16, 1, 8, 8)
    state = copy.deepcopy(model.state_dict())
    fed = watching.layer_inputs(model.eval(), images)
    assert len(fed) == 3 and all((var >= 0).all() and len(mean) == len(var) for mean, var in fed)
    output = model.layers[0].train()(images)
    assert torch.allclose(fed[0][0], output.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(fed[0][1], output.var((0, 2, 3)), atol=1e-4)
    model.load_state_dict(state)
    watching.gradients_of(model, images, torch.arange(16) % 10)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def moved(model, place):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.layers[place].linear.weight.add_(0.1 * torch.randn_like(other.layers[place].linear.weight))
    return other


def test_a_gradient_turns_only_because_layers_before_it_have_moved():
    model, images, labels = net(), torch.randn(16, 1, 8, 8), torch.arange(16) % 10
    assert watching.gradient_turn(model, model, images, labels) == 0
    assert watching.gradient_turn(model, moved(model, 2), images, labels) == 0, "the last layer is before no other"
    assert watching.gradient_turn(model, moved(model, 0), images, labels) > 0.01


def test_along_the_gradient_a_short_step_lowers_the_loss_and_a_longer_one_changes_the_gradient_more():
    model, images, labels = net(), torch.randn(16, 1, 8, 8), torch.arange(16) % 10
    rows = watching.along_gradient(model, images, labels, rate=1e-3)
    own = [r for r in rows if r["unit"] == "own rate"]
    assert own[0]["loss_change"] < 0
    for unit, stretches in watching.STRETCHES.items():
        part = [r for r in rows if r["unit"] == unit]
        assert [r["stretch"] for r in part] == list(stretches)
        assert part[0]["gradient_change"] < part[-1]["gradient_change"]


def test_a_share_of_the_length_is_the_same_step_whatever_the_scale_of_weights_before_a_norm():
    model, images, labels = net().double(), torch.randn(16, 1, 8, 8).double(), torch.arange(16) % 10
    large = copy.deepcopy(model)
    with torch.no_grad():
        for module in itertools.chain(model.modules(), large.modules()):
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-12  # its own is not scaled with the weights
        for layer in large.layers:
            layer.linear.weight.mul_(3)
    one, other = (watching.along_gradient(m, images, labels, rate=0.1) for m in (model, large))
    for a, b in zip(one, other, strict=True):
        same = a["gradient_change"] == pytest.approx(b["gradient_change"], rel=1e-4)
        assert same == (a["unit"] == "share of length")


def test_rows_with_a_number_that_is_none_are_left_out():
    assert watching.finite([{"a": 1.0}, {"a": math.nan}, {"a": math.inf, "b": 1}, {"c": "x"}]) == [
        {"a": 1.0},
        {"c": "x"},
    ]


def test_a_watched_epoch_has_a_shift_for_every_step_but_the_first_and_probes_a_few_in_depth(digits):
    s = measuring(digits, batch_size=32)
    rows = watching.watched(s, "batch norm", 0.1, 0)
    count = len(digits.train) // 32
    assert [r["step"] for r in rows if r["what"] == "shift"] == list(range(1, count))
    deep = [0, count // 2]
    assert sorted({r["step"] for r in rows if r["what"] == "smooth"}) == deep
    assert sorted({r["step"] for r in rows if r["what"] == "size"}) == deep
    assert [r["step"] for r in rows if r["what"] == "turn"] == [step + 1 for step in deep]


# Estimates of the arms


def test_the_range_of_rates_is_wider_with_batch_norm_where_the_estimate_is_positive():
    rows = [
        *tuned("none", 0.1, [0.5, 0.5]),
        *tuned("none", 10.0, [0.5, 0.5], [False, False]),
        *tuned("batch norm", 0.1, [0.5, 0.5]),
        *tuned("batch norm", 10.0, [0.5, 0.5], [True, False]),
        *tuned("batch norm, held", 0.1, [0.5, 0.5]),
        *tuned("batch norm, held", 10.0, [0.5, 0.5], [False, False]),
        *tuned("noise alone", 10.0, [0.5, 0.5]),
    ]
    s = settings(rates=[0.1, 10.0])
    found = rates.estimates(rows, s)
    assert found["range_gain"].mean == close(1.0) and found["held_range_loss"].mean == close(1.0)
    assert rates.trains_at_the_top(rows, s) == ["batch norm", "noise alone"]


def run(arm, seed, **values):
    return {"stage": "learn", "what": "run", "arm": arm, "rate": BEST[arm], "seed": seed} | values


def runs(**columns):
    """Rows of the kind `run`: column=arm → values by seed."""
    rows = {}
    for column, arms in columns.items():
        for arm, values in arms.items():
            for seed, value in enumerate(values):
                rows.setdefault((arm, seed), run(arm, seed))[column] = value
    return list(rows.values())


def test_convergence_compares_the_arm_without_a_norm_to_the_one_with_it_seed_by_seed():
    rows = runs(
        steps_to_loss={"none": [300, 100], "batch norm": [100, 100], "noise alone": [900, 900]},
        accuracy={"none": [0.5, 0.7], "batch norm": [0.6, 0.9], "noise alone": [0.1, 0.1]},
    )
    rows += [{"what": "curve", "arm": "none", "seed": 0, "step": 5, "loss": 1.0}]
    rows += tuned("none", 0.1, [0.5, 0.5]) + tuned("none", 1.0, [0.5, 0.5], [False, False])
    rows += tuned("batch norm", 0.1, [0.5, 0.5]) + tuned("batch norm", 1.0, [0.5, 0.5])
    s = settings(rates=[0.1, 1.0])
    found = convergence.estimates(rows[::-1], s)
    assert found["step_ratio"].mean == close(math.sqrt(3 * 1))
    assert found["accuracy_gain"].mean == close((0.1 + 0.2) / 2)
    assert found["lr_range_gain"].mean == close(1.0)
    assert found["spread_ratio"].mean == close(0.2 / 0.3) and found["spread_ratio"].method == "bootstrap"


def test_the_ratio_of_spreads_is_one_arms_standard_deviation_over_the_others_and_pairs_seeds():
    draw = torch.Generator().manual_seed(0)
    wide = torch.randn(12, generator=draw).tolist()
    narrow = [0.5 * x for x in wide]
    rows = by_seed(("accuracy", wide), arm="none") + by_seed(("accuracy", narrow), arm="batch norm")
    found = convergence.spread_ratio(rows, "accuracy", "none", "batch norm")
    assert (found.mean, found.low, found.high) == (close(2.0), close(2.0), close(2.0)), "a share of each other exactly"
    assert found.n == 12 and found.unit == "times"
    unpaired = by_seed(("accuracy", wide), arm="none") + by_seed(("accuracy", narrow[::-1]), arm="batch norm")
    other = convergence.spread_ratio(unpaired, "accuracy", "none", "batch norm")
    assert other.mean == close(2.0) and other.low < 2 < other.high
    constant = by_seed(("accuracy", [0.5] * 12), arm="batch norm")
    floor = convergence.spread_ratio(rows[:12] + constant, "accuracy", "none", "batch norm")
    assert math.isfinite(floor.high) and floor.mean > 1000, "a spread of none is taken as the least that shows"


def watched_rows(what, column, values):
    """Two steps of each arm, rate and seed, around the value given: (arm, rate) → values by seed."""
    return [
        {"stage": "watch", "what": what, "arm": arm, "rate": rate, "seed": seed, "step": step, column: value + away}
        for (arm, rate), by in values.items()
        for seed, value in enumerate(by)
        for step, away in enumerate((-0.5, 0.5))
    ]


def shift_rows():
    none, own, control = ("none", 0.1), ("batch norm", 1.0), ("batch norm", 0.1)
    shifts = {none: [8.0, 4.0], own: [2.0, 2.0], control: [1.0, 1.0], ("batch norm + noise", 1.0): [16.0, 6.0]}
    turns = {none: [2.0, 4.0], own: [4.0, 4.0], control: [9.0, 9.0]}
    losses = {"none": [1.0, 2.0], "batch norm": [0.5, 1.0], "batch norm + noise": [0.75, 1.75]}
    losses |= {"noise alone": [1.1, 2.25]}
    quiet = {"none": [1.0, 1.0], "batch norm": [0.5, 0.5], "batch norm + noise": [1.0, 1.0], "noise alone": [3.0, 3.0]}
    return [
        *watched_rows("shift", "shift", shifts),
        *watched_rows("turn", "turn", turns),
        *runs(train_loss=losses, quiet_loss=quiet),
    ]


def test_the_shift_is_compared_at_each_arms_own_rate_and_as_a_control_at_the_rate_of_none():
    found = shift.estimates(shift_rows(), settings(best_rates=BEST))
    assert found["reduction"].mean == close(lower_by(6 / 8, 2 / 4))
    assert found["reduction_same_rate"].mean == close(lower_by(7 / 8, 3 / 4))
    assert found["turn_reduction"].mean == close(lower_by(-2 / 2, 0)), "negative where it is higher with batch norm"
    assert found["noise_shift_reduction"].mean == close(lower_by(-8 / 8, -2 / 4))


def test_the_share_of_the_gain_lost_to_noise_is_that_of_the_gain_over_no_norm_by_seed():
    found = shift.estimates(shift_rows(), settings(best_rates=BEST))
    assert found["loss_gain"].mean == close((0.5 + 1.0) / 2) and found["loss_gain"].unit == "nats"
    assert found["gain_lost_to_noise"].mean == close((0.25 / 0.5 + 0.75 / 1.0) / 2)
    assert found["quiet_gain_lost_to_noise"].mean == close(1.0)
    assert found["noise_alone_cost"].mean == close((0.1 + 0.25) / 2)
    assert found["gain_lost_beyond_noise"].mean == close(((0.25 - 0.1) / 0.5 + (0.75 - 0.25) / 1.0) / 2)


def test_where_the_noise_takes_as_much_without_a_norm_nothing_is_lost_beyond_it():
    losses = {"none": [1.0, 1.0], "batch norm": [0.5, 0.5], "batch norm + noise": [0.8, 0.9], "noise alone": [1.3, 1.4]}
    rows = runs(train_loss=losses)
    assert shift.lost_share(rows, "train_loss", control=True).mean == close(0.0)
    assert shift.lost_share(rows, "train_loss").mean == close((0.6 + 0.8) / 2)


def test_smoothness_is_compared_after_one_step_of_the_own_rate_and_three_hundredths_of_the_length():
    rows = []
    for (arm, rate), own, length in [
        (("none", 0.1), [1.0, 2.0], [4.0, 4.0]),
        (("batch norm", 1.0), [2.0, 2.0], [1.0, 2.0]),
        (("batch norm", 0.1), [0.1, 0.1], [9.0, 9.0]),  # the control at the other rate, not compared
        (("batch norm + noise", 1.0), [5.0, 5.0], [2.0, 2.0]),
    ]:
        for unit, stretch, values in [
            ("own rate", 1, own),
            ("own rate", 4, [99.0, 99.0]),
            ("share of length", 0.03, length),
            ("share of length", 0.1, [77.0, 77.0]),
        ]:
            more = by_seed(("gradient_change", values), arm=arm, rate=rate, unit=unit, stretch=stretch)
            rows += [row | {"what": "smooth"} for row in more]
    found = smoothness.estimates(rows, settings(best_rates=BEST))
    assert found["own_rate_reduction"].mean == close(lower_by(-1, 0))
    assert found["length_reduction"].mean == close(lower_by(3 / 4, 2 / 4))
    assert found["noise_length_reduction"].mean == close(2 / 4)


def scaling_rows(growth):
    return [
        *tuned("batch norm", 0.1, [0.5, 0.5], growth=1e6),  # not its best rate
        *(row | {"growth": g} for row, g in zip(tuned("batch norm", 1.0, [0.5, 0.5]), growth, strict=True)),
        *tuned("batch norm, held", 0.1, [0.5, 0.5], growth=1.0),
        *tuned("batch norm, held", 1.0, [0.5, 0.5], [False, True], growth=1.0),
        *tuned("none", 1.0, [0.5, 0.5], growth=1e3),
        *runs(train_loss={"batch norm": [0.5, 1.0], "batch norm, held": [0.75, 1.5]}),
    ]


def test_rate_scaling_takes_growth_at_batch_norms_best_rate_and_what_held_weights_cost():
    s = settings(rates=[0.1, 1.0], best_rates=BEST)
    found = rate_scaling.estimates(scaling_rows([10.0, 1000.0]), s)
    assert found["growth"].mean == close(2.0) and found["growth"].unit == "decades"
    assert found["held_range_loss"].mean == close(0.5)
    assert found["held_loss_cost"].mean == close((0.25 + 0.5) / 2)
    assert rate_scaling.notes(scaling_rows([10.0, 1000.0]), s) == []


def test_growth_that_is_not_finite_is_left_out_and_said():
    s = settings(rates=[0.1, 1.0], best_rates=BEST)
    rows = scaling_rows([10.0, math.inf])
    assert "growth" not in rate_scaling.estimates(rows, s)
    assert rate_scaling.notes(rows, s)[0].startswith("rate_scaling/growth: ")


def test_the_spread_over_units_is_compared_before_training_and_after():
    start = {"none": [0.5, 1.0], "batch norm": [0.25, 0.1], "noise alone": [9.0, 9.0]}
    after = {"none": [0.4, 0.4], "batch norm": [0.4, 0.3], "noise alone": [None, 9.0]}
    rows, s = runs(spread_init=start, spread_trained=after), settings(best_rates=BEST)
    found = distribution.estimates(rows, s)
    assert found["spread_reduction_at_start"].mean == close(lower_by(0.5, 0.9))
    assert found["spread_reduction_trained"].mean == close(lower_by(0, 0.25))
    assert distribution.notes(rows, s) == [], "an arm that is not compared may diverge"


def test_a_spread_after_training_that_no_training_reached_is_left_out_and_said():
    rows = runs(
        spread_init={"none": [0.5, 1.0], "batch norm": [0.1, 0.1]},
        spread_trained={"none": [0.4, None], "batch norm": [0.4, 0.3]},
    )
    s = settings(best_rates=BEST)
    assert set(distribution.estimates(rows, s)) == {"spread_reduction_at_start"}
    assert distribution.notes(rows, s) == ["distribution/spread_reduction_trained: a training diverged (none)"]


def test_gradients_are_suppressed_where_they_are_larger_without_batch_norm():
    rows = []
    for (arm, rate), weights, outputs in [
        (("none", 0.1), 100.0, 1.0),
        (("batch norm", 1.0), 10.0, 100.0),
        (("batch norm", 0.1), 1.0, 7.0),
    ]:
        for seed, layer in itertools.product((0, 1), (1, 2)):
            away = (-0.5, 0.5)[layer - 1]  # the mean over layers is taken before the logarithm
            row = {"what": "size", "arm": arm, "rate": rate, "seed": seed, "layer": layer, "step": 0}
            rows.append(row | {"weights": weights * (1 + away), "outputs": outputs * (1 + away)})
    found = distribution.gradient_estimates(rows, settings(best_rates=BEST))
    assert found["suppression"].mean == close(1.0)
    assert found["suppression_same_rate"].mean == close(2.0)
    assert found["output_suppression"].mean == close(-2.0)


# Anywhere


def trained(kind, norm, size, whole, rate, errors, accuracies):
    cell = {"kind": kind, "norm": norm, "size": size, "whole": whole, "rate": rate}
    pairs = enumerate(zip(errors, accuracies, strict=True))
    return [cell | {"seed": seed, "val_error": error, "accuracy": accuracy} for seed, (error, accuracy) in pairs]


def layer_rows(layer, gradients):
    return [
        {"layer": layer, "size": 2**k, "runs": gradient is not None, "gradient": gradient or 0.0, "says": ""}
        for k, gradient in enumerate(gradients)
    ]


def anywhere_rows():
    rows = layer_rows("fully connected", [None, 1e-9, 0.0009, 0.5, 1.0])
    rows += layer_rows("convolution, maps of 4×4", [None, None, 1.0])
    for kind, norm, size, whole, accuracies in [
        ("convolution", "batch", 128, True, [0.8, 0.9]),
        ("convolution", "none", 128, True, [0.7, 0.6]),
        ("convolution", "group", 128, True, [0.1, 0.1]),
        ("convolution", "batch", 128, False, [0.2, 0.2]),  # of fewer pictures, not compared
        ("convolution", "none", 128, False, [0.3, 0.3]),
        ("connected", "batch", 128, True, [0.5, 0.5]),
        ("connected", "none", 128, True, [0.6, 0.7]),
        ("convolution", "batch", 2, False, [0.4, 0.5]),
        ("convolution", "group", 2, False, [0.5, 0.7]),
        ("connected", "batch", 2, False, [0.2, 0.2]),
        ("connected", "layer", 2, False, [0.5, 0.4]),
    ]:
        rows += trained(kind, norm, size, whole, 0.03, [0.5, 0.5], accuracies)
        rows += trained(kind, norm, size, whole, 0.1, [0.6, 0.5], [0.99, 0.99])  # a higher validation error
    return rows


def test_norms_are_compared_in_each_kind_of_layer_and_batch_each_at_its_chosen_rate():
    found = anywhere.estimates(anywhere_rows(), settings())
    assert found["convolution_change"].mean == close((0.1 + 0.3) / 2)
    assert found["fully_connected_change"].mean == close((-0.1 - 0.2) / 2)
    assert found["batch_of_two_change"].mean == close((-0.1 - 0.2) / 2)
    assert found["batch_of_two_connected_change"].mean == close((-0.3 - 0.2) / 2)


def test_rates_are_chosen_by_validation_error_for_every_batch_size_alone():
    rows = trained("convolution", "batch", 2, False, 0.03, [0.2, 0.4], [0.1, 0.1])
    rows += trained("convolution", "batch", 2, False, 0.1, [0.3, 0.4], [0.9, 0.9])
    rows += trained("convolution", "batch", 8, False, 0.03, [0.5, 0.5], [0.2, 0.2])
    rows += trained("convolution", "batch", 8, False, 0.1, [0.1, 0.1], [0.3, 0.3])
    assert {(r["size"], r["rate"]) for r in anywhere.at_best(rows)} == {(2, 0.03), (8, 0.1)}


def test_batches_are_useless_if_refused_or_if_hardly_any_of_the_largest_ones_gradient_comes_through():
    rows = anywhere_rows()
    assert anywhere.refused(rows, "fully connected") == [1]
    assert anywhere.useless(rows, "fully connected") == [1, 2, 4]
    assert anywhere.estimates(rows, settings())["refused_batches"].mean == 3


def test_a_fully_connected_batch_norm_refuses_one_and_passes_hardly_a_gradient_of_two():
    rows = [{"layer": layer} | row for layer in anywhere.LAYERS for row in anywhere.anywhere(settings(), layer=layer)]
    assert anywhere.refused(rows, "fully connected") == [1]
    assert anywhere.useless(rows, "fully connected") == [1, 2]
    assert anywhere.useless(rows, "convolution, maps of 4×4") == []
    assert anywhere.useless(rows, "convolution, maps of 1×1") == [1, 2]
    assert "Expected more than 1 value" in rows[0]["says"]


def test_a_residual_network_without_a_norm_starts_with_branches_of_zero_and_one_with_it_does_not(digits):
    s = measuring(digits)
    for norm, zero in (("none", True), ("batch", False)):
        units = anywhere.network_of(s, "residual", norm).units()
        assert {bool((unit.conv2.weight == 0).all()) for unit in units} == {zero}
    assert anywhere.network_of(s, "connected", "layer").flat and not anywhere.network_of(s, "convolution", "layer").flat


def test_only_a_batch_of_one_in_connected_batch_norm_is_left_out_and_impossible_sizes_are_refused(digits):
    good = {"epochs": 1, "batch_sizes": [1, 2], "batch_pictures": 64, "batch_epochs": 1, "batch_rates": [0.1]}
    cells = {tuple(r.values())[:3] for r in anywhere.ANYWHERE.conditions(measuring(digits, **good)) if "kind" in r}
    everything = {(k, n, size) for k, norms in anywhere.KINDS.items() for n in norms for size in (1, 2, 128)}
    assert everything - cells == {("connected", "batch", 1)}
    for values in ({"batch_sizes": [4]}, {"batch_sizes": [0, 2]}, {"batch_rates": []}, {"batch_sizes": [2, 512]}):
        with pytest.raises(ValueError, match=next(iter(values))):
            anywhere.ANYWHERE.conditions(measuring(digits, **good | values))
    with pytest.raises(ValueError, match="batch_pictures=8"):
        anywhere.ANYWHERE.conditions(measuring(digits, **good | {"batch_sizes": [2, 16], "batch_pictures": 8}))


# Statistics


@pytest.mark.parametrize("case", statistics.CASES)
def test_the_equation_is_pytorchs_layer_in_training(case):
    (row,) = statistics.definition(case)
    assert 0 <= row["difference"] < 1e-5 and 0 <= row["testing"] < 1e-5
    assert row["whole_set"] > 0.1  # running averages remember their start, and one batch of all data is not enough
    layer = nn.BatchNorm1d(3)
    x = torch.randn(8, 3)
    assert not torch.allclose(statistics.equation(x, layer.weight, layer.bias), layer.eval()(x), atol=1e-2)


def batches(images, size):
    return [(part, None) for part in images.split(size)]


def test_exact_statistics_are_those_of_all_pictures_however_they_are_cut_into_batches():
    model = net()
    images = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    whole = statistics.exact_statistics(model, batches(images, 60))
    cut = statistics.exact_statistics(model, batches(images, 7))
    assert max(map(abs, statistics.variance_off(cut, whole))) < 1e-6
    z = model.layers[0].linear(images).double()
    assert torch.allclose(whole[0][0], z.mean((0, 2, 3))) and torch.allclose(
        whole[0][1], z.var((0, 2, 3), correction=0)
    )
    normal = F.batch_norm(model.layers[0].linear(images), *(v.float() for v in whole[0]))
    second = model.layers[1].linear(F.relu(normal)).double()  # fed by exact statistics, as in evaluation
    assert torch.allclose(whole[1][1], second.var((0, 2, 3), correction=0), rtol=1e-4)


def test_averages_over_batches_miss_the_variance_between_them_and_one_batch_of_everything_does_not():
    model, images = net(), torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    images = images + 2 * torch.randn(60, 1, 1, 1, generator=torch.Generator().manual_seed(2))
    exact = statistics.exact_statistics(model, batches(images, 60))
    one, pairs = (statistics.averaged_statistics(model, batches(images, size)) for size in (60, 2))
    assert max(map(abs, statistics.variance_off(one, exact))) < 5e-3  # m / (m - 1) of the smallest layer
    assert statistics.variance_off(pairs, exact)[0] < -0.1


def test_a_variance_is_off_by_its_ratio_to_the_exact_one_mean_of_channels_layer_by_layer():
    def of(*variances):
        return [(torch.zeros(2), torch.tensor(v)) for v in variances]

    ours, exact = of([2.0, 3.0], [1.0, 1.0]), of([1.0, 2.0], [2.0, 2.0])
    assert statistics.variance_off(ours, exact) == [close(0.75), close(-0.5)]
    assert statistics.variance_error(ours, exact) == close((0.75 + 0.5) / 2)
    assert statistics.variance_error(of([2.0, 0.5]), of([1.0, 1.0])) == close(0.75), "opposite errors add up"


def test_the_running_variance_forgets_its_start_at_the_update_rate():
    layer, steps = nn.BatchNorm1d(1), 20
    x = torch.tensor([[-0.5], [0.5]] * 500)
    for _ in range(steps):
        layer(x)
    true = x.var().item()  # PyTorch's running variance is the unbiased one
    assert layer.running_var.item() / true - 1 == pytest.approx(statistics.variance_left(true, steps), rel=1e-4)


def test_the_hooks_keep_what_pytorch_keeps_and_looking_is_left_out_of_the_copy(digits):
    s = measuring(digits)
    model = net().train()
    kept = statistics.follow(s, model)
    for _ in range(3):
        model(torch.randn(16, 1, 8, 8))
    model.eval()(torch.randn(16, 1, 8, 8))
    for norm, (mean, var) in zip(statistics.norms_of(model), kept[0.1], strict=True):
        assert torch.allclose(norm.running_mean, mean, atol=1e-5) and torch.allclose(norm.running_var, var, atol=1e-4)
    assert not torch.allclose(kept[0.1][0][1], kept[0.3][0][1])
    before = kept[0.1][0][0].clone()
    statistics.without_hooks(model).train()(torch.randn(16, 1, 8, 8))
    assert torch.equal(before, kept[0.1][0][0])


def test_statistics_are_put_into_the_first_norms_alone():
    model = net()
    statistics.use(model, [(torch.full((8,), 2.0), torch.full((8,), 3.0))])
    first, second, _ = statistics.norms_of(model)
    assert (first.running_mean == 2).all() and (first.running_var == 3).all()
    assert (second.running_mean == 0).all() and (second.running_var == 1).all()


def test_changed_pictures_are_brighter_or_flatter_and_unchanged_ones_the_same(digits):
    split = digits.test
    of = {name: statistics.changed(split, name).images.float() for name in statistics.CHANGES}
    assert (of["none"] - split.images.float()).abs().max() <= 1
    mean, spread = (lambda name: of[name].mean().item()), (lambda name: of[name].std().item())
    assert mean("none") < mean("brighter by 0.2") < mean("brighter by 0.4")
    assert spread("contrast × 0.5") == pytest.approx(spread("none") / 2, rel=0.02)
    assert spread(statistics.FLATTEST) == pytest.approx(spread("none") / 4, rel=0.02)
    assert mean("contrast × 0.5") == pytest.approx(mean("none"), abs=1)


def test_a_network_without_a_norm_has_no_statistics_to_take_from_the_pictures(digits):
    s = measuring(digits)
    named = [r["statistics"] for r in statistics.on_changed(s, net("none"), [], "none")]
    assert named == ["running"] * len(statistics.CHANGES)
    with_norm = net()
    running = [(n.running_mean.clone(), n.running_var.clone()) for n in statistics.norms_of(with_norm)]
    rows = statistics.on_changed(s, with_norm, running, "batch norm")
    assert [r["statistics"] for r in rows] == ["running", "the pictures' own"] * len(statistics.CHANGES)


def test_the_chapters_statistics_are_judged_at_pytorchs_update_rate_after_twenty_steps_and_at_the_end():
    def at(what, step, rate, **columns):
        row = {"what": what, "step": step, "update_rate": rate}
        return [row | {"seed": seed} | {k: v[seed] for k, v in columns.items()} for seed in (0, 1)]

    rows = [
        {"what": "definition", "case": "2-d", "difference": 1e-7, "testing": 2e-7, "whole_set": 0.5},
        {"what": "definition", "case": "4-d", "difference": 3e-6, "testing": 1e-7, "whole_set": 0.3},
        *at("short", 20, 0.1, off=[0.1, 0.3], test_change=[0.02, 0.04]),
        *at("short", 40, 0.1, off=[7.0, 7.0], test_change=[7.0, 7.0]),
        *at("short", 20, 0.3, off=[9.0, 9.0], test_change=[None, None]),
        *at("long", 500, 0.1, off=[-0.01, 0.03], test_change=[0.001, -0.003]),
        *at("long", 500, 1.0, off=[5.0, 5.0], test_change=[None, None]),
        {"what": "averaged", "size": 2, "seed": 0, "all": -0.1},
    ]
    found = statistics.estimates(rows, settings())
    assert found["training_difference"].mean == 3e-6 and found["training_difference"].method == "exact"
    assert found["testing_difference"].mean == 2e-7 and found["whole_set_difference"].mean == 0.3
    assert found["short_run_difference"].mean == close(0.2) and found["short_accuracy_change"].mean == close(0.03)
    assert found["long_run_difference"].mean == close(0.01) and found["accuracy_change"].mean == close(-0.001)


def test_what_the_pictures_own_statistics_gain_is_taken_change_by_change_from_batch_norm_alone():
    rows = []
    for seed, change in itertools.product((0, 1), statistics.CHANGES):
        flat = change == statistics.FLATTEST
        for network, kind, accuracy in [
            ("batch norm", "running", 0.2 if flat else 0.8),
            ("batch norm", "the pictures' own", 0.7 + 0.1 * seed if flat else 0.8),
            ("none", "running", 0.5 if flat else 0.6),
        ]:
            row = {"what": "changed", "network": network, "change": change, "statistics": kind}
            rows.append(row | {"seed": seed, "accuracy": accuracy})
    found = statistics.changed_estimates(rows, settings())
    assert found["own_gain_contrast_025"].mean == close((0.5 + 0.6) / 2)
    assert found["own_gain_none"].mean == close(0.0)
    assert found["lost_to_flatness"].mean == close(0.6) and found["lost_to_flatness_plain"].mean == close(0.1)
    assert [name for name in found if name.startswith("own_gain")] == [
        "own_gain_none",
        "own_gain_brighter_by_02",
        "own_gain_brighter_by_04",
        "own_gain_contrast_05",
        "own_gain_contrast_025",
    ]


# Cost


def timed(what, variant, times):
    return [{"what": what, "variant": variant, "round": k, "time_s": t} for k, t in enumerate(times)]


def test_times_are_compared_round_by_round_and_a_longer_step_is_a_positive_change():
    rows = [
        *timed("step", "none", [1.0, 2.0]),
        *timed("step", "batch", [1.5, 2.0])[::-1],
        *timed("step", "group", [9.0, 9.0]),
        *timed("answer", "none", [4.0, 2.0]),
        *timed("answer", "unfolded", [5.0, 4.0]),
        *timed("answer", "folded", [4.0, 1.0]),
        *runs(time_to_accuracy={"none": [3.0, 8.0], "batch norm": [1.0, 2.0]}),
    ]
    found = cost.estimates(rows, settings())
    assert found["step_time_change"].mean == close(-lower_by(-0.5, 0))
    assert found["inference_time_change"].mean == close(-lower_by(0, 0.5))
    assert found["unfolded_time_change"].mean == close(-lower_by(-0.25, -1.0))
    assert found["folding_change"].mean == close(-lower_by(0.2, 0.75))
    assert found["time_to_accuracy_ratio"].mean == close(math.sqrt(3 * 4))
    assert {e.unit for name, e in found.items() if name.endswith("change")} == {"relative"}


def test_the_time_to_an_accuracy_is_that_of_both_arms_at_their_own_rates_and_few_rounds_are_refused():
    s = settings(rounds=3, spread_seeds=2, best_rates=BEST)
    timings, *trainings_of_arms = cost.COST.conditions(s)
    assert timings == {"number": cost.NUMBER}
    assert [(r["arm"], r["rate"]) for r in trainings_of_arms] == [("none", 0.1), ("batch norm", 1.0)] * 2
    with pytest.raises(ValueError, match="rounds=2"):
        cost.COST.conditions(settings(rounds=2, spread_seeds=2, best_rates=BEST))


def test_a_step_to_time_trains_the_network_and_an_answer_does_not(digits):
    s = measuring(digits)
    images, labels = train.Batches(digits, digits.train, networks.training(s, 64), s.device).first()
    step = cost.step_of(s, "batch", images, labels)
    model = step.__closure__[[c for c in step.__code__.co_freevars].index("model")].cell_contents
    before = model.fc.weight.clone()
    cost.answer_of(model.eval(), images)()
    assert torch.equal(model.fc.weight, before)
    model.train()
    step()
    assert not torch.equal(model.fc.weight, before)


# What is said of them


def estimate(low, high):
    return stats.Estimate((low + high) / 2, low, high, 3, 0.95, 1.0, "t", "relative")


def test_a_prediction_comes_true_only_where_its_whole_interval_lies_beyond_the_level():
    assert batch_norm.found_of(estimate(0.1, 0.3), 0) == "as predicted"
    assert batch_norm.found_of(estimate(0.1, 0.3), 0.5) == "against it"
    assert batch_norm.found_of(estimate(-0.1, 0.3), 0) == "open"
    assert batch_norm.found_of(None, 0) == "not measured"


def test_an_explanation_is_whole_only_if_all_its_predictions_came_true_and_broken_if_one_went_against_it():
    true, false, unclear = estimate(0.6, 0.9), estimate(-0.9, -0.6), estimate(-0.5, 0.9)
    e = {measure: true for _, _, measure, _ in batch_norm.PREDICTIONS}
    e |= {"shift/gain_lost_beyond_noise": false, "smoothness/length_reduction": unclear, "shift/loss_gain": true}
    text = batch_norm.explanations(e)
    assert "All predictions came true for rate scaling. At least one went against covariate shift.\n" in text
    assert "*Open*: gradients change less, equal share of length, " in text
    assert "*Against it*: also beyond what it costs alone, " in text
    assert "*Not measured*: weights grow, so the effective rate falls, no run." in batch_norm.explanations(
        {name: found for name, found in e.items() if name != "rate_scaling/growth"}
    )
    assert batch_norm.found_of(estimate(0.1, 0.4), batch_norm.HALF) == "against it", "less than half of the gain"
