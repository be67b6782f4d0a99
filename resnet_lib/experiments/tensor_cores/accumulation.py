"""Why the sum is kept in float32: dot products of bfloat16 numbers whose running sum alone changes its format."""

import torch

from resnet_lib import plots, precision, stats
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

LENGTHS = [16, 64, 256, 1024, 4096]
PRODUCTS = 64  # dot products of each length
SUMS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
OWN = "PyTorch's product"  # of bfloat16 numbers; its result alone is rounded
MEASURES = {"fp32": "fp32_error", "fp16": "fp16_error", "bf16": "bf16_error", OWN: "pytorch_error"}


def accumulation(s, seed: int) -> list[dict]:
    """Relative errors of 64 dot products against float64, by length and by format of the running sum."""
    draw = torch.Generator().manual_seed(seed)
    a, b = (torch.rand(PRODUCTS, max(LENGTHS), generator=draw).bfloat16() for _ in range(2))
    terms, rows = (a.float() * b.float()).t().contiguous(), []
    exact = (a.double() * b.double()).cumsum(1)[:, [n - 1 for n in LENGTHS]].t()
    for name, dtype in SUMS.items():
        total = torch.zeros(PRODUCTS, dtype=dtype)
        for step, term in enumerate(terms, 1):
            total = (total.float() + term).to(dtype)
            if step in LENGTHS:
                rows.append({"sum": name, "length": step, "error": off(total, exact[LENGTHS.index(step)])})
    for length, truth in zip(LENGTHS, exact, strict=True):
        own = (a[:, None, :length].to(s.device) @ b[:, :length, None].to(s.device)).cpu().flatten()
        rows.append({"sum": OWN, "length": length, "error": off(own, truth)})
    return rows


def off(found, truth) -> float:
    """Distance of a vector from the true one, as a share of the true one's length."""
    return ((found.double() - truth).norm() / truth.norm()).item()


def estimates(rows, s):
    longest = max(r["length"] for r in rows)
    return {
        measure: stats.interval(
            [r["error"] for r in rows if (r["sum"], r["length"]) == (name, longest)], unit="relative"
        )
        for name, measure in MEASURES.items()
    }


def finding(rows, s, e):
    epsilon = precision.FORMATS["bf16"].epsilon
    keeps = "keeps its sums" if e["pytorch_error"].mean < epsilon else "does not keep its sums"
    return (
        f"After {LENGTHS[-1]:,} terms the sum is off by {e['bf16_error']} if it is kept in bf16, by {e['fp16_error']} "
        f"in fp16 and by {e['fp32_error'].mean:.1e} in fp32. A sum stops growing where its last place is more than "
        f"twice a term: then every addition is rounded away. PyTorch's own product of bf16 numbers is off by "
        f"{e['pytorch_error'].mean:.2%}, where rounding the result alone explains up to {epsilon / 2:.2%}: "
        f"it {keeps} in a longer format."
    )


def draw_figure(rows, s):
    with plots.figure(height=3.4) as (fig, ax):
        plots.lines(ax, rows, "length", "error", by="sum", marker=True)
        ax.set(xscale="log", yscale="log", xlabel="terms in the sum", ylabel="relative error")
        fig.legend(title="running sum in", loc="outside upper center", ncols=2, fontsize=10)
    mean = {(r["sum"], r["length"]): r["mean"] for r in stats.summarise(rows, "error", ("sum", "length"))}
    ends = min(r["length"] for r in rows), max(r["length"] for r in rows)
    flat = "does not grow" if mean[OWN, ends[1]] < 2 * mean[OWN, ends[0]] else "grows too"
    return (
        "The error of a sum that is kept in 16 bits grows with its length; that of PyTorch's own product of 16-bit numbers "
        f"{flat}. Thin lines are seeds."
    )


ACCUMULATION = Experiment(
    "accumulation",
    run=accumulation,
    conditions=lambda s: conditions(seed=s.seeds),
    estimates=estimates,
    finding=finding,
    figure=draw_figure,
    alt="Relative error of a dot product against its length, both axes logarithmic, one line for each format of the "
    "running sum and one for PyTorch's own product, a thin line for each seed.",
)
