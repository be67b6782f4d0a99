"""In what number format to compute: the formats, and how PyTorch is told to use one."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from resnet_lib import devices

PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")  # of training and inference: see ceilings.choose_precision


def reported(device: torch.device) -> str:
    """The format that the device's instruction set names for products: bf16, fp16 on older GPUs, else fp32.

    What a device can do is not always quick: `ceilings.choose_precision` measures it.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    if device.type == "cpu" and devices.cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"}:
        return "bf16"
    return "fp32"


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager:
    """Run convolutions and matrix products in `precision` inside the block; weights stay float32.

    Whether float32 is true or TF32 is set once, around all that is computed: see `number_format`.
    """
    dtype = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


@dataclass(frozen=True)
class Format:
    """A binary floating-point format: a normal number is ±(1 + fraction / 2^fraction_bits) · 2^(exponent − bias)."""

    name: str
    dtype: torch.dtype  # what holds its numbers; TF32 has no type of its own and lives in float32
    exponent_bits: int
    fraction_bits: int
    maximum: float

    @property
    def epsilon(self) -> float:
        """The step from 1 to the next number."""
        return 2.0**-self.fraction_bits

    @property
    def smallest_normal(self) -> float:
        return 2.0 ** (2 - 2 ** (self.exponent_bits - 1))

    @property
    def smallest_subnormal(self) -> float:
        """The smallest number above 0; what is half of it or less is rounded to 0."""
        return self.smallest_normal * self.epsilon


# float8_e4m3fn gives up infinities for numbers up to 448 instead of 240 (arXiv:2209.05433, §3)
FORMATS = {
    "fp32": Format("fp32", torch.float32, 8, 23, torch.finfo(torch.float32).max),
    "tf32": Format("tf32", torch.float32, 8, 10, (2 - 2.0**-10) * 2.0**127),
    "fp16": Format("fp16", torch.float16, 5, 10, torch.finfo(torch.float16).max),
    "bf16": Format("bf16", torch.bfloat16, 8, 7, torch.finfo(torch.bfloat16).max),
    "fp8": Format("fp8", torch.float8_e4m3fn, 4, 3, torch.finfo(torch.float8_e4m3fn).max),
}


@contextlib.contextmanager
def number_format(name: str) -> Iterator[None]:
    """Inside, float32 products and cuDNN's convolutions are true float32, or TF32 where `name` is "tf32".

    PyTorch's own default allows TF32 in convolutions and not in products. Both switches are restored at the end.
    """
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
