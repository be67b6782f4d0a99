"""The device and number format asked for are those that are used; switches go back to where they were."""

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
