"""What decides the verdicts of the chapter on ResNeXt, Inception and DenseNet, on rows and graphs made by hand."""

import math
from dataclasses import replace

import pytest
import timm
import torch
import torchvision
from torch import nn

from resnet_lib import stats
from resnet_lib.experiments.families import accuracy, family, groups, memory, networks, speed
from tests.experiments.conftest import settings

SEEDS = (0, 1, 2)


class Projected(nn.Module):
    """A residual unit whose input is projected: neither summand is made of the other, both of its input."""

    def __init__(self, bent=False):
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1))
        self.shortcut = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU() if bent else nn.Identity())

    def forward(self, x):
        return self.branch(x).add_(self.shortcut(x))


class Skip(nn.Module):
    def forward(self, x):
        return torch.cat([x.relu() + x, x.relu() + x.tanh(), torch.cat([x, x.relu()], 1), torch.cat([x], 1)], 1)


def test_an_addition_counts_where_one_summand_was_made_of_the_other_or_both_of_a_projected_input():
    assert family.joins(Skip()) == {"additions": 1, "dense": 1, "siblings": 1}
    assert family.joins(Projected())["additions"] == 1
    assert family.joins(Projected(bent=True))["additions"] == 0, "an activation on the way makes it another branch"


class Inception(nn.Module):
    def forward(self, x):
        return torch.cat([x.relu(), x.tanh()], 1)


def test_results_of_one_input_side_by_side_are_siblings():
    assert family.joins(Inception()) == {"additions": 0, "dense": 0, "siblings": 1}


@pytest.mark.parametrize(
    ("network", "theirs", "expected"),
    [  # additions and concatenations of two or more in the graphs of torchvision and timm
        ("resnet50", torchvision.models.resnet50, (16, 0)),
        ("resnext50_32x4d", torchvision.models.resnext50_32x4d, (16, 0)),
        ("densenet121", timm.models.densenet121, (0, 58)),
        ("inception_v4", timm.models.inception_v4, (0, 25)),
        ("inception_resnet_v2", timm.models.inception_resnet_v2, (40, 43)),
    ],
)
def test_our_graphs_join_as_often_as_others_do_and_resnet_adds_in_every_unit(network, theirs, expected):
    with torch.device("meta"):
        ours, theirs = networks.published(network), theirs()
    for model in (ours, theirs):
        found = family.joins(model)
        assert (found["additions"], found["dense"] + found["siblings"]) == expected
    if network.startswith("resne"):
        assert expected[0] == len(ours.units())


def test_a_network_is_of_the_family_if_it_adds_once():
    rows = [{"network": n, "additions": a, "units": 16} for n, a in (("resnet", 16), ("densenet", 0))]
    found = family.estimates(rows, settings())
    assert {name: e.mean for name, e in found.items()} == {
        "resnet": 1.0,
        "densenet": 0.0,
        "resnet_units_without_addition": 0.0,
    }


@pytest.mark.parametrize("size", networks.NETWORKS)
@pytest.mark.parametrize("equal", ["flops", "parameters"])
@pytest.mark.parametrize("shape", [[1, 8, 8], [3, 16, 16], [3, 20, 33]])
def test_the_networks_of_one_budget_cost_the_same_on_grey_small_and_oblong_pictures(size, equal, shape):
    s = settings(network_size=size, facts={"shape": shape, "classes": 200})
    assert networks.equal_arms(s, equal) == list(networks.ARMS)
    costs = [
        networks.cost(replace(networks.config_of(s, equal, arm), num_classes=1), *shape[1:]) for arm in networks.ARMS
    ]
    own = [c["budget" if equal == "flops" else "parameters"] for c in costs]
    assert max(abs(c / own[0] - 1) for c in own) <= networks.TOLERANCE


def test_pictures_on_which_costs_differ_are_refused():
    s = settings(network_size="small", facts={"shape": [3, 9, 9]})
    with pytest.raises(ValueError, match=r"DenseNet has 0\.\d+ times the flops of basic ResNet; .* multiple of 4"):
        networks.equal_arms(s, "flops")
    with pytest.raises(ValueError, match="network_size='huge' is not one of 'small', 'large'"):
        networks.equal_arms(settings(network_size="huge"), "flops")


@pytest.mark.parametrize("arm", networks.ARMS)
@pytest.mark.parametrize("recomputed", [False, True])
def test_what_a_step_keeps_is_predicted_to_the_byte(arm, recomputed):
    config = networks.config_of(settings(network_size="small"), "flops", arm)
    images = torch.randn(2, 3, 12, 16)
    with torch.device("meta"):
        model = networks.build(config)
        predicted = networks.predicted_bytes(model, images.to("meta"), model.units() if recomputed else ())
    model = networks.build(config)
    assert networks.measured_bytes(model, images, model.units() if recomputed else ()) == predicted


def test_recomputing_changes_no_gradient():
    config = networks.config_of(settings(network_size="small"), "flops", "dense")
    torch.manual_seed(0)
    one, images = networks.build(config), torch.randn(4, 3, 8, 8)
    two = networks.build(config)
    two.load_state_dict(one.state_dict())
    networks.measured_bytes(one, images), networks.measured_bytes(two, images, two.units())
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-4)


def end(arm, seed, value, **changes):
    costs = {"parameters": 100, "madds": 1000, "kept_bytes": 50}
    return {"what": "end", "equal": "flops", "arm": arm, "rate": 0.1, "seed": seed, "accuracy": value} | costs | changes


def accuracies(**values):
    """Rows of six networks, of which all not named reach a half."""
    return [
        end(arm, n, values.get(arm, (0.5, 0.5, 0.5))[n], kept_bytes=150 if arm == "dense" else 50)
        for arm in networks.ARMS
        for n in SEEDS
    ]


def test_each_structure_is_compared_with_what_it_changes_paired_by_seed():
    found = accuracy.estimates(
        accuracies(grouped=(0.6, 0.62, 0.64), added=(0.4, 0.5, 0.6), paths=(0.3, 0.4, 0.5)), settings()
    )
    assert math.isclose(found["cardinality_gain"].mean, 0.12)
    assert (
        math.isclose(found["addition_gain"].mean, 0.1)
        and found["addition_gain"].high - found["addition_gain"].low < 1e-9
    )
    assert found["paths_gain"].low < 0 < found["paths_gain"].high
    assert math.isclose(found["least_over_chance"].mean, 0.3)  # the worst network of each seed, over a tenth
    assert found["kept_bytes_dense"].mean == 3 and found["parameters_dense"].mean == 1


def test_the_pareto_front_leaves_out_what_another_beats_in_all():
    from resnet_lib import plots

    rows = accuracies(dense=(0.9, 0.9, 0.9), paths=(0.2, 0.2, 0.2))
    with plots.captured():
        words = accuracy.draw_pareto(rows, settings())
    assert "highest mean accuracy is that of DenseNet" in words
    front = words.split("together than ")[1]
    assert "DenseNet" in front and "Inception without additions" not in front


def test_the_learning_rate_of_an_arm_is_the_one_with_the_lowest_validation_loss():
    rows = [
        {"arm": arm, "rate": rate, "loss": loss, "seed": accuracy.CHOOSER}
        for arm, rate, loss in (("a", 0.1, 2.0), ("a", 0.3, 1.0), ("b", 0.1, 1.0), ("b", 0.3, 1e9))
    ]
    assert accuracy.rates_of(rows) == {"a": 0.3, "b": 0.1}
    assert accuracy.rates_estimates(rows, settings())["at_an_end"].mean == 2
    s = settings(network_size="small", rates=[0.1, 0.3], rate_of=dict.fromkeys(networks.ARMS, 0.1))
    assert {c["seed"] for c in accuracy._rates(s, "flops")}.isdisjoint({c["seed"] for c in accuracy._arms(s, "flops")})


def timed(which, mode, times, **costs):
    return [
        {"which": which, "mode": mode, "network": name, "times_s": t, "madds": costs.get(name, 100)}
        for name, t in times.items()
    ]


def times(dense=2.0):
    one = dict.fromkeys(networks.ARMS, [1.0, 1.1, 1.2]) | {"dense": [dense, 1.1 * dense, 1.2 * dense]}
    two = {"resnet50": [3.0, 3.0, 3.0], "densenet121": [1.5, 1.5, 1.5]}
    rows = [row for mode in speed.MODES for row in timed("arms", mode, one)]
    return rows + [row for mode in speed.MODES for row in timed("published", mode, two, resnet50=400)]


def curve_settings(reached=(0.4, 0.6)):
    return settings(curves={f"{arm} {seed}": list(reached) for arm in networks.ARMS for seed in SEEDS})


def test_a_network_twice_as_slow_is_judged_half_way_and_an_equally_slow_one_at_its_end():
    found = speed.estimates(times(dense=2.0), curve_settings())
    assert math.isclose(found["equal_time_dense"].mean, 0.4 - 0.6) and found["equal_time_grouped"].mean == 0
    assert math.isclose(found["train_dense"].mean, 2)
    slow = speed.at_equal_time(times(dense=4.0), curve_settings())
    assert math.isclose(stats.where(slow, arm="dense")[0]["accuracy"], 0.25), "half way from chance to the first epoch"
    fast = speed.at_equal_time(times(dense=0.5), curve_settings())
    assert math.isclose(stats.where(fast, arm="dense")[0]["accuracy"], 0.6), "what has ended stays as it ended"


def test_a_speedup_stands_beside_what_the_multiply_adds_promise():
    found = speed.estimates(times(), curve_settings())
    assert math.isclose(found["train_speedup_densenet121"].mean, 2) and found["promised_densenet121"].mean == 4


def convolution(room, count, time_s, flops, moved):
    common = {"channels": 8, "peak": 100.0, "bandwidth": 10.0}
    return {"room": room, "groups": count, "times_s": [time_s] * 3, "flops": flops, "bytes": moved} | common


def test_the_roofline_is_the_longer_of_arithmetic_and_memory():
    rows = [convolution("equal_width", 1, 20.0, 1000, 20), convolution("equal_width", 16, 4.0, 60, 20)]
    rows += [convolution("equal_flops", 1, 20.0, 1000, 20), convolution("equal_flops", 16, 40.0, 1000, 80)]
    assert groups.roofline(rows[0]) == 10 and groups.roofline(rows[1]) == 2
    found = groups.estimates(rows, settings())
    assert found["speedup_equal_width_16"].mean == 5 and found["roofline_equal_width_16"].mean == 5
    assert found["slowdown_equal_flops_16"].mean == 2 and found["roofline_equal_flops_16"].mean == 1


@pytest.mark.parametrize("count", groups.GROUPS)
def test_grouped_convolutions_have_the_channels_or_the_multiply_adds_of_the_ungrouped_one(count):
    s, weights = settings(group_channels=32, group_batch=2), []
    for room in groups.ROOM:
        made, shape = groups.layer(s, room, count)
        assert made.groups == count and shape[1] == made.in_channels
        weights.append(made.weight.numel())
    first = groups.layer(s, "equal_flops", 1)[0].weight.numel()
    assert weights == [first // count, first]


GOOD = {
    "network_size": "small",
    "rates": [0.1, 0.3],
    "published_networks": ["resnet50", "densenet121"],
    "published_side": 75,
    "published_batch": 1,
    "growth_layers": [1, 2],
    "rounds": 3,
    "group_channels": 32,
    "group_batch": 1,
}


@pytest.mark.parametrize(
    ("experiment", "changes", "words"),
    [
        (accuracy.RATES, {"rates": [0.1, 0.1]}, "at least two different rates above 0"),
        (accuracy.RATES, {"rates": [0.0, 0.1]}, "at least two different rates above 0"),
        (memory.MEMORY, {"published_networks": ["vgg"]}, "holds 'vgg'; allowed: resnet50, resnext50_32x4d"),
        (memory.MEMORY, {"published_side": 64}, "published_side=64 must be at least 75 pixels, which Inception's stem"),
        (memory.MEMORY, {"growth_layers": [4]}, r"growth_layers=\[4\] must be at least two different numbers"),
        (speed.SPEED, {"published_networks": ["densenet121"]}, "must hold 'resnet50', over which the others are timed"),
        (speed.SPEED, {"rounds": 2}, "rounds=2 must be at least 3"),
        (groups.GROUPED, {"group_channels": 24}, "cardinality 16 does not divide 24 channels"),
        (groups.GROUPED, {"rounds": 1}, "rounds=1 must be at least 3"),
    ],
)
def test_settings_that_allow_no_comparison_are_refused(experiment, changes, words):
    assert experiment.conditions(settings(**GOOD))
    with pytest.raises(ValueError, match=words):
        experiment.conditions(settings(**GOOD | changes))
