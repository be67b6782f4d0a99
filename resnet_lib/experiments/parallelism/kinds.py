"""Four ways to train one network in several processes: each equal to one process; what it stores, sees and sends."""

from resnet_lib import page, plots, stats
from resnet_lib.experiments.parallelism import unavailable
from resnet_lib.experiments.parallelism.engines import COMBINED, ENGINES
from resnet_lib.experiments.parallelism.exact import SETTINGS, exact
from resnet_lib.study import Experiment

MODEL = ("tensor", "pipeline")  # what is called model parallelism
RULED = 2  # processes that the rules speak of
SHOWN = {name: name for name in ENGINES} | {"pipeline, 1F1B": "pipeline"}
DRAWN = ("data", "sharded", "tensor", "pipeline, 1F1B")
SHADES = (plots.BLUE, plots.SKY, plots.GREEN)  # by number of processes


def runs(s) -> list[dict]:
    """Raises: ValueError where no run has the two processes that the rules speak of."""
    if RULED not in s.processes or min(s.processes) < 2:
        raise ValueError(f"processes={s.processes} must hold {RULED}, and no number below 2")
    return [{"processes": n} for n in sorted(set(s.processes))]


def of_kinds(rows, kinds=None, processes=None):
    found = [r for r in stats.where(rows, what="kind") if kinds is None or r["kind"] in kinds]
    return [r for r in found if processes is None or r["processes"] == processes]


def share(rows, column: str, whole: str) -> float:
    return max(r[column] / r[whole] for r in rows)


def busiest(rows) -> list[dict]:
    """A row for each engine and number of processes: its fullest and its busiest process, and the predictions."""
    cells = dict.fromkeys((r["processes"], r["name"]) for r in rows)
    found = []
    for processes, name in cells:
        own = [r for r in rows if (r["processes"], r["name"]) == (processes, name)]
        sent = [r["sent"] for r in own if r["sent"] is not None]
        row = {
            "processes": processes,
            "name": name,
            "kind": own[0]["kind"],
            "difference": max(max(r["gradient_difference"], r["weight_difference"]) for r in own),
            "held": share(own, "held", "parameters"),
            "seen": share(own, "seen", "batch"),
            "stored": max(r["stored"] for r in own) / (3 * own[0]["parameters"]),
            "stored_predicted": own[0]["stored_predicted"] / (3 * own[0]["parameters"]),
            "sent": max(sent) if sent else None,
            "sent_ring": own[0]["sent_ring"],
            "sent_engine": own[0]["sent_gloo" if own[0]["backend"] == "gloo" else "sent_ring"],
        }
        found.append(row)
    return found


def off(row, predicted: str) -> float:
    """How far the bytes sent are from what was predicted, as a share of it."""
    return row["sent"] / row[predicted] - 1


def estimates(rows, s):
    """Exact numbers: of two processes where a rule speaks of two, else over all runs."""
    every, two = busiest(of_kinds(rows)), busiest(of_kinds(rows, processes=RULED))
    model, data = ([r for r in two if r["kind"] in kinds] for kinds in (MODEL, ("data",)))
    counted = [r for r in every if r["sent"] is not None]
    found = {
        "difference": stats.exact(max(r["difference"] for r in every)),
        "model_held": stats.exact(max(r["held"] for r in model), "share"),
        "model_seen": stats.exact(max(r["seen"] for r in model), "share"),
        "data_held": stats.exact(max(r["held"] for r in data), "share"),
        "data_seen": stats.exact(max(r["seen"] for r in data), "share"),
        "stored_error": stats.exact(max(abs(r["stored"] / r["stored_predicted"] - 1) for r in every), "share"),
    }
    for name in DRAWN:
        row = next(r for r in two if r["name"] == name)
        found[f"{SHOWN[name]}_stored"] = stats.exact(row["stored"], "share")
        if row["sent"] is not None:
            found[f"{SHOWN[name]}_sent"] = stats.exact(row["sent"] / 1e6, "MB")
    if counted:
        found["sent_error"] = stats.exact(max(abs(off(r, "sent_engine")) for r in counted), "share")
        found["sharded_over_ring"] = stats.exact(
            max(off(r, "sent_ring") for r in counted if r["kind"] == "sharded"), "share"
        )
    return found


def combined_words(rows) -> str:
    """What pairs that divide the network, and between them the pictures, do; "" where there were too few processes."""
    found = [r for r in busiest(of_kinds(rows)) if r["kind"] == COMBINED]
    if not found:
        return ""
    one = found[-1]
    return (
        f"Both can be combined: of {one['processes']} processes in pairs each holds {one['held']:.0%} of the parameters and "
        f"sees {one['seen']:.0%} of the pictures. "
    )


def finding(rows, s, e):
    counted = "sent_error" in e
    sends = page.listed([f"{SHOWN[name]} {e[f'{SHOWN[name]}_sent'].mean:.3g}" for name in DRAWN]) if counted else ""
    stores = page.listed([f"{SHOWN[name]} {e[f'{SHOWN[name]}_stored'].mean:.0%}" for name in DRAWN])
    apart = e["stored_error"].mean
    predicted = "the prediction is exact" if apart < 1e-9 else f"the prediction is at most {apart:.1%} off"
    return (
        f"Every engine gives one process's gradients and weights, to {e['difference'].mean:.0e} of the largest. "
        f"Of what one process stores, the fuller of two stores: {stores}; {predicted}. "
        f"{combined_words(rows)}"
        f"Of the pictures of a batch, a data-parallel process sees {e['data_seen'].mean:.0%}, a tensor- or pipeline-parallel "
        f"one {e['model_seen'].mean:.0%}. "
        + (
            f"Megabytes that the busier of two sends in a step: {sends}; the prediction is at most "
            f"{e['sent_error'].mean:.1%} off, once it knows the backend: sharded training sends up to "
            f"{e['sharded_over_ring'].mean:.0%} more than a ring would, because gloo scatters a sum by summing up everything."
            if counted
            else "Bytes sent could not be counted here."
        )
    )


def table(rows, s):
    shown = [r | {"shown": SHOWN[r["name"]]} for r in busiest(of_kinds(rows))]
    return page.table(
        shown,
        {
            "shown": "kind",
            "processes": "processes",
            "difference": ("from one process", ".0e"),
            "stored": ("stored, of one process's", ".1%"),
            "stored_predicted": ("predicted", ".1%"),
            "seen": ("of the pictures", ".0%"),
            "sent": ("sent in a step, bytes", ",.0f"),
            "sent_engine": ("predicted", ",.0f"),
            "sent_ring": ("by a ring", ",.0f"),
        },
    )


def draw(rows, s):
    """Two pictures, one above the other: stored and sent, bars measured and lines predicted."""
    found = [r for r in busiest(of_kinds(rows)) if r["name"] in DRAWN]
    numbers = sorted({r["processes"] for r in found})
    wide = 0.8 / len(numbers)
    with plots.figure(2, 1, height=5.2) as (_, axes):
        for ax, measured, predicted, scale in (
            (axes[0], "stored", "stored_predicted", 100),
            (axes[1], "sent", "sent_engine", 1e-6),
        ):
            for place, processes in enumerate(numbers):
                own = {r["name"]: r for r in found if r["processes"] == processes}
                at = [k + (place - (len(numbers) - 1) / 2) * wide for k in range(len(DRAWN))]
                heights = [scale * (own[name][measured] or 0) for name in DRAWN]
                expected = [scale * own[name][predicted] for name in DRAWN]
                colour = SHADES[place % len(SHADES)]
                ax.bar(at, heights, wide * 0.92, color=colour, label=f"{processes} processes")
                ax.hlines(
                    expected,
                    [x - wide / 2 for x in at],
                    [x + wide / 2 for x in at],
                    color="black",
                    linewidth=2,
                    label="predicted" if place == len(numbers) - 1 else None,
                )
            ax.set_xticks(range(len(DRAWN)), [SHOWN[name] for name in DRAWN])
            ax.grid(axis="x", visible=False)
            ax.set_axisbelow(True)
        axes[0].set_ylabel("stored by the fullest,\n% of one process's")
        axes[1].set_ylabel("sent by the busiest\nin a step, MB")
        axes[0].legend(fontsize=10, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    least = {
        key: SHOWN[
            min((r for r in found if r["processes"] == RULED and r[key] is not None), key=lambda r: r[key])["name"]
        ]
        for key in ("stored", "sent")
        if any(r[key] is not None for r in found)
    }
    less = f", and {least['sent']} sends least" if "sent" in least else "; what is sent was not counted"
    return (
        f"Of two processes, {least['stored']} stores least{less}. Bars are measured, black lines predicted from the "
        "network. Stored: weights, gradients and momentum."
    )


KINDS = Experiment(
    "kinds",
    run=exact,
    conditions=runs,
    estimates=unavailable.estimates(estimates),
    settings=SETTINGS,
    tiny={"processes": [2], "exact_depth": 8, "exact_width": 4, "exact_batch": 8, "exact_steps": 2, "micro_batches": 4},
    finding=unavailable.finding(finding),
    figure=unavailable.figure(draw),
    alt="Two bar charts, one above the other, of data, sharded, tensor and pipeline parallelism: what the fullest process "
    "stores, in percent of what one process alone stores, and what the busiest sends in a step. Black lines mark the "
    "predictions.",
    table=unavailable.table(table),
    notes=unavailable.notes("kinds", ("difference", "model_held", "model_seen", "data_held", "data_seen")),
    kept=("kind",),
)
