"""Rates are of right results; what memory refuses gets smaller; `auto` is measured."""

import json

import pytest
import torch

from resnet_lib import ceilings, devices, precision

CPU = torch.device("cpu")


def test_what_a_cpu_cannot_multiply_is_said_with_the_reason():
    found = ceilings.refusals(CPU)
    assert list(found) == list(ceilings.PRODUCTS) and found["fp32"] == found["bf16"] == ""
    assert "TF32 is a mode of NVIDIA GPUs" in found["tf32"]


@pytest.mark.parametrize("name", [n for n, why in ceilings.refusals(CPU).items() if not why])
def test_a_measured_product_is_right_and_its_rate_is_flops_over_time(name):
    row = ceilings.matmul((32, 64, 48), name, CPU, seconds=0.01)
    assert row["flops"] == 2 * 32 * 64 * 48 and row["size"] == 64 and row["note"] == ""
    assert ceilings.is_correct(row) and row["rate"] == row["flops"] / row["time_s"]
    assert row["rate_min"] <= row["rate"] <= row["rate_max"] and row["timings"] == 5
    assert row["sets"] > 1  # or a cache would be measured
    if name not in ("fp32", "int8"):
        assert row["error"] > 64 * precision.FORMATS["fp32"].epsilon, "it was not computed in the narrow format"


def test_a_wrong_product_counts_for_nothing(monkeypatch):
    correct = ceilings._multiply
    monkeypatch.setattr(ceilings, "_multiply", lambda a, b, name: correct(a, b, name) * 1.02)
    rows = [ceilings.matmul(64, name, CPU, seconds=0.01) for name in ("fp32", "bf16")]
    assert [ceilings.is_correct(row) for row in rows] == [False, False]
    with pytest.raises(ValueError, match="no correct measurement of kind='matmul' and format='fp32'"):
        ceilings.peak(rows, "matmul", "fp32")


def test_half_the_numbers_lost_to_a_narrow_format_is_seen_as_wrong_in_float32(monkeypatch):
    monkeypatch.setattr(ceilings, "_multiply", lambda a, b, name: (a.bfloat16() @ b.bfloat16().t()).float())
    assert not ceilings.is_correct(ceilings.matmul(64, "fp32", CPU, seconds=0.01))


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_a_measured_convolution_is_right(layout):
    row = ceilings.convolution(8, "bf16", CPU, side=6, batch=4, layout=layout, seconds=0.01)
    assert row["flops"] == 2 * 4 * 6 * 6 * 8 * 8 * 9 and ceilings.is_correct(row) and row["layout"] == layout


def test_what_does_not_fit_into_memory_is_measured_smaller_and_says_so(monkeypatch):
    monkeypatch.setattr(ceilings.bench, "free_bytes", lambda device: 200_000)
    row = ceilings.matmul(256, "fp32", CPU, seconds=0.01)
    assert row["size"] < 256 and "256×256 times 256×256 does not fit into memory" in row["note"]
    row = ceilings.convolution(8, "fp32", CPU, side=8, batch=64, seconds=0.01)
    assert row["batch"] < 64 and "a batch of 64 does not fit into memory" in row["note"]
    row = ceilings.bandwidth(CPU, size=2**20, seconds=0.01)
    assert row["bytes"] < 2**20 and "does not fit" in row["note"]
    monkeypatch.setattr(ceilings.bench, "free_bytes", lambda device: 0)
    with pytest.raises(MemoryError, match="GiB are needed and 0 GiB free"):
        ceilings.matmul(16, "fp32", CPU, seconds=0.01)


def test_only_a_lack_of_memory_makes_a_probe_smaller(monkeypatch):
    def broken(a, b, name):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(ceilings, "_multiply", broken)
    with pytest.raises(RuntimeError, match="no kernel image"):
        ceilings.matmul(64, "fp32", CPU, seconds=0.01)


def test_bandwidth_counts_bytes_read_and_written():
    row = ceilings.bandwidth(CPU, size=2**20, seconds=0.01)
    assert row["bytes"] == 2**20 and row["rate"] == 2 * 2**20 / row["time_s"]


def test_auto_is_16_bits_only_where_a_measurement_says_so(monkeypatch):
    monkeypatch.setattr(devices, "cpu_flags", lambda: {"avx512_bf16"})
    for gain, expected in (0.5, "fp32"), (1.1, "fp32"), (1.5, "bf16"):
        rates = {"fp32": 1.0, "bf16": gain}
        monkeypatch.setattr(ceilings, "convolution", lambda c, name, *a, rates=rates, **b: {"rate": rates[name]})
        ceilings._quickest.cache_clear()
        assert ceilings.choose_precision("auto", CPU) == ceilings.choose_precision("auto", CPU) == expected
        for name in ("fp32", "tf32", "bf16", "fp16"):
            assert ceilings.choose_precision(name, CPU) == name
    ceilings._quickest.cache_clear()
    with pytest.raises(ValueError, match="precision='fp8' is not one of 'auto', 'fp32', 'tf32', 'bf16', 'fp16'"):
        ceilings.choose_precision("fp8", CPU)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ceilings.matmul(64, "fp64", CPU), "name='fp64' is not one of 'fp32', 'tf32'"),
        (lambda: ceilings.matmul((64, 0, 64), "fp32", CPU), "k=0 must be a whole number of at least 1"),
        (lambda: ceilings.convolution(8, "fp8", CPU), "name='fp8' is not one of 'fp32', 'tf32', 'fp16', 'bf16'$"),
        (lambda: ceilings.convolution(8, "fp32", CPU, kernel=2), "kernel=2 must be odd"),
        (lambda: ceilings.convolution(8, "fp32", CPU, layout="rows"), "layout='rows' is not one of 'channels_last'"),
        (lambda: ceilings.bandwidth(CPU, size=-1), "size=-1 must be a whole number"),
    ],
)
def test_a_probe_that_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_report_holds_every_usable_format_and_says_what_is_missing(capsys, monkeypatch):
    monkeypatch.setattr(ceilings.bench, "cache_bytes", lambda device: 2**20)
    assert ceilings.main(["--device", "cpu", "--seconds", "0.001", "--largest", "64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    missing = {name for name, why in ceilings.refusals(CPU).items() if why}
    assert {row["format"] for row in found["rows"] if row["kind"] == "matmul"} == set(ceilings.PRODUCTS) - missing
    assert {note.split(":")[0] for note in found["notes"]} == missing
    text = "\n".join(ceilings._report(found))
    assert "TFLOP/s" in text and "GB/s" in text and "TF32 is a mode of NVIDIA GPUs" in text


@pytest.mark.parametrize(
    "arguments", [["--device", "cuda:99"], ["--seconds", "0"], ["--largest", "x"], ["--device", "gpu"]]
)
def test_the_report_refuses_bad_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        ceilings.main(arguments)
    assert stopped.value.code == 2 and arguments[1] in capsys.readouterr().err
