"""Is parallel training faster? Pictures a second by kind and number of processes, and where the time goes."""

from statistics import fmean

from resnet_lib import page, plots, stats
from resnet_lib.experiments.parallelism import unavailable
from resnet_lib.experiments.parallelism.timed import PASSES, RULED, SETTINGS, own_processors, runs, timings
from resnet_lib.study import Experiment

# arm → the name of its speed-up; the first two are one engine at two batches
SPEEDUPS = {
    "data": "data_speedup",
    "data, fixed batch": "fixed_batch_speedup",
    "sharded": "sharded_speedup",
    "tensor": "tensor_speedup",
    "pipeline": "pipeline_speedup",
}
NAMES = {
    "data": "data, a batch a process",
    "data, fixed batch": "data, one batch divided",
    "sharded": "sharded, a batch a process",
    "tensor": "tensor, one batch",
    "pipeline": "pipeline, one batch",
}
FEW = "needs two processors of one's own, and this machine has {}"


def steps(rows) -> list[dict]:
    """Timed steps with their pictures a second, of processes that had a processor each."""
    return [r | {"rate": r["pictures"] / r["time_s"]} for r in own_processors(stats.where(rows, what="step"))]


def speedup(rows, arm: str, processes: int) -> stats.Estimate:
    """Pictures a second of an arm over those of one process, a ratio a round."""
    own = [r for r in steps(rows) if r["arm"] == "one process" or (r["arm"], r["processes"]) == (arm, processes)]
    return stats.paired_ratio(own, "rate", "arm", arm, "one process", pair=("round",))


def numbers(rows) -> list[int]:
    """Of processes, beyond one."""
    return sorted({r["processes"] for r in steps(rows)} - {1})


def between(rows, a: str, b: str, value: str = "time_s") -> stats.Estimate:
    own = [r for r in steps(rows) if r["processes"] == RULED and r["arm"] in (a, b)]
    return stats.paired_ratio(own, value, "arm", a, b, pair=("round",))


def estimates(rows, s):
    if RULED not in numbers(rows):
        return {}
    found = {name: speedup(rows, arm, RULED) for arm, name in SPEEDUPS.items()}
    return found | {
        "message_share": share_of_messages(rows),
        "overlap_gain": between(rows, "data, one message", "data"),
        "accumulation_gain": between(rows, "data, accumulated", "data", "rate"),
        "crowding": crowding(rows),
    }


def share_of_messages(rows) -> stats.Estimate:
    """What of a data-parallel step goes when nothing is sent, a share a round."""
    times = {(r["arm"], r["round"]): r["time_s"] for r in steps(rows) if r["processes"] == RULED}
    rounds = sorted({number for _, number in times})
    return stats.interval([1 - times["data, no messages", k] / times["data", k] for k in rounds], unit="share")


def crowding(rows) -> stats.Estimate:
    """How much longer the same arithmetic takes when the other process computes too, though nothing is sent."""
    own = [r for r in steps(rows) if r["arm"] in ("data, no messages", "one process") and r["processes"] <= RULED]
    return stats.paired_ratio(own, "time_s", "arm", "data, no messages", "one process", pair=("round",))


def finding(rows, s, e):
    if not e:
        return f"Not measured: {FEW.format(rows[0]['cores'])}."
    quick = [f"{NAMES[arm]} {e[name]}" for arm, name in SPEEDUPS.items() if e[name].low > 1]
    slow = [f"{NAMES[arm]} {e[name]}" for arm, name in SPEEDUPS.items() if e[name].high < 1]
    same = [f"{NAMES[arm]} {e[name]}" for arm, name in SPEEDUPS.items() if e[name].low <= 1 <= e[name].high]
    return (
        f"Pictures a second of {RULED} processes over those of one, by {rows[0]['backend']}. Faster: {page.listed(quick)}. "
        f"Slower: {page.listed(slow)}. Neither clearly: {page.listed(same)}. "
        f"Of a data-parallel step {e['message_share']} goes when nothing is sent; the same arithmetic takes "
        f"{e['crowding']} as long when both processes compute. One message for all gradients takes {e['overlap_gain']} as "
        f"long as several, which leave while the rest is computed. {PASSES} passes before each sum give "
        f"{e['accumulation_gain']} as many pictures a second."
    )


def table(rows, s):
    found = []
    for arm, name in NAMES.items():
        row = {"arm": name}
        for n in numbers(rows):
            row[f"at{n}"] = speedup(rows, arm, n)
            row[f"rate{n}"] = fmean(r["rate"] for r in steps(rows) if (r["arm"], r["processes"]) == (arm, n))
        found.append(row)
    columns = {"arm": "kind"}
    for n in numbers(rows):
        columns |= {f"rate{n}": (f"{n} processes, pictures/s", ",.0f"), f"at{n}": f"over one process, {n} processes"}
    return page.table(found, columns)


def draw(rows, s):
    ns = numbers(rows)
    with plots.figure(height=3.6) as (_, ax):
        for place, n in enumerate(ns):
            at = [k + 0.25 * (place - (len(ns) - 1) / 2) for k in range(len(NAMES))]
            found = [speedup(rows, arm, n) for arm in NAMES]
            ends = [[e.mean - e.low for e in found], [e.high - e.mean for e in found]]
            look = {"color": plots.PALETTE[place], "marker": plots.MARKERS[place], "linestyle": "none", "capsize": 3}
            ax.errorbar([e.mean for e in found], at, xerr=ends, label=f"{n} processes", **look)
            ax.axvline(n, color=plots.PALETTE[place], linestyle=":", linewidth=1.2)
            single = {r["round"]: r["rate"] for r in steps(rows) if r["arm"] == "one process"}
            for y, arm in zip(at, NAMES, strict=True):
                ratios = [r["rate"] / single[r["round"]] for r in steps(rows) if (r["arm"], r["processes"]) == (arm, n)]
                ax.plot(ratios, [y] * len(ratios), "o", color=plots.PALETTE[place], alpha=0.4, markersize=3, mew=0)
        ax.axvline(1, color="grey", linewidth=1)
        ax.set_yticks(range(len(NAMES)), [name.replace(", ", ",\n") for name in NAMES.values()], fontsize=10)
        ax.set(xlabel="pictures a second, over one process's", xlim=(0, None), ylim=(len(NAMES) - 0.5, -0.5))
        if ns:
            ax.legend(fontsize=10, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    slow = [NAMES[arm] for arm in NAMES if any(speedup(rows, arm, n).high < 1 for n in ns)]
    return (
        f"Slower than one process: {page.listed(slow)}. Left of the grey line is slower than one process; dotted lines are "
        "as many times as there are processes. Small dots are rounds, bars intervals of 95 %."
    )


def notes(rows, s):
    if RULED in numbers(rows):
        return []
    return [f"scaling/{name}: {FEW.format(rows[0]['cores'])}" for name in SPEEDUPS.values()]


SCALING = Experiment(
    "scaling",
    run=timings,
    conditions=runs,
    estimates=unavailable.estimates(estimates),
    settings=SETTINGS,
    counts=("rounds",),
    tiny={
        "speed_processes": [2],
        "speed_depth": 8,
        "speed_width": 4,
        "speed_batch": 8,
        "speed_seconds": 0.01,
        "rounds": 3,
    },
    finding=unavailable.finding(finding),
    figure=unavailable.figure(draw),
    alt="For five ways to train, dots with intervals: pictures a second of several processes over those of one. A grey line "
    "at one, and dotted lines at the number of processes.",
    table=unavailable.table(table),
    notes=unavailable.notes("scaling", tuple(SPEEDUPS.values()), notes),
    kept=("step",),
    timed=True,
)
