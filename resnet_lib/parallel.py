"""Training over several processes: start them, count what they store and send, predict what a step takes.

`python -m resnet_lib.parallel --plan resnet50 --processes 8` says which kind of parallelism fits a network.
"""

import argparse
import contextlib
import copy
import ctypes
import importlib
import json
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from resnet_lib import devices
from resnet_lib.paths import write_atomically

KINDS = ("data", "sharded", "tensor", "pipeline")
JOB, TENSORS, LOG = "job.json", "tensors.pt", "log.txt"  # files of a launch
BACKWARD = 2 / 3  # of a step's arithmetic: two products of the size of the forward pass's one


def why_not() -> str:
    """Why several processes cannot train together here; "" where they can."""
    if not dist.is_available():
        return "this build of PyTorch has no torch.distributed"
    if not dist.is_gloo_available():
        return "this build of PyTorch has no gloo, the backend for CPUs"
    if sys.platform == "win32":
        return "PyTorch's builds for Windows have no libuv, which torchrun's rendezvous needs"
    return ""


def backend(processes: int, device: torch.device) -> str:
    """ "nccl" where each process can have a GPU of its own, else "gloo" on the CPU."""
    own = device.type == "cuda" and torch.cuda.device_count() >= processes and dist.is_nccl_available()
    return "nccl" if own else "gloo"


# ---------------------------------------------------------------- start the processes, and end them


def launch(
    job: Callable[[dict, dict], list[dict]],
    settings: dict,
    processes: int,
    *,
    tensors: dict[str, Tensor] | None = None,
    device: torch.device | None = None,
    timeout_s: float = 600.0,
    restarts: int = 0,
) -> list[dict]:
    """Run `job(settings, tensors)` under torchrun, one thread a process; the rows of all ranks in their order.

    In a job `torch.distributed` is ready: gloo on the CPU, NCCL where each process has a GPU of its own. Whatever ends
    the wait, a timeout, an interruption or this process's own death, ends the workers too.
    Args:
        job: a function at the top of a module; its rows must be what JSON can hold.
        settings: what JSON can hold; the job also finds `folder` there, which all its processes share.
        restarts: how often torchrun starts all workers again after one has failed.
    Raises: RuntimeError with the last lines of the log where the job fails; TimeoutError after `timeout_s`.
    """
    if reason := why_not():
        raise RuntimeError(reason)
    if processes < 1:
        raise ValueError(f"processes={processes} must be at least 1")
    with tempfile.TemporaryDirectory(prefix="resnet_lib_", ignore_cleanup_errors=True) as folder:
        spec = {
            "job": f"{job.__module__}:{job.__qualname__}",
            "settings": settings | {"folder": folder},
            "backend": backend(processes, device or torch.device("cpu")),
            "starter": os.getpid(),
        }
        write_atomically(Path(folder, JOB), json.dumps(spec))
        torch.save({name: one.detach().cpu() for name, one in (tensors or {}).items()}, Path(folder, TENSORS))
        how = ["--standalone", f"--nproc-per-node={processes}", f"--max-restarts={restarts}", "--monitor-interval=0.1"]
        command = [sys.executable, "-m", "torch.distributed.run", *how, "-m", work.__module__, "--work", folder]
        with open(Path(folder, LOG), "wb") as log:
            kept = {"stdout": log, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
            torchrun = subprocess.Popen(command, env=_environment(), start_new_session=True, **kept)
            try:
                code = torchrun.wait(timeout_s)
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"{spec['job']} took longer than {timeout_s:g} s:\n{_tail(folder)}") from None
            finally:
                _end(torchrun)
        if code:
            raise RuntimeError(f"{spec['job']} failed in one of {processes} processes:\n{_tail(folder)}")
        found = [json.loads(Path(folder, f"rank{rank}.json").read_text("utf-8")) for rank in range(processes)]
        return [{"rank": rank} | row for rank, rows in enumerate(found) for row in rows]


def _environment() -> dict[str, str]:
    """This process's, with one thread a worker and the library where workers find it; local traffic stays local."""
    paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}
    interface = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)
    return os.environ | own | ({"GLOO_SOCKET_IFNAME": interface} if interface else {})


def _end(torchrun: subprocess.Popen) -> None:
    """End torchrun, which ends its workers, each in a session of its own; where it does not, its own group at least."""
    if torchrun.poll() is None:
        torchrun.terminate()
        try:
            torchrun.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(torchrun.pid, signal.SIGKILL)  # the workers watch for this
            torchrun.wait()


def _tail(folder: str, lines: int = 40) -> str:
    """The last lines of a launch's log; where workers said why they failed, theirs alone."""
    text = Path(folder, LOG).read_text("utf-8", errors="replace").splitlines()
    return "\n".join([line for line in text if line.startswith("[rank")][-lines:] or text[-lines:])


def work(folder: str) -> None:
    """What each process under torchrun does for `launch`: join the others, run the job, leave its rows."""
    spec = json.loads(Path(folder, JOB).read_text("utf-8"))
    threading.Thread(target=_leave_with, args=(spec["starter"], os.getppid()), daemon=True).start()
    rank = join(spec["backend"])
    module, name = spec["job"].split(":")
    job, tensors = getattr(importlib.import_module(module), name), torch.load(Path(folder, TENSORS))
    rows = job(spec["settings"], {key: one.to(own_device()) for key, one in tensors.items()})
    write_atomically(Path(folder, f"rank{rank}.json"), json.dumps(rows))
    leave()


def join(engine: str) -> int:
    """Join the processes that torchrun started, with one thread, over NCCL on a GPU of one's own. Returns: the rank."""
    torch.set_num_threads(1)
    options = {}
    if engine == "nccl":
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(own)
        options["device_id"] = own
    store, rank, processes = next(dist.rendezvous("env://"))
    # A restarted worker may find the address of one that is dead: each attempt has names of its own in the store.
    store = dist.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group(engine, store=store, rank=rank, world_size=processes, **options)
    return rank


def leave() -> None:
    """Leave together: who goes first takes the store with it."""
    dist.barrier()
    dist.destroy_process_group()


def own_device() -> torch.device:
    """Where this process of a job computes."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def _leave_with(starter: int, torchrun: int) -> None:
    """End this worker when torchrun or the process that started it is gone, however it went."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: the kernel sends it when torchrun dies
    while os.getppid() == torchrun:
        with contextlib.suppress(PermissionError):
            try:
                os.kill(starter, 0)
            except ProcessLookupError:
                os.kill(torchrun, signal.SIGTERM)
        time.sleep(0.5)
    os._exit(1)


def sent_bytes() -> int | None:
    """What this process has sent over its network connections so far, as the kernel counts it; None but on Linux.

    Whatever the engine says it sends, these are the bytes. NCCL passes the kernel by, and then the count is of no use.
    Source: `tcpi_bytes_sent` of struct tcp_info, linux/tcp.h.
    """
    if sys.platform != "linux":
        return None
    total = 0
    for file in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if not os.readlink(f"/proc/self/fd/{file}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(file))) as one:
                if one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM:
                    info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                    total += struct.unpack_from("Q", info, 200)[0] if len(info) >= 208 else 0
    return total


# ---------------------------------------------------------------- what a network is made of


@dataclass(frozen=True)
class Part:
    """A piece of a network that runs after the one before it: a pipeline can be cut between two. Numbers, no bytes."""

    name: str
    shapes: tuple[tuple[int, ...], ...]  # of its parameters
    split: int  # parameters that tensor parallelism divides among processes
    inputs: int  # numbers that enter it for one picture
    outputs: int  # numbers that leave it for one picture
    flops: int  # forward, for one picture; a multiply-add counts as two
    kept: int  # numbers that one picture's forward pass keeps for the backward pass

    @property
    def parameters(self) -> int:
        return sum(map(math.prod, self.shapes))


def pieces_of(model: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """The children of a network by name, in their order, those of an `nn.Sequential` in its place."""
    found = []
    for name, child in model.named_children():
        inside = isinstance(child, nn.Sequential)
        found += pieces_of(child, f"{prefix}{name}.") if inside else [(f"{prefix}{name}", child)]
    return found


def parts_of(model: nn.Module, picture: Sequence[int]) -> list[Part]:
    """The parts of a network in the order in which they run, counted on shapes alone: nothing is computed.

    Args:   picture: (C, H, W).
    Raises: ValueError where a part runs twice, or none runs: such a network has no order to cut.
    """
    from torch.utils.flop_counter import FlopCounterMode

    model = copy.deepcopy(model).to("meta").train()
    pieces, found, kept, open_part = pieces_of(model), {}, {}, []
    counter = FlopCounterMode(display=False)

    def entered(name):
        def hook(module, inputs):
            if name in kept:
                raise ValueError(f"part {name!r} runs twice: the network is no chain of parts")
            kept[name] = {}
            open_part.append((name, counter.get_total_flops()))

        return hook

    def left(module, inputs, output):
        name, before = open_part.pop()
        sizes = [x.numel() // len(x) for x in (inputs[0], output)]
        found[name] = (*sizes, counter.get_total_flops() - before)

    def keep(x: Tensor) -> Tensor:
        if open_part and not isinstance(x, nn.Parameter):
            kept[open_part[-1][0]][x.untyped_storage()._cdata] = x
        return x

    for name, module in pieces:
        module.register_forward_pre_hook(entered(name))
        module.register_forward_hook(left)
    images = torch.zeros(2, *picture, device="meta", dtype=next(model.parameters()).dtype)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model(images)
    if not found:
        raise ValueError(f"none of the children of {type(model).__name__} runs by itself: there is no part to count")
    modules = dict(pieces)
    return [
        Part(
            name,
            tuple(tuple(p.shape) for p in modules[name].parameters()),
            _divided(modules[name]),
            inputs,
            outputs,
            flops // 2,
            sum(x.numel() for x in kept[name].values() if x.is_floating_point()) // 2,
        )
        for name, (inputs, outputs, flops) in found.items()
    ]


def _divided(part: nn.Module) -> int:
    """Of a unit all weights and, of all convolutions but the last, the biases; of a linear layer the weights.

    The first of two convolutions is split by the channels it gives, the second by those it takes (Shoeybi et al. 2019,
    arXiv:1909.08053, section 3): a sum over processes follows, and then the second's bias. A lone one stays whole.
    """
    layers = [module for module in part.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    if isinstance(part, nn.Linear):
        return part.weight.numel()
    biases = sum(layer.bias.numel() for layer in layers[:-1] if layer.bias is not None)
    return sum(layer.weight.numel() for layer in layers) + biases if len(layers) > 1 else 0


def cut(costs: Sequence[float], stages: int) -> list[int]:
    """Where to cut a chain so that its dearest stage is as cheap as can be: the index of each stage's first part.

    Raises: ValueError where there are more stages than parts.
    """
    if not 1 <= stages <= len(costs):
        raise ValueError(f"stages={stages} must be from 1 to {len(costs)}, the number of parts")
    sums = [0.0]
    for cost in costs:
        sums.append(sums[-1] + cost)
    best = {end: (sums[end], [0]) for end in range(1, len(costs) + 1)}  # the first `end` parts in one stage
    for stage in range(2, stages + 1):
        best = {
            end: min((max(best[k][0], sums[end] - sums[k]), [*best[k][1], k]) for k in range(stage - 1, end))
            for end in range(stage, len(costs) + 1)
        }
    return best[len(costs)][1]


def stages_of(parts: Sequence[Part], processes: int, by: str = "parameters") -> list[list[Part]]:
    """The parts of each stage of a pipeline. Args: by: what is balanced, "parameters" or "flops"."""
    starts = [*cut([getattr(part, by) for part in parts], processes), len(parts)]
    return [list(parts[a:b]) for a, b in zip(starts, starts[1:], strict=False)]


# ---------------------------------------------------------------- what each process stores and sends


def stored(kind: str, parts: Sequence[Part], processes: int, copies: int = 3, by: str = "parameters") -> int:
    """Numbers that the fullest process keeps from step to step.

    Args: copies: of each parameter: 3 for the weight, its gradient and SGD's momentum, 4 for Adam.
    """
    _check(kind, processes)
    if kind == "pipeline":
        return copies * max(sum(part.parameters for part in stage) for stage in stages_of(parts, processes, by))
    if kind == "sharded":  # FSDP2 splits the first dimension of each parameter
        return copies * sum(_largest_shard(shape, processes) for part in parts for shape in part.shapes)
    whole = sum(part.parameters for part in parts)
    split = sum(part.split for part in parts) if kind == "tensor" else 0
    return copies * (whole - split + math.ceil(split / processes))


def sent(
    kind: str, parts: Sequence[Part], processes: int, pictures: int, engine: str = "ring", by: str = "parameters"
) -> float:
    """Numbers that the busiest process sends in one step.

    A ring sends 2 (n − 1)/n of what it sums up, half of that where it only gathers or only scatters.
    Args:
        pictures: of the step, over all processes together.
        engine: "gloo" reduces and scatters by summing up everything, at twice the ring's price.
    Source: Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002, for the ring; Rajbhandari et al. 2020,
        arXiv:1910.02054, section 7, for sharded data: two gatherings of weights and a scattering of gradients.
    """
    _check(kind, processes)
    share = (processes - 1) / processes
    if kind == "data":
        return 2 * share * sum(part.parameters for part in parts)
    if kind == "sharded":
        padded = processes * sum(_largest_shard(shape, processes) for part in parts for shape in part.shapes)
        return (4 if engine == "gloo" else 3) * share * padded
    if kind == "tensor":
        units = sum(part.inputs + part.outputs for part in parts if part.split and len(part.shapes) > 2)
        linear = sum(part.inputs + 2 * part.outputs for part in parts if part.split and len(part.shapes) <= 2)
        return share * pictures * (2 * units + linear)
    stages = stages_of(parts, processes, by)
    across = [0, *(stage[-1].outputs for stage in stages[:-1]), 0]
    return pictures * max((a if k else 0) + b for k, (a, b) in enumerate(zip(across, across[1:], strict=False)))


def rounds(kind: str, parts: Sequence[Part], processes: int, buckets: int = 1, micro_batches: int = 1) -> int:
    """Messages that follow each other in one step: what each of them waits at least is the link's latency."""
    _check(kind, processes)
    around = processes - 1
    pieces = sum(bool(part.shapes) for part in parts)
    divided = sum(bool(part.split) for part in parts)
    counts = {"data": 2 * around * buckets, "sharded": 3 * around * pieces, "tensor": 4 * around * divided}
    return counts.get(kind, 2 * (micro_batches + around - 1))


def _largest_shard(shape: tuple[int, ...], processes: int) -> int:
    return math.ceil(shape[0] / processes) * math.prod(shape[1:])


def _check(kind: str, processes: int) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not one of {', '.join(map(repr, KINDS))}")
    if processes < 1:
        raise ValueError(f"processes={processes} must be at least 1")


# ---------------------------------------------------------------- what a step takes


@dataclass(frozen=True)
class Link:
    """A connection between processes: a message of b bytes takes latency_s + b / bytes_s.

    Source: Hockney 1994, doi:10.1016/S0167-8191(06)80021-9.
    """

    latency_s: float
    bytes_s: float

    def seconds(self, messages: float, size: float) -> float:
        """Of messages that follow each other, `size` bytes in all."""
        return messages * self.latency_s + size / self.bytes_s


@dataclass(frozen=True)
class Compute:
    """One process's step of b pictures, without communication: fixed_s + b · picture_s."""

    fixed_s: float
    picture_s: float

    def seconds(self, pictures: float) -> float:
        return self.fixed_s + pictures * self.picture_s


def fit_link(measured: Iterable[tuple[float, float, float]]) -> Link:
    """The link that explains (messages, bytes, seconds) best, each deviation as a share of its time; none negative."""
    fixed, slope = _fitted(measured)
    return Link(fixed, 1 / slope if slope else math.inf)


def fit_compute(measured: Iterable[tuple[float, float]]) -> Compute:
    """The same for (pictures, seconds)."""
    return Compute(*_fitted((1.0, pictures, seconds) for pictures, seconds in measured))


def _fitted(measured: Iterable[tuple[float, float, float]]) -> tuple[float, float]:
    import numpy as np
    from scipy.optimize import nnls

    rows = np.array(list(measured), dtype=float)
    if len(rows) < 2:
        raise ValueError(f"{len(rows)} measurements: a line needs at least two")
    scale = rows[:, :2].max(0)  # columns of one size, or the solver takes the smaller for nothing
    found = nnls(rows[:, :2] / scale / rows[:, 2:], np.ones(len(rows)))[0] / scale
    return float(found[0]), float(found[1])


def step_s(
    kind: str,
    parts: Sequence[Part],
    processes: int,
    pictures: int,
    compute: Compute,
    link: Link,
    *,
    number_bytes: int = 4,
    overlap: float = 1.0,
    buckets: int = 1,
    micro_batches: int = 8,
    engine: str = "ring",
) -> float:
    """Seconds that one step of `pictures` pictures over all processes takes.

    Args:
        compute: of the whole network on one process.
        overlap: share of the backward pass behind which data parallelism's messages can hide; 1 is the ideal.
    Departs: processes are equally fast and wait for nobody; a pipeline's stages are balanced by their arithmetic.
    """
    if processes == 1:
        return compute.seconds(pictures)
    size = number_bytes * sent(kind, parts, processes, pictures, engine, by="flops")
    wire = link.seconds(rounds(kind, parts, processes, buckets, micro_batches), size)
    if kind in ("data", "sharded"):
        alone = compute.seconds(pictures / processes)
        return alone + max(0.0, wire - overlap * BACKWARD * alone)
    flops = [part.flops for part in parts]
    if kind == "tensor":
        whole = sum(part.flops for part in parts if not part.split) / max(1, sum(flops))
        return compute.fixed_s + compute.picture_s * pictures * (whole + (1 - whole) / processes) + wire
    largest = max(sum(part.flops for part in stage) for stage in stages_of(parts, processes, "flops")) / sum(flops)
    micro = compute.fixed_s / processes + compute.picture_s * pictures / micro_batches * largest
    return (micro_batches + processes - 1) * micro + wire


# ---------------------------------------------------------------- a plan for the reader's own network


def plan(
    parts: Sequence[Part], processes: int, pictures: int, compute: Compute, link: Link, memory_bytes: float, **options
) -> list[dict]:
    """A row for each kind: bytes stored, kept and sent, seconds a step, speed-up over one process, whether it fits.

    Args:
        pictures: of a step, over all processes together; memory_bytes: of one process.
        options: copies (of each parameter, see `stored`), number_bytes, and what `step_s` takes.
    """
    width, copies = options.pop("number_bytes", 4), options.pop("copies", 3)
    alone, found = compute.seconds(pictures), []
    for kind in ("one process", *KINDS):
        n = 1 if kind == "one process" else processes
        if kind == "pipeline" and n > len(parts):
            continue
        how = "data" if n == 1 else kind
        state = width * stored(how, parts, n, copies, by="flops")
        kept = width * sum(part.kept for part in parts) * pictures / n  # of a tensor-parallel unit at least this
        took = step_s(how, parts, n, pictures, compute, link, number_bytes=width, **options)
        row = {"kind": kind, "stored": state, "kept": kept, "sent": width * sent(how, parts, n, pictures, by="flops")}
        found.append(row | {"step_s": took, "speedup": alone / took, "fits": state + kept <= memory_bytes})
    return found


def _timed_compute(model: nn.Module, picture: Sequence[int], device: torch.device) -> Compute:
    """Forward and backward passes of two small batches, on the device at hand."""
    from resnet_lib import bench

    model, measured = model.to(device).train(), []
    for pictures in (2, 8):
        images = torch.randn(pictures, *picture, device=device)
        taken = bench.timed(lambda images=images: model(images).square().mean().backward(), device, seconds=1.0)
        measured.append((pictures, taken.median))
    return fit_compute(measured)


def network_of(name: str) -> nn.Module:
    """A network by its name in torchvision, or by module:function of the reader's own.

    Raises: ValueError naming what is allowed.
    """
    module, _, function = name.rpartition(":")
    if module:
        return getattr(importlib.import_module(module), function)()
    import torchvision

    if name not in torchvision.models.list_models():
        raise ValueError(f"--plan {name}: neither a network of torchvision.models nor module:function")
    return torchvision.models.get_model(name)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m resnet_lib.parallel", description="Which kind of parallelism fits a network, a machine, a link?"
    )
    parser.add_argument("--work", metavar="FOLDER", help=argparse.SUPPRESS)  # what torchrun's workers are started with
    parser.add_argument("--plan", metavar="NETWORK", help="a name of torchvision.models, or module:function")
    parser.add_argument("--picture", type=int, nargs=3, default=(3, 224, 224), metavar=("C", "H", "W"))
    parser.add_argument("--batch", type=int, default=256, help="pictures of a step, over all processes (default: 256)")
    parser.add_argument("--processes", type=int, default=8, help="GPUs, or CPUs (default: 8)")
    parser.add_argument("--memory-gb", type=float, default=80.0, help="of one process (default: 80)")
    parser.add_argument("--link-gbit", type=float, default=100.0, help="of one process's link, Gbit/s (default: 100)")
    parser.add_argument("--latency-us", type=float, default=20.0, help="of one message (default: 20)")
    parser.add_argument("--picture-ms", type=float, default=0.0, help="forward and backward; 0 (default) measures it")
    parser.add_argument("--copies", type=int, default=3, help="of a parameter: 3 SGD with momentum, 4 Adam")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, … where a picture is measured")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    options = parser.parse_args(arguments)
    if options.work:
        work(options.work)
        return 0
    if not options.plan:
        parser.error("say --plan NETWORK: a name of torchvision.models, or module:function")
    try:
        for name in ("batch", "processes", "memory_gb", "link_gbit", "copies"):
            if getattr(options, name) <= 0:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)} must be above 0")
        model, device = network_of(options.plan), devices.choose(options.device)
        parts = parts_of(model, options.picture)
    except (ValueError, ImportError, AttributeError) as error:
        parser.error(str(error))
    given = Compute(0.0, options.picture_ms / 1e3)
    compute = given if options.picture_ms > 0 else _timed_compute(model, options.picture, device)
    link = Link(options.latency_us / 1e6, options.link_gbit * 1e9 / 8)
    rows = plan(parts, options.processes, options.batch, compute, link, options.memory_gb * 1e9, copies=options.copies)
    print(json.dumps(rows, indent=1) if options.json else "\n".join(_report(rows, parts, options, compute)))
    return 0


def _report(rows: list[dict], parts: Sequence[Part], options: argparse.Namespace, compute: Compute) -> list[str]:
    """The lines for a reader of a plan."""
    size = sum(part.parameters for part in parts)
    head = f"{options.plan}: {size:,} parameters; {compute.picture_s * 1e3:.3g} ms a picture, forward and backward."
    lines = [head, f"{'kind':12}{'state GB':>10}{'kept GB':>9}{'sent GB':>9}{'step s':>10}{'speed-up':>10}  fits"]
    for row in rows:
        giga = "".join(f"{row[name] / 1e9:>{wide}.3g}" for name, wide in (("stored", 10), ("kept", 9), ("sent", 9)))
        fits = "yes" if row["fits"] else "NO"
        lines.append(f"{row['kind']:12}{giga}{row['step_s']:>10.3g}{row['speedup']:>10.3g}  {fits}")
    fitting = [row for row in rows if row["fits"]]
    if not fitting:
        return [*lines, "None fits: fewer pictures a step, more processes, or kinds combined."]
    best = min(fitting, key=lambda row: row["step_s"])
    return [*lines, f"Of those that fit, the fastest by this model: {best['kind']}."]


if __name__ == "__main__":
    sys.exit(main())
