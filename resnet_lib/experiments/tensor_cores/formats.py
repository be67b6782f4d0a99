"""Which formats run on a device, and in which of them its Tensor Cores multiply."""

from functools import cache

import torch

from resnet_lib import ceilings, stats

NEEDED = {"fp16": (7, 0), "int8": (7, 2), "tf32": (8, 0), "bf16": (8, 0), "fp8": (8, 9)}  # compute capability


@cache
def refusals(device: torch.device) -> dict[str, str]:
    """As `ceilings.refusals`, tried once a process."""
    return ceilings.refusals(device)


def running(device: torch.device) -> list[str]:
    return [name for name, why in refusals(device).items() if not why]


def absent(name: str, device: torch.device) -> str:
    """Why no Tensor Core multiplies in this format here; "" where one does."""
    if device.type != "cuda":
        return f"needs an NVIDIA GPU with Tensor Cores; this run's device is {device.type}"
    if torch.cuda.get_device_capability(device) < NEEDED[name]:
        return f"needs compute capability {'.'.join(map(str, NEEDED[name]))} for {name}"
    return refusals(device)[name]


def mixed(device: torch.device) -> str:
    """The 16 bits to train in."""
    return "fp16" if device.type == "cuda" and absent("bf16", device) else "bf16"


def filed(
    experiment: str, measures: dict[str, tuple], reasons: dict[str, str], device_type: str
) -> tuple[dict[str, stats.Estimate], list[str]]:
    """Estimates and notes from name → (format, estimate or None, further reason): a Tensor Core's own under their
    names in claims.yml, other devices' with the device's name before them.

    Args: reasons: format → why no Tensor Core multiplied in it, "" where one did.
    """
    estimates, notes = {}, []
    for name, (form, estimate, why) in measures.items():
        if reason := reasons[form] or why:
            notes.append(f"{experiment}/{name}: {reason}")
        if estimate is not None:
            estimates[f"{device_type}_{name}" if reason else name] = estimate
    return estimates, notes


def slug(text: str) -> str:
    """A name of a measure: "16 bits, channels last" → "16_bits_channels_last"."""
    return "_".join("".join(c if c.isalnum() else " " for c in text).lower().split())
