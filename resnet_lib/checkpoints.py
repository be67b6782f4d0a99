"""The state of an interrupted training, kept whole in one file and given back to the very same run alone."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from resnet_lib import freshness
from resnet_lib.data import Dataset


def recipe(config, dataset: Dataset, seed: int, model: nn.Module, functions: tuple[Callable | None, ...]) -> str:
    """A hash of all that decides a run: config, pictures, seed, the network as it starts, and the code it calls.

    Args: model: before its first step; functions: the task and whatever else the run calls, with what they close over.
    """
    start = hashlib.sha256()
    # a plain network and its residual twin have the same shapes and weights: the modules and options tell them apart
    start.update((repr(model) + str(getattr(model, "config", ""))).encode())
    for name, value in model.state_dict().items():
        start.update(f"{name}{freshness.hash_value(value)}".encode())
    splits = (dataset.train, dataset.val)
    pictures = [freshness.hash_value(part) for split in splits for part in (split.images, split.labels)]
    scale = [freshness.hash_value(part) for part in (dataset.mean, dataset.std)]
    code = [freshness.code_of(function) for function in functions if function]
    parts = [asdict(config), pictures, scale, int(seed), start.hexdigest(), code]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def save(path: Path, recipe: str, state: dict, rows: list[dict]) -> None:
    """Write the state whole or not at all.

    Raises: OSError naming the file.
    """
    content = {name: part.state_dict() for name, part in state.items()}
    content |= {"recipe": recipe, "rows": rows, "random": torch.get_rng_state()}
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save(content, file)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise OSError(f"the checkpoint {path} cannot be written: {error}; choose a folder with room") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def restore(path: Path, recipe: str, state: dict) -> list[dict]:
    """Bring a state to where the file left it; its rows, none where there is no file.

    Raises: ValueError where the file is damaged or of another run.
    """
    if not path.exists():
        return []
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
        written = content["recipe"]
    except PermissionError:
        raise
    except Exception as error:  # reading damaged bytes fails in many ways
        raise ValueError(f"{path} is no whole checkpoint; delete that file to start again: {error}") from error
    if written != recipe:
        raise ValueError(
            f"{path} was written by a run with another config, dataset, seed, network or task; "
            "give this run another checkpoint file, or delete that one to start again"
        )
    for name, part in state.items():
        part.load_state_dict(content[name])
    torch.set_rng_state(content["random"])
    return content["rows"]
