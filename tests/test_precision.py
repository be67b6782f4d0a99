"""The device and number format asked for are those that are used; switches go back to where they were."""

import json

import pytest
import torch

from resnet_lib import precision

CPU = torch.device("cpu")


def test_a_gpu_asked_for_where_there_is_none_is_an_error():
    for name, missing in (("cuda", not torch.cuda.is_available()), ("mps", not torch.backends.mps.is_available())):
        if missing:
            with pytest.raises(ValueError, match=f"device='{name}': this machine has .*use 'auto' or 'cpu'"):
                precision.choose_device(name)
    with pytest.raises(ValueError, match=r"device='cuda:99': this machine has \d+ CUDA GPU\(s\)"):
        precision.choose_device("cuda:99")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "device='gpu' is not a device; use 'auto', 'cpu', 'cuda'"),
        ("meta", "device='meta': only 'cpu', 'cuda' and 'mps'"),
    ],
)
def test_a_name_that_is_no_device_here_is_named(name, message):
    with pytest.raises(ValueError, match=message):
        precision.choose_device(name)


def test_auto_takes_the_best_that_is_there():
    found = precision.choose_device("auto")
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert found.type == expected and precision.choose_device("cpu") == CPU


def test_auto_takes_bf16_only_where_the_cpu_has_instructions_for_it(monkeypatch):
    for flags, expected in ({"avx512_bf16"}, "bf16"), ({"amx_bf16"}, "bf16"), ({"avx2", "avx512f"}, "fp32"):
        monkeypatch.setattr(precision, "cpu_flags", lambda flags=flags: flags)
        assert precision.choose_precision("auto", CPU) == expected
    for name in ("fp32", "bf16", "fp16"):
        assert precision.choose_precision(name, CPU) == name
    with pytest.raises(ValueError, match="precision='fp8' is not one of 'auto', 'fp32', 'bf16', 'fp16'"):
        precision.choose_precision("fp8", CPU)


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_autocast_computes_products_in_its_format(name, dtype):
    layer, images = torch.nn.Conv2d(1, 2, 3), torch.ones(1, 1, 4, 4)
    with precision.autocast(name, CPU):
        assert layer(images).dtype == dtype
    assert layer(images).dtype == layer.weight.dtype == torch.float32


def test_matrix_precision_is_restored_even_after_an_exception():
    before = torch.get_float32_matmul_precision()
    other = "high" if before == "highest" else "highest"
    with precision.matmul_precision(other):
        assert torch.get_float32_matmul_precision() == other
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(KeyError), precision.matmul_precision(other):
        raise KeyError
    assert torch.get_float32_matmul_precision() == before


def test_a_machine_is_described_in_plain_values():
    found = precision.describe(CPU)
    assert found["threads"] == torch.get_num_threads() and found["cpu"] and found["cpu"] in found["name"]
    assert all(isinstance(value, str | int | list) for value in found.values())
    precision.synchronise(CPU)


@pytest.mark.parametrize("name", [name for name in precision.FORMATS if name != "tf32"])
def test_a_formats_limits_follow_from_its_bits_as_torch_has_them(name):
    known, ours = torch.finfo(precision.FORMATS[name].dtype), precision.FORMATS[name]
    assert (known.max, known.eps) == (ours.maximum, ours.epsilon)
    assert (known.tiny, known.smallest_normal) == (ours.smallest_normal, ours.smallest_normal)
    smallest = torch.tensor([ours.smallest_subnormal, ours.smallest_subnormal * 0.5], dtype=torch.float64)
    assert smallest.to(ours.dtype).double().tolist() == [ours.smallest_subnormal, 0.0]


def test_tf32_has_float32s_range_and_float16s_fraction():
    tf32, fp32, fp16 = (precision.FORMATS[name] for name in ("tf32", "fp32", "fp16"))
    assert tf32.smallest_normal == fp32.smallest_normal and tf32.epsilon == fp16.epsilon
    assert fp32.maximum * (1 - 2**-10) < tf32.maximum < fp32.maximum


def test_number_format_switches_products_and_convolutions_and_restores_both():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    for name, expected in ("tf32", ("high", True)), ("fp32", ("highest", False)), ("bf16", ("highest", False)):
        with precision.number_format(name):
            assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == expected
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
    with pytest.raises(KeyError), precision.number_format("tf32"):
        raise KeyError
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_what_a_cpu_cannot_multiply_is_said_with_the_reason():
    found = precision.usable(CPU)
    assert list(found) == list(precision.PRODUCTS) and found["fp32"] == found["bf16"] == ""
    assert "TF32 is a mode of NVIDIA GPUs" in found["tf32"]


@pytest.mark.parametrize("name", [n for n, why in precision.usable(CPU).items() if not why])
def test_a_measured_product_is_right_and_its_rate_is_flops_over_time(name):
    row = precision.matmul((32, 64, 48), name, CPU, seconds=0.01)
    assert row["flops"] == 2 * 32 * 64 * 48 and row["size"] == 64 and row["note"] == ""
    assert precision.right(row) and row["rate"] == row["flops"] / row["time_s"]
    assert row["rate_min"] <= row["rate"] <= row["rate_max"] and row["timings"] == 5
    assert row["sets"] > 1  # or a cache would be measured
    if name not in ("fp32", "int8"):
        assert row["error"] > 64 * precision.FORMATS["fp32"].epsilon, "it was not computed in the narrow format"


def test_a_wrong_product_counts_for_nothing(monkeypatch):
    correct = precision._multiply
    monkeypatch.setattr(precision, "_multiply", lambda a, b, name: correct(a, b, name) * 1.02)
    rows = [precision.matmul(64, name, CPU, seconds=0.01) for name in ("fp32", "bf16")]
    assert [precision.right(row) for row in rows] == [False, False]
    with pytest.raises(ValueError, match="no correct measurement of kind='matmul' and format='fp32'"):
        precision.peak(rows, "matmul", "fp32")


def test_half_the_numbers_lost_to_a_narrow_format_is_seen_as_wrong_in_float32(monkeypatch):
    monkeypatch.setattr(precision, "_multiply", lambda a, b, name: (a.bfloat16() @ b.bfloat16().t()).float())
    assert not precision.right(precision.matmul(64, "fp32", CPU, seconds=0.01))


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_a_measured_convolution_is_right(layout):
    row = precision.convolution(8, "bf16", CPU, side=6, batch=4, layout=layout, seconds=0.01)
    assert row["flops"] == 2 * 4 * 6 * 6 * 8 * 8 * 9 and precision.right(row) and row["layout"] == layout


def test_what_does_not_fit_into_memory_is_measured_smaller_and_says_so(monkeypatch):
    monkeypatch.setattr(precision.bench, "free_bytes", lambda device: 200_000)
    row = precision.matmul(256, "fp32", CPU, seconds=0.01)
    assert row["size"] < 256 and "256×256 times 256×256 does not fit into memory" in row["note"]
    row = precision.convolution(8, "fp32", CPU, side=8, batch=64, seconds=0.01)
    assert row["batch"] < 64 and "a batch of 64 does not fit into memory" in row["note"]
    row = precision.bandwidth(CPU, size=2**20, seconds=0.01)
    assert row["bytes"] < 2**20 and "does not fit" in row["note"]
    monkeypatch.setattr(precision.bench, "free_bytes", lambda device: 0)
    with pytest.raises(MemoryError, match="GiB are needed and 0 GiB free"):
        precision.matmul(16, "fp32", CPU, seconds=0.01)


def test_only_a_lack_of_memory_makes_a_probe_smaller(monkeypatch):
    def broken(a, b, name):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(precision, "_multiply", broken)
    with pytest.raises(RuntimeError, match="no kernel image"):
        precision.matmul(64, "fp32", CPU, seconds=0.01)


def test_bandwidth_counts_bytes_read_and_written():
    row = precision.bandwidth(CPU, size=2**20, seconds=0.01)
    assert row["bytes"] == 2**20 and row["rate"] == 2 * 2**20 / row["time_s"]


def test_auto_is_16_bits_only_where_a_measurement_says_so(monkeypatch):
    monkeypatch.setattr(precision, "cpu_flags", lambda: {"avx512_bf16"})
    for gain, expected in (0.5, "fp32"), (1.1, "fp32"), (1.5, "bf16"):
        rates = {"fp32": 1.0, "bf16": gain}
        monkeypatch.setattr(precision, "convolution", lambda c, name, *a, rates=rates, **b: {"rate": rates[name]})
        assert precision.quickest("auto", CPU) == expected
        assert precision.quickest("bf16", CPU) == "bf16" and precision.quickest("fp32", CPU) == "fp32"
    with pytest.raises(ValueError, match="precision='fp8' is not one of"):
        precision.quickest("fp8", CPU)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: precision.matmul(64, "fp64", CPU), "name='fp64' is not one of 'fp32', 'tf32'"),
        (lambda: precision.matmul((64, 0, 64), "fp32", CPU), "k=0 must be a whole number of at least 1"),
        (lambda: precision.convolution(8, "fp8", CPU), "name='fp8' is not one of 'fp32', 'tf32', 'fp16', 'bf16'$"),
        (lambda: precision.convolution(8, "fp32", CPU, kernel=2), "kernel=2 must be odd"),
        (lambda: precision.convolution(8, "fp32", CPU, layout="rows"), "layout='rows' is not one of 'channels_last'"),
        (lambda: precision.bandwidth(CPU, size=-1), "size=-1 must be a whole number"),
    ],
)
def test_a_probe_that_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_report_holds_every_usable_format_and_says_what_is_missing(capsys, monkeypatch):
    monkeypatch.setattr(precision.bench, "cache_bytes", lambda device: 2**20)
    assert precision.main(["--device", "cpu", "--seconds", "0.001", "--largest", "64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    missing = {name for name, why in precision.usable(CPU).items() if why}
    assert {row["format"] for row in found["rows"] if row["kind"] == "matmul"} == set(precision.PRODUCTS) - missing
    assert {note.split(":")[0] for note in found["notes"]} == missing
    text = "\n".join(precision._report(found))
    assert "TFLOP/s" in text and "GB/s" in text and "TF32 is a mode of NVIDIA GPUs" in text


@pytest.mark.parametrize(
    "arguments", [["--device", "cuda:99"], ["--seconds", "0"], ["--largest", "x"], ["--device", "gpu"]]
)
def test_the_report_refuses_bad_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        precision.main(arguments)
    assert stopped.value.code == 2 and arguments[1] in capsys.readouterr().err
