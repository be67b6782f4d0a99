"""Steps and messages on the clock: every kind of training, over one process and more, all in turn in one start."""

import math
import os
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from resnet_lib import devices, parallel
from resnet_lib.experiments.parallelism import engines
from resnet_lib.experiments.parallelism.unavailable import or_skipped

SETTINGS = ("speed_processes", "speed_depth", "speed_width", "speed_batch", "speed_seconds")
MICRO_BATCHES = 8  # of a pipeline
PASSES = 4  # of a step that accumulates gradients, each over a whole batch
BUCKETS = 4  # messages among which data parallelism divides the gradients
MESSAGES = (2**10, 2**13, 2**16, 2**19, 2**22)  # bytes summed over the processes, to fit the link
WIDER = 2  # how much wider the network is that the cost model has never seen
RULED = 2  # processes that the rules speak of
TIMEOUT_S = 1800.0
WHATS = ("step", "link", "compute", "held out")


def timings(s, rounds: int) -> list[dict]:
    """All rounds over the largest number of processes; the smaller ones take part while the others wait.

    Returns: rows with `what`: "step" (arm, processes, pictures of a step), "compute" (pictures), "link" (processes,
        bytes), "held out" (processes, pictures, width); all with round, time_s.
    """
    if rows := or_skipped(*WHATS):
        return [row | {"round": 0} for row in rows]
    numbers = sorted({1, *s.speed_processes})
    channels, *sides = s.facts["shape"]
    spec = {
        "depth": s.speed_depth,
        "width": s.speed_width,
        "batch": s.speed_batch,
        "seconds": s.speed_seconds,
        "processes": numbers,
        "rounds": rounds,
        "channels": channels,
        "classes": s.facts["classes"],
        "picture": [channels, *sides],
        "cores": cores(),
    }
    rows = parallel.launch(clocked, spec, max(numbers), device=s.device, timeout_s=TIMEOUT_S)
    return [row for row in rows if row["rank"] == 0]


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def runs(s) -> list[dict]:
    """One start for all rounds.

    Raises: ValueError for numbers of processes, batches or rounds that allow no comparison.
    """
    if RULED not in s.speed_processes or min(s.speed_processes) < 2:
        raise ValueError(f"speed_processes={s.speed_processes} must hold {RULED}, and no number below 2")
    whole = math.lcm(MICRO_BATCHES, *s.speed_processes)
    if s.speed_batch % whole:
        raise ValueError(f"speed_batch={s.speed_batch} must be a multiple of {whole}: it is divided")
    if s.rounds < 3:
        raise ValueError(f"rounds={s.rounds} must be at least 3: an interval is formed over rounds")
    return [{"rounds": s.rounds}]


def own_processors(rows) -> list[dict]:
    """Rows of runs in which each process had a processor of its own; others compete, and say nothing of parallelism."""
    return [r for r in rows if r["backend"] == "nccl" or r["processes"] <= r["cores"]]


def clocked(s: dict, tensors: dict[str, Tensor]) -> list[dict]:
    """What each process does. Every round takes all arms in turn, so that what drifts, drifts for all."""
    groups = {n: dist.new_group(list(range(n))) for n in s["processes"]}
    idle = dist.new_group(backend="gloo")  # waits without computing, also beside NCCL
    rank, rows = dist.get_rank(), []
    arms = [(n, arm) for n, group in groups.items() if rank < n for arm in arms_of(s, group)]
    everywhere = [(n, name) for n in groups for name in names_of(n, s)]
    mine = {(n, name): (call, facts) for n, (name, call, facts) in arms}
    for number in range(-1, s["rounds"]):  # the first warms up
        for n, name in everywhere:
            dist.barrier(idle)
            if (n, name) not in mine:
                continue
            call, facts = mine[n, name]
            taken = clock(call, groups[n], 0.0 if number < 0 else s["seconds"])
            if number >= 0:
                where = {"cores": s["cores"], "backend": dist.get_backend()}
                rows.append({"round": number, "processes": n, "time_s": taken} | facts | where)
    dist.barrier(idle)
    return rows


def clock(call, group: dist.ProcessGroup, seconds: float) -> float:
    """Seconds of one call: as often as fits, at least twice, between barriers; the slowest process counts."""
    device = parallel.own_device()

    def took(times: int) -> float:
        dist.barrier(group)
        devices.synchronise(device)
        started = time.perf_counter()
        for _ in range(times):
            call()
        devices.synchronise(device)
        taken = torch.tensor([(time.perf_counter() - started) / times], dtype=torch.float64, device=device)
        dist.all_reduce(taken, dist.ReduceOp.MAX, group=group)
        return taken.item()

    first = took(1)
    return took(max(2, math.ceil(seconds / first))) if seconds else first


def names_of(n: int, s: dict) -> list[str]:
    """The arms over n processes, in the order in which all processes take them."""
    compute = [f"compute {b}" for b in batches_of(s)]
    if n == 1:
        return ["one process", *compute]
    data = ["data", "data, fixed batch", "data, one message", "data, no messages", "data, accumulated"]
    return [*data, "sharded", "tensor", "pipeline", "held out", *(f"link {size}" for size in MESSAGES)]


def batches_of(s: dict) -> list[int]:
    return sorted({max(1, s["batch"] // 8), max(1, s["batch"] // 2), s["batch"]})


def arms_of(s: dict, group: dist.ProcessGroup) -> list[tuple]:
    """(name, call, facts of the rows) of each arm of `names_of`: forward and backward passes, with what is sent.

    The weights are not moved: an optimiser's step costs the same in every process, and nothing depends on what is learnt.
    """
    n, device, b = group.size(), parallel.own_device(), s["batch"]
    model, picture = engines.network(s, s["width"]).to(device), s["picture"]
    wider = engines.network(s, WIDER * s["width"]).to(device)
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(PASSES * b, *picture, generator=draw).to(device)
    labels = torch.randint(0, s["classes"], (PASSES * b,), generator=draw).to(device)

    def step(name, engine, pictures, call=None, what="step", width=s["width"]):
        """`pictures`: that `step` is given; a weak arm gives each process a whole batch of its own."""
        own = name in WEAK and n > 1
        given = images[:pictures], labels[:pictures]
        call = call or engine.step

        def once():
            for p in engine.named.values():
                p.grad = None
            call(*given)

        total = pictures * (n if own else 1)
        return name, once, {"what": what, "arm": name, "pictures": total, "width": width}

    if n == 1:
        alone = plain(model)
        found = [step("one process", alone, b)]
        return found + [step(f"compute {size}", alone, size, what="compute") for size in batches_of(s)]
    make = lambda kind, network=model, **options: engines.set_up(kind, network, group, MICRO_BATCHES, **options)
    data = make("data", buckets=BUCKETS, own_batches=True)
    found = [
        step("data", data, b),
        step("data, fixed batch", make("data", buckets=BUCKETS), b),
        step("data, one message", make("data", own_batches=True), b),
        step("data, no messages", data, b, data.without_messages),
        step("data, accumulated", make("data", buckets=BUCKETS, own_batches=True, passes=PASSES), PASSES * b),
        step("sharded", make("sharded", own_batches=True), b),
        step("tensor", make("tensor"), b),
        step("pipeline", make("pipeline", by="flops", picture=picture), b),
        step("held out", make("data", wider, buckets=BUCKETS), b, what="held out", width=WIDER * s["width"]),
    ]
    for size in MESSAGES:
        numbers = torch.zeros(size // 4, device=device)
        facts = {"what": "link", "arm": f"link {size}", "bytes": size}
        found.append((f"link {size}", lambda x=numbers: dist.all_reduce(x, group=group), facts))
    return found


WEAK = ("data", "data, one message", "data, no messages", "data, accumulated", "sharded")  # a whole batch a process


def plain(model) -> engines.Engine:
    """One process without any engine."""

    def step(images, labels):
        F.cross_entropy(model(images), labels).backward()

    return engines.Engine(model, engines.named_in(model), step, lambda name, whole: whole)
