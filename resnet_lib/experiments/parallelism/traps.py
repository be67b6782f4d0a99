"""What makes parallel training another training: batch norm, divided convolutions, uneven batches; and the cures."""

from resnet_lib import page, plots, stats
from resnet_lib.experiments.parallelism import unavailable
from resnet_lib.experiments.parallelism.exact import SETTINGS, exact
from resnet_lib.study import Experiment

EQUAL = 1e-6  # in float64, of the largest number
PLAIN, BY_HAND, TORCH = "batch norm as it is", "synchronised, by hand", "torch.nn.SyncBatchNorm"
MEANS, WEIGHTED, ABSENT = "the mean of the means", "weighted by pictures", "one process without a picture"


def runs(s) -> list[dict]:
    return [{"processes": n} for n in sorted(set(s.processes))]


def worst(rows, what: str, column: str) -> dict[tuple[int, str], float | None]:
    """(processes, case) → the largest value of a column over the ranks; None where a case was refused."""
    found: dict = {}
    for r in stats.where(rows, what=what):
        key, value = (r["processes"], r["name"]), r.get(column)
        found[key] = value if value is None or found.get(key) is None else max(found[key], value)
    return found


# ---------------------------------------------------------------- batch norm


def norm_estimates(rows, s):
    found = {}
    for measure, case in (("plain", PLAIN), ("by_hand", BY_HAND), ("torch", TORCH)):
        for column in ("gradient_difference", "statistics_difference"):
            values = worst(rows, "norm", column)
            apart = [value for (_, name), value in values.items() if name == case and value is not None]
            if apart:
                found[f"{measure}_{column.partition('_')[0]}"] = stats.exact(max(apart), "relative")
    return found


def norm_finding(rows, s, e):
    refused = next((r["refused"] for r in stats.where(rows, what="norm", name=TORCH) if r["refused"]), "")
    theirs = (
        f"PyTorch's own refuses: {refused!r}"
        if refused
        else f"PyTorch's own differs by {e['torch_gradient'].mean:.0e} of the largest gradient"
    )
    return (
        f"With batch norm as it is, the gradients differ from one process's by {e['plain_gradient'].mean:.0%} of the largest, "
        f"and the running statistics by {e['plain_statistics'].mean:.1%}: another function is trained, without a warning. "
        f"With sums over the processes they differ by {e['by_hand_gradient'].mean:.0e}. {theirs}."
    )


def norm_table(rows, s):
    columns = ("gradient_difference", "weight_difference", "statistics_difference")
    by_column = {column: worst(rows, "norm", column) for column in columns}
    refused = {(r["processes"], r["name"]): r["refused"] for r in stats.where(rows, what="norm")}
    shown = [
        {"processes": n, "name": name, "refused": why or None} | {c: by_column[c][n, name] for c in columns}
        for (n, name), why in refused.items()
    ]
    form = {column: (column.replace("_", " "), ".0e") for column in columns}
    return page.table(shown, {"name": "batch norm", "processes": "processes"} | form | {"refused": "refused"})


BATCH_NORM = Experiment(
    "batch_norm",
    run=exact,
    conditions=runs,
    estimates=unavailable.estimates(norm_estimates),
    settings=SETTINGS,
    finding=unavailable.finding(norm_finding),
    table=unavailable.table(norm_table),
    kept=("norm",),
)


# ---------------------------------------------------------------- the memory format


def layout_estimates(rows, s):
    found = {}
    for when in ("before", "after"):
        for views in (False, True):
            own = stats.where(rows, what="layout", when=when, views=views)
            for step in ("first", "second"):
                name = f"{when}_{'views' if views else 'copies'}_{step}"
                found[name] = stats.exact(max(r[step] for r in own), "relative")
    return found


def layout_finding(rows, s, e):
    said = next((r["said"] for r in rows if r.get("said")), "")
    warned = f"PyTorch warns and adds: {said!r}" if said else "Nothing is said"
    wrong = e["after_copies_first"].mean > EQUAL
    return (
        f"Where weights get their channels last before DDP wraps them, every gradient is one process's, to "
        f"{max(e[f'before_{how}_{step}'].mean for how in ('copies', 'views') for step in ('first', 'second')):.0e}. Where they "
        f"get them after, the first step's gradients are {e['after_copies_first'].mean:.0%} of the largest off, and the "
        f"second's {e['after_copies_second'].mean:.0e}. {warned}. "
        + (
            f"With gradients as views of the buckets the first step is {e['after_views_first'].mean:.0e} off."
            if wrong
            else ""
        )
    )


def layout_table(rows, s):
    shown = [
        {"when": f"{when} it is wrapped", "views": "views" if views else "copies", "processes": n}
        | {step: max(r[step] for r in own) for step in ("first", "second")}
        for n in sorted({r["processes"] for r in rows})
        for when in ("before", "after")
        for views in (False, True)
        if (own := stats.where(rows, what="layout", when=when, views=views, processes=n))
    ]
    columns = {"when": "channels last", "views": "gradients", "processes": "processes"}
    return page.table(shown, columns | {"first": ("first step off", ".0e"), "second": ("second step off", ".0e")})


LAYOUT = Experiment(
    "layout",
    run=exact,
    conditions=runs,
    estimates=unavailable.estimates(layout_estimates),
    settings=SETTINGS,
    finding=unavailable.finding(layout_finding),
    table=unavailable.table(layout_table),
    kept=("layout",),
)


# ---------------------------------------------------------------- convolutions


def verdicts_of(rows) -> dict[tuple[str, str], str]:
    """(layer, by) → right, wrong or refused; of several runs and ranks the worst."""
    order, found = ("right", "refused", "wrong"), {}
    for r in stats.where(rows, what="convolution"):
        key = (r["name"], r["by"])
        found[key] = max(found.get(key, "right"), r["result"], key=order.index)
    return found


def convolution_estimates(rows, s):
    found = verdicts_of(rows)
    count = lambda by, result: sum(r == result for (_, one), r in found.items() if one == by)
    return {
        "dtensor_wrong": stats.exact(count("DTensor", "wrong"), "layers"),
        "dtensor_right": stats.exact(count("DTensor", "right"), "layers"),
        "by_hand_wrong": stats.exact(count("hand", "wrong"), "layers"),
    }


def convolution_finding(rows, s, e):
    found = verdicts_of(rows)
    named = lambda by, result: "; ".join(name for (name, one), r in found.items() if (one, r) == (by, result)) or "none"
    return (
        f"Divided by `DTensor`, right: {named('DTensor', 'right')}. Wrong, without an error or a warning: "
        f"{named('DTensor', 'wrong')}. Refused: {named('DTensor', 'refused')}. "
        f"Divided by hand, right: {named('hand', 'right')}."
    )


def convolution_table(rows, s):
    first = [r for r in stats.where(rows, what="convolution") if r["rank"] == 0]
    return page.table(
        first,
        {
            "name": "layer",
            "by": "divided by",
            "processes": "processes",
            "result": "result",
            "difference": ("largest difference", ".0e"),
            "said": "shape, or why refused",
        },
    )


CONVOLUTIONS = Experiment(
    "convolutions",
    run=exact,
    conditions=runs,
    estimates=unavailable.estimates(convolution_estimates),
    settings=SETTINGS,
    finding=unavailable.finding(convolution_finding),
    table=unavailable.table(convolution_table),
    kept=("convolution",),
)


# ---------------------------------------------------------------- uneven batches


def uneven_estimates(rows, s):
    values = worst(rows, "uneven", "difference")
    largest = lambda case: max(value for (_, name), value in values.items() if name == case)
    return {
        "means": stats.exact(largest(MEANS), "relative"),
        "weighted": stats.exact(largest(WEIGHTED), "relative"),
        "absent": stats.exact(largest(ABSENT), "relative"),
    }


def uneven_finding(rows, s, e):
    return (
        f"Averaging the processes' means gives a step that is {e['means'].mean:.0%} of its own size away from one process's, "
        f"where the last process has one picture. Weighted by pictures the step differs by {e['weighted'].mean:.0e}; with one "
        f"process that has none, inside `Join`, by {e['absent'].mean:.0e}."
    )


def draw_uneven(rows, s):
    values, numbers = worst(rows, "uneven", "difference"), sorted({r["processes"] for r in rows})
    cases = (MEANS, WEIGHTED, ABSENT)
    with plots.figure(height=2.4) as (_, ax):
        for place, n in enumerate(numbers):
            at = [k + 0.2 * (place - (len(numbers) - 1) / 2) for k in range(len(cases))]
            apart = [max(values[n, case], 1e-17) for case in cases]
            ax.plot(apart, at, plots.MARKERS[place], color=plots.PALETTE[place], label=f"{n} processes", markersize=8)
        ax.axvline(EQUAL, color="grey", linestyle="--", linewidth=1)
        ax.set(xscale="log", xlabel="off one process's step, share of it", ylim=(len(cases) - 0.5, -0.5))
        ax.set_yticks(range(len(cases)), cases)
        ax.legend(fontsize=10, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    right = [case for case in cases if all(values[n, case] <= EQUAL for n in numbers)]
    return (
        f"Equal to one process: {page.listed(right)}. The dashed line is the largest difference that counts as equal."
    )


UNEVEN = Experiment(
    "uneven",
    run=exact,
    conditions=runs,
    estimates=unavailable.estimates(uneven_estimates),
    settings=SETTINGS,
    finding=unavailable.finding(uneven_finding),
    figure=unavailable.figure(draw_uneven),
    alt="For three ways to treat uneven last batches, how far the step is from one process's, on a logarithmic axis.",
    kept=("uneven",),
)
