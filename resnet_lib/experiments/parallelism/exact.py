"""What needs no clock: every kind of training held to one process, and the traps that make it another training."""

import copy
import math
import os
import re
import warnings
from dataclasses import replace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_lib import parallel, train
from resnet_lib.experiments.parallelism import engines
from resnet_lib.experiments.parallelism.unavailable import or_skipped

SETTINGS = ("processes", "exact_depth", "exact_width", "exact_batch", "exact_steps", "micro_batches")
LEARNING_RATE = 0.01  # small: without batch norm; what is compared is arithmetic, not how well it trains
TIMEOUT_S = 300.0
WHATS = ("kind", "norm", "layout", "convolution", "uneven")


def exact(s, processes: int) -> list[dict]:
    """All exact comparisons over some processes, in one start of torchrun; float64 throughout.

    Returns: rows with `what`: "kind" (by kind and rank), "norm", "layout", "convolution", "uneven" (by case).
    """
    if rows := or_skipped(*WHATS):
        return rows
    spec, tensors = prepared(s, processes)
    return parallel.launch(compared, spec, processes, tensors=tensors, device=s.device, timeout_s=TIMEOUT_S)


def prepared(s, processes: int) -> tuple[dict, dict[str, Tensor]]:
    """What the processes are given: the settings by name, and the pictures of all steps, standardised, in float64.

    Raises: ValueError where the batch does not divide, or where there are too few pictures.
    """
    whole, wanted = math.lcm(processes, s.micro_batches), s.exact_batch * s.exact_steps
    if s.exact_batch % whole or s.exact_batch < 2 * processes:
        raise ValueError(
            f"exact_batch={s.exact_batch} must be a multiple of {whole}, for {processes} processes and "
            f"micro_batches={s.micro_batches}, with at least two pictures a process"
        )
    if s.exact_steps < 2:
        raise ValueError(f"exact_steps={s.exact_steps} must be at least 2: the first also agrees on shapes")
    if len(s.pictures.train) < wanted:
        raise ValueError(
            f"{s.exact_steps} steps of {s.exact_batch} need {wanted} pictures; there are {len(s.pictures.train)}"
        )
    config = train.TrainConfig(batch_size=wanted, precision="fp32")
    images, labels = train.Batches(s.pictures, s.pictures.train, config, torch.device("cpu")).first(0)
    spec = {
        "depth": s.exact_depth,
        "width": s.exact_width,
        "batch": s.exact_batch,
        "micro_batches": s.micro_batches,
        "channels": images.shape[1],
        "classes": len(s.pictures.class_names),
    }
    return spec, {"images": images.double().contiguous(), "labels": labels}


def compared(s: dict, tensors: dict[str, Tensor]) -> list[dict]:
    """What each process does; its rows."""
    batches = list(zip(tensors["images"].split(s["batch"]), tensors["labels"].split(s["batch"]), strict=True))
    traps = (*norms(s, batches), *layouts(s, batches), *convolutions(batches[0][0]), *uneven(s, batches))
    return [*kinds(s, batches), *traps]


# ---------------------------------------------------------------- equal to one process


def kinds(s: dict, batches) -> list[dict]:
    """Each engine against one process, with what is predicted from the network beside what is counted; bytes sent."""
    group, picture = dist.group.WORLD, batches[0][0].shape[1:]
    model = engines.network(s, s["width"]).double().to(parallel.own_device())
    expected, rows = engines.alone(model, batches, LEARNING_RATE), []
    parts, n, size = parallel.parts_of(model, picture), group.size(), batches[0][0].element_size()
    for name, kind in engines.ENGINES.items():
        if kind == engines.COMBINED and (n < 4 or n % 2):
            continue
        options = {"picture": picture} if kind == "pipeline" else {}
        engine = engines.set_up(name, model, group, s["micro_batches"], **options)
        row = {"what": "kind", "name": name, "kind": kind, "batch": s["batch"], "number_bytes": size}
        row |= {"parameters": sum(part.parameters for part in parts), "backend": dist.get_backend()}
        row |= predicted(kind, parts, n, s["batch"], size)
        rows.append(row | engines.compare(engine, batches, LEARNING_RATE, expected))
        dist.barrier()
    return rows


def predicted(kind: str, parts: list[parallel.Part], n: int, pictures: int, size: int) -> dict:
    """Numbers stored, and bytes sent in a step: by a ring, and by gloo."""
    if kind != engines.COMBINED:
        sent = {f"sent_{how}": size * parallel.sent(kind, parts, n, pictures, how) for how in ("ring", "gloo")}
        return {"stored_predicted": parallel.stored(kind, parts, n)} | sent
    units = [part if len(part.shapes) > 2 else replace(part, split=0) for part in parts]  # the linear layer stays whole
    held = parallel.stored("tensor", units, 2, copies=1)
    within = parallel.sent("tensor", units, 2, 2 * pictures // n)
    between = 2 * (n // 2 - 1) / (n // 2) * held  # the ring over the pairs
    return {"stored_predicted": 3 * held} | dict.fromkeys(("sent_ring", "sent_gloo"), size * (within + between))


# ---------------------------------------------------------------- batch norm sees a part of the batch


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch norm with the statistics of all processes' pictures; PyTorch's own refuses the CPU.

    Shapes: (N, C, H, W) → the same. Two sums over the processes: of the numbers, then of their squared distances from
    the mean, so that nothing cancels.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        count = _sum(x.new_tensor([x.numel() / x.shape[1]]))
        mean = (_sum(x.sum((0, 2, 3))) / count)[:, None, None]
        variance = _sum((x - mean).square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean.flatten(), self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        x = (x - mean) / (variance + self.eps).sqrt()[:, None, None]
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class _SumOverProcesses(torch.autograd.Function):
    """The sum, and in the backward pass the sum of what the processes' losses say of it."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


_sum = _SumOverProcesses.apply


def synchronised(model: nn.Module) -> nn.Module:
    """The same network, in place, with `SyncBatchNorm` for each batch norm."""
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            made = SyncBatchNorm(child.num_features, child.eps, child.momentum).to(child.weight)
            made.load_state_dict(child.state_dict())
            setattr(model, name, made)
        else:
            synchronised(child)
    return model


def norms(s: dict, batches) -> list[dict]:
    """A network with batch norm under DDP, against one process with the whole batch: plain, and synchronised."""
    group, device = dist.group.WORLD, parallel.own_device()

    def fresh():
        return engines.network(s, s["width"], norm="batch").double().to(device)

    expected, rows = engines.alone(fresh(), batches, LEARNING_RATE), []
    arms = {"batch norm as it is": lambda model: model, "synchronised, by hand": synchronised}
    arms |= {"torch.nn.SyncBatchNorm": nn.SyncBatchNorm.convert_sync_batchnorm}
    for name, convert in arms.items():
        row = {"what": "norm", "name": name, "refused": ""}
        try:
            engine = engines.set_up("data", convert(fresh()), group, 1)
            row |= engines.compare(engine, batches, LEARNING_RATE, expected)
            buffers = {key: x for key, x in engine.runs.named_buffers() if x.is_floating_point()}
            scale = max(x.abs().max() for key, x in expected["weights"].items() if key in buffers)
            apart = [(x - expected["weights"][key]).abs().max() / scale for key, x in buffers.items()]
            row["statistics_difference"] = float(max(apart))
        except ValueError as error:  # the same in all processes, before anything is sent
            row["refused"] = str(error).splitlines()[0]
        rows.append({key: row[key] for key in row if key not in ("held", "stored", "seen", "sent")})
        dist.barrier()
    return rows


# ---------------------------------------------------------------- the memory format changes after wrapping


def layouts(s: dict, batches) -> list[dict]:
    """The averaged gradients of DDP over weights that get their channels last before or after it wraps them.

    Held to one process's at the same weights, in the first step and in the one after, when DDP has laid its buckets
    anew; with gradients copied out of the buckets, its default, and as views of them.
    """
    from torch.nn.parallel import DistributedDataParallel

    n, rank, rows = dist.get_world_size(), dist.get_rank(), []
    model = engines.network(s, s["width"]).double().to(parallel.own_device())
    expected = [engines.alone(model, [batch], LEARNING_RATE)["gradients"] for batch in batches[:2]]
    for when in ("before", "after"):
        for views in (False, True):
            mine, row = copy.deepcopy(model), {"what": "layout", "when": when, "views": views}
            if when == "before":
                mine = mine.to(memory_format=torch.channels_last)
            ddp = DistributedDataParallel(mine, gradient_as_bucket_view=views)
            if when == "after":
                mine.to(memory_format=torch.channels_last)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                for step, wanted, (images, labels) in zip(("first", "second"), expected, batches, strict=False):
                    ddp.zero_grad()
                    F.cross_entropy(ddp(images.chunk(n)[rank]), labels.chunk(n)[rank]).backward()
                    apart = [(p.grad - wanted[name]).abs().max() for name, p in mine.named_parameters()]
                    row[step] = float(max(apart) / max(x.abs().max() for x in wanted.values()))
            told = [re.search(r"This is not an error[^.]*", str(one.message)) for one in said]
            rows.append(row | {"said": next((found.group() for found in told if found), "")})
            dist.barrier()
    return rows


# ---------------------------------------------------------------- DTensor: linear layers yes, convolutions no


def convolutions(images: Tensor) -> list[dict]:
    """Layers whose operands are divided by `DTensor`, and by hand: right, wrong without a word, or refused."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    n, rank, device = dist.get_world_size(), dist.get_rank(), images.device
    mesh = engines.mesh_of(dist.group.WORLD)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2 * n, 2 * n, 4 * n, 4 * n, generator=draw, dtype=torch.float64).to(device)
    weight = torch.randn(4 * n, 2 * n, 3, 3, generator=draw, dtype=torch.float64).to(device)
    expected = F.conv2d(x, weight, padding=1)
    rows = []

    def tried(name: str, by: str, call, expected: Tensor) -> None:
        row = {"what": "convolution", "name": name, "by": by, "result": "right", "difference": None, "said": ""}
        try:
            found = call()
            if found.shape != expected.shape:
                row |= {"result": "wrong", "said": f"shape {tuple(found.shape)} for {tuple(expected.shape)}"}
            else:
                row["difference"] = float((found - expected).abs().max() / expected.abs().max())
                row["result"] = "right" if row["difference"] < 1e-6 else "wrong"
        except (RuntimeError, NotImplementedError, ValueError, AssertionError) as error:
            row |= {"result": "refused", "said": str(error).splitlines()[0][:120]}
        rows.append(row)
        dist.barrier()

    def by_dtensor(x_placed, weight_placed):
        placed = distribute_tensor(x, mesh, [x_placed]), distribute_tensor(weight, mesh, [weight_placed])
        return lambda: F.conv2d(*placed, padding=1).full_tensor()

    tried("convolution, pictures divided", "DTensor", by_dtensor(Shard(0), Replicate()), expected)
    tried("convolution, rows of pixels divided", "DTensor", by_dtensor(Shard(2), Replicate()), expected)
    tried("convolution, output channels divided", "DTensor", by_dtensor(Replicate(), Shard(0)), expected)
    tried("convolution, input channels divided", "DTensor", by_dtensor(Shard(1), Shard(1)), expected)

    def gathered():
        parts = [torch.empty_like(expected[:, ::n]).contiguous() for _ in range(n)]
        dist.all_gather(parts, F.conv2d(x, weight.chunk(n)[rank], padding=1))
        return torch.cat(parts, 1)

    def summed():
        mine = F.conv2d(x.chunk(n, 1)[rank], weight.chunk(n, 1)[rank], padding=1)
        dist.all_reduce(mine)
        return mine

    tried("convolution, output channels divided", "hand", gathered, expected)
    tried("convolution, input channels divided", "hand", summed, expected)
    with train.seeded(0):
        pair = nn.Sequential(nn.Linear(2 * n, 4 * n), nn.ReLU(), nn.Linear(4 * n, 3)).double().to(device)
    flat = x.mean((2, 3))
    wanted = pair(flat).detach()
    divided = parallelize_module(pair, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    tried("two linear layers, inner units divided", "DTensor", lambda: divided(flat).detach(), wanted)
    return rows


# ---------------------------------------------------------------- uneven last batches


def uneven(s: dict, batches) -> list[dict]:
    """One step in which the processes have unequally many pictures, the last of them one or none, against one process."""
    from torch.distributed.algorithms.join import Join
    from torch.nn.parallel import DistributedDataParallel

    group, n, rank = dist.group.WORLD, dist.get_world_size(), dist.get_rank()
    images, labels = batches[0]
    model = engines.network(s, s["width"]).double().to(images.device)
    rows = []
    for name, last in (("the mean of the means", 1), ("weighted by pictures", 1), ("one process without a picture", 0)):
        share = len(images) // n
        counts = [share] * (n - 1) + [last]
        whole, start = sum(counts), share * rank
        mine = slice(start, start + counts[rank])
        expected = engines.alone(model, [(images[:whole], labels[:whole])], LEARNING_RATE)
        ddp = DistributedDataParallel(copy.deepcopy(model), process_group=group)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=LEARNING_RATE, momentum=engines.MOMENTUM)
        weight = 1.0 if name == "the mean of the means" else n * counts[rank] / whole
        with Join([ddp]):
            if counts[rank]:
                (weight * F.cross_entropy(ddp(images[mine]), labels[mine])).backward()
                optimizer.step()
        step = max((expected["weights"][key] - x).abs().max() for key, x in model.state_dict().items())
        apart = max((x - expected["weights"][key]).abs().max() for key, x in ddp.module.state_dict().items())
        rows.append({"what": "uneven", "name": name, "counts": counts, "difference": float(apart / step)})
        dist.barrier()
    return rows


# ---------------------------------------------------------------- from a shell


def main() -> None:
    """Under torchrun: every engine against one process, on noise; a line each from the first process.

    torchrun --standalone --nproc-per-node 2 -m resnet_lib.experiments.parallelism.exact
    """
    gpus = torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    rank = parallel.join("nccl" if gpus else "gloo")
    n, draw = dist.get_world_size(), torch.Generator().manual_seed(0)
    spec = {"depth": 14, "width": 16, "batch": 4 * n, "micro_batches": n, "channels": 3, "classes": 10}
    images = torch.randn(3 * spec["batch"], 3, 16, 16, generator=draw, dtype=torch.float64)
    labels = torch.randint(0, 10, (len(images),), generator=draw)
    size, device = spec["batch"], parallel.own_device()
    batches = list(zip(images.to(device).split(size), labels.to(device).split(size), strict=True))
    for row in kinds(spec, batches):
        apart = max(row["gradient_difference"], row["weight_difference"])
        if rank == 0:
            print(
                f"{row['name']:18} off one process {apart:.0e}; holds {row['held']:,} of {row['parameters']:,} parameters"
            )
    parallel.leave()


if __name__ == "__main__":
    main()
