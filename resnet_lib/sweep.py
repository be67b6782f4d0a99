"""Run one function over conditions × seeds; keep finished runs, so that a long experiment can be interrupted."""

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable

from resnet_lib.paths import cache_folder, digest, write_atomically
from resnet_lib.records import as_stored


def conditions(**axes: Iterable) -> list[dict]:
    """Every combination of the axes' values, the last axis fastest: conditions(depth=[8, 20], seed=range(3))."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def run(
    function: Callable[..., list[dict]],
    runs: list[dict],
    *,
    recipe: dict,
    resume: bool = False,
    finished: dict[str, list[dict]] | None = None,
    before: Callable[[], object] | None = None,
    progress: bool = True,
) -> list[list[dict]]:
    """Call `function(**condition)` for each condition and collect its rows, each with the condition's columns.

    Args:
        runs: the conditions, as from `conditions`.
        recipe: what else decides the result: code, settings, the data's fingerprint; with a condition, a run's key.
        resume: keep each finished run in the cache folder, and take it from there the next time.
        finished: runs by their key, looked up first and added to: what several experiments share is run once.
        before: called before each run that is made; what it raises stops there, with the finished runs kept.
    Returns: the rows of each condition, as a record stores them; run_s is the time the run took when it was made.
    """
    from tqdm import tqdm

    finished = {} if finished is None else finished
    folder, found = cache_folder() / "runs", []
    name = getattr(function, "__name__", "run")
    interval = 0.5 if sys.stderr.isatty() else 5.0  # seconds between lines; a log keeps every one
    bar = tqdm(runs, desc=name, disable=not progress, leave=False, mininterval=interval, unit="run")
    for condition in bar:
        bar.set_postfix_str(" ".join(f"{k}={v}" for k, v in condition.items()), refresh=False)
        key = digest([recipe, condition])
        path = folder / f"{key}.json"
        if key not in finished and resume and path.exists():
            finished[key] = json.loads(path.read_text(encoding="utf-8"))
        if key not in finished:
            if before:
                before()
            started = time.perf_counter()
            rows = [condition | row for row in function(**condition)]
            elapsed = time.perf_counter() - started
            finished[key] = as_stored(row | {"run_s": elapsed} for row in rows)
            if resume:
                write_atomically(path, json.dumps(finished[key]))
        found.append(finished[key])
    return found
