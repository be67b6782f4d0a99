"""What decides the verdicts of the chapter on Tensor Cores, on rows made by hand."""

import math

import pytest
import torch
from torch import nn

from resnet_lib import data
from resnet_lib.experiments import tensor_cores
from resnet_lib.experiments.tensor_cores import (
    accumulation,
    cpu,
    formats,
    gpu,
    instructions,
    ladder,
    layers,
    networks,
    precision,
    rates,
    scaling,
    shapes,
    throughput,
)
from tests.experiments.conftest import settings

CPU = torch.device("cpu")
WHY = "needs an NVIDIA GPU with Tensor Cores; this run's device is cpu"
FORMS = ("fp32", "tf32", "fp16", "bf16", "fp8", "int8")


def formats_here(device, refused=()):
    """Rows of which formats run: with Tensor Cores on a GPU, without them on a CPU."""
    return [
        {
            "kind": "format",
            "form": form,
            "device": device,
            "refused": "no" if form in refused else "",
            "absent": WHY if device == "cpu" or form == "fp32" else "",
        }
        for form in FORMS
    ]


def products(form, by_round, kind="matmul", error=0.0, **where):
    """A row a round with these rates."""
    return [
        {"kind": kind, "form": form, "round": k, "rate": rate, "error": error, "error_bound": 1e-3} | where
        for k, rate in enumerate(by_round)
    ]


# ---------------------------------------------------------------- accumulation


def test_an_error_of_a_sum_is_that_of_its_own_format_after_the_most_terms():
    rows = [
        {"sum": name, "length": length, "seed": n, "error": value * (1 if length == 4096 else 100)}
        for name, value in {"fp32": 1e-7, "fp16": 0.05, "bf16": 0.5, accumulation.OWN: 0.002}.items()
        for length in (16, 4096)
        for n in range(3)
    ]
    found = {name: e.mean for name, e in accumulation.estimates(rows, settings()).items()}
    assert found == pytest.approx({"fp32_error": 1e-7, "fp16_error": 0.05, "bf16_error": 0.5, "pytorch_error": 0.002})


def test_a_distance_is_a_share_of_the_truth_and_a_sum_in_bf16_stalls_where_one_in_fp32_does_not():
    assert accumulation.off(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0]).double()) == pytest.approx(1 / 5)
    s = type("S", (), {"device": CPU})
    found = {r["sum"]: r["error"] for r in accumulation.accumulation(s, 0) if r["length"] == 4096}
    assert found["bf16"] > 0.5 > found["fp16"] > 0.01 > found[accumulation.OWN] > 1e-5 > found["fp32"]


# ---------------------------------------------------------------- scaling


def test_a_lost_share_is_of_its_own_format_and_its_own_kind_of_gradient():
    rows = [
        {"what": "lost", "of": of, "seed": n, "fp8": 0.9 - more, "fp16": 0.2 - more, "bf16": 0.15 - more}
        for of, more in (("signals", 0.0), ("weights", 0.1))
        for n in range(3)
    ]
    found = scaling.estimates([*rows, {"what": "bin", "of": "signals", "share": 7}], settings())
    assert {name: round(e.mean, 9) for name, e in found.items()} == {
        "fp8_signals_lost": 0.9,
        "fp16_signals_lost": 0.2,
        "bf16_signals_lost": 0.15,
        "fp8_weights_lost": 0.8,
        "fp16_weights_lost": 0.1,
        "bf16_weights_lost": 0.05,
    }


def test_what_a_format_rounds_to_zero_is_at_most_half_its_smallest_number_and_exact_zeros_do_not_count():
    found = torch.tensor([0.0, 0.0, 1.0, 2.0**-10, 2.0**-25, 2.0**-24, -(2.0**-30)])
    lost, *bins = scaling.sizes(found, "signals")
    assert lost["n"] == 5
    assert lost["fp8"] == pytest.approx(4 / 5), "2^-10 and below: half of 2^-9"
    assert lost["fp16"] == pytest.approx(2 / 5), "2^-25 and below: half of 2^-24"
    assert lost["bf16"] == 0
    assert {r["power"]: r["share"] for r in bins} == pytest.approx({-30: 0.2, -25: 0.2, -24: 0.2, -10: 0.2, 0: 0.2})
    casts = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
    for name, dtype in casts.items():
        gone = (found[2:].to(dtype).float() == 0).double().mean().item()
        assert lost[name] == pytest.approx(gone), f"as PyTorch's own cast to {name} does it"


def test_a_gradient_is_damaged_where_it_became_zero_or_infinite_and_was_not_zero_before():
    exact = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])
    short = torch.tensor([0.0, 0.0, math.inf, math.nan, 4.0])
    assert scaling.damage(exact, short) == {"zero": 0.25, "not finite": 0.5}


def test_safe_factors_lose_less_than_a_hundredth_in_every_run_on_both_sides():
    lost = {-8: (0.0, 0.02), 0: (0.001, 0.002), 8: (0.0, 0.0), 16: (0.0, 0.0), 24: (0.0, 0.5)}
    rows = [
        {"what": "scale", "power": p, "seed": n, "zero": v if p < 10 else 0.0, "not finite": 0.0 if p < 10 else v}
        for p, values in lost.items()
        for n, v in enumerate(values)
    ]
    assert scaling.safe_powers(rows) == "from 2^0 to 2^16"
    assert scaling.safe_powers(rows[:2]) == "none of those tried"
    assert scaling.safe_powers([]) == "fp16 does not run here"


def test_trapped_runs_are_those_of_fused_sgd_alone():
    way = lambda name, last: {"what": "trained", "way": name, "last": last}  # noqa: E731
    rows = [way("fp16, scaled, fused SGD", v) for v in (None, 2.3, 5.0)] + [way("fp16, loss × 2³⁰", None)]
    assert scaling.trapped(rows, classes=10) == 2


@pytest.fixture(scope="module")
def on_digits():
    """While measuring, on a CPU: a narrow network and few pictures."""
    pictures = data.load("digits", train_size=128, val_fraction=0.1)
    values = {"accuracy_width": 2, "accuracy_epochs": 1, "batch_size": 16, "learning_rate": 0.1}
    s = settings(facts=pictures.about(), number_format="fp32", depth=8, **values)
    s.pictures, s.device = pictures, CPU
    return s


def test_too_small_a_factor_on_the_loss_loses_gradients_and_too_large_a_one_ends_in_infinities(on_digits):
    (low,), (middle,), (high,) = (scaling.scaled(on_digits, power, 0) for power in (-24, 0, 40))
    assert low["zero"] > 0.5 and low["not finite"] == 0
    assert middle["zero"] < 0.01 and middle["not finite"] == 0
    assert high["not finite"] > 0.5 and high["zero"] < 0.01


def test_training_dies_of_too_large_a_factor_and_lives_with_pytorchs_scaler_unless_sgd_is_fused(on_digits):
    last = {way: scaling.broken(on_digits, way, 0)[0]["last"] for way in scaling.WAYS}
    assert last["fp16, loss × 2³⁰"] is None
    good = last["fp32"]
    assert last["fp16, loss as it is"] == pytest.approx(good, rel=0.1)
    assert math.isfinite(last["fp16, loss scaled by PyTorch"]) and last["fp16, loss × 2⁻²⁰"] > good + 0.1
    assert scaling.trapped([{"what": "trained", "way": w, "last": v} for w, v in last.items()], classes=10) == 1


# ---------------------------------------------------------------- throughput

RULES = settings(product_sides=[128, 8192], conv_shape=[1, 4], seconds=1.0)


def large_and_small(slower=1.0, error=0.0):
    """Rates in bf16 over those in fp32: 3 at side 8192, 1.5 at side 128, 2.5 in the convolution."""
    rows = []
    for side, gain in ((128, 1.5), (8192, 3.0)):
        rows += products("fp32", (10, 20, 40), side=side) + products(
            "bf16", [gain * r for r in (10, 20, 40)], side=side, error=error
        )
    wide = {"kind": "convolution", "channels": 256, "side": 4}
    for layout, share in (("channels_last", 1.0), ("contiguous", 0.5)):
        rows += products("fp32", [share * r for r in (10, 20, 40)], layout=layout, **wide)
        rows += products("bf16", [share**2 * 2.5 * r for r in (10, 20, 40)], layout=layout, **wide)
    return rows + [{"kind": "bandwidth", "rate": 8.0}]


def test_on_tensor_cores_a_gain_is_the_rate_over_float32s_at_its_own_side_and_paired_by_round():
    rows = formats_here("cuda") + large_and_small()[::-1]
    found = throughput.estimates(rows, RULES)
    assert found["bf16_large"].mean == pytest.approx(3) and found["bf16_large"].n == 3
    assert found["bf16_small"].mean == pytest.approx(1.5) and found["convolution"].mean == pytest.approx(2.5)
    assert found["bf16_large"].low == pytest.approx(found["bf16_large"].high), "each round has its own float32"
    assert found["channels_last_fp32"].mean == pytest.approx(2) and found["channels_last_bf16"].mean == pytest.approx(4)
    assert not [name for name in found if name.startswith("cpu_")] and throughput.notes(rows, RULES) == []


def test_on_a_cpu_no_number_stands_under_a_tensor_cores_name():
    rows = formats_here("cpu") + large_and_small()
    found = throughput.estimates(rows, RULES)
    assert {"cpu_bf16_large", "cpu_bf16_small", "cpu_convolution"} <= set(found)
    assert not {"bf16_large", "bf16_small", "tf32_large", "convolution"} & set(found)
    assert f"throughput/bf16_large: {WHY}" in throughput.notes(rows, RULES)


def test_a_wrong_result_has_no_gain_and_no_ceiling():
    rows = formats_here("cuda") + large_and_small(error=1.0)
    assert "bf16_large" not in throughput.estimates(rows, RULES)
    assert throughput.peaks(rows) == {"fp32": 40, "bf16": 100}, "its right convolutions count"


def test_a_large_product_that_is_not_of_side_8192_decides_no_rule():
    small = settings(product_sides=[128, 256], conv_shape=[1, 4], seconds=1.0)
    rows = formats_here("cuda") + [r | ({"side": 256} if r.get("side") == 8192 else {}) for r in large_and_small()]
    found = throughput.estimates(rows, small)
    assert "bf16_large" not in found and found["cuda_bf16_large"].mean == pytest.approx(3)
    assert "throughput/bf16_large: needs 8192 in product_sides=[128, 256]" in throughput.notes(rows, small)


def test_what_later_experiments_are_held_to_are_the_best_rates_and_the_largest_float16_products():
    rows = formats_here("cpu") + large_and_small() + products("fp16", (7, 8, 9), side=8192)
    rows += products("fp16", (1, 2, 3), side=128)
    chosen = throughput.limits(rows, RULES)
    assert chosen["ceilings"] == {"fp32": 40, "bf16": 120, "fp16": 9} and chosen["bandwidth"] == 8
    assert chosen["absent"]["bf16"] == WHY and chosen["device_type"] == "cpu"
    assert throughput.matrix_rates(rows, RULES)["matrix_rates"] == {"0": 7, "1": 8, "2": 9}


def test_a_rate_over_the_references_is_paired_by_round_not_by_position():
    rows = products("fp32", (1, 2, 4)) + products("bf16", (3, 6, 12))[::-1]
    assert rates.faster(rows, "bf16").mean == pytest.approx(3) and rates.faster(rows, "bf16").sd < 1e-9
    assert rates.faster(rows, "fp8") is None
    lacking = [row for row in rows if (row["form"], row["round"]) != ("bf16", 1)]
    assert rates.faster(lacking, "bf16").n == rates.faster(rows, "bf16").n - 1, "a round counts that has both"


def test_a_device_without_tensor_cores_says_so_for_every_format():
    assert formats.absent("bf16", CPU) == WHY and formats.mixed(CPU) == "bf16"
    assert {r["device"] for r in throughput.here(CPU)} == {"cpu"} and all(r["absent"] for r in throughput.here(CPU))
    assert formats.running(CPU)[0] == "fp32" and "tf32" not in formats.running(CPU)


# ---------------------------------------------------------------- shapes


def test_unaligned_sides_are_those_that_8_does_not_divide_and_stand_above():
    rows = []
    for k in range(3):
        for side, rate in {8: 10, 16: 30, 9: 4, 15: 6}.items():
            rows += [{"kind": "matmul", "form": "fp32", "side": side, "round": k, "rate": rate * (k + 1)}]
    assert shapes.unaligned(rows, "fp32").mean == pytest.approx(5 / 20)


def test_a_fixed_cost_is_the_intercept_of_each_rounds_line_and_its_prediction_operations_times_floor():
    rows = [
        {"kind": "matmul", "form": "fp32", "side": side, "round": k, "rate": 1.0} for side in (7, 8) for k in range(3)
    ]
    tiny = {"kind": "tiny", "graph": False}
    rows += [tiny | {"elements": n, "round": k, "time_s": 2e-6 * n} for n in (1, 64) for k in range(3)]
    rows += [
        {"kind": "batch", "batch": b, "round": k, "time_s": (3 + k) * 1e-3 + 1e-4 * b, "operations": 500}
        for b in (1, 4, 16)
        for k in range(3)
    ]
    found = shapes.estimates(rows, settings())
    assert found["floor"].mean == pytest.approx(2) and found["floor"].unit == "µs"
    assert found["fixed_predicted"].mean == pytest.approx(1) and found["fixed_measured"].mean == pytest.approx(4)
    assert "floor_in_a_graph" not in found and shapes.notes(rows, settings())
    rows += [tiny | {"graph": True, "elements": 1, "round": k, "time_s": 5e-7} for k in range(3)]
    found = shapes.estimates(rows, settings())
    assert found["floor_in_a_graph"].mean == pytest.approx(0.5) and found["floor"].mean == pytest.approx(2)
    assert shapes.notes(rows, settings()) == []


def test_a_line_is_fitted_by_relative_errors():
    assert shapes.line([(1, 5.0), (4, 11.0), (16, 35.0)]) == pytest.approx([3, 2])
    first, slope = shapes.line([(1, 1.0), (2, 2.0), (100, 200.0)])
    assert abs(first) < abs(100 - slope * 100), "the short times weigh as much as the long ones"


def test_views_are_no_operations():
    x = torch.ones(4, 4)
    with shapes.Counted() as counted:
        (x.t() + x).relu_()
    assert counted.count == 2


# ---------------------------------------------------------------- layers


def layer(place, kind, what, form, times, count=1, shape=(2, 64, 8, 8), **costs):
    return {
        "place": place,
        "kind": kind,
        "what": what,
        "form": form,
        "times_s": list(times),
        "count": count,
        "shape": list(shape),
    } | costs


def layer_rows():
    """Times of three rounds: float32 over bf16 is what `gains` says below."""
    rows = []
    forms = {"fp32": 1.0, "bf16": 0.5}
    for form, share in forms.items():
        for what, cost in (("forward", 1.0), ("both", 3.0)):
            t = lambda base, gain: [base * cost * r * (1.0 if form == "fp32" else 1 / gain) for r in (1, 2, 4)]  # noqa: B023, E731
            costs = {"flops": 100, "numbers": 10}
            rows += [
                layer(0, "convolution", what, form, t(1, 4), shape=(2, 3, 8, 8), **costs),
                layer(1, "convolution", what, form, t(1, 2), count=3, **costs),
                layer(2, "norm", what, form, t(2, 0.5), **costs),
                layer("linear 4096", "linear", what, form, t(1, 5)),
                layer("251 channels", "convolution", what, form, t(1, 6)),
                layer("256 channels", "convolution", what, form, t(1, 7)),
            ]
        rows.append(
            {"network": "resnet50", "what": "step", "form": form, "times_s": [8 * share * r for r in (1, 2, 4)]}
        )
    return rows + [{"network": "resnet50", "what": "step", "form": "fp32 again", "times_s": [8.0, 16.0, 32.0]}]


def on(device):
    reasons = {r["form"]: r["absent"] for r in formats_here(device)}
    return settings(ceilings={"fp32": 100.0, "bf16": 200.0}, bandwidth=10.0, absent=reasons, device_type=device)


def test_a_layers_gain_is_its_training_time_in_float32_over_mixed_precision_weighed_by_how_often_it_runs():
    found = layers.estimates(layer_rows(), on("cuda"))
    gains = {part: found[f"{part}_speedup"].mean for part in layers.PARTS}
    convolutions = (1 + 3) / (1 / 4 + 3 / 2)
    expected = {"convolution": convolutions, "linear": 5, "stem": 4, "unaligned": 6, "aligned": 7, "norm": 0.5}
    assert gains == pytest.approx(expected | {"network": 2})
    assert found["network_speedup"].sd < 1e-9, "paired by round"
    assert found["null"].mean == 1 and layers.notes(layer_rows(), on("cuda")) == []


def test_on_a_cpu_the_layers_gains_have_the_devices_name_before_them():
    found = layers.estimates(layer_rows(), on("cpu"))
    assert found["cpu_convolution_speedup"].mean > 2 and "convolution_speedup" not in found
    assert f"layers/convolution_speedup: {WHY}" in layers.notes(layer_rows(), on("cpu"))


def test_the_roofline_is_the_slower_of_arithmetic_and_memory():
    row = {"flops": 100, "numbers": 10, "form": "fp32"}
    assert layers.predicted(row, on("cpu")) == (4.0, "memory"), "10 numbers of 4 bytes at 10 byte/s"
    assert layers.predicted(row | {"form": "bf16"}, on("cpu")) == (2.0, "memory"), "of 2 bytes"
    assert layers.predicted(row | {"flops": 1000}, on("cpu")) == (10.0, "arithmetic")


def test_the_time_over_the_roofs_is_of_the_networks_own_layers_forward_as_often_as_they_run():
    found = layers.estimates(layer_rows(), on("cpu"))
    allowed = 4.0 * (1 + 3 + 1)  # five layers of 4 s each
    measured = [(1 + 3 + 2) * r for r in (1, 2, 4)]
    assert found["roofline_fp32"].mean == pytest.approx(math.prod(measured) ** (1 / 3) / allowed)
    measured = [(1 / 4 + 3 / 2 + 2 / 0.5) * r for r in (1, 2, 4)]
    assert found["roofline_bf16"].mean == pytest.approx(math.prod(measured) ** (1 / 3) / (allowed / 2))


def test_a_layer_costs_a_multiply_add_for_each_weight_of_an_output():
    with torch.device("meta"):
        conv, x = nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.empty(2, 3, 4, 4)
        assert layers.cost_of(conv, x, conv(x)) == (2 * 27 * 2 * 8 * 16, 2 * 3 * 16 + 2 * 8 * 16 + 8 * 27)
        linear, x = nn.Linear(5, 7, bias=False), torch.empty(2, 5)
        assert layers.cost_of(linear, x, linear(x)) == (2 * 5 * 14, 10 + 14 + 35)
        norm, x = nn.BatchNorm2d(3), torch.empty(2, 3, 4, 4)
        assert layers.cost_of(norm, x, norm(x)) == (6 * 96, 96 + 96 + 6)


def test_equal_layers_are_counted_and_not_repeated():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1), nn.ReLU())
    found = layers.layers_of(model, torch.zeros(1, 3, 2, 2))
    assert [(type(r["layer"]).__name__, r["count"]) for r in found] == [("Conv2d", 2), ("ReLU", 2)]


# ---------------------------------------------------------------- ladder


def test_a_rungs_gain_is_plain_float32s_time_over_its_own_by_round():
    rows = [
        {"rung": "channels last", "times_s": [0.5, 1.0, 2.0]},
        {"rung": "fp32", "times_s": [1.0, 2.0, 4.0]},
        {"rung": "fp16, loss scaling", "times_s": [10.0, 20.0, 40.0]},
        {"rung": "fp8", "why": "nothing multiplies in it"},
    ]
    found = ladder.estimates(rows, settings())
    means = {name: e.mean for name, e in found.items()}
    assert means == pytest.approx({"speedup_channels_last": 2, "speedup_fp16_loss_scaling": 0.1})
    assert ladder.notes(rows, settings()) == ["ladder/speedup_fp8: nothing multiplies in it"]


def test_the_choice_by_what_is_reported_is_right_where_its_rung_is_faster_and_wrong_where_slower():
    rows = lambda t: [  # noqa: E731
        {"rung": "fp32", "times_s": [1.0, 1.0, 1.0], "reported_choice": "bf16", "measured_choice": "fp32"},
        {"rung": "bf16", "times_s": [t, t, t]},
    ]
    assert ": right." in ladder.judged(rows(0.5)) and ": wrong." in ladder.judged(rows(2.0))
    assert "neither clearly" in ladder.judged(rows(1.0)) and "measures, and takes fp32" in ladder.judged(rows(1.0))
    rows = [{"rung": "fp32", "times_s": [1.0, 1.0], "reported_choice": "fp32", "measured_choice": "fp32"}]
    assert "baseline itself" in ladder.judged(rows)


def test_what_is_kept_for_the_backward_pass_counts_each_storage_once():
    x = torch.ones(1024, requires_grad=True)
    assert ladder.kept_bytes(lambda: (x.exp() * 1).sum()) == 4096
    assert ladder.kept_bytes(lambda: (x * x).sum()) == 4096
    assert ladder.kept_bytes(lambda: x.sum()) == 0


def test_a_training_step_trains_and_a_rung_that_needs_a_gpu_is_refused_on_a_cpu():
    s = settings(depth=8, compile_steps=False)
    step = networks.training_step(lambda: networks.whole_network(s), *networks.noise(s, 8, 8), CPU, last=True)
    assert step().item() > [step().item() for _ in range(8)][-1]
    s.device = CPU
    assert "CUDA graphs need" in ladder.why_not(s, "compiled, CUDA graphs")
    assert "compile_steps=False" in ladder.why_not(s, "compiled") and ladder.why_not(s, "bf16") == ""


# ---------------------------------------------------------------- precision


def arms(**accuracies):
    """A row a seed for each arm, the later arms with their seeds in reverse."""
    rows = []
    for place, (arm, values) in enumerate(accuracies.items()):
        own = [{"arm": arm.replace("_", " "), "seed": n, "accuracy": v} for n, v in enumerate(values)]
        rows += own[::-1] if place else own
    return rows


def test_a_change_of_accuracy_is_an_arms_minus_float32s_with_the_same_seed():
    rows = arms(fp32=(0.1, 0.5, 0.9), bf16=(0.09, 0.49, 0.89), fp16=(0.12, 0.52, 0.92))
    rows.append({"arm": "tf32", "refused": "a mode of GPUs"})
    found = precision.estimates(rows, settings())
    assert found["bf16_change"].mean == pytest.approx(-0.01) and found["fp16_change"].mean == pytest.approx(0.02)
    assert found["bf16_change"].sd < 1e-9 and set(found) == {"bf16_change", "fp16_change"}
    assert precision.notes(rows, settings()) == ["precision/tf32_change: a mode of GPUs"]


def test_an_arm_is_equivalent_within_half_a_point_in_pairs_and_not_beyond():
    fp32 = (0.1, 0.5, 0.9)
    rows = arms(fp32=fp32, bf16=(0.101, 0.502, 0.902), fp16=(0.11, 0.51, 0.911), tf32=(0.09, 0.49, 0.889))
    assert precision.equivalence(rows, "bf16")["equivalent"]
    assert (
        not precision.equivalence(rows, "fp16")["equivalent"] and not precision.equivalence(rows, "tf32")["equivalent"]
    )
    assert precision.MARGIN == 0.005


def test_the_emulated_arm_rounds_inputs_and_weights_to_fp8_and_lets_the_gradient_pass():
    x = torch.tensor([1.0, 1.06, 500.0, -1000.0], requires_grad=True)
    rounded = precision.Rounded()(x)
    assert rounded.tolist() == [1.0, 1.0, 448.0, -448.0]
    rounded.sum().backward()
    assert x.grad.tolist() == [1.0] * 4
    model = precision.eight_bit_network(settings(accuracy_width=2)).eval()
    conv = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    weight = conv.weight.detach()
    assert torch.equal(weight, weight.to(torch.float8_e4m3fn).float())
    assert not torch.equal(weight, conv.parametrizations.weight.original)
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(conv(x), conv(x.to(torch.float8_e4m3fn).float())), "its input is rounded"


def test_a_cpu_trains_the_same_again_with_the_same_seed(on_digits):
    found = {arm: precision.accuracy(on_digits, arm, 0)[0]["accuracy"] for arm in ("fp32", "fp32 again")}
    assert found["fp32"] == found["fp32 again"]


def test_the_control_with_other_seeds_has_seeds_of_its_own_and_the_one_again_the_same():
    assert precision.ARMS["fp32, other seeds"][2] > 0 == precision.ARMS["fp32 again"][2] == precision.ARMS["fp32"][2]


# ---------------------------------------------------------------- cpu


def cpu_rows(sets=("avx512_bf16",), refused=""):
    report = {"kind": "sets", "sets": list(sets), "counted": ["AVX-512 FMA", *sets], "refused": {"bf16": refused}}
    rows = products("fp32", (10, 20, 40), side=64)
    return [report, *rows] + ([] if refused else products("bf16", (18, 36, 72), side=64)[::-1])


def test_a_cpu_is_asked_for_its_instruction_sets_and_for_its_rate_over_float32s():
    found = cpu.estimates(cpu_rows(("avx512_bf16", "avx512_vnni")), settings())
    assert found["instruction_sets"].mean == 2 and found["bf16_speedup"].mean == pytest.approx(1.8)
    assert cpu.notes(cpu_rows(), settings()) == []
    assert cpu.notes(cpu_rows(refused="does not run"), settings()) == ["cpu/bf16_speedup: does not run"]
    wrong = [r | ({"error": 1.0} if r.get("form") == "bf16" else {}) for r in cpu_rows()]
    assert cpu.notes(wrong, settings()) == ["cpu/bf16_speedup: its result was wrong"]
    assert set(cpu.estimates(wrong, settings())) == {"instruction_sets"}


def test_a_count_is_held_to_the_gain_over_the_float32_instruction_that_the_cpu_has():
    row = cpu.held(cpu_rows())[0]
    assert row["predicted"] == 2 and row["word"] == "yes", "32 multiply-adds over 16; measured 1.8"
    rows = cpu_rows()
    rows[0] = rows[0] | {"counted": ["AVX2 FMA"]}
    assert cpu.held(rows)[0]["predicted"] == 4 and cpu.held(rows)[0]["word"] == "no"


# ---------------------------------------------------------------- instructions


def counted():
    return [{"kind": "count"} | row for row in instructions.instructions(None, "count")]


def test_one_matrix_instruction_does_32_times_the_multiply_adds_of_a_vector_instruction():
    s = settings(matrix_rates={}, absent={"fp16": WHY}, device_type="cpu")
    assert instructions.estimates(counted(), s)["operations_ratio"].mean == 16 * 8 * 16 / (32 * 2)
    assert instructions.notes(counted(), s) == [f"instructions/rate_ratio: {WHY}"]


def test_a_rate_ratio_is_matrix_over_vector_in_the_same_round():
    s = settings(matrix_rates={"0": 8.0, "1": 16.0, "2": 32.0}, absent={"fp16": ""}, device_type="cuda")
    vectors = [{"kind": "vector", "round": k, "form": "fp16", "rate": 2.0 * 2**k} for k in (2, 0, 1)]
    found = instructions.estimates(counted() + vectors, s)["rate_ratio"]
    assert (found.mean, found.sd) == (4, 0)
    broken = [{"kind": "vector", "round": 0, "form": "fp16", "why": "the kernel does not compile here (OSError)"}]
    assert "rate_ratio" not in instructions.estimates(counted() + broken, s)
    assert "does not compile" in instructions.notes(counted() + broken, s)[0]


# ---------------------------------------------------------------- gpu


def steps(where, network, batch, times):
    return {"where": where, "network": network, "batch": batch, "settings": "fp32", "times_s": list(times)}


def test_a_gpus_gain_is_the_cpus_time_over_its_own_and_claims_are_of_the_largest_and_the_smallest_case():
    rows = []
    for network, batch, gain in [
        ("two layers", 1, 0.5),
        ("two layers", 128, 3),
        ("ResNet-18", 1, 4),
        ("ResNet-18", 128, 20),
    ]:
        for name, slow in (("cuda", 1 / gain), ("cpu", 1.0)):
            rows.append(steps(name, network, batch, [slow * t for t in (1.0, 2.0, 4.0)]))
    rows += [steps(w, "ResNet-20", b, (1.0, 1.0, 1.0)) for w in ("cpu", "cuda") for b in (1, 128)]
    found = gpu.estimates(rows, settings())
    assert found["speedup_large"].mean == pytest.approx(20) and found["speedup_small"].mean == pytest.approx(0.5)
    assert found["speedup_two_layers_batch_128"].mean == pytest.approx(3) and found["speedup_large"].sd < 1e-9
    assert found["cpu_resnet_20_batch_128"].mean == 128 and gpu.notes(rows, settings()) == []


def test_without_a_gpu_there_is_no_gain_but_a_reason():
    rows = [steps("cpu", network, b, (1.0, 2.0, 4.0)) for network in gpu.NETWORKS for b in (1, 128)]
    found = gpu.estimates(rows, settings())
    assert not [name for name in found if name.startswith("speedup")]
    assert found["cpu_resnet_18_batch_128"].mean == pytest.approx((128 + 64 + 32) / 3)
    assert [note.partition(": ")[0] for note in gpu.notes(rows, settings())] == [
        "gpu/speedup_large",
        "gpu/speedup_small",
    ]


# ---------------------------------------------------------------- settings that allow no answer

THROUGHPUT = {"product_sides": [128, 256], "conv_shape": [1, 4], "rounds": 4, "seconds": 0.1}
SHAPES = {"aligned_sides": [7, 8], "batches": [1, 4], "depth": 8, "rounds": 4}
ACCURACY = {"accuracy_seeds": 2, "accuracy_width": 1}


@pytest.mark.parametrize(
    ("experiment", "changes", "words"),
    [
        (tensor_cores.THROUGHPUT, THROUGHPUT | {"product_sides": [256, 512]}, r"product_sides=\[256, 512\].*128"),
        (tensor_cores.THROUGHPUT, THROUGHPUT | {"product_sides": [128, 129]}, r"\[129\] are no multiples of 16"),
        (tensor_cores.THROUGHPUT, THROUGHPUT | {"conv_shape": [0, 4]}, "conv_shape="),
        (tensor_cores.THROUGHPUT, THROUGHPUT | {"rounds": 3}, "rounds=3 must be at least 4"),
        (tensor_cores.THROUGHPUT, THROUGHPUT | {"seconds": 0}, "seconds=0 must be above 0"),
        (tensor_cores.SHAPES, SHAPES | {"aligned_sides": [8, 16]}, "aligned_sides="),
        (tensor_cores.SHAPES, SHAPES | {"batches": [4]}, r"batches=\[4\] must hold at least two"),
        (tensor_cores.SHAPES, SHAPES | {"depth": 9}, "depth=9 fits no CIFAR ResNet"),
        (tensor_cores.LAYERS, {"layer_shape": [1, 32], "batch_size": 4}, "layer_shape="),
        (tensor_cores.PRECISION, ACCURACY | {"accuracy_seeds": 1}, "accuracy_seeds=1 must be at least 2"),
        (tensor_cores.PRECISION, ACCURACY | {"accuracy_width": 0}, "accuracy_width=0 must be at least 1"),
        (tensor_cores.GPU, {"gpu_batches": [1, 2], "gpu_side": 9, "rounds": 4}, r"gpu_batches=\[1, 2\].*\[1, 128\]"),
        (tensor_cores.GPU, {"gpu_batches": [1, 128], "gpu_side": 8, "rounds": 4}, "gpu_side=8 must be at least 9"),
    ],
)
def test_settings_that_leave_nothing_to_compare_are_refused(experiment, changes, words):
    with pytest.raises(ValueError, match=words):
        experiment.conditions(settings(**changes))


def test_only_a_large_product_that_a_cpu_would_take_too_long_for_is_left_out(monkeypatch):
    from resnet_lib import ceilings
    from resnet_lib.experiments.tensor_cores import throughput

    asked = []

    def slow(side, form, device, seconds):
        asked.append(side)
        return {"time_s": 9.0, "min_s": 1.0 if form == "fp8" else 1e-6}

    monkeypatch.setattr(ceilings, "matmul", slow)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert throughput.too_slow(128, "fp8", cpu) == throughput.too_slow(8192, "fp8", gpu) == 0 and asked == []
    assert throughput.too_slow(256, "fp8", cpu) == 64 and throughput.too_slow(256, "fp32", cpu) == 0
    s = settings(seconds=0.01)
    s.__dict__["device"] = cpu
    assert throughput.throughput(s, "matmul", 512, "fp8") == [{"kind": "too slow", "once_s": 512.0}]
