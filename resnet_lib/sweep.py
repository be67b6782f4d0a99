"""Run one function over conditions × seeds; keep finished runs, so that a long experiment can be interrupted."""

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable

from resnet_lib.records import cache_folder, code_of, digest, write_atomically


def conditions(**axes: Iterable) -> list[dict]:
    """Every combination of the axes' values, the last axis fastest: conditions(depth=[8, 20], seed=range(3))."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def run(
    function: Callable[..., list[dict]],
    runs: list[dict],
    *,
    recipe: dict | None = None,
    resume: bool = False,
    progress: bool = True,
) -> list[dict]:
    """Call `function(**condition)` for each condition and collect its rows, each with the condition's columns.

    Args:
        runs: the conditions, as from `conditions`.
        recipe: what else decides the result (settings, the data's fingerprint). Needed to resume.
        resume: keep each finished run in the cache folder, under a key of function, library, recipe and condition,
            and take it from there the next time.
    Returns: rows; run_s is the time the run took when it was made.
    """
    from tqdm import tqdm

    if resume and recipe is None:
        raise ValueError("resume=True needs a recipe, or a run with other settings could be mistaken for this one")
    rows = []
    folder = cache_folder() / "runs"
    code = code_of(function) if resume else {}
    interval = 0.5 if sys.stderr.isatty() else 5.0  # seconds between lines; a log keeps every one
    bar = tqdm(runs, desc=function.__name__, disable=not progress, leave=False, mininterval=interval, unit="run")
    for condition in bar:
        bar.set_postfix_str(" ".join(f"{k}={v}" for k, v in condition.items()), refresh=False)
        path = folder / f"{digest([code, recipe, condition])}.json"
        if resume and path.exists():
            rows += json.loads(path.read_text())
            continue
        started = time.perf_counter()
        found = [condition | row for row in function(**condition)]
        elapsed = time.perf_counter() - started
        found = [row | {"run_s": elapsed} for row in found]
        if resume:
            write_atomically(path, json.dumps(found))
        rows += found
    return rows
