"""What happens when a process dies, hangs, or finds its disk full: training that goes on from its last checkpoint."""

import os
import re
import shutil
import signal
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from resnet_lib import parallel, stats
from resnet_lib.experiments.parallelism import engines, exact, unavailable
from resnet_lib.study import Experiment

FAULTS = ("killed", "hung", "disk full")
PROCESSES, STEPS, EVERY = 2, 6, 2  # training steps, and steps between two checkpoints
KILLED_AT = 5  # the step at which one process ends: one step after a checkpoint is lost
PATIENCE_S = 4.0  # that the others wait for one that hangs
TIMEOUT_S = 200.0
ROOM = 2**10  # bytes that a file may have where the disk is full


def faults(s, fault: str) -> list[dict]:
    """One launch of two processes, FSDP2, in which something goes wrong.

    Returns: a row. killed: restarts, resumed_at (step), difference from undisturbed training; hung: named, the rank that
        the error names, and waited_s; disk full: failed, whether saving did, and difference of what is loaded from what
        the checkpoint before it held.
    """
    if rows := unavailable.or_skipped("fault"):
        return rows
    spec, tensors = exact.prepared(s, PROCESSES)
    spec |= {"fault": fault, "steps": STEPS}
    options = {"tensors": tensors, "device": s.device, "timeout_s": TIMEOUT_S}
    row = {"what": "fault"}
    if fault == "hung":
        started = time.perf_counter()
        try:
            parallel.launch(hung, spec, PROCESSES, **options)
        except RuntimeError as error:
            named = re.search(r"Ranks? (\d+) failed to pass", str(error))
            return [row | {"named": int(named[1]) if named else None, "ended_s": time.perf_counter() - started}]
        return [row | {"named": None, "ended_s": time.perf_counter() - started}]
    found = parallel.launch(
        killed if fault == "killed" else full_disk, spec, PROCESSES, restarts=int(fault == "killed"), **options
    )
    return [row | {name: max(r[name] for r in found) for name in found[0] if name != "rank"}]


def training(s: dict) -> tuple[nn.Module, engines.Engine, torch.optim.Optimizer]:
    model = engines.network(s, s["width"]).double().to(parallel.own_device())
    engine = engines.set_up("sharded", model, dist.group.WORLD, 1)
    return engine.runs, engine, engines.optimizer_of(engine, exact.LEARNING_RATE)


def take_step(engine, optimizer, s: dict, tensors: dict[str, Tensor], step: int) -> None:
    """The batches take turns, so that which comes is decided by the step alone."""
    batches = list(zip(tensors["images"].split(s["batch"]), tensors["labels"].split(s["batch"]), strict=True))
    optimizer.zero_grad()
    engine.step(*batches[step % len(batches)])
    optimizer.step()


def save(model, optimizer, folder: Path, step: int) -> None:
    """Every process its part, whole or not at all: the folder gets its name when all have written.

    Raises: what `torch.distributed.checkpoint` raises, in all processes, where one could not write.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict

    weights, state = get_state_dict(model, optimizer)
    unfinished = folder / f"unfinished-{step}"
    if dist.get_rank() == 0:
        shutil.rmtree(unfinished, ignore_errors=True)
    dist.barrier()
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=unfinished)
    if dist.get_rank() == 0:
        os.replace(unfinished, folder / f"step-{step}")
    dist.barrier()


def load(model, optimizer, folder: Path) -> int:
    """The newest whole checkpoint into model and optimiser. Returns: its step, 0 where there is none."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    steps = [int(path.name.partition("-")[2]) for path in folder.glob("step-*")]
    if not steps:
        return 0
    weights, state = get_state_dict(model, optimizer)
    found = {"model": weights, "optimizer": state}
    dcp.load(found, checkpoint_id=folder / f"step-{max(steps)}")
    set_state_dict(model, optimizer, model_state_dict=found["model"], optim_state_dict=found["optimizer"])
    return max(steps)


def apart(a: nn.Module, b: dict[str, Tensor]) -> float:
    """The largest difference of a network's own parts from others, relative to the largest."""
    mine = {name: engines.local(p) for name, p in a.named_parameters()}
    scale = max(float(x.abs().max()) for x in b.values() if x.numel())
    return max(float((mine[name] - x).abs().max()) for name, x in b.items() if x.numel()) / scale


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: engines.local(p).clone() for name, p in model.named_parameters()}


def killed(s: dict, tensors: dict[str, Tensor]) -> list[dict]:
    """The last process kills itself at a step of the first attempt; the second attempt goes on from a checkpoint."""
    folder, attempt = Path(s["folder"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    model, engine, optimizer = training(s)
    resumed = load(model, optimizer, folder)
    for step in range(resumed, s["steps"]):
        if attempt == 0 and step == KILLED_AT and dist.get_rank() == dist.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        take_step(engine, optimizer, s, tensors, step)
        if (step + 1) % EVERY == 0:
            save(model, optimizer, folder, step + 1)
    undisturbed, engine, optimizer = training(s)
    for step in range(s["steps"]):
        take_step(engine, optimizer, s, tensors, step)
    return [{"restarts": attempt, "resumed_at": resumed, "difference": apart(model, copied(undisturbed))}]


def hung(s: dict, tensors: dict[str, Tensor]) -> list[dict]:
    """The last process stops answering; a barrier with a watch ends the others and says whom they waited for.

    The group's own timeout must stay long: under about twenty seconds it also breaks the connecting.
    """
    watch = dist.new_group(backend="gloo")  # NCCL has no barrier that names who is missing
    model, engine, optimizer = training(s)
    for step in range(s["steps"]):
        if step == 1 and dist.get_rank() == dist.get_world_size() - 1:
            time.sleep(TIMEOUT_S)
        dist.monitored_barrier(watch, timeout=timedelta(seconds=PATIENCE_S), wait_all_ranks=True)
        take_step(engine, optimizer, s, tensors, step)
    return []


def full_disk(s: dict, tensors: dict[str, Tensor]) -> list[dict]:
    """The last process cannot write its part of the second checkpoint; the first must load as it was."""
    import resource

    from torch.distributed.checkpoint.api import CheckpointException

    folder, failed = Path(s["folder"]), False
    model, engine, optimizer = training(s)
    take_step(engine, optimizer, s, tensors, 0)
    save(model, optimizer, folder, 1)
    held = copied(model)
    take_step(engine, optimizer, s, tensors, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == dist.get_world_size() - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, hard))
    try:
        save(model, optimizer, folder, 2)
    except CheckpointException:  # a BaseException, which `except Exception` lets pass
        failed = True
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    dist.barrier()
    moved = apart(model, held)
    loaded = load(model, optimizer, folder)
    return [{"failed": failed, "resumed_at": loaded, "moved": moved, "difference": apart(model, held)}]


def runs(s) -> list[dict]:
    if unknown := sorted(set(s.faults) - set(FAULTS)):
        raise ValueError(f"faults={s.faults} holds {', '.join(unknown)}; allowed: {', '.join(FAULTS)}")
    if not s.faults:
        raise ValueError(f"faults is empty; allowed: {', '.join(FAULTS)}")
    return [{"fault": fault} for fault in s.faults]


def by_fault(rows) -> dict[str, dict]:
    return {r["fault"]: r for r in rows}


def estimates(rows, s):
    of, found = by_fault(rows), {}
    if "killed" in of:
        found["restarts"] = stats.exact(of["killed"]["restarts"], "restarts")
        found["killed_difference"] = stats.exact(of["killed"]["difference"])
    if "hung" in of:
        found["named"] = stats.exact(float(of["hung"]["named"] == PROCESSES - 1))
    if "disk full" in of:
        found["disk_difference"] = stats.exact(of["disk full"]["difference"])
    return found


def same(difference: float, what: str) -> str:
    return f"{what}, bit for bit" if difference == 0 else f"{what} to {difference:.0e} of the largest"


def finding(rows, s, e):
    of, parts = by_fault(rows), []
    if "killed" in of:
        one = of["killed"]
        parts.append(
            f"One process killed at step {KILLED_AT}: torchrun started both again, they went on from "
            f"step {one['resumed_at']}, and ended with {same(one['difference'], 'the weights of undisturbed training')}."
        )
    if "hung" in of:
        one = of["hung"]
        which = "no rank" if one["named"] is None else f"rank {one['named']}"
        parts.append(f"One process hung: the others gave up after {PATIENCE_S:g} s, and the error names {which}.")
    if "disk full" in of:
        one = of["disk full"]
        parts.append(
            f"The disk full during a checkpoint: saving {'failed in every process' if one['failed'] else 'did not fail'}, "
            f"and the checkpoint before it loads {same(one['difference'], 'the weights that it was given')}; training had since "
            f"moved them by {one['moved']:.0e} of the largest."
        )
    return " ".join(parts)


FAULT = Experiment(
    "faults",
    run=faults,
    conditions=runs,
    estimates=unavailable.estimates(estimates),
    settings=("faults", "exact_depth", "exact_width", "exact_batch", "exact_steps", "micro_batches"),
    tiny={"faults": ["disk full"]},
    finding=unavailable.finding(finding),
)
