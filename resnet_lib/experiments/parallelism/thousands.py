"""To thousands of GPUs: two models with four numbers, fitted to published runs, and tested on those left out."""

import math
from functools import cache

import torch

from resnet_lib import page, parallel, plots, resnets, stats
from resnet_lib.study import Experiment

PICTURES = 1_281_167  # of ImageNet's training split
# Whole runs to 75.9 % by NVIDIA in MLPerf Training 3.0, ResNet-50 on H100: minutes, epochs, pictures a second and GPU.
# batch: of each GPU, in the configurations that the same submitter published with the next round, 3.1; 512 is not among
# them. Read from: training_results_v3.1, NVIDIA/benchmarks/resnet/implementations/mxnet/config_DGXH100*.sh.
MLPERF = (
    {"gpus": 8, "minutes": 13.466, "epochs": 35, "rate": 6940.0, "batch": 400},
    {"gpus": 64, "minutes": 2.664, "epochs": 35, "rate": 4380.0, "batch": 50},
    {"gpus": 512, "minutes": 0.509, "epochs": 50, "rate": 4100.0, "batch": None},
    {"gpus": 3584, "minutes": 0.183, "epochs": 77, "rate": 2510.0, "batch": 16},
)
FITTED = (8, 64)  # GPUs: the two whose batches are furthest apart
# efficiency → GPUs of the runs that test its model; the batch at 512 is inferred from the rate there
TESTED = {"linear": (512, 3584), "hardware": (3584,), "statistical": (512,)}
# Goyal et al. 2017, arXiv:1706.02677: 90 epochs in an hour on 256 P100, 32 pictures each, about 90 % of linear from 8 on;
# section 4: eight GPUs a server, servers joined by 50 Gbit/s Ethernet, gradients in float32.
GOYAL = {"gpus": 256, "batch": 32, "hours": 1.0, "epochs": 90, "efficiency": 0.9, "server": 8, "link_gbit": 50.0}
ETHERNET_S = 50e-6  # of a message between servers: an assumption, of the usual size
INFINIBAND = parallel.Link(5e-6, 400e9 / 8)  # of each H100: an assumption of the usual latency, and 400 Gbit/s


@cache
def resnet50() -> tuple[parallel.Part, ...]:
    with torch.device("meta"):
        return tuple(parallel.parts_of(resnets.resnet50_imagenet(), (3, 224, 224)))


def seconds(row: dict) -> float:
    """Of one step, from what was published."""
    return row["batch"] / row["rate"]


def compute_of(rows) -> parallel.Compute:
    """The line through the steps of the two fitted runs; its fixed part holds what of the messages nothing hides."""
    (a, b) = [row for row in rows if row["gpus"] in FITTED]
    slope = (seconds(a) - seconds(b)) / (a["batch"] - b["batch"])
    return parallel.Compute(seconds(a) - slope * a["batch"], slope)


def ring_s(gpus: int, size: float, link: parallel.Link) -> float:
    """A sum of `size` bytes over all GPUs by one ring."""
    return link.seconds(2 * (gpus - 1), 2 * (gpus - 1) / gpus * size)


def tree_s(gpus: int, size: float, link: parallel.Link) -> float:
    """The same by a tree: as many bytes, but only 2 log2 n messages that follow each other.

    Source: Sanders, Speck and Träff 2009, doi:10.1016/j.parco.2009.09.001, two trees that share the work.
    """
    return link.seconds(2 * math.ceil(math.log2(gpus)), 2 * (gpus - 1) / gpus * size)


def statistical(first: dict, last: dict) -> tuple[float, float]:
    """(epochs of the smallest batches, critical batch): epochs = least · (1 + batch / critical), through two runs.

    Source: McCandlish et al. 2018, arXiv:1812.06162, equation (2.11), as examples over steps.
    """
    a, b = (row["gpus"] * row["batch"] for row in (first, last))
    critical = (first["epochs"] * b - last["epochs"] * a) / (last["epochs"] - first["epochs"])
    return first["epochs"] / (1 + a / critical), critical


def thousands(s, system: str) -> list[dict]:
    """Published runs with what is predicted of them; nothing is measured here."""
    if system == "goyal":
        return [goyal()]
    first, _, middle, last = MLPERF
    compute, (least, critical) = compute_of(MLPERF), statistical(first, last)
    size = 2 * sum(part.parameters for part in resnet50())  # gradients of 16 bits
    inferred = (1 / middle["rate"] - compute.picture_s) / compute.fixed_s  # the batch at which the line gives this rate
    rows = []
    for run in MLPERF:
        batch = run["batch"] or 1 / inferred
        taken, hidden = compute.seconds(batch), parallel.BACKWARD * compute.seconds(batch)
        row = run | {"used_batch": batch, "predicted_rate": batch / taken}
        for name, sum_s in (("tree", tree_s), ("ring", ring_s)):
            extra = max(0.0, sum_s(run["gpus"], size, INFINIBAND) - hidden)
            row[f"{name}_rate"] = batch / (taken + extra)
        row["predicted_epochs"] = least * (1 + run["gpus"] * batch / critical)
        row["predicted_minutes"] = PICTURES * row["predicted_epochs"] / (run["gpus"] * row["predicted_rate"]) / 60
        row["hardware"] = run["rate"] / first["rate"]
        row["statistical"] = first["epochs"] / run["epochs"]
        row["linear"] = first["minutes"] / run["minutes"] / (run["gpus"] / first["gpus"])
        rows.append(row | {"critical_batch": critical})
    return rows


def goyal() -> dict:
    """256 GPUs as 32 servers in a ring: the efficiency with all messages behind the backward pass, and with none."""
    run, servers = GOYAL, GOYAL["gpus"] // GOYAL["server"]
    rate = PICTURES * run["epochs"] / (run["hours"] * 3600) / run["gpus"]
    alone = run["batch"] / (rate / run["efficiency"])  # a step without messages between servers
    link = parallel.Link(ETHERNET_S, run["link_gbit"] * 1e9 / 8)
    wire = ring_s(servers, 4 * sum(part.parameters for part in resnet50()), link)
    hidden = max(0.0, wire - parallel.BACKWARD * alone)
    return run | {
        "rate": rate,
        "efficiency_hidden": alone / (alone + hidden),
        "efficiency_open": alone / (alone + wire),
    }


def mlperf(rows) -> list[dict]:
    return stats.where(rows, system="mlperf")


def estimates(rows, s):
    of, one = {r["gpus"]: r for r in mlperf(rows)}, stats.where(rows, system="goyal")[0]
    last, middle = of[3584], of[512]
    share = lambda value: stats.exact(value, "share")
    return {
        "rate_error": share(last["predicted_rate"] / last["rate"] - 1),
        "ring_error": share(last["ring_rate"] / last["rate"] - 1),
        "tree_error": share(last["tree_rate"] / last["rate"] - 1),
        "epochs_error": share(middle["predicted_epochs"] / middle["epochs"] - 1),
        "minutes_error": share(last["predicted_minutes"] / last["minutes"] - 1),
        "hardware": share(last["hardware"]),
        "statistical": share(last["statistical"]),
        "linear": share(last["linear"]),
        "speedup": stats.exact(of[8]["minutes"] / last["minutes"], "times"),
        "goyal_hidden": share(one["efficiency_hidden"]),
        "goyal_open": share(one["efficiency_open"]),
        "middle_batch": stats.exact(middle["used_batch"], "pictures"),
        "critical_batch": stats.exact(last["critical_batch"], "pictures"),
    }


def finding(rows, s, e):
    return (
        f"From 8 to 3,584 GPUs training became {e['speedup'].mean:.0f} times as fast, which is {e['linear'].mean:.0%} of linear: "
        f"each GPU keeps {e['hardware'].mean:.0%} of its pictures a second, and the large batch needs more epochs, which keeps "
        f"{e['statistical'].mean:.0%}. A line through the steps of 8 and 64 GPUs predicts the rate at 3,584 with an error "
        f"of {e['rate_error'].mean:+.0%}."
    )


def details(e) -> str:
    """How the models were tested, in sentences; e: measure → Estimate, of the whole chapter."""
    of = {name.partition("/")[2]: one for name, one in e.items() if name.startswith("thousands/")}
    percent = lambda name, spec="+.0%": format(of[name].mean, spec)
    return f"""\
The line through the steps of 8 and 64 GPUs predicts the rate at 3,584 with an error of {percent("rate_error")}: what is lost is lost to a fixed cost of each step on ever fewer pictures.
With a tree's messages added, the error is {percent("tree_error")}; with a ring's, whose latency grows with every GPU, {percent("ring_error")}.
At 512 GPUs the batch is not published: the rate there implies {of["middle_batch"].mean:.0f} pictures a GPU, and with these the second model is {percent("epochs_error", "+.1%")} off the epochs that were needed.
The critical batch is {of["critical_batch"].mean:,.0f} pictures.
Of 256 GPUs in 2017 ([Goyal and others](https://arxiv.org/abs/1706.02677)) a ring over servers keeps {percent("goyal_open", ".0%")} with nothing hidden behind the backward pass, and {percent("goyal_hidden", ".0%")} with all of it; published are about {GOYAL["efficiency"]:.0%}.
"""


def table(rows, s):
    fitted = {8: "both", 64: "rate", 512: "neither", 3584: "epochs"}
    return page.table(
        [r | {"fitted": fitted[r["gpus"]]} for r in mlperf(rows)],
        {
            "gpus": ("GPUs", ","),
            "used_batch": ("pictures a GPU", ".0f"),
            "rate": ("pictures/s and GPU, published", ",.0f"),
            "predicted_rate": ("predicted", ",.0f"),
            "epochs": "epochs, published",
            "predicted_epochs": ("predicted", ".1f"),
            "minutes": ("minutes, published", ".3f"),
            "predicted_minutes": ("predicted", ".3f"),
            "fitted": "used to fit",
        },
    )


def draw(rows, s):
    found = mlperf(rows)
    gpus, first = [r["gpus"] for r in found], found[0]
    shown = {
        "of linear, in all": (
            "linear",
            lambda r: first["predicted_minutes"] / r["predicted_minutes"] / (r["gpus"] / 8),
        ),
        "hardware": ("hardware", lambda r: r["predicted_rate"] / first["predicted_rate"]),
        "statistical": ("statistical", lambda r: first["predicted_epochs"] / r["predicted_epochs"]),
    }
    with plots.figure(height=3.6) as (_, ax):
        for place, (name, (column, predict)) in enumerate(shown.items()):
            look = {"color": plots.PALETTE[place], "marker": plots.MARKERS[place]}
            ax.plot(gpus, [r[column] for r in found], linestyle="none", markersize=8, label=name, **look)
            tested = [r for r in found if r["gpus"] in TESTED[column]]
            open_ = {"markersize": 8, "markerfacecolor": "white", "markeredgewidth": 2, "linestyle": "none"}
            ax.plot([r["gpus"] for r in tested], [r[column] for r in tested], zorder=3, **look, **open_)
            ax.plot(gpus, [predict(r) for r in found], color=plots.PALETTE[place], linewidth=1.5)
        ring = [r["ring_rate"] / first["ring_rate"] for r in found]
        ax.plot(gpus, ring, color="grey", linestyle="--", linewidth=1.5, label="hardware, with a ring")
        ax.set(xscale="log", xlabel="GPUs", ylabel="efficiency over 8 GPUs, %", ylim=(0, 1.08))
        ax.set_xticks(gpus, [f"{n:,}" for n in gpus])
        ax.set_xticks([], minor=True)
        plots.hundredths(ax.yaxis)
        ax.legend(fontsize=10, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    last = found[-1]
    return (
        f"{last['gpus']:,} GPUs are {first['minutes'] / last['minutes']:.0f} times as fast as 8, {last['linear']:.0%} of linear: "
        f"{last['hardware']:.0%} is left by the hardware, {last['statistical']:.0%} by the larger batch. Points are published "
        "(MLPerf 3.0, ResNet-50), lines the models: filled points were used to fit them, open ones test them."
    )


THOUSANDS = Experiment(
    "thousands",
    run=thousands,
    conditions=lambda s: [{"system": system} for system in ("mlperf", "goyal")],
    estimates=estimates,
    finding=finding,
    figure=draw,
    alt="Efficiency over 8 GPUs against the number of GPUs, logarithmic, from 8 to 3,584: points for the hardware's share, the "
    "larger batch's share and both together, each with the line of its model; a dashed line, far below, for a ring.",
    table=table,
)
