"""A cost model from a few small runs: does it say what runs take that it has not seen?"""

import math
from functools import cache
from statistics import median

import torch

from resnet_lib import page, parallel, plots, resnets, stats
from resnet_lib.experiments.parallelism import unavailable
from resnet_lib.experiments.parallelism.timed import (
    BUCKETS,
    MICRO_BATCHES,
    RULED,
    SETTINGS,
    WIDER,
    own_processors,
    runs,
    timings,
)
from resnet_lib.study import Experiment

# arm → (kind, messages among which the gradients are divided); what the model is fitted to comes first
ARMS = {
    "data": ("data", BUCKETS),
    "data, one message": ("data", 1),
    "data, fixed batch": ("data", BUCKETS),
    "sharded": ("sharded", 1),
    "tensor": ("tensor", 1),
    "pipeline": ("pipeline", 1),
    "held out": ("data", BUCKETS),
}
FITTED = ("data", "data, one message")  # over two processes: they decide how much of the messages is hidden
HELD_OUT = ("held out", "data, fixed batch")  # another network, and another batch


@cache
def parts(depth: int, width: int, shape: tuple[int, ...], classes: int) -> tuple[parallel.Part, ...]:
    widths = (width, 2 * width, 4 * width)
    with torch.device("meta"):
        model = resnets.resnet_cifar(depth, widths=widths, norm="none", in_channels=shape[0], num_classes=classes)
    return tuple(parallel.parts_of(model, shape))


def parts_for(s, width: int) -> tuple[parallel.Part, ...]:
    return parts(s.speed_depth, width, tuple(s.facts["shape"]), s.facts["classes"])


def medians(rows, what: str, by: tuple[str, ...]) -> dict[tuple, float]:
    """Median time over the rounds, by what tells runs apart."""
    cells: dict[tuple, list[float]] = {}
    for r in stats.where(rows, what=what):
        cells.setdefault(tuple(r[name] for name in by), []).append(r["time_s"])
    return {key: median(times) for key, times in cells.items()}


def model_of(rows, s) -> dict:
    """The fitted numbers: compute; link and crowding, by number of processes; the share of a backward pass that hides.

    Crowding is how much longer the same arithmetic takes when all processes compute: they share memory and a power limit.
    """
    compute = parallel.fit_compute([(b, t) for (b,), t in medians(rows, "compute", ("pictures",)).items()])
    sums: dict[int, list] = {}
    for (n, size), taken in medians(rows, "link", ("processes", "bytes")).items():
        sums.setdefault(n, []).append((2 * (n - 1), 2 * (n - 1) / n * size, taken))  # a ring's
    quiet = medians(stats.where(rows, what="step", arm="data, no messages"), "step", ("processes", "pictures"))
    found = {
        "compute": compute,
        "link": {n: parallel.fit_link(own) for n, own in sums.items()},
        "crowding": {n: taken / compute.seconds(pictures / n) for (n, pictures), taken in quiet.items()},
        "overlap": 0.0,
    }
    wanted = [r for r in predictions(rows, s, found, ()) if r["arm"] in FITTED and r["processes"] == RULED]
    measured = {r["arm"]: r["measured"] for r in wanted}

    def miss(overlap: float) -> float:
        tried = predictions(rows, s, found | {"overlap": overlap}, FITTED)
        return sum(math.log(r["predicted"] / measured[r["arm"]]) ** 2 for r in tried if r["processes"] == RULED)

    return found | {"overlap": min((k / 20 for k in range(21)), key=miss)}


def predictions(rows, s, model: dict, arms) -> list[dict]:
    """Measured and predicted seconds of every arm and number of processes."""
    found = []
    times = medians(rows, "step", ("arm", "processes", "pictures", "width"))
    times |= medians(rows, "held out", ("arm", "processes", "pictures", "width"))
    for (arm, n, pictures, width), measured in times.items():
        if n == 1 or arm not in (arms or ARMS):
            continue
        kind, buckets = ARMS[arm]
        own, base = parts_for(s, width), parts_for(s, s.speed_width)
        slower = sum(p.flops for p in own) / sum(p.flops for p in base)
        crowded, alone = model["crowding"][n], model["compute"]
        compute = parallel.Compute(alone.fixed_s * crowded, alone.picture_s * slower * crowded)
        hidden = 0.0 if buckets == 1 and kind == "data" else model["overlap"]
        predicted = parallel.step_s(
            kind,
            own,
            n,
            pictures,
            compute,
            model["link"][n],
            overlap=hidden,
            buckets=buckets,
            micro_batches=MICRO_BATCHES,
            engine="gloo" if rows[0]["backend"] == "gloo" else "ring",
        )
        found.append({"arm": arm, "processes": n, "measured": measured, "predicted": predicted})
    return found


def checked(rows, s) -> tuple[dict, list[dict]]:
    rows = own_processors(rows)
    model = model_of(rows, s)
    return model, [r | {"off": r["predicted"] / r["measured"] - 1} for r in predictions(rows, s, model, ())]


def is_fitted(r: dict) -> bool:
    return r["arm"] in FITTED and r["processes"] == RULED


def estimates(rows, s):
    if not any(r["processes"] == RULED for r in own_processors(rows)):
        return {}
    model, found = checked(rows, s)
    worst = lambda own: stats.exact(max(abs(r["off"]) for r in own), "share")
    return {
        "error_fitted": worst([r for r in found if is_fitted(r)]),
        "error_held_out": worst([r for r in found if r["arm"] in HELD_OUT and r["processes"] == RULED]),
        "error_other_kinds": worst([r for r in found if r["arm"] in ("sharded", "tensor", "pipeline")]),
        "latency": stats.exact(1e6 * model["link"][RULED].latency_s, "µs"),
        "bandwidth": stats.exact(model["link"][RULED].bytes_s / 1e9, "GB/s"),
        "overlap": stats.exact(model["overlap"], "share"),
        "crowding": stats.exact(model["crowding"][RULED], "times"),
    }


def finding(rows, s, e):
    if not e:
        return "Not measured: each process needs a processor of its own."
    return (
        f"Fitted: {e['latency'].mean:.0f} µs a message, {e['bandwidth'].mean:.2g} GB/s, arithmetic "
        f"{e['crowding'].mean:.2f} times as slow when both compute, and {e['overlap'].mean:.0%} of the backward pass hides "
        f"messages. The model is off by at most {e['error_fitted'].mean:.0%} where it was fitted, by "
        f"{e['error_held_out'].mean:.0%} on a network {WIDER} times as wide and on a divided batch, neither of which it had "
        f"seen, and by {e['error_other_kinds'].mean:.0%} on the other kinds."
    )


def table(rows, s):
    found = [r | {"use": "fitted" if is_fitted(r) else "not seen"} for r in checked(rows, s)[1]]
    return page.table(
        found,
        {
            "arm": "step",
            "processes": "processes",
            "use": "",
            "measured": ("measured, ms", lambda t: f"{1e3 * t:.3g}"),
            "predicted": ("predicted, ms", lambda t: f"{1e3 * t:.3g}"),
            "off": ("off by", "+.0%"),
        },
    )


def draw(rows, s):
    found = checked(rows, s)[1]
    with plots.figure(height=4.2) as (_, ax):
        for place, arm in enumerate(ARMS):
            own = [r for r in found if r["arm"] == arm]
            look = {"color": plots.PALETTE[place % 6], "marker": plots.MARKERS[place % 6], "linestyle": "none"}
            face = {} if arm in FITTED else {"markerfacecolor": "white", "markeredgewidth": 2}
            label = "wider network" if arm == "held out" else arm
            ax.plot(
                [1e3 * r["measured"] for r in own], [1e3 * r["predicted"] for r in own], label=label, **look, **face
            )
        values = [1e3 * r[name] for r in found for name in ("measured", "predicted")]
        ends = [min(values) / 1.3, max(values) * 1.3]
        ax.plot(ends, ends, color="grey", linewidth=1)
        ax.set(
            xscale="log",
            yscale="log",
            xlabel="measured, ms a step",
            ylabel="predicted, ms a step",
            xlim=ends,
            ylim=ends,
        )
        plots.log_axis(ax.xaxis, values)
        plots.log_axis(ax.yaxis, values)
        ax.legend(fontsize=9, loc="upper left", ncols=1)
    far = max(found, key=lambda r: abs(math.log1p(r["off"])))
    name = "the wider network" if far["arm"] == "held out" else far["arm"]
    return (
        f"Furthest off: {name} over {far['processes']} processes, by {far['off']:+.0%}. On the grey line prediction and "
        "measurement agree; filled points were fitted, open ones not seen."
    )


COST_MODEL = Experiment(
    "cost_model",
    run=timings,
    conditions=runs,
    estimates=unavailable.estimates(estimates),
    settings=SETTINGS,
    counts=("rounds",),
    finding=unavailable.finding(finding),
    figure=unavailable.figure(draw),
    alt="Predicted against measured milliseconds of a step, both axes logarithmic, one marker a way to train, with the line "
    "on which both are equal.",
    table=unavailable.table(table),
    kept=("step", "link", "compute", "held out"),
    timed=True,
)
