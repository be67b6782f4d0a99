"""Formats have the numbers that they claim; what is set is set back."""

import pytest
import torch

from resnet_lib import devices, precision

CPU = torch.device("cpu")


def test_a_cpu_reports_bf16_only_where_it_has_instructions_for_it(monkeypatch):
    for flags, expected in ({"avx512_bf16"}, "bf16"), ({"amx_bf16"}, "bf16"), ({"avx2", "avx512f"}, "fp32"):
        monkeypatch.setattr(devices, "cpu_flags", lambda flags=flags: flags)
        assert precision.reported(CPU) == expected


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_autocast_computes_products_in_its_format(name, dtype):
    layer, images = torch.nn.Conv2d(1, 2, 3), torch.ones(1, 1, 4, 4)
    with precision.autocast(name, CPU):
        assert layer(images).dtype == dtype
    assert layer(images).dtype == layer.weight.dtype == torch.float32


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
