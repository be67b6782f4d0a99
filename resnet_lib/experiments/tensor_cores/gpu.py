"""GPU against CPU: a training step of three networks at several batch sizes, each device with its best settings."""

import itertools

import torch
from torch import nn

from resnet_lib import bench, page, plots, resnets, stats
from resnet_lib.experiments.tensor_cores.formats import mixed, slug
from resnet_lib.experiments.tensor_cores.networks import noise, shape_of, training_step
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

CHOOSING = 1  # rounds that choose the settings; the others say how fast they are
NAMES = {("ResNet-18", 128): "speedup_large", ("two layers", 1): "speedup_small"}  # of claims.yml


def two_layers(s):
    """A convolution and a classifier."""
    pooled, shape = nn.AdaptiveAvgPool2d(1), shape_of(s)
    first = nn.Conv2d(shape["in_channels"], 16, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), pooled, nn.Flatten(), nn.Linear(16, shape["num_classes"]))


def resnet20(s):
    return resnets.resnet_cifar(20, **shape_of(s))


def resnet18(s):
    return resnets.resnet18_cifar(**shape_of(s))


NETWORKS = {"two layers": two_layers, "ResNet-20": resnet20, "ResNet-18": resnet18}


def step_times(s, where: str, network: str, batch: int) -> list[dict]:
    """Seconds of a training step with a device's best settings, round by round."""
    place, pixels = torch.device(where), noise(s, batch, s.gpu_side)
    short = mixed(s.device) if where == s.device.type else "bf16"
    settings = {
        "fp32": ("fp32", False),
        "fp32, channels last": ("fp32", True),
        f"{short}, channels last": (short, True),
    }
    calls = {
        name: training_step(lambda: NETWORKS[network](s), *pixels, place, form, last)
        for name, (form, last) in settings.items()
    }
    timed = bench.compare(calls, rounds=s.rounds, warmup=1)
    best = min(timed, key=lambda r: sum(r["times_s"][:CHOOSING]))
    return [{"settings": best["name"], "times_s": best["times_s"][CHOOSING:]}]


def runs(s):
    sizes = set(s.gpu_batches)
    if len(sizes) < 2 or min(sizes) < 1 or {1, 128} - sizes:
        must = "at least two sizes of at least 1, and [1, 128] among them, by the rules in claims.yml"
        raise ValueError(f"gpu_batches={s.gpu_batches} must hold {must}")
    if s.gpu_side < 9:  # a batch norm of one picture needs a map of more than one pixel
        raise ValueError(f"gpu_side={s.gpu_side} must be at least 9")
    if s.rounds < 4:
        raise ValueError(f"rounds={s.rounds} must be at least 4")
    places = ["cpu"] + ([s.device.type] if s.device.type != "cpu" else [])
    return conditions(where=places, network=list(NETWORKS), batch=sorted(s.gpu_batches))


def cases(rows) -> list[tuple[str, int]]:
    return [(name, b) for name, b in itertools.product(NETWORKS, sorted({r["batch"] for r in rows}))]


def timed(rows, network: str, batch: int, where: str) -> dict | None:
    return next((r for r in rows if (r["network"], r["batch"], r["where"]) == (network, batch, where)), None)


def rate(row) -> stats.Estimate:
    return stats.interval([row["batch"] / t for t in row["times_s"]], unit="pictures/s")


def gain(rows, network: str, batch: int) -> stats.Estimate | None:
    """The CPU's time over the GPU's, round by round; None without a GPU."""
    slow, fast = (timed(rows, network, batch, where) for where in ("cpu", "cuda"))
    if fast is None:
        return None
    pairs = zip(slow["times_s"], fast["times_s"], strict=True)
    return stats.interval([a / b for a, b in pairs], method="log-t", unit="times")


def estimates(rows, s):
    found = {}
    for network, batch in cases(rows):
        for r in (r for r in rows if (r["network"], r["batch"]) == (network, batch)):
            found[f"{r['where']}_{slug(network)}_batch_{batch}"] = rate(r)
        if won := gain(rows, network, batch):
            found[NAMES.get((network, batch), f"speedup_{slug(network)}_batch_{batch}")] = won
    return found


def notes(rows, s):
    places = list(dict.fromkeys(r["where"] for r in rows))
    why = f"needs a CUDA GPU beside the CPU; this run's device is {places[-1]}"
    return [] if "cuda" in places else [f"gpu/{name}: {why}" for name in NAMES.values()]


def finding(rows, s, e):
    gains = {case: gain(rows, *case) for case in cases(rows)}
    if not all(gains.values()):
        return "Where a GPU starts to win was not measured: there was none."
    wins = [f"{network} at batch {batch}" for (network, batch), won in gains.items() if won.low > 1]
    return f"The GPU is clearly faster in {len(wins)} of {len(gains)} cases: {', '.join(wins) or 'none'}."


def table(rows, s):
    shown, places = [], list(dict.fromkeys(r["where"] for r in rows))
    for network, batch in cases(rows):
        row = {"network": network, "batch": batch, "gain": gain(rows, network, batch)}
        for where in places:
            r = timed(rows, network, batch, where)
            row[where] = f"{rate(r).mean:,.0f} ({r['settings']})"
        shown.append(row)
    headings = {"network": "network", "batch": "batch"}
    headings |= {where: f"pictures/s on {where} (settings)" for where in places}
    return page.table(shown, headings | ({"gain": "CPU's time over GPU's"} if "cuda" in places else {}))


def draw(rows, s):
    points = [r | {"round": k, "rate": r["batch"] / t} for r in rows for k, t in enumerate(r["times_s"])]
    names = list(dict.fromkeys(r["network"] for r in points))
    sizes = sorted({r["batch"] for r in points})
    with plots.figure(1, len(names), width=8.4, height=3.2, sharex=True, sharey=True) as (_, axes):
        for ax, name in zip(axes, names, strict=True):
            part = [r for r in points if r["network"] == name]
            plots.lines(ax, part, "batch", "rate", by="where", seed="round", marker=True)
            ax.set(xscale="log", yscale="log", title=name, xlabel="pictures in a step")
            plots.log_axis(ax.yaxis, [r["rate"] for r in points])
            ax.set_xticks(sizes, [str(b) for b in sizes])
            ax.set_xticks([], minor=True)
        axes[0].set_ylabel("pictures/s")
        axes[0].legend()
    return (
        "The larger the step, the more pictures a second, until the device is busy; the more layers, the fewer. "
        "Thin lines are rounds."
    )


GPU = Experiment(
    "gpu",
    run=step_times,
    conditions=runs,
    estimates=estimates,
    settings=("gpu_side", "gpu_batches", "rounds"),
    tiny={"gpu_side": 9, "gpu_batches": [1, 128], "rounds": 4},
    finding=finding,
    figure=draw,
    alt="Pictures per second of a training step against the batch size, both axes logarithmic, one panel for each network "
    "and one line for each device, a thin line for each round.",
    table=table,
    notes=notes,
    timed=True,
)
