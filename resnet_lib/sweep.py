"""Run one function over conditions × seeds; keep finished runs, so that it can be interrupted and shared."""

import contextlib
import itertools
import json
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

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
        resume: keep each finished run in the cache folder, and take it from there the next time. Several processes
            that are given the same runs share them: each run is made by one, and all return all rows.
        finished: runs by their key, looked up first and added to: what several experiments share is run once.
        before: called before each run that is made; what it raises stops there, with the finished runs kept.
    Returns: the rows of each condition, as a record stores them; run_s is the time the run took when it was made.
    """
    from tqdm import tqdm

    finished = {} if finished is None else finished
    folder, found = cache_folder() / "runs", [None] * len(runs)
    name = getattr(function, "__name__", "run")
    interval = 0.5 if sys.stderr.isatty() else 5.0  # seconds between lines; a log keeps every one
    waiting, passed_by = deque(enumerate(runs)), 0
    with tqdm(total=len(runs), desc=name, disable=not progress, leave=False, mininterval=interval, unit="run") as bar:
        while waiting:
            index, condition = waiting.popleft()
            key = digest([recipe, condition])
            path = folder / f"{key}.json"
            with _claimed(path) if resume and key not in finished else contextlib.nullcontext(True) as ours:
                if key not in finished and resume and (kept := _kept(path)) is not None:
                    finished[key] = kept
                elif key not in finished and ours:
                    if before:
                        before()
                    bar.set_postfix_str(" ".join(f"{k}={v}" for k, v in condition.items()), refresh=False)
                    finished[key] = _made(function, condition)
                    if resume:
                        write_atomically(path, json.dumps(finished[key]))
            if key not in finished:  # another process makes it now: do the others first, then wait for it
                waiting.append((index, condition))
                passed_by += 1
                if passed_by >= len(waiting):
                    time.sleep(0.2)
                continue
            passed_by, found[index] = 0, finished[key]
            bar.update()
    return found


def _kept(path: Path) -> list[dict] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        warnings.warn(f"{path} is damaged, so this run is made again: {error}", stacklevel=3)
        return None


def _made(function: Callable[..., list[dict]], condition: dict) -> list[dict]:
    started = time.perf_counter()
    rows = [condition | row for row in function(**condition)]
    elapsed = time.perf_counter() - started
    return as_stored(row | {"run_s": elapsed} for row in rows)


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """Whether this process may make a run, because no other makes it now.

    The operating system frees what a killed process held. Where files cannot be locked, every run may be made.
    """
    claim = path.with_suffix(".claim")
    claim.parent.mkdir(parents=True, exist_ok=True)
    with open(claim, "w", encoding="utf-8") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except (ImportError, OSError):
            yield True
            return
        try:
            yield True
        finally:
            claim.unlink(missing_ok=True)
