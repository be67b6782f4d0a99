"""Where and in what number format to compute: device choice, dtype policy, a scoped switch for matrix precision."""

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def choose_device(name: str = "auto") -> torch.device:
    """The device to compute on.

    Args:
        name: "auto" takes the GPU where there is one, else the CPU; or "cpu", "cuda", "cuda:1", "mps".
    Raises: ValueError where the device does not exist here, or the name is not a device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device={name!r} is not a device; use 'auto', 'cpu', 'cuda', 'cuda:1', … or 'mps'") from error
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ValueError(f"device={name!r}: this machine has {count} CUDA GPU(s); use 'auto' or 'cpu'")
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError(f"device={name!r}: this machine has no Apple GPU; use 'auto' or 'cpu'")
    elif device.type != "cpu":
        raise ValueError(f"device={name!r}: only 'cpu', 'cuda' and 'mps' are used in this book")
    return device


def cpu_flags() -> set[str]:
    """Instruction-set names of this CPU as Linux prints them; empty elsewhere."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return set(line.split(":", 1)[1].split())
    return set()


def choose_precision(name: str, device: torch.device) -> str:
    """The number format of convolutions and matrix products: "fp32", "bf16" or "fp16".

    Args:
        name: "auto" takes bf16 where the device has instructions for it, fp16 on older GPUs, else fp32.
    """
    if name not in PRECISIONS:
        raise ValueError(f"precision={name!r} is not one of {', '.join(map(repr, PRECISIONS))}")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
    if device.type == "cpu" and cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"}:
        return "bf16"
    return "fp32"


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager:
    """Run convolutions and matrix products in `precision` inside the block; weights stay float32."""
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


@contextlib.contextmanager
def matmul_precision(level: str) -> Iterator[None]:
    """Set float32 matrix precision ("highest" is true float32, "high" allows TF32) and restore it at the end."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(level)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it; without this a clock reads only the asking."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def describe(device: torch.device) -> dict:
    """What a reader needs to know of the machine: device name, cores, instruction sets, memory."""
    found = {"device": device.type, "threads": torch.get_num_threads(), "cpu": cpu_name(), "system": platform.system()}
    found["instructions"] = sorted(cpu_flags() & {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16"})
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
    else:
        found["name"] = f"{found['threads']} threads of {found['cpu']}"
    return found


def cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine() or f"a CPU with {os.cpu_count()} cores"
