"""A CPU's own units for short numbers: which it reports, and what a large product gains by them."""

import torch

from resnet_lib import ceilings, devices, page, plots, stats
from resnet_lib.experiments.tensor_cores.counts import INSTRUCTIONS, reported
from resnet_lib.experiments.tensor_cores.formats import refusals
from resnet_lib.experiments.tensor_cores.rates import faster, refuse_times, slim
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

CPU = torch.device("cpu")
LARGEST = 1024  # larger products take seconds on a CPU


def on_the_cpu(s, kind: str, side: int = 0, form: str = "", round: int = 0) -> list[dict]:
    """The rate of one product on the CPU, or what the CPU reports of its instructions."""
    if kind == "matmul":
        return slim([ceilings.matmul(side, form, CPU, seconds=s.seconds)])
    return [{"sets": devices.instruction_sets(), "counted": reported(), "refused": refusals(CPU)}]


def runs(s):
    refuse_times(s)
    forms = [form for form, why in refusals(CPU).items() if not why and form != "fp8"]
    products = conditions(kind=["matmul"], round=range(s.rounds), side=[min(LARGEST, max(s.product_sides))], form=forms)
    return [{"kind": "sets"}, *products]


def reports(rows) -> dict:
    return next(r for r in rows if r["kind"] == "sets")


def gains(rows) -> dict[str, stats.Estimate]:
    """Format → rate of a large product over float32's, where its result was right."""
    products = [r for r in rows if r["kind"] == "matmul"]
    found = {form: faster(products, form) for form in dict.fromkeys(r["form"] for r in products) if form != "fp32"}
    return {form: gain for form, gain in found.items() if gain is not None}


def estimates(rows, s):
    sets = stats.exact(len(reports(rows)["sets"]), "instruction sets")
    return {"instruction_sets": sets} | {f"{form}_speedup": gain for form, gain in gains(rows).items()}


def notes(rows, s):
    why = reports(rows)["refused"]["bf16"] or "its result was wrong"
    return [] if "bf16" in gains(rows) else [f"cpu/bf16_speedup: {why}"]


def held(rows) -> list[dict]:
    """For each instruction set that the CPU reports: the gain over float32 by its count, and as measured.

    Two sets for one format share its measurement, since a program does not say which of them it ran.
    """
    report, measured, found = reports(rows), gains(rows), []
    fma = INSTRUCTIONS["AVX-512 FMA" if "AVX-512 FMA" in report["counted"] else "AVX2 FMA"][1]
    for name in report["sets"]:
        form, count = INSTRUCTIONS.get(name, ("", 0))[:2]
        if gain := measured.get(form):
            near = 0.75 < gain.mean / (count / fma) < 1.25
            row = {"name": name, "form": form, "predicted": count / fma, "measured": gain}
            found.append(row | {"word": "yes" if near else "no"})
    return found


def finding(rows, s, e):
    sets, counted = reports(rows)["sets"], held(rows)
    side = next(r["side"] for r in rows if r["kind"] == "matmul")
    told = "; ".join(f"{form} {gain}" for form, gain in gains(rows).items())
    near = sum(row["word"] == "yes" for row in counted)
    return (
        f"The CPU reports {len(sets)} instruction sets for products of short numbers"
        f"{': ' + ', '.join(sets) if sets else ''}. A product of side {side} over float32's: {told}. "
        f"By the count of multiply-adds {near} of {len(counted)} gains are right within a quarter. "
        f"A count says nothing of how many cycles an instruction takes, nor whether the library uses it: only the "
        f"measurement does."
    )


def table(rows, s):
    headings = {
        "name": "instruction set of this CPU",
        "form": "format",
        "predicted": ("gain over float32, from the counts", ".1f"),
        "measured": "measured",
        "word": "within a quarter",
    }
    without = [{"form": form, "measured": gain} for form, gain in gains(rows).items()]
    return page.table(held(rows) or without, headings)


def draw(rows, s):
    shown = [{"form": form, "gain": gain} for form, gain in gains(rows).items()]
    with plots.figure(height=0.9 + 0.4 * len(shown)) as (_, ax):
        plots.forest(ax, shown, "form", "gain", bound=1)
        ax.set_xlabel("rate over float32's; dashed: the same")
    quick = [row["form"] for row in shown if row["gain"].low > 1]
    slow = [row["form"] for row in shown if row["gain"].high < 1]
    return (
        f"On the CPU a large product is faster than in float32 in {page.listed(quick, 'no format')}, and slower in "
        f"{page.listed(slow, 'no format')}. Bars: intervals of 95 %."
    )


CPU_UNITS = Experiment(
    "cpu",
    run=on_the_cpu,
    conditions=runs,
    estimates=estimates,
    settings=("product_sides", "seconds"),
    counts=("rounds",),
    tiny={"product_sides": [64, 128], "seconds": 0.002, "rounds": 4},
    finding=finding,
    figure=draw,
    alt="For each short format a dot with an interval: the rate of a large product on the CPU over float32's, with a "
    "dashed line at one.",
    table=table,
    notes=notes,
    timed=True,
)
