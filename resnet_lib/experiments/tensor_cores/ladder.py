"""The ladder: one training step made faster by one thing at a time, and then by all together."""

import itertools
from dataclasses import replace
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resnet_lib import bench, ceilings, page, plots, precision, resnets, stats
from resnet_lib.experiments.tensor_cores.formats import mixed, refusals, slug
from resnet_lib.experiments.tensor_cores.networks import noise, training_step, whole_network
from resnet_lib.experiments.tensor_cores.throughput import THROUGHPUT, limits
from resnet_lib.study import Experiment


def rungs(device) -> dict[str, tuple]:
    """Rung → (format, channels last, mode of torch.compile)."""
    short, both = mixed(device), "reduce-overhead" if device.type == "cuda" else "default"
    return {
        "fp32": ("fp32", False, ""),
        "TF32": ("tf32", False, ""),
        "fp16, loss scaling": ("fp16", False, ""),
        "bf16": ("bf16", False, ""),
        "channels last": ("fp32", True, ""),
        "compiled": ("fp32", False, "default"),
        "compiled, CUDA graphs": ("fp32", False, "reduce-overhead"),
        "fp8": ("fp8", False, ""),
        "16 bits, channels last": (short, True, ""),
        "16 bits, channels last, compiled": (short, True, both),
    }


def why_not(s, rung: str) -> str:
    """Why a rung does not run here; "" where it does."""
    form, _, mode = rungs(s.device)[rung]
    if form == "fp8":  # tried, not looked up
        x = torch.ones(1, 16, 8, 8, device=s.device).to(precision.FORMATS["fp8"].dtype)
        try:
            F.conv2d(x, x)
        except (RuntimeError, NotImplementedError) as error:
            return f"PyTorch does not convolve in it: {str(error).splitlines()[0]}"
        return "torch.autocast takes no format of 8 bits"
    if mode == "reduce-overhead" and s.device.type != "cuda":
        return f"CUDA graphs need an NVIDIA GPU; this run's device is {s.device.type}"
    if mode and not s.compile_steps:
        return "compile_steps=False, because compiling takes long"
    return refusals(s.device)[form]


def kept_bytes(step) -> int:
    """Bytes that the forward pass keeps for the backward pass, weights included, each storage once."""
    seen = {}

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(seen.values())


def ladder(s, batch: int) -> list[dict]:
    """Seconds of a training step on every rung, in turn; its FLOPs, and what it keeps in memory."""
    known, (_, height, width) = rungs(s.device), s.facts["shape"]
    refused = {rung: why_not(s, rung) for rung in known}
    calls = {
        rung: training_step(lambda: whole_network(s), *noise(s, batch, height, width), s.device, *known[rung])
        for rung in known
        if not refused[rung]
    }
    with FlopCounterMode(display=False) as counter:
        calls["fp32"]()
    rows = []
    for row in bench.compare(calls, reference="fp32", rounds=s.rounds, warmup=3):
        rung, about = row["name"], {"flops": counter.get_total_flops()}
        about["kept"] = None if known[rung][2] else kept_bytes(calls[rung])
        if s.device.type == "cuda":
            before = torch.cuda.memory_allocated(s.device)  # all rungs' weights lie there already
            torch.cuda.reset_peak_memory_stats(s.device)
            calls[rung]()
            about["peak"] = torch.cuda.max_memory_allocated(s.device) - before
        rows.append({"rung": rung, "form": known[rung][0], "times_s": row["times_s"]} | about)
    measured = ceilings.choose_precision("auto", s.device)
    rows[0] |= {"reported_choice": precision.reported(s.device), "measured_choice": measured}
    return rows + [{"rung": rung, "why": why} for rung, why in refused.items() if why]


def runs(s):
    resnets.cifar_config(s.depth)
    return [{"batch": s.batch_size}]


def climbed(rows) -> dict[str, list[float]]:
    """Rung → how many times as fast as plain float32, round by round."""
    timed = {r["rung"]: r["times_s"] for r in rows if "times_s" in r}
    return {rung: [a / b for a, b in zip(timed["fp32"], times, strict=True)] for rung, times in timed.items()}


def gains(rows) -> dict[str, stats.Estimate]:
    found = climbed(rows)
    return {
        rung: stats.interval(ratios, method="log-t", unit="times") for rung, ratios in found.items() if rung != "fp32"
    }


def estimates(rows, s):
    return {f"speedup_{slug(rung)}": gain for rung, gain in gains(rows).items()}


def notes(rows, s):
    return [f"ladder/speedup_{slug(r['rung'])}: {r['why']}" for r in rows if r.get("why")]


def against_one(gain: stats.Estimate, *words: str) -> str:
    """The word for a ratio: above one, below it, or not clear from it."""
    return page.trend(replace(gain, low=gain.low - 1, high=gain.high - 1), *words)


def judged(rows) -> str:
    """In words: the format that the device's instruction set names, held to the ladder, and what `auto` takes."""
    chosen, gain = rows[0]["reported_choice"], None
    rung = {"fp16": "fp16, loss scaling", "bf16": "bf16"}.get(chosen)
    told = "which is the baseline itself"
    if gain := gains(rows).get(rung):
        word = against_one(gain, "right", "wrong", "neither clearly right nor wrong")
        told = f"which trains {gain} as fast as float32: {word}"
    words = f'`precision="auto"` measures, and takes {rows[0]["measured_choice"]}.'
    return f"The instruction set names {chosen}, {told}. {words}"


def linear_share(rows, s) -> float:
    """Share of a step's operations that the fully connected layer makes up, forward and backward."""
    with torch.device("meta"):
        classifier = [m for m in whole_network(s).modules() if isinstance(m, nn.Linear)][-1]
    return 6 * s.batch_size * classifier.weight.numel() / rows[0]["flops"]


def finding(rows, s, e):
    found = gains(rows)
    quickest = max(found, key=lambda rung: found[rung].mean)
    lead = (
        "The fastest rung is"
        if found[quickest].low > 1
        else "No rung is clearly faster than plain float32; the best is"
    )
    slower = [rung for rung, gain in found.items() if gain.high < 1]
    share = linear_share(rows, s)
    return (
        f"{lead} {quickest}: {found[quickest]}. Slower than plain float32: {'; '.join(slower) or 'none'}. {judged(rows)} "
        f"The fully connected layer, the only kind that PyTorch multiplies in 8 bits, makes up {share:.2%} of the "
        f"step's operations; even if it cost nothing, fp8 could save no more."
    )


def table(rows, s):
    found, shown = gains(rows), []
    for r in (r for r in rows if "times_s" in r):
        times, top = [1e3 * t for t in sorted(r["times_s"])], s.ceilings.get(r["form"])
        row = {"rung": r["rung"], "gain": found.get(r["rung"])}
        row["range"] = f"{median(times):.1f} ({times[0]:.1f} to {times[-1]:.1f})"
        row["rate"] = 1e3 * s.batch_size / median(times)
        row["share"] = top and 1e3 * r["flops"] / median(times) / top
        shown.append(row | {k: r[k] and r[k] / 2**20 for k in ("kept", "peak") if k in r})
    headings = {
        "rung": "rung",
        "range": "ms a step, median (range)",
        "rate": ("pictures/s", ",.0f"),
        "gain": "speed-up over fp32",
        "share": ("share of its format's ceiling", ".1%"),
        "kept": ("kept for backward, MiB", ".2f"),
    }
    if any("peak" in r for r in rows):
        headings["peak"] = ("highest memory of a step, MiB", ".0f")
    return page.table(shown, headings)


def draw(rows, s, each: float = 0.4):
    """Args: each: height of a rung in inches."""
    found = {rung: ratios for rung, ratios in reversed(climbed(rows).items()) if rung != "fp32"}
    with plots.figure(height=(0.8 if each < 0.4 else 1.2) + each * len(found)) as (_, ax):
        for place, ratios in enumerate(found.values()):
            ax.plot(ratios, [place] * len(ratios), "o", color=plots.BLUE, ms=4, alpha=0.4, mew=0)
            ax.plot(median(ratios), place, "s", color=plots.BLUE, ms=8)
        ax.axvline(1, color="grey", linestyle=":")
        ax.set(xscale="log", ylim=(-0.6, len(found) - 0.4))
        ax.set_xlabel("speed-up over plain float32, times")
        ax.set_yticks(range(len(found)), list(found), fontsize=10)
        plots.log_axis(ax.xaxis, [0.5, 2, *itertools.chain(*found.values())])
    judged_gains = gains(rows)
    quick = [rung for rung, gain in judged_gains.items() if gain.low > 1]
    slow = [rung for rung, gain in judged_gains.items() if gain.high < 1]
    return (
        f"Clearly faster than plain float32: {'; '.join(quick) or 'no rung'}. Clearly slower: {'; '.join(slow) or 'none'}. "
        "Dots are rounds, squares their medians."
    )


def draw_front(rows, s):
    """The same, lower, for the first screen."""
    draw(rows, s, each=0.25)
    return "Speed of a small network's training step over plain float32, rung by rung. Dots are rounds, squares their medians."


LADDER = Experiment(
    "ladder",
    run=ladder,
    needs=THROUGHPUT,
    choose=limits,
    conditions=runs,
    estimates=estimates,
    settings=("depth", "batch_size", "compile_steps", "rounds"),
    tiny={"depth": 8, "batch_size": 16, "compile_steps": False, "rounds": 4},
    finding=finding,
    figure=draw,
    alt="Speed-up of a training step over plain float32 for every rung of the ladder that runs here, on a logarithmic "
    "axis, a small dot for each round and a large one for the median, with a dotted line at no speed-up.",
    table=table,
    notes=notes,
    timed=True,
)
