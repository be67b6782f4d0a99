"""Why a grouped convolution is slower than its multiply-adds: time, arithmetic intensity and the roofline."""

from functools import partial
from statistics import fmean

import torch
from torch import nn

from resnet_lib import bench, ceilings, page, plots, precision, stats, train
from resnet_lib.experiments.families.networks import inverse
from resnet_lib.study import Experiment

SIDE = 28  # of the maps, in pixels
GROUPS = (1, 4, 16)
ROOM = {"equal_width": "as many channels", "equal_flops": "as many multiply-adds"}


def channels_of(s, room: str, groups: int) -> int:
    """Channels of the convolution: those of the ungrouped one, or as many as give it its multiply-adds."""
    return s.group_channels * (round(groups**0.5) if room == "equal_flops" else 1)


def layer(s, room: str, groups: int) -> tuple[nn.Conv2d, tuple[int, ...]]:
    width = channels_of(s, room, groups)
    if width % groups:
        raise ValueError(f"cardinality {groups} does not divide {width} channels: give group_channels a multiple of it")
    return nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=False), (s.group_batch, width, SIDE, SIDE)


def groups(s) -> list[dict]:
    """Seconds of each convolution forward, in turn, and the ceilings of the device in the same number format."""
    form = ceilings.choose_precision(s.number_format, s.device)
    dtype, calls, rows = precision.FORMATS[form].dtype, {}, []
    for room in ROOM:
        for count in GROUPS:
            made, shape = layer(s, room, count)
            with train.seeded(0):
                given = torch.randn(shape).to(s.device, dtype, memory_format=torch.channels_last)
            made = made.to(s.device, dtype, memory_format=torch.channels_last)
            calls[room, count] = partial(_convolved, made, given)
            flops = 2 * given.numel() * made.weight[0].numel()
            moved = (2 * given.numel() + made.weight.numel()) * dtype.itemsize
            rows.append({"room": room, "groups": count, "channels": shape[1], "flops": flops, "bytes": moved})
    timed = bench.compare(calls, rounds=s.rounds, number=3)
    rates = {
        "peak": max(ceilings.convolution(n, form, s.device, seconds=0.3)["rate"] for n in (64, 256)),
        "bandwidth": ceilings.bandwidth(s.device, seconds=0.3)["rate"],
    }
    return [row | {"times_s": r["times_s"], "form": form} | rates for row, r in zip(rows, timed, strict=True)]


def _convolved(made: nn.Conv2d, given: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return made(given)


def roofline(row) -> float:
    """Seconds that arithmetic and memory allow, whichever takes longer."""
    return max(row["flops"] / row["peak"], row["bytes"] / row["bandwidth"])


def over_first(rows, row) -> stats.Estimate:
    """Time over that of the ungrouped convolution, round by round."""
    first = next(r for r in rows if r["room"] == row["room"] and r["groups"] == 1)
    pairs = zip(row["times_s"], first["times_s"], strict=True)
    return stats.interval([a / b for a, b in pairs], method="log-t", unit="times")


def estimates(rows, s):
    found = {}
    for row in rows:
        if row["groups"] > 1:
            first = next(r for r in rows if r["room"] == row["room"] and r["groups"] == 1)
            slow = over_first(rows, row)
            name = f"{row['room']}_{row['groups']}"
            if row["room"] == "equal_width":
                slow = inverse(slow)
                found[f"speedup_{name}"] = slow
                found[f"roofline_{name}"] = stats.exact(roofline(first) / roofline(row), "times")
            else:
                found[f"slowdown_{name}"] = slow
                found[f"roofline_{name}"] = stats.exact(roofline(row) / roofline(first), "times")
    return found


def finding(rows, s, e):
    most = GROUPS[-1]
    return (
        f"With {most} groups and as many channels a convolution has a {most}th of the multiply-adds; by the roofline it should "
        f"be {e[f'roofline_equal_width_{most}'].mean:.1f} times as fast, and it is {e[f'speedup_equal_width_{most}']}. At equal "
        f"multiply-adds it should take {e[f'roofline_equal_flops_{most}'].mean:.1f} times as long as the ungrouped one, and takes "
        f"{e[f'slowdown_equal_flops_{most}']}."
    )


def table(rows, s):
    shown = []
    for row in rows:
        rate = row["flops"] / fmean(row["times_s"])
        more = {"what": ROOM[row["room"]], "intensity": row["flops"] / row["bytes"], "reached": rate / 1e9}
        shown.append(row | more | {"allowed": row["flops"] / roofline(row) / 1e9, "ratio": over_first(rows, row)})
    columns = {"what": "equal", "groups": "groups", "channels": "channels"}
    columns |= {"intensity": ("FLOP a byte", ".0f"), "allowed": ("GFLOP/s by the roofline", ",.0f")}
    return page.table(shown, columns | {"reached": ("measured", ",.0f"), "ratio": "time over the ungrouped one's"})


def draw(rows, s):
    with plots.figure(height=4.0) as (fig, ax):
        x = [2**k for k in range(1, 12)]
        peak, bandwidth = rows[0]["peak"], rows[0]["bandwidth"]
        roof = [min(peak, i * bandwidth) / 1e9 for i in x]
        ax.plot(x, roof, color="grey", label="roofline")
        for (room, words), colour, mark in zip(ROOM.items(), (plots.BLUE, plots.ORANGE), "os", strict=True):
            for row in stats.where(rows, room=room):
                rates = [row["flops"] / t / 1e9 for t in row["times_s"]]
                place = [row["flops"] / row["bytes"]] * len(rates)
                label = words if row["groups"] == 1 else None
                ax.plot(place, rates, mark, color=colour, ms=5, alpha=0.6, mew=0, label=label)
                ax.annotate(f"{row['groups']}", (place[0], max(rates)), ha="center", va="bottom", fontsize=10)
        ax.set(xscale="log", yscale="log", xlabel="FLOP for each byte moved", ylabel="GFLOP/s")
        plots.log_axis(ax.xaxis, x)
        plots.log_axis(ax.yaxis, [*roof, *(row["flops"] / max(row["times_s"]) / 1e9 for row in rows)])
        fig.legend(loc="outside upper center", ncols=3, fontsize=10)
    far = max(min(row["times_s"]) / roofline(row) for row in rows if row["groups"] == GROUPS[-1])
    near = min(min(row["times_s"]) / roofline(row) for row in rows if row["groups"] == 1)
    return (
        f"Grouping moves a convolution towards fewer operations for each byte, and below the roof: ungrouped it takes {near:.1f} "
        f"times what the roofline allows, with {GROUPS[-1]} groups {far:.1f} times. Numbers are groups, dots rounds."
    )


def _timings(s) -> list[dict]:
    for room in ROOM:
        for count in GROUPS:
            layer(s, room, count)
    if s.rounds < 3 or s.group_batch < 1:
        raise ValueError(f"rounds={s.rounds} must be at least 3, and group_batch={s.group_batch} at least 1")
    return [{}]


GROUPED = Experiment(
    "groups",
    run=groups,
    conditions=_timings,
    estimates=estimates,
    settings=("group_channels", "group_batch", "rounds", "number_format"),
    tiny={"group_channels": 16, "group_batch": 2},
    finding=finding,
    figure=draw,
    alt="GFLOP/s of six convolutions against the operations for each byte that they move, on logarithmic axes under the "
    "roofline; numbers say the groups. With more groups the points move to the left and down, away from the roof.",
    table=table,
    timed=True,
)
