"""One network trained by several processes in each of PyTorch's ways; what runs inside a process that torchrun started."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_lib import parallel, resnets, train

MOMENTUM = 0.9
COMBINED = "tensor and data"  # from four processes on: pairs divide the network, and the pairs the pictures
# what trains → the kind whose stores and messages are predicted for it
ENGINES = {
    "data": "data",
    "data, accumulated": "data",
    "sharded": "sharded",
    "tensor": "tensor",
    "pipeline, GPipe": "pipeline",
    "pipeline, 1F1B": "pipeline",
    COMBINED: COMBINED,
}


@dataclass
class Engine:
    """A way to train, set up in one process of a group."""

    runs: nn.Module  # what this process runs of the network
    named: dict[str, nn.Parameter]  # its parameters, or its parts of them, by their name in the whole network
    step: Callable[[Tensor, Tensor], None]  # the whole batch's images and labels → gradients
    part_of: Callable[[str, Tensor], Tensor]  # name, a parameter of the whole network → what this process holds of it
    without_messages: Callable[[Tensor, Tensor], None] | None = None  # the same arithmetic, where it can be had alone


def network(s: dict, width: int, norm: str = "none") -> nn.Module:
    """A CIFAR ResNet, the same in every process; without batch norm, whose statistics would differ (see `batch_norm`)."""
    widths = (width, 2 * width, 4 * width)
    with train.seeded(s.get("seed", 0)):
        return resnets.resnet_cifar(
            s["depth"], widths=widths, norm=norm, in_channels=s["channels"], num_classes=s["classes"]
        )


def set_up(kind: str, model: nn.Module, group: dist.ProcessGroup, micro_batches: int, **options) -> Engine:
    """The engine of one kind for a copy of `model`, in every process of the group."""
    model = copy.deepcopy(model)
    makers = {"data": data, "sharded": sharded, "tensor": tensor, "pipeline": pipeline, COMBINED: combined}
    kind, _, variant = kind.partition(", ")
    if kind == "pipeline":
        options["one_forward_one_backward"] = variant != "GPipe"
    if variant == "accumulated":
        options["passes"] = micro_batches
    return makers[kind](model, group, **({"micro_batches": micro_batches} if kind == "pipeline" else {}), **options)


def own(batch: Tensor, group: dist.ProcessGroup) -> Tensor:
    """This process's share of a batch."""
    n = group.size()
    if len(batch) % n:
        raise ValueError(f"a batch of {len(batch)} does not divide among {n} processes")
    return batch.chunk(n)[group.rank()]


def mesh_of(group: dist.ProcessGroup):
    from torch.distributed.device_mesh import DeviceMesh

    return DeviceMesh.from_group(group, parallel.own_device().type)


def named_in(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters())


# ---------------------------------------------------------------- pictures divided


def data(model, group, passes: int = 1, buckets: int = 1, own_batches: bool = False) -> Engine:
    """`DistributedDataParallel`: the whole network in each process, gradients averaged.

    Args:
        passes: forward and backward passes of a step, of which only the last sends anything.
        buckets: messages among which the gradients are divided, so that the first leave before the last are ready.
        own_batches: `step` takes this process's own pictures, not the whole batch.
    """
    from torch.nn.parallel import DistributedDataParallel

    size = sum(p.numel() * p.element_size() for p in model.parameters())
    ddp = DistributedDataParallel(
        model, process_group=group, gradient_as_bucket_view=True, bucket_cap_mb=size / buckets / 2**20 + 1e-3
    )

    def once(images, labels):
        (F.cross_entropy(ddp(images), labels) / passes).backward()

    def step(images, labels):
        images, labels = (x if own_batches else own(x, group) for x in (images, labels))
        *before, last = zip(images.chunk(passes), labels.chunk(passes), strict=True)
        with ddp.no_sync():
            for part in before:
                once(*part)
        once(*last)

    def without_messages(images, labels):
        images, labels = (x if own_batches else own(x, group) for x in (images, labels))
        with ddp.no_sync():
            once(images, labels)

    return Engine(model, named_in(model), step, lambda name, whole: whole, without_messages)


def sharded(model, group, own_batches: bool = False) -> Engine:
    """FSDP2, `fully_shard`: each process stores a part of every parameter and gathers the rest when a piece runs."""
    from torch.distributed.fsdp import fully_shard

    mesh, n, rank = mesh_of(group), group.size(), group.rank()
    for _, piece in parallel.pieces_of(model):
        if any(True for _ in piece.parameters()):
            fully_shard(piece, mesh=mesh)
    fully_shard(model, mesh=mesh)

    def step(images, labels):
        images, labels = (x if own_batches else own(x, group) for x in (images, labels))
        F.cross_entropy(model(images), labels).backward()

    def part_of(name, whole):
        parts = whole.chunk(n)
        return parts[rank] if rank < len(parts) else whole[:0]

    return Engine(model, named_in(model), step, part_of)


# ---------------------------------------------------------------- the network divided


class _Copied(torch.autograd.Function):
    """The same numbers to all; their gradients summed. Source: f of Shoeybi et al. 2019, arXiv:1909.08053, figure 3."""

    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None


class _Summed(torch.autograd.Function):
    """The sum over the processes; its gradient to all of them. Source: g of the same figure."""

    @staticmethod
    def forward(ctx, x, group):
        x = x.contiguous().clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class DividedUnit(nn.Module):
    """A basic unit without batch norm, its inner channels divided: (N, C, H, W) → (N, C', H', W'), whole in and out."""

    def __init__(self, unit: nn.Module, group: dist.ProcessGroup):
        super().__init__()
        n, rank, inner = group.size(), group.rank(), unit.conv1.out_channels
        if inner % n:
            raise ValueError(f"{inner} channels do not divide among {n} processes")
        mine = slice(rank * inner // n, (rank + 1) * inner // n)
        self.group, self.stride, self.downsample = group, unit.conv1.stride, unit.downsample
        self.conv1, self.conv2 = unit.conv1, unit.conv2  # under their names
        self.taken = {
            "conv1.weight": lambda whole: whole[mine],
            "conv1.bias": lambda whole: whole[mine],
            "conv2.weight": lambda whole: whole[:, mine],
        }
        with torch.no_grad():
            for name, take in self.taken.items():
                layer, _, kind = name.partition(".")
                setattr(getattr(self, layer), kind, nn.Parameter(take(getattr(getattr(unit, layer), kind)).clone()))

    def forward(self, x):
        inner = F.conv2d(
            _Copied.apply(x, self.group), self.conv1.weight, self.conv1.bias, stride=self.stride, padding=1
        )
        branch = _Summed.apply(F.conv2d(inner.relu(), self.conv2.weight, padding=1), self.group)
        return (branch + self.conv2.bias[:, None, None] + self.downsample(x)).relu()


def tensor(model, group, linear: bool = True) -> Engine:
    """Tensor parallelism: every layer's channels divided, units by hand, the linear layer by `DTensor`.

    Each process sees all pictures. The first convolution, whose input has few channels, stays whole.
    Args: linear: False leaves the linear layer whole too.
    """
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

    n, rank, taken = group.size(), group.rank(), {}
    for name, piece in parallel.pieces_of(model):
        if hasattr(piece, "conv2"):
            divided = DividedUnit(piece, group)
            taken |= {f"{name}.{one}": take for one, take in divided.taken.items()}
            above, _, last = name.rpartition(".")
            setattr(model.get_submodule(above), last, divided)
    if linear:
        taken["fc.weight"] = lambda whole: whole.chunk(n, 1)[rank]
        parallelize_module(model.fc, mesh_of(group), RowwiseParallel(input_layouts=Replicate()))

    def step(images, labels):
        F.cross_entropy(model(images), labels).backward()

    return Engine(model, named_in(model), step, lambda name, whole: taken[name](whole) if name in taken else whole)


def combined(model, group) -> Engine:
    """Pairs of processes divide the units' channels; what each pair gets of the batch is averaged over the pairs by DDP."""
    n, rank = group.size(), group.rank()
    if n < 4 or n % 2:
        raise ValueError(f"{n} processes make no two pairs")
    pairs = [dist.new_group([k, k + 1]) for k in range(0, n, 2)]
    across = [dist.new_group(list(range(k, n, 2))) for k in (0, 1)]
    divided = tensor(model, pairs[rank // 2], linear=False)
    averaged = data(model, across[rank % 2])
    return Engine(model, divided.named, averaged.step, divided.part_of)


class Stage(nn.Module):
    """Some pieces of a network, one after the other."""

    def __init__(self, pieces: list[tuple[str, nn.Module]]):
        super().__init__()
        self.names, self.pieces = [name for name, _ in pieces], nn.ModuleList(piece for _, piece in pieces)

    def forward(self, x):
        for piece in self.pieces:
            x = piece(x.mean((2, 3)) if isinstance(piece, nn.Linear) else x)
        return x.contiguous()  # gloo sends nothing that lies otherwise


def pipeline(model, group, micro_batches: int, one_forward_one_backward=True, by="parameters", picture=()) -> Engine:
    """`torch.distributed.pipelining`: each process runs some of the layers, on all pictures, a few at a time.

    Args: by: what the stages are balanced by, "parameters" or "flops"; picture: (C, H, W).
    """
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

    n, rank, pieces = group.size(), group.rank(), parallel.pieces_of(model)
    starts = parallel.cut([getattr(part, by) for part in parallel.parts_of(model, picture)], n)
    first, end = ([*starts, len(pieces)][k] for k in (rank, rank + 1))
    mine = Stage(pieces[first:end])
    stage = PipelineStage(mine, rank, n, parallel.own_device(), group=group)
    schedule = (Schedule1F1B if one_forward_one_backward else ScheduleGPipe)(
        stage, micro_batches, loss_fn=F.cross_entropy
    )

    def step(images, labels):
        given = (images,) if rank == 0 else ()
        wanted = {"target": labels, "losses": []} if rank == n - 1 else {}
        schedule.step(*given, **wanted)

    named = {
        f"{name}.{one}": p
        for name, piece in zip(mine.names, mine.pieces, strict=True)
        for one, p in piece.named_parameters()
    }
    return Engine(mine, named, step, lambda name, whole: whole)


# ---------------------------------------------------------------- train, and count


def local(x: Tensor) -> Tensor:
    """What of a tensor lies in this process."""
    return (x.to_local() if hasattr(x, "to_local") else x).detach()


def optimizer_of(engine: Engine, learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(engine.named.values(), lr=learning_rate, momentum=MOMENTUM)


def alone(model: nn.Module, batches: list[tuple[Tensor, Tensor]], learning_rate: float) -> dict[str, dict[str, Tensor]]:
    """One process's gradients of the first batch, and its weights (and buffers) after all of them."""
    model = copy.deepcopy(model)
    optimizer, gradients = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=MOMENTUM), {}
    for images, labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        gradients = gradients or {name: p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
    return {"gradients": gradients, "weights": dict(model.state_dict())}


def compare(engine: Engine, batches, learning_rate: float, expected: dict[str, dict[str, Tensor]]) -> dict:
    """Train as `alone` does, and hold every number in this process to it; count what it keeps, sees and sends.

    Returns: gradient_difference, weight_difference, relative to the largest number of each kind; stored, numbers kept
        from step to step; held, parameters; seen, pictures, and sent, bytes, of each step but the first, which also
        agrees on shapes (sent is None where it cannot be counted).
    """
    group, seen, optimizer, row, before = dist.group.WORLD, [], optimizer_of(engine, learning_rate), {}, None

    def difference(which: str, values: dict[str, Tensor]) -> float:
        scale = max(x.abs().max() for x in expected[which].values())
        apart = [
            (local(value) - engine.part_of(name, expected[which][name])).abs().max() / scale
            for name, value in values.items()
            if local(value).numel()
        ]
        return float(max(apart, default=0.0))

    hook = engine.runs.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    for number, (images, labels) in enumerate(batches):
        if number == 1:
            dist.barrier(group)
            before = parallel.sent_bytes()
            seen.clear()
        optimizer.zero_grad()
        engine.step(images, labels)
        if number == 0:
            row["gradient_difference"] = difference("gradients", {k: p.grad for k, p in engine.named.items()})
        optimizer.step()
    hook.remove()
    dist.barrier(group)  # nothing is under way any more; its own messages are a few hundred bytes
    later, after = len(batches) - 1, parallel.sent_bytes()
    countable = after is not None and dist.get_backend() == "gloo"
    momenta = [state["momentum_buffer"] for state in optimizer.state.values()]
    kept = [*engine.named.values(), *(p.grad for p in engine.named.values()), *momenta]
    return row | {
        "weight_difference": difference("weights", engine.named),
        "held": sum(local(p).numel() for p in engine.named.values()),
        "stored": sum(local(x).numel() for x in kept),
        "seen": sum(seen) / later,
        "sent": (after - before) / later if countable else None,
    }
