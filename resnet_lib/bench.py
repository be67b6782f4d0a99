"""Time callables honestly: warm up, wait for the device, repeat, take turns; ratios are formed round by round."""

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one quantity. With few repeats, the extremes say more than a standard deviation."""

    median: float
    min: float
    max: float
    n: int


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values), len(values))


def ratio(times_s: Sequence[float], reference_s: Sequence[float]) -> Spread:
    """How many times as fast as the reference, round by round.

    What slows the whole machine for a while slows both halves of a pair, so it cancels here and would not cancel
    in a ratio of two medians.
    """
    return spread([reference / own for own, reference in zip(times_s, reference_s, strict=True)])


def wait_for_accelerator() -> None:
    """Wait until a GPU has done all that was asked of it; nothing on a machine without one."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def measure(call: Callable[[], object], *, repeats: int = 5, **settings) -> Spread:
    """Seconds per call of one callable; settings as in `compare`. To set two side by side, use `compare`."""
    return spread(compare({"call": call}, rounds=repeats, **settings)[0]["times_s"])


def compare(
    variants: dict[str, Callable[[], object]],
    *,
    reference: str | None = None,
    rounds: int = 5,
    warmup: int = 2,
    number: int = 1,
    synchronise: Callable[[], None] = wait_for_accelerator,
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict]:
    """Time several callables in turn: all of them once a round, each round beginning with the next one.

    Taking turns keeps a machine that grows busy or warm from favouring one; times taken in different runs compare
    different machines. The turns rotate rather than run to and fro: whichever stood at a turning point would follow
    itself, and find its own data in the caches.

    Args:
        reference: the variant that all ratios refer to; the first if not given.
        warmup: untimed calls of each variant before the first round: allocation, caches, compilation.
        number: calls per timing, for a callable too short for the clock.
        synchronise: waits for the device; called before each reading of the clock.
    Returns: a row per variant: name, time_s (per call, the median over rounds), min_s, max_s, n, ratio (median over
        rounds of reference time / own time: above 1 is faster), ratio_min, ratio_max, times_s (all, in order).
    Raises: ValueError on bad input, or where the clock did not advance during a timing.
    """
    if not variants:
        raise ValueError("there is nothing to time: variants is empty")
    reference = next(iter(variants)) if reference is None else reference
    if reference not in variants:
        raise ValueError(f"reference={reference!r} is not one of {', '.join(map(repr, variants))}")
    for name, value, least in (("rounds", rounds, 1), ("warmup", warmup, 0), ("number", number, 1)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r} must be a whole number of at least {least}")
    for call in variants.values():
        for _ in range(warmup):
            call()
    names = list(variants)
    times: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            call = variants[name]
            synchronise()
            started = clock()
            for _ in range(number):
                call()
            synchronise()
            elapsed = clock() - started
            if elapsed <= 0:
                raise ValueError(f"{name!r} took no time that the clock can show with number={number}; raise number")
            times[name].append(elapsed / number)
    rows = []
    for name, own in times.items():
        taken, faster = spread(own), ratio(own, times[reference])
        row = {"name": name, "time_s": taken.median, "min_s": taken.min, "max_s": taken.max, "n": taken.n}
        row |= {"ratio": faster.median, "ratio_min": faster.min, "ratio_max": faster.max, "times_s": own}
        rows.append(row)
    return rows


def bursts(
    calls: dict[str, Callable[[], object]],
    rounds: int,
    number: int,
    *,
    synchronise: Callable[[], None] = wait_for_accelerator,
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict]:
    """Seconds of single calls, as a service would see them: callables take turns, each for several calls in a row.

    `compare` says how fast, and this also how evenly: a percentile needs single calls. The first call of a turn finds
    the caches full of the others' data, and is not timed.

    Args:    number: calls of a turn that are timed, each alone.
    Returns: a row for each callable and round: name, round, calls_s.
    Raises:  ValueError on bad input.
    """
    if not calls or rounds < 1 or number < 1:
        raise ValueError(f"{len(calls)} calls, rounds={rounds!r}, number={number!r} must all be at least 1")
    names, rows = list(calls), []
    for index in range(rounds):
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            calls[name]()
            calls_s = []
            for _ in range(number):
                synchronise()
                started = clock()
                calls[name]()
                synchronise()
                calls_s.append(clock() - started)
            rows.append({"name": name, "round": index, "calls_s": calls_s})
    return rows


def timed(
    call: Callable[[], object], device: torch.device, *, seconds: float = 0.2, repeats: int = 5, warmup: int = 2
) -> Spread:
    """Seconds per call on a device, each timing long enough for its clock.

    Args:
        seconds: for all timings together; a call that takes longer than its part is still made once a timing.
        warmup: untimed calls first: allocation, choice of algorithm, clocks that must rise.
    Raises: ValueError on bad input.
    """
    if not seconds > 0 or repeats < 1 or warmup < 0:
        raise ValueError(f"seconds={seconds!r}, repeats={repeats!r}, warmup={warmup!r} must be > 0, >= 1 and >= 0")
    for _ in range(warmup):
        call()
    once = elapsed(call, 1, device)
    number = max(1, min(100_000, int(seconds / repeats / max(once, 1e-7))))
    return spread([elapsed(call, number, device) / number for _ in range(repeats)])


def elapsed(call: Callable[[], object], number: int, device: torch.device) -> float:
    """Seconds that `number` calls take: by the GPU's own events, or by the clock where work is done when asked for."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(number):
                call()
            end.record()
            end.synchronize()
        return start.elapsed_time(end) / 1000
    wait_for_accelerator()
    started = time.perf_counter()
    for _ in range(number):
        call()
    wait_for_accelerator()
    return time.perf_counter() - started


def rotate(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """One callable that makes the next of several calls each time, so that none finds its own data in a cache."""
    turns = itertools.cycle(calls)
    return lambda: next(turns)()


def cache_bytes(device: torch.device) -> int:
    """Size of the last cache before the device's memory; 32 MiB where it does not say."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    return max([int(text[:-1]) * units[text[-1]] for text in sizes if text[-1:] in units], default=2**25)


def free_bytes(device: torch.device) -> int:
    """Memory of the device that nobody uses now; 1 GiB where it does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 2**10
    return 2**30
