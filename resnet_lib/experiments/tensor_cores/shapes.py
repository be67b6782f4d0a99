"""Sizes beside multiples of 8, and the fixed cost of an operation: what shape alone does to speed."""

import math
from statistics import fmean, median

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from resnet_lib import bench, ceilings, plots, resnets, stats
from resnet_lib.experiments.tensor_cores.formats import mixed, running
from resnet_lib.experiments.tensor_cores.networks import noise, training_step, whole_network
from resnet_lib.experiments.tensor_cores.rates import slim
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

ELEMENTS = [1, 64, 4096, 2**18]
NUMBER = 3  # training steps in each timing
ROW = 50  # operations in a row that is timed


def graphed(call):
    """The same work as one CUDA graph."""
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def tiny(s, elements: int, graph: bool) -> list[dict]:
    """Seconds of one operation on so many numbers, from a row of 50."""
    x = torch.ones(elements, device=s.device)

    def row():
        for _ in range(ROW):
            x.mul_(1.0)

    call = graphed(row) if graph else row
    return [{"time_s": bench.timed(call, s.device, seconds=s.seconds, repeats=3).median / ROW}]


class Counted(TorchDispatchMode):
    """Counts the operations that PyTorch hands to the device; views move no data and do not count."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


def by_batch(s, number: int) -> list[dict]:
    """Seconds of a training step for every batch size, in turn, and the number of its operations."""
    _, height, width = s.facts["shape"]
    calls = {
        str(b): training_step(lambda: whole_network(s), *noise(s, b, height, width), s.device, last=True)
        for b in s.batches
    }
    rows = bench.compare(calls, rounds=s.rounds, number=number)
    with Counted() as counted:
        calls[str(s.batches[0])]()
    return [
        {"batch": int(r["name"]), "round": k, "time_s": t, "operations": counted.count}
        for r in rows
        for k, t in enumerate(r["times_s"])
    ]


def shapes(
    s, kind: str, side: int = 0, form: str = "", elements: int = 0, graph: bool = False, number: int = 0, round=0
):
    """One product, one operation on few numbers, or a training step at every batch size."""
    if kind == "matmul":
        return slim([ceilings.matmul(side, form, s.device, seconds=s.seconds)])
    return tiny(s, elements, graph) if kind == "tiny" else by_batch(s, number)


def runs(s):
    if min(s.aligned_sides, default=0) < 1 or len({side % 8 > 0 for side in s.aligned_sides}) < 2:
        raise ValueError(f"aligned_sides={s.aligned_sides} needs multiples of 8 and others, above 0")
    if len(set(s.batches)) < 2 or min(s.batches) < 1:
        raise ValueError(f"batches={s.batches} must hold at least two sizes of at least 1")
    resnets.cifar_config(s.depth)
    forms = [form for form in running(s.device) if form in ("fp32", "tf32", mixed(s.device))]
    turns, graphs = range(s.rounds), [False, True] if s.device.type == "cuda" else [False]
    return [
        *conditions(kind=["matmul"], round=turns, side=sorted(s.aligned_sides), form=forms),
        *conditions(kind=["tiny"], round=turns, elements=ELEMENTS, graph=graphs),
        {"kind": "batch", "number": NUMBER},
    ]


def line(points) -> list[float]:
    """Intercept and slope of the straight line with the least squares of relative errors."""
    x, y = (torch.tensor(v, dtype=torch.float64) for v in zip(*points, strict=True))
    design = torch.stack([1 / y, x / y], 1)
    return torch.linalg.lstsq(design, torch.ones_like(y)[:, None]).solution.flatten().tolist()


def unaligned(rows, form: str) -> stats.Estimate:
    """Mean rate at sides that are no multiple of 8 over that at multiples, by round."""
    rates = {}
    for r in stats.where(rows, kind="matmul"):
        if r["form"] == form:
            rates.setdefault((r["round"], r["side"] % 8 > 0), []).append(r["rate"])
    means = [{"round": k, "odd": odd, "rate": fmean(values)} for (k, odd), values in rates.items()]
    return stats.paired_ratio(means, "rate", "odd", True, False, pair=("round",))


def floors(rows, graph: bool) -> list[float]:
    """Seconds of one operation on one number, round by round."""
    return [r["time_s"] for r in stats.where(rows, kind="tiny") if r["elements"] == 1 and r["graph"] == graph]


def fixed(rows) -> list[float]:
    """Seconds of a training step that do not depend on the batch, by the straight line through each round."""
    steps = stats.where(rows, kind="batch")
    by_round = [
        [(r["batch"], r["time_s"]) for r in steps if r["round"] == k] for k in sorted({r["round"] for r in steps})
    ]
    return [line(points)[0] for points in by_round]


def estimates(rows, s):
    forms = dict.fromkeys(r["form"] for r in stats.where(rows, kind="matmul"))
    operations = stats.where(rows, kind="batch")[0]["operations"]
    found = {f"unaligned_{form}": unaligned(rows, form) for form in forms}
    found["floor"] = stats.interval([1e6 * t for t in floors(rows, False)], unit="µs")
    found["fixed_measured"] = stats.interval([1e3 * t for t in fixed(rows)], unit="ms")
    found["fixed_predicted"] = stats.interval([1e3 * operations * t for t in floors(rows, False)], unit="ms")
    if floors(rows, True):
        found["floor_in_a_graph"] = stats.interval([1e6 * t for t in floors(rows, True)], unit="µs")
    return found


def notes(rows, s):
    return [] if floors(rows, True) else ["shapes/floor_in_a_graph: CUDA graphs need an NVIDIA GPU; this run had none"]


def finding(rows, s, e):
    steps = stats.where(rows, kind="batch")
    listed = "; ".join(f"{k.removeprefix('unaligned_')} {v}" for k, v in e.items() if k.startswith("unaligned_"))
    in_a_graph = f"; in a CUDA graph {e['floor_in_a_graph']}" if "floor_in_a_graph" in e else ""
    off = e["fixed_measured"].mean / e["fixed_predicted"].mean
    right = "is right within a factor of two" if 0.5 < off < 2 else f"fails: measured over predicted is {off:.1f}"
    middle = {b: median(r["time_s"] for r in steps if r["batch"] == b) for b in sorted({r["batch"] for r in steps})}
    speeds = ", ".join(f"{b / time_s:,.0f} at batch {b}" for b, time_s in middle.items())
    return (
        f"Rate at sides that are no multiple of 8 over that at multiples: {listed}. "
        f"One operation on one number takes {e['floor']}{in_a_graph}. "
        f"A training step of ResNet-{s.depth} is {steps[0]['operations']} operations, so {e['fixed_predicted']} of it are "
        f"predicted to be the same for every batch; measured: {e['fixed_measured']}. The prediction {right}. "
        f"It leaves out what Python and the recording of gradients cost around each operation, and that operations differ. "
        f"Pictures per second, by the median round: {speeds}."
    )


def draw(rows, s):
    products = [r | {"giga": r["rate"] / 1e9} for r in stats.where(rows, kind="matmul")]
    name = {False: "one by one", True: "in a graph"}
    small = [r | {"us": 1e6 * r["time_s"], "way": name[r["graph"]]} for r in stats.where(rows, kind="tiny")]
    with plots.figure(1, 2, width=8.4, height=3.2) as (_, (left, right)):
        plots.lines(left, products, "side", "giga", by="form", seed="round", marker=True)
        sides = sorted({r["side"] for r in products})
        for mark in range(64 * math.ceil(min(sides) / 64), max(sides) + 1, 64):
            left.axvline(mark, color="grey", linestyle=":")
        left.set(xlabel="side of the product; dotted: multiples of 64", ylabel="GFLOP/s", ylim=(0, None))
        left.legend(fontsize=10, ncols=2)
        plots.lines(right, small, "elements", "us", by="way", seed="round", marker=True)
        right.set(xscale="log", yscale="log", xlabel="numbers in one operation", ylabel="µs an operation")
        plots.log_axis(right.yaxis, [r["us"] for r in small])
        right.legend(fontsize=10)
    ends = [fmean(r["us"] for r in small if r["elements"] == n) for n in (ELEMENTS[0], ELEMENTS[-1])]
    return (
        f"{ELEMENTS[-1]:,} numbers take an operation {ends[1] / ends[0]:.0f} times as long as one does: small ones cost the "
        f"call, not the arithmetic. {draw_batches(rows)}"
    )


def draw_batches(rows):
    steps = [r | {"ms": 1e3 * r["time_s"], "what": "measured"} for r in stats.where(rows, kind="batch")]
    floor = 1e3 * median(floors(rows, False)) * steps[0]["operations"]
    first, slope = line([(r["batch"], r["ms"]) for r in steps])
    ends = sorted({r["batch"] for r in steps})
    with plots.figure(height=3.2) as (_, ax):
        plots.lines(ax, steps, "batch", "ms", by="what", seed="round", marker=True)
        between = [ends[0] * (ends[-1] / ends[0]) ** (k / 50) for k in range(51)]
        ax.plot(between, [first + slope * b for b in between], "--", color="black", linewidth=1.2, label="fitted line")
        ax.axhline(floor, color=plots.ORANGE, linestyle=":", label="operations × floor")
        ax.set(xscale="log", yscale="log", xlabel="pictures in a step", ylabel="ms a step")
        ax.set_xticks(ends, [str(b) for b in ends])
        ax.set_xticks([], minor=True)
        plots.log_axis(ax.yaxis, [floor, *(r["ms"] for r in steps)])
        ax.legend(fontsize=10)
    off = "more" if first > floor else "less"
    return (
        f"Below, a training step: what does not depend on its batch (where the dashed line becomes flat) is {off} than its "
        "number of operations predicts (dotted). Thin lines are rounds."
    )


SHAPES = Experiment(
    "shapes",
    run=shapes,
    conditions=runs,
    estimates=estimates,
    settings=("aligned_sides", "batches", "depth", "seconds", "rounds"),
    tiny={"aligned_sides": [31, 32], "batches": [1, 4], "depth": 8, "seconds": 0.002, "rounds": 4},
    finding=finding,
    figure=draw,
    alt="Rate of square products against their side, one line a format, with dotted lines at multiples of 64. Time of one "
    "operation against the number of its elements, on logarithmic axes. Below, time of a training step against its batch "
    "on logarithmic axes, a thin line for each round, with the fitted straight line dashed and the floor predicted from "
    "the number of operations dotted.",
    notes=notes,
    timed=True,
)
