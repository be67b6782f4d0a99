"""Where to compute: which device, what it is, when it has finished."""

import contextlib
import os
import platform
from pathlib import Path

import torch

INSTRUCTION_SETS = ("amx_bf16", "amx_fp16", "amx_int8", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx_vnni", "i8mm")


def choose(name: str = "auto") -> torch.device:
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


def instruction_sets() -> list[str]:
    """The CPU's instruction sets for products of numbers narrower than float32, as Linux names them."""
    return [name for name in INSTRUCTION_SETS if name in cpu_flags()]


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
