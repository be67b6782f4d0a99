"""What decides the ResNet chapter's verdicts, on rows made by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from resnet_lib import blocks, resnets, train
from resnet_lib.experiments import resnet
from resnet_lib.experiments.resnet import depth, forms, inference, learnt, networks, tricks, units, whole
from tests.experiments.conftest import settings

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
    assert row["parameters"] == networks.cifar_parameters(layers, width) == networks.predicted(shape, side)[0]
    assert row["flops"] == networks.cifar_flops(layers, width, s=side) == networks.predicted(shape, side)[1]


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


def stacked(values):
    return [
        {"what": "run", "depth": d, "width": 16, "seed": n, "accuracy": a + n / 100, "time_s": float(d)}
        for d, a in values.items()
        for n in SEEDS
    ]


def test_depth_is_judged_from_8_to_56_and_from_110_to_the_deepest_and_returns_stop_where_the_best_is_not_told_apart():
    rows = stacked({8: 0.5, 20: 0.7, 56: 0.6, 110: 0.4, 128: 0.35})
    found = depth.estimates(rows, settings(facts={"shape": [3, 16, 16], "classes": 10}))
    assert found["gain_to_56"].mean == pytest.approx(0.1)
    assert found["gain_beyond_110"].mean == pytest.approx(-0.05)
    assert found["returns_stop"].mean == 20
    assert found["flops_change"].mean == networks.cifar_flops(56, s=16) - networks.cifar_flops(8, s=16)
    noisy = [r | {"accuracy": 0.7 + (-1) ** r["seed"] * 0.3} if r["depth"] == 8 else r for r in rows]
    assert depth.estimates(noisy, settings(facts={"shape": [3, 16, 16], "classes": 10}))["returns_stop"].mean == 8


def test_widths_meet_the_budget_of_resnet_20_as_nearly_as_whole_numbers_can():
    s = SimpleNamespace(facts={"shape": [3, 32, 32], "classes": 10})
    assert depth.width_for(s, 20) == 16 and depth.width_for(s, 8) > 16 > depth.width_for(s, 56)
    budget = networks.cifar_flops(20)
    off = lambda w: abs(networks.cifar_flops(8, w) - budget)  # noqa: E731
    assert off(depth.width_for(s, 8)) == min(map(off, range(1, 100)))
    rows = stacked({8: 0.5, 56: 0.4, 20: 0.9})
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
        rows.append({"what": "cover", "seed": n, "off": 1e-6 * n, "highest": 2.0 + n, "lowest": 0.5})
    found = learnt.estimates(rows, settings())
    assert found["last_over_first"].mean == pytest.approx(0.2)
    assert found["random_last_over_first"].mean == pytest.approx(-0.2)
    assert found["trained_over_random"].mean == pytest.approx(0.3)
    assert found["map_difference"].mean == 2e-6 and found["cover_gain"].mean == pytest.approx(2.5)


def timed(way, batch, speedups, off=0.0):
    return [
        {"what": "latency", "way": way, "batch": batch, "round": k, "speedup": v, "off": off, "time_s": 1 / v}
        for k, v in enumerate(speedups)
    ]


def test_the_fastest_way_is_chosen_in_the_first_rounds_and_its_speed_taken_from_the_others():
    rows = timed("eager float32", 1, [1.0] * 7) + timed(inference.PEER, 1, [9.0] * 3 + [1.0, 1.1, 0.9, 1.0])
    rows += timed("folded", 1, [3.0, 3.0, 3.0, 2.0, 2.1, 1.9, 2.0], 1e-6)
    rows += timed("onnxruntime, 8 bits", 1, [1.0, 1.0, 1.0, 8.0, 8.0, 8.0, 8.0], 0.1)
    rows += [
        {"what": "accuracy", "way": way, "seed": n, "accuracy": a}
        for way, a in (("eager float32", 0.5), ("folded", 0.5), ("onnxruntime, 8 bits", 0.48))
        for n in SEEDS
    ]
    assert inference.fastest_at(rows, 1) == "folded"
    found = inference.estimates(rows, settings(inference_batches=[1]))
    assert found["best_speedup_batch_1"].mean == pytest.approx(2.0)
    assert found["torchvision_speedup_batch_1"].mean == pytest.approx(1.0)
    assert found["float32_difference"].mean == 1e-6 and found["rounded_difference"].mean == 0.1
    assert found["accuracy_change_onnxruntime__8_bits"].mean == pytest.approx(-0.02)


@pytest.mark.parametrize(
    ("experiment", "changes", "words"),
    [
        (resnet.SURVEY_BLOCK, {"form_depth": 22, "form_rates": [0.1]}, "form_depth=22 must be 18n"),
        (resnet.DEPTH, {"depths": [8, 56], "depth_epochs": 1}, r"lacks \[110\]"),
        (resnet.DEPTH, {"depths": [8, 56, 110], "depth_epochs": 1}, "one must be deeper than 110"),
        (resnet.DEPTH, {"depths": [8, 57, 110], "depth_epochs": 1}, "depth=57 fits no CIFAR ResNet"),
        (resnet.WIDTH_DEPTH, {"width_depths": [8], "depth_epochs": 1}, "at least two depths"),
        (resnet.TRICKS, {"trick_depth": 9}, "depth=9 fits no CIFAR ResNet"),
        (resnet.INFERENCE, {"inference_depth": 9, "inference_batches": [1]}, "depth=9 fits no CIFAR ResNet"),
    ],
)
def test_settings_that_leave_nothing_to_judge_are_refused(experiment, changes, words):
    with pytest.raises(ValueError, match=words):
        experiment.conditions(settings(**changes))


def test_the_target_is_four_fifths_of_the_loss_of_guessing():
    assert forms.target_loss(settings(facts={"classes": 10})) == pytest.approx(0.8 * math.log(10))
    assert forms.guessing(settings(facts={"classes": 4})) == 0.75
