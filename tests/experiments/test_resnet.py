"""What decides the ResNet chapter's verdicts, on rows made by hand."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnet_lib import blocks, resnets, stats, train
from resnet_lib.experiments import resnet, shapes
from resnet_lib.experiments.resnet import depth, forms, learnt, networks, tricks, units, whole
from resnet_lib.study import Settings
from tests.experiments.conftest import made_up_pictures, settings

SEEDS = (0, 1, 2)


def test_the_surveys_units_are_its_formulas_and_its_words_are_not_its_formula():
    off = units.built_as_written()
    assert max(off["formula"], off["built_words"], off["formula2"]) < 1e-5 < 1e-2 < off["words"]


def test_operations_are_read_in_their_order_with_kernels_and_without_the_shortcuts_own():
    kinds = units.operations(blocks.BasicBlock(16, 32, 2))
    assert kinds == ["Conv2d3", "BatchNorm2d", "ReLU", "Conv2d3", "BatchNorm2d", "add", "ReLU"]
    orders = units.orders()
    assert orders["library's original"] == orders["original"] != orders["survey, words"]
    assert orders["pre-activation bottleneck"][-1] == "add" and orders["survey, formula"][-1] == "add"
    assert [k for k in orders["pre-activation bottleneck"] if k.startswith("Conv")] == ["Conv2d1", "Conv2d3", "Conv2d1"]


def test_the_preactivation_bottleneck_only_adds_and_is_its_shortcut_where_its_last_convolution_is_zero():
    unit = units.PreActivationBottleneck(64, 16)
    nn.init.zeros_(unit.conv3.weight)
    x = torch.randn(2, 64, 4, 4)
    assert torch.equal(unit(x), x)


def test_a_census_counts_two_convolutions_and_changes_of_channels():
    (basic,), (deep,) = (units.census(None, name) for name in ("resnet18", "resnet50"))
    assert basic["units"] == 8 and basic["two_convolutions"] == 1 and basic["narrowing"] == 0
    assert deep["units"] == 16 and deep["most_convolutions"] == 3 and deep["two_convolutions"] == 0
    assert deep["widening"] == 4 / 16 and deep["equal"] == 12 / 16


def test_a_share_over_networks_weighs_each_by_its_blocks_and_takes_only_those_named():
    rows = [
        {"network": name, "units": n, "two_convolutions": share, "narrowing": 1 - share, "widening": share / 2}
        for name, n, share in (
            ("resnet18", 8, 1.0), ("resnet34", 16, 0.25), ("resnet50", 10, 0.5), ("resnet101", 10, 0.0),
            ("resnet152", 20, 0.0), ("wide_resnet50_2", 10, 1.0), ("resnext50_32x4d", 10, 0.0),
        )
    ]  # fmt: skip
    found = units.estimates(rows, settings())
    assert found["two_convolutions_basic"].mean == (8 + 4) / 24
    assert found["two_convolutions_bottleneck"].mean == (5 + 10) / 60
    assert found["narrowing_basic"].mean == 12 / 24 and found["narrowing_bottleneck"].mean == (5 + 10 + 20) / 40
    assert found["widening_bottleneck"].mean == 2.5 / 40


@pytest.mark.parametrize(("layers", "width", "side"), [(8, 16, 32), (20, 8, 16), (56, 24, 8)])
def test_the_closed_forms_are_what_counting_gives(layers, width, side):
    make = lambda: resnets.resnet_cifar(layers, widths=(width, 2 * width, 4 * width))  # noqa: E731
    row, shape = networks.counted_cost("x", make, side)
    assert row["parameters"] == shapes.cifar_parameters(layers, width) == networks.predicted(shape, side)[0]
    assert row["flops"] == shapes.cifar_flops(layers, width, side=side) == networks.predicted(shape, side)[1]


def test_the_whole_networks_estimates_take_the_largest_difference_of_each_kind():
    rows = [
        {"what": "cost", "network": "a", "parameters": 10, "predicted": 10, "flops": 8, "predicted_flops": 5},
        {"what": "cost", "network": "b", "parameters": 7, "predicted": 9, "flops": 4, "predicted_flops": 4},
        {"what": "logits", "network": "a", "difference": 1e-6, "logit_std": 1.0},
        {"what": "logits", "network": "b", "difference": 3e-6, "logit_std": 1.0},
    ]
    found = whole.estimates(rows, settings())
    assert found["imagenet_difference"].mean == 3e-6 and found["cifar_same_stem"].mean == 0
    assert found["parameters_off"].mean == 2 and found["flops_off"].mean == 3
    with torch.device("meta"):
        assert whole.has_imagenet_stem(resnets.resnet18_imagenet()) and not whole.has_imagenet_stem(
            resnets.resnet_cifar(8)
        )


def runs(form, errors, rate=0.1, val=0.5):
    return [
        {"what": "run", "form": form, "rate": rate, "seed": n, "val_error": val, "test_error": e, "diverged": False}
        for n, e in enumerate(errors)
    ]


def test_each_form_is_judged_at_the_rate_that_validation_chose_for_it_and_paired_by_seed():
    rows = runs("original", (0.3, 0.4, 0.5), 0.1, val=0.2) + runs("original", (0.0, 0.0, 0.0), 0.03, val=0.3)
    for form, errors in {
        "survey, words": (0.5, 0.6, 0.7),
        "survey, formula": (0.2, 0.3, 0.4),
        "LeakyReLU": (0.3, 0.4, 0.5),
        "activation before norm": (0.4, 0.5, 0.6),
        "nothing after sum": (0.25, 0.35, 0.45),
    }.items():
        rows += runs(form, errors, 0.03, val=0.1) + runs(form, (0.9,) * 3, 0.1, val=0.6)
    assert forms.chosen_rates(rows)["original"] == 0.1 and forms.chosen_rates(rows)["LeakyReLU"] == 0.03
    found = forms.survey_block_estimates(rows, settings(form_depth=20))
    assert found["accuracy_change"].mean == pytest.approx(-0.2)
    assert found["formula_accuracy_change"].mean == pytest.approx(0.1)
    assert found["slope_effect"].mean == pytest.approx(0) and found["order_effect"].mean == pytest.approx(-0.1)
    assert found["end_effect"].mean == pytest.approx(0.05)
    assert (
        found["same_as_original"].mean == 0 and found["formula_difference"].mean < 1e-5 < found["words_difference"].mean
    )


def test_the_second_formula_is_set_beside_the_preactivation_bottleneck_not_the_original():
    rows = runs("pre-activation bottleneck", (0.5, 0.5, 0.5)) + runs("survey, second formula", (0.4, 0.4, 0.4))
    found = forms.formula2_estimates(rows + runs("bottleneck", (0.0, 0.0, 0.0)), settings(form_depth=20))
    assert found["accuracy_change"].mean == pytest.approx(0.1) and found["same_as_preactivation"].mean == 0


def test_steps_to_a_loss_are_counted_where_the_mean_of_five_first_reaches_it():
    losses = [torch.tensor(v) for v in (9.0, 9.0, 9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0)]
    assert forms.steps_to(1.0, losses) == {"reached": True, "steps": 9, "steps_to_target": 8}
    assert forms.steps_to(0.5, losses) == {"reached": False, "steps": 9, "steps_to_target": 9}


def test_a_norm_after_the_activation_skews_the_branch_and_one_before_does_not():
    s = SimpleNamespace(form_depth=20, facts={"shape": [3, 16, 16], "classes": 10})
    with train.seeded(0):
        images = torch.randn(64, 3, 16, 16)
        found = {form: forms.signals(forms.form_network(s, form), images, "init") for form in forms.SHOWN[:3]}
    mean = lambda form, column: sum(r[column] for r in found[form]) / len(found[form])  # noqa: E731
    assert abs(mean("original", "skewness")) < 0.5 < mean("survey, words", "skewness")
    assert mean("original", "negative") == 0 < mean("survey, formula", "negative")
    linear, rectified = (forms.rectified_theory(slope)["skewness"] for slope in (1.0, 0.0))
    assert abs(linear) < 0.1 < rectified


def test_also_built_forms_leave_the_library_as_it_was():
    s = SimpleNamespace(form_depth=20, facts={"shape": [3, 16, 16], "classes": 10})
    model = forms.form_network(s, "pre-activation bottleneck")
    assert isinstance(model.final[0], nn.BatchNorm2d) and "preactivation_bottleneck" not in blocks.BLOCKS
    assert not any(unit.activate_sum for unit in forms.form_network(s, "survey, formula").units())
    assert all(unit.activate_sum for unit in forms.form_network(s, "survey, words").units())


def test_signals_are_means_over_units_at_initialisation_by_seed():
    rows = [
        {"form": f, "when": w, "unit": k, "seed": n, "skewness": v + n, "one_sided": v / 10, "std": 1.0}
        for f, v in (("survey, words", 2.0), ("original", 0.0))
        for w in ("init", "trained")
        for k in (1, 2)
        for n in SEEDS
    ]
    rows = [r | {"skewness": 99.0} if r["when"] == "trained" else r for r in rows]
    found = forms.signal_estimates(rows, settings())
    assert found["survey_skewness"].mean == pytest.approx(3) and found["original_skewness"].mean == pytest.approx(1)
    assert found["survey_one_sided"].mean == pytest.approx(0.2)
    assert found["original_one_sided"].mean == 0 and found["original_one_sided"].unit == "share"


def stacked(values):
    return [
        {"what": "run", "depth": d, "width": 16, "seed": n, "accuracy": a + n / 100, "time_s": float(d)}
        for d, a in values.items()
        for n in SEEDS
    ]


def ended(values, **columns):
    """Rows of trained networks, from their accuracy on test pictures by depth."""
    row = {"what": "end", "kind": "residual", "rate": 0.1, "time_s": 1.0, "train_error": 0.5} | columns
    return [
        row | {"depth": d, "seed": n, "test_error": 1 - a, "val_error": 1 - a}
        for d, of in values.items()
        for n, a in enumerate(of)
    ]


DEEP = settings(looked_depth=20, depth_epochs=1, facts={"shape": [3, 16, 16], "classes": 10})


def test_depth_is_judged_from_8_to_56_and_from_there_to_the_deepest():
    rows = ended({d: (a, a + 0.01, a + 0.02) for d, a in {8: 0.5, 20: 0.7, 56: 0.6, 110: 0.4}.items()})
    found = depth.estimates(rows, DEEP)
    assert found["gain_to_56"].mean == pytest.approx(0.1) and found["gain_beyond_56"].mean == pytest.approx(-0.2)
    assert found["base_accuracy"].mean == pytest.approx(0.71)
    assert found["flops_change"].mean == shapes.cifar_flops(56, side=16) - shapes.cifar_flops(8, side=16)
    shallow = [r for r in rows if r["depth"] <= 56]
    assert "gain_beyond_56" not in depth.estimates(shallow, DEEP)
    fits = [r | {"train_error": 0.3} if r["depth"] == 56 else r for r in rows]
    assert depth.estimates(fits, DEEP)["train_error_to_56"].mean == pytest.approx(-0.2)


def test_returns_stop_at_the_smallest_depth_not_told_apart_from_the_one_that_validation_chose():
    accuracies = {
        8: (0.500, 0.501, 0.502),  # surely below the best
        20: (0.60, 0.72, 0.63),  # below it by 0.07, 0 and 0.04: the interval reaches zero
        56: (0.67, 0.72, 0.67),
        110: (0.60, 0.65, 0.60),  # below it by 0.07 each time
    }
    rows = ended(accuracies)
    assert depth.estimates(rows, DEEP)["returns_stop"].mean == 20
    sure = [r | {"test_error": 1 - accuracies[110][r["seed"]]} if r["depth"] == 20 else r for r in rows]
    assert depth.estimates(sure, DEEP)["returns_stop"].mean == 56
    chosen = [r | {"val_error": 0.0} if r["depth"] == 8 else r for r in rows]
    assert depth.estimates(chosen, DEEP)["returns_stop"].mean == 8


def test_widths_meet_the_budget_of_resnet_20_as_nearly_as_whole_numbers_can():
    s = SimpleNamespace(facts={"shape": [3, 32, 32], "classes": 10})
    assert depth.width_for(s, 20) == 16 and depth.width_for(s, 8) > 16 > depth.width_for(s, 56)
    budget = shapes.cifar_flops(20)
    off = lambda w: abs(shapes.cifar_flops(8, w) - budget)  # noqa: E731
    assert off(depth.width_for(s, 8)) == min(map(off, range(1, 100)))
    rows = [r | {"test_error": 1 - r["accuracy"]} for r in stacked({8: 0.5, 56: 0.4, 20: 0.9})]
    assert depth.width_estimates(rows, s)["deep_over_wide"].mean == pytest.approx(-0.1)


def test_the_cost_of_stacking_is_the_deepest_over_the_shallowest():
    rows = [{"depth": d, "step_s": t, "activation_bytes": m} for d, t, m in ((110, 3.0, 40), (8, 0.5, 4), (20, 9.0, 9))]
    found = depth.cost_estimates(rows, settings())
    assert found["step_ratio"].mean == 6 and found["memory_ratio"].mean == 10


def test_a_tricks_gain_is_over_the_plain_recipe_and_the_whole_is_set_beside_the_sum_of_its_parts():
    values = {"plain recipe": 0.5, "zero-γ": 0.52, "no decay on norms": 0.47, "all together": 0.6}
    rows = [{"trick": t, "seed": n, "accuracy": a + n / 10} for t, a in values.items() for n in SEEDS]
    found = tricks.estimates(rows, settings())
    assert found["zero_gamma_gain"].mean == pytest.approx(0.02)
    assert found["no_decay_on_norms_gain"].mean == pytest.approx(-0.03)
    assert found["together_gain"].mean == pytest.approx(0.1)
    assert found["together_over_sum"].mean == pytest.approx(0.1 - (0.02 - 0.03))
    assert tricks.sure(rows, "zero-γ") == "helps" and tricks.sure(rows, "no decay on norms") == "hurts"


def test_decay_in_the_loss_reaches_norms_and_biases_in_training_and_nothing_else():
    model = resnets.resnet_cifar(8)
    images, labels = torch.randn(8, 3, 8, 8), torch.arange(8)
    plain, decayed = (task(model, images, labels, None)["loss"] for task in
                      (train.classification(), tricks.decayed_everywhere(0.0, 0.1)))  # fmt: skip
    small = sum(p.square().sum() for p in model.parameters() if p.ndim <= 1)
    assert (decayed - plain - 0.05 * small).abs() < 1e-4 and small > 0
    model.eval()
    assert (
        tricks.decayed_everywhere(0.0, 0.1)(model, images, labels, None)["loss"]
        == train.classification()(model, images, labels, None)["loss"]
    )


def test_all_together_is_every_trick_alone_at_once():
    s = settings(trick_epochs=4, batch_size=10, facts={"train": 100})
    made = tricks.recipes(s)
    assert tricks.ema_decay(s) == pytest.approx(1 - 10 / 40)
    every = made.pop("all together")
    for recipe in made.values():
        assert recipe.get("training", {}).items() <= every["training"].items()
        assert set(recipe.get("surgery", [])) <= set(every["surgery"])
    model = resnets.resnet_cifar(8, shortcut="B")
    tricks.with_deep_stem(model)
    tricks.with_averaging_shortcuts(model)
    assert len([m for m in model.conv1.modules() if isinstance(m, nn.Conv2d)]) == 3
    assert model(torch.randn(2, 3, 9, 9)).shape == (2, 10)


def probed(state, accuracies, seed):
    return [
        {"what": "unit", "state": state, "unit": k, "seed": seed, "accuracy": a} for k, a in enumerate(accuracies, 1)
    ]


def test_what_is_learnt_is_the_last_unit_over_the_first_and_over_the_same_unit_untrained():
    rows = []
    for n in SEEDS:
        rows += probed("trained", (0.3, 0.9, 0.5), n) + probed("random", (0.4, 0.8, 0.2), n)
        rows.append({"what": "own", "state": "trained", "unit": 3, "seed": n, "accuracy": 0.52})
        rows.append({"what": "cover", "seed": n, "off": 1e-6 * n, "highest": 2.0 + n, "lowest": 0.5})
    found = learnt.estimates(rows, settings())
    assert found["last_over_first"].mean == pytest.approx(0.2)
    assert found["random_last_over_first"].mean == pytest.approx(-0.2)
    assert found["trained_over_random"].mean == pytest.approx(0.3)
    assert found["probe_over_own"].mean == pytest.approx(-0.02)
    assert found["map_difference"].mean == 2e-6 and found["cover_gain"].mean == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("experiment", "changes", "words"),
    [
        (resnet.SURVEY_BLOCK, {"form_depth": 22, "form_rates": [0.1]}, "form_depth=22 must be 18n"),
        (resnet.DEPTH, {"depths": [8, 20, 110], "looked_depth": 20}, r"lacks \[56\]"),
        (resnet.DEPTH, {"depths": [8, 56, 110], "looked_depth": 20}, r"lacks \[20\]"),
        (resnet.DEPTH, {"depths": [8, 57, 110], "looked_depth": 8}, "depth=57 fits no CIFAR ResNet"),
        (resnet.WIDTH_DEPTH, {"width_depths": [8], "depth_epochs": 1}, "at least two depths"),
        (resnet.TRICKS, {"trick_depth": 9}, "depth=9 fits no CIFAR ResNet"),
    ],
)
def test_settings_that_leave_nothing_to_judge_are_refused(experiment, changes, words):
    with pytest.raises(ValueError, match=words):
        experiment.conditions(settings(**changes))


def test_the_target_is_four_fifths_of_the_loss_of_guessing():
    assert forms.target_loss(settings(facts={"classes": 10})) == pytest.approx(0.8 * math.log(10))
    assert settings(facts={"classes": 4}).chance_error == 0.75


# --- the parts of runs that decide verdicts ---

CPU = torch.device("cpu")


def while_measuring(pictures=None, **values):
    pictures = pictures or made_up_pictures()
    defaults = {"batch_size": 8, "learning_rate": 0.05, "number_format": "fp32"}
    return Settings("test", defaults | values, pictures=pictures, device=CPU, facts=pictures.about())


def test_a_formula_is_refuted_by_a_block_in_another_order_and_by_norms_that_do_something():
    with train.seeded(0):
        fresh = blocks.BasicBlock(16, 16)
        original = units.scrambled(copy.deepcopy(fresh))
    assert units.difference(original, lambda x: units.survey_words(x, original)) > 1e-2
    assert units.difference(fresh, original) > 1e-2


def test_the_preactivation_bottleneck_is_its_formula_and_four_times_as_wide_outside():
    with train.seeded(0):
        unit = units.scrambled(units.PreActivationBottleneck(16, 4))
    assert (unit.out_channels, unit.conv2.in_channels, unit.conv2.out_channels) == (16, 4, 4)

    def written_out(x):
        first = unit.conv1(F.relu(unit.bn1(x)))
        return x + unit.conv3(F.relu(unit.bn3(unit.conv2(F.relu(unit.bn2(first))))))

    assert units.difference(unit, written_out) < 1e-5


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_the_walk_through_a_shape_counts_an_imagenet_network_on_odd_maps_too(name):
    row, shape = networks.counted_cost(name, getattr(resnets, f"{name}_imagenet"), 71)
    assert networks.predicted(shape, 71) == (row["parameters"], row["flops"])


@pytest.mark.parametrize("sides", [(12, 12), (12, 20)])
def test_the_cost_here_is_that_of_the_pictures_at_hand(sides):
    s = settings(facts={"shape": [1, *sides], "classes": 7})
    assert networks.cifar(s) == {"in_channels": 1, "num_classes": 7}
    make = lambda: resnets.resnet_cifar(20, **networks.cifar(s), widths=(6, 12, 24))  # noqa: E731
    row, shape = networks.counted_cost("n", make, sides, channels=1)
    assert shapes.flops_here(s, 20, 6) == row["flops"] == networks.predicted(shape, sides)[1]


def test_a_network_is_judged_by_settled_statistics_and_each_error_is_of_its_own_split(monkeypatch):
    s, seen = while_measuring(), []

    def evaluate(model, pictures, split, config):
        seen.append(model.bn1.running_mean.clone())
        return {"error": {12: 0.25, 8: 0.5}[len(split)], "loss": {12: 1.0, 8: 2.0}[len(split)]}

    monkeypatch.setattr(train, "evaluate", evaluate)
    with train.seeded(0):
        model = resnets.resnet_cifar(8, num_classes=3)
    assert networks.judge(s, model) == {"val_error": 0.25, "test_error": 0.5, "test_loss": 2.0}
    assert len(seen) == 2 and all(mean.abs().max() > 1e-3 for mean in seen), "statistics of pictures, not fresh ones"


def test_only_a_strided_seven_and_a_pooling_are_the_imagenet_stem():
    stem = lambda side, stride, pool: SimpleNamespace(  # noqa: E731
        conv1=nn.Conv2d(3, 4, side, stride), maxpool=nn.MaxPool2d(3) if pool else nn.Identity()
    )
    assert whole.has_imagenet_stem(stem(7, 2, True))
    assert not any(map(whole.has_imagenet_stem, (stem(3, 2, True), stem(7, 1, True), stem(7, 2, False))))


def test_our_logits_are_torchvisions_and_would_not_be_if_one_unit_differed(monkeypatch):
    assert whole.logit_difference("resnet18")["difference"] < 1e-5
    right = resnets.resnet18_imagenet

    def other():
        model = right()
        model.units()[3].activate_sum = False
        return model

    monkeypatch.setattr(resnets, "resnet18_imagenet", other)
    found = whole.logit_difference("resnet18")
    assert found["difference"] > 1e-2 * found["logit_std"] > 0


def test_another_block_is_forgotten_even_where_building_fails():
    with pytest.raises(RuntimeError), forms.also_built("mine", units.PreActivationBottleneck):
        assert blocks.BLOCKS["mine"] is units.PreActivationBottleneck
        raise RuntimeError
    assert "mine" not in blocks.BLOCKS


@pytest.mark.parametrize("form", forms.FORMS)
def test_every_form_has_as_many_convolutions_and_a_step_of_the_ladder_changes_one_thing(form):
    model = forms.form_network(settings(form_depth=20), form)
    kinds = [units.operations(unit) for unit in model.units()]
    assert sum(kind.startswith("Conv") for of_unit in kinds for kind in of_unit) == 18
    original = ["Conv2d3", "BatchNorm2d", "ReLU", "Conv2d3", "BatchNorm2d", "add", "ReLU"]
    survey = ["Conv2d3", "LeakyReLU", "BatchNorm2d"] * 2 + ["add", "LeakyReLU"]
    expected = {
        "original": original,
        "LeakyReLU": [kind.replace("ReLU", "LeakyReLU") for kind in original],
        "activation before norm": [kind.replace("LeakyReLU", "ReLU") for kind in survey],
        "nothing after sum": original[:-1],
        "survey, words": survey,
        "survey, formula": survey[:-1],
    }
    assert kinds[0] == expected.get(form, kinds[0])
    if "LeakyReLU" in kinds[0]:
        assert model.units()[0].relu.negative_slope == units.SLOPE == 0.01
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 10)


def test_a_signal_is_the_stream_from_unit_to_unit_and_the_network_stays_as_it_was():
    with train.seeded(0):
        model = forms.form_network(settings(form_depth=20), "original")
        images = torch.randn(32, 3, 16, 16)
    rows = forms.signals(model, images, "init")
    assert (model.bn1.running_mean == 0).all()
    with torch.no_grad():
        last = model.features(images)
    assert [r["unit"] for r in rows] == list(range(1, 10)) and {r["when"] for r in rows} == {"init"}
    assert rows[-1]["std"] == pytest.approx(last.std().item(), rel=1e-4)
    assert rows[-1]["mean"] == pytest.approx(last.mean().item(), rel=1e-4)
    assert sum(r["branch_negative"] for r in rows) / 9 == pytest.approx(0.5, abs=0.05)


def test_a_channel_is_one_sided_where_nearly_all_that_its_activation_is_given_has_one_sign():
    with train.seeded(0), torch.no_grad():
        model = forms.form_network(settings(form_depth=20), "original")
        images = torch.randn(16, 3, 16, 16)
        model.units()[0].bn1.bias[:4] = 10.0  # always open
        model.units()[0].bn1.bias[4:10] = -10.0  # always closed
        model.units()[0].bn1.bias[10] = 1.0  # a sixth of its values on the other side: not one-sided
    rows = forms.signals(model, images, "init")
    assert rows[0]["one_sided"] == 10 / 16 and rows[1]["one_sided"] == 0


def test_theory_closes_the_channels_whose_mean_lies_far_from_zero():
    # mean over deviation of a rectified Gaussian: 0.399 / 0.584; 1.645 / 0.683 = 2.41 deviations, both sides: 1.6 %
    leaky = forms.rectified_theory(0.01)
    assert leaky["one_sided"] == pytest.approx(0.016, abs=0.002) and leaky["branch_negative"] > 0.52


def test_losses_are_remembered_while_training_alone():
    losses, model = [], nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    task = train.recording(train.classification(), losses)
    images, labels = torch.randn(6, 3, 2, 2), torch.arange(6) % 3
    task(model.train(), images, labels, None)
    task(model.eval(), images, labels, None)
    assert len(losses) == 1 and not losses[0].requires_grad
    assert losses[0].item() == pytest.approx(F.cross_entropy(model(images), labels).item())


def test_a_run_that_diverges_counts_as_guessing_in_validation_and_test(monkeypatch):
    s = while_measuring(form_depth=20, form_epochs=1)

    def fit(make, pictures, config, *, seed, task, on_divergence, progress):
        assert config.learning_rate == 0.5 and seed == 4 and on_divergence == "record"
        task(make().train(), *train.Batches(pictures, pictures.train, config, CPU).first(), None)
        return SimpleNamespace(model=make(), rows=[{"diverged": True}])

    monkeypatch.setattr(train, "fit", fit)
    rows = forms.forms(s, "original", 0.5, 4)
    (run,) = [r for r in rows if r["what"] == "run"]
    assert run["diverged"] and run["val_error"] == run["test_error"] == pytest.approx(2 / 3)
    assert {r["when"] for r in rows if r["what"] == "signal"} == {"init"}


def test_a_rate_is_chosen_by_the_mean_of_validation_errors_whatever_the_test_errors():
    rows = runs("a", (0.9, 0.8, 0.7), 0.3, val=0.3) + runs("a", (0.1, 0.1, 0.1), 0.1, val=0.4)
    rows = [r | {"val_error": 0.1} if (r["rate"], r["seed"]) == (0.1, 0) else r for r in rows]  # mean: 0.3
    rows = [r | {"val_error": 0.9} if (r["rate"], r["seed"]) == (0.1, 1) else r for r in rows]  # mean: 0.47
    assert forms.chosen_rates(rows) == {"a": 0.3}
    assert [r["accuracy"] for r in forms.at_chosen(rows)] == pytest.approx([0.1, 0.2, 0.3])


def test_signals_are_shown_of_four_forms_at_the_rate_that_each_chose():
    rates = {form: 0.1 for form in forms.FORMS} | {"original": 0.3}
    chosen = forms.SIGNALS.conditions(settings(form_depth=20, form_rates=[0.1, 0.3], rate_of=rates, seeds=[0, 1]))
    assert {r["form"] for r in chosen} == set(forms.SHOWN) and len(chosen) == 8
    assert {r["rate"] for r in chosen if r["form"] == "original"} == {0.3}
    assert {r["rate"] for r in chosen if r["form"] != "original"} == {0.1}
    rows = [{"form": "original", "when": "init", "unit": k, "skewness": k + n} for k in (1, 3) for n in (0, 1)]
    assert forms.fresh_mean(rows, "original", "skewness", unit=3) == 3.5


def test_the_speed_told_is_that_of_the_surveys_block():
    rows = [{"form": "original", "ratio": 1.0}, {"form": "survey, words", "ratio": 0.8}]
    assert forms.FORM_TIMES.estimates(rows, settings())["survey_speed"].mean == 0.8


def test_a_steps_cost_counts_what_is_kept_for_the_backward_pass_without_the_weights():
    s = while_measuring(made_up_pictures(side=4))
    (shallow,), (deep,) = (depth.cost(s, layers) for layers in (8, 14))
    assert shallow["flops"] == shapes.flops_here(s, 8)
    assert shallow["parameters"] == shapes.cifar_parameters(8, classes=3)
    maps = sum(4 * networks.COST_BATCH * 16 * wider * side**2 for side, wider in ((4, 1), (2, 2), (1, 4)))
    grown = deep["activation_bytes"] - shallow["activation_bytes"]
    assert 3 * maps <= grown < 6 * maps, "a unit more in each stage keeps a few maps of its stage"
    assert grown < 4 * (deep["parameters"] - shallow["parameters"]), "its weights are larger, and do not count"


def test_decay_in_the_loss_is_decay_in_the_optimiser():
    with train.seeded(0):
        in_loss = resnets.resnet_cifar(8)
        images, labels = torch.randn(8, 3, 8, 8), torch.arange(8)
    in_optimiser = copy.deepcopy(in_loss)
    ours = train.make_optimizer(in_loss, train.TrainConfig(weight_decay=0.1))
    theirs = torch.optim.SGD(in_optimiser.parameters(), 0.1, 0.9, weight_decay=0.1, nesterov=True)
    for model, optimizer, task in (
        (in_loss, ours, tricks.decayed_everywhere(0.0, 0.1)),
        (in_optimiser, theirs, train.classification()),
    ):
        for _ in range(2):
            optimizer.zero_grad()
            task(model, images, labels, None)["loss"].backward()
            optimizer.step()
    pairs = zip(in_loss.parameters(), in_optimiser.parameters(), strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) < 1e-5


def test_resnet_ds_shortcut_averages_four_pixels_instead_of_dropping_three():
    shortcut = tricks.AverageFirst(1, 1).eval()
    shortcut[1].weight.data.fill_(1.0)
    image = torch.tensor([[1.0, 3.0, 5.0], [5.0, 7.0, 9.0], [2.0, 4.0, 6.0]])[None, None]
    scale = 1 / math.sqrt(1 + shortcut[2].eps)
    assert torch.allclose(shortcut(image)[0, 0], torch.tensor([[4.0, 7.0], [3.0, 6.0]]) * scale)


def test_surgery_changes_what_it_names_alone():
    model = resnets.resnet_cifar(8, shortcut="B")
    tricks.with_averaging_shortcuts(model)
    averaging = [isinstance(unit.downsample, tricks.AverageFirst) for unit in model.units()]
    assert averaging == [unit.stride == 2 for unit in model.units()] == [False, True, True]
    tricks.with_deep_stem(model)
    stem = [m for m in model.conv1 if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.kernel_size[0]) for m in stem] == [(3, 8, 3), (8, 8, 3), (8, 16, 3)]


def recipe_of(monkeypatch, trick):
    """The training, the network and the loss with which a recipe trains."""
    s, used = while_measuring(made_up_pictures(160), trick_depth=8, trick_epochs=2), {}

    def fit(make, pictures, config, *, seed, task, progress):
        with train.seeded(0):
            used.update(config=config, model=make(), task=task)
        return SimpleNamespace(model=used["model"], rows=[{"train_loss": 1.0, "time_s": 1.0}])

    monkeypatch.setattr(train, "fit", fit)
    monkeypatch.setattr(tricks, "judge", lambda s, model: {"test_error": 0.25})
    assert tricks.tricks(s, trick, 0)[0]["accuracy"] == 0.75
    images, labels = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
    model, config = used["model"], used["config"]
    plain = F.cross_entropy(model(images), labels, label_smoothing=config.label_smoothing)
    extra = used["task"](model, images, labels, None)["loss"] - plain
    found = {name: getattr(config, name) for name in tricks.PLAIN} | {"decay in loss": extra.item() > 1e-3}
    found["deep stem"] = isinstance(model.conv1, nn.Sequential)
    found["averaging"] = isinstance(model.units()[1].downsample, tricks.AverageFirst)
    return found | {"zero": bool((model.units()[0].last_norm().weight == 0).all())}


def test_each_trick_changes_one_thing_of_the_plain_recipe_and_all_together_change_all(monkeypatch):
    plain = recipe_of(monkeypatch, "plain recipe")
    assert plain == tricks.PLAIN | {"deep stem": False, "averaging": False, "zero": False, "decay in loss": True}
    changes = {
        "deep stem": {"deep stem": True},
        "ResNet-D shortcuts": {"averaging": True},
        "label smoothing": {"label_smoothing": 0.1},
        "EMA": {"ema_decay": 1 - 10 / 40},
        "cosine": {"schedule": "cosine"},
        "zero-γ": {"zero": True},
        "warm-up": {"warmup": 0.1},
        "no decay on norms": {"decay in loss": False},
    }
    together = plain
    for trick, change in changes.items():
        assert recipe_of(monkeypatch, trick) == plain | change, trick
        together = together | change
    assert recipe_of(monkeypatch, "all together") == together
    known = tricks.recipes(settings(trick_epochs=1, batch_size=50, facts={"train": 105}))
    assert list(known) == ["plain recipe", *changes, "all together"]
    assert known["EMA"] == {"training": {"ema_decay": 0.0}}, "two steps: no average, and none below zero"


def test_a_trick_is_sure_only_where_all_intervals_hold_at_once():
    values = {"plain recipe": (0.0, 0.0, 0.0), "a": (0.010, 0.020, 0.013), "all together": (1.0, 1.0, 1.0)}
    values |= {f"other {k}": (0.1, -0.1, 0.0) for k in range(7)}
    rows = [{"trick": t, "seed": n, "accuracy": a} for t, of in values.items() for n, a in enumerate(of)]
    assert tricks.gain(rows, "a").low > 0, "it helps by its own interval"
    assert tricks.sure(rows, "a") == "–" and tricks.sure(rows, "all together") == "helps"


def test_a_control_is_that_of_the_trained_network():
    rows = [{"what": "pixels", "state": state, "accuracy": a} for state, a in (("trained", 0.4), ("random", 0.9))]
    assert learnt.control(rows, "pixels") == 0.4


def evidence(**changes):
    """Every measure that the chapter's words read, all zero but those given."""
    names = {"survey_block": ["accuracy_change", "order_effect", "end_effect", "slope_effect"]}
    names |= {"depth": ["gain_to_56", "gain_beyond_56", "returns_stop", "flops_change"]}
    names |= {"width_depth": ["deep_over_wide"]}
    names |= {"signals": ["survey_skewness", "original_skewness"]}
    names |= {"tricks": ["together_gain", "together_over_sum", "warm_up_gain", "ema_gain"]}
    of = {f"{name}/{measure}": stats.exact(0.0) for name, measures in names.items() for measure in measures}
    return of | {name.replace("__", "/", 1): stats.exact(value) for name, value in changes.items()}


def test_the_answer_says_worse_for_worse():
    worse, better = (resnet.answer(evidence(survey_block__accuracy_change=change)) for change in (-0.1, 0.1))
    assert "is worse in accuracy" in worse and "is better in accuracy" in better
    assert "is not clearly different in accuracy" in resnet.answer(evidence())


def test_only_tricks_whose_interval_lies_above_zero_are_said_to_help():
    said = resnet.answers(evidence(tricks__warm_up_gain=0.02, tricks__ema_gain=-0.02))
    assert "warm up 0.02" in said and "ema" not in said
    assert "none by its own interval" in resnet.answers(evidence())


def test_the_growth_of_computation_is_told_in_millions_and_with_its_sign():
    assert "+57 MFLOPs" in resnet.answers(evidence(depth__flops_change=5.66e7))
    assert "-57 MFLOPs" in resnet.answers(evidence(depth__flops_change=-5.66e7))
