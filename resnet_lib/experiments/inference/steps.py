"""What each step buys: alone, left out of all, and all together."""

from dataclasses import dataclass
from functools import partial

from resnet_lib import inference, page, plots, stats
from resnet_lib.experiments.inference.networks import missing_notes, on_threads, refuse, slug, timings
from resnet_lib.inference import Recipe
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

SHORT = "bfloat16"
ALL = {  # by stack, everything together
    "PyTorch": Recipe(folded=True, channels_last=True, numbers=SHORT),
    "a runtime": Recipe("OpenVINO", numbers="int8", in_parts=True),
}


@dataclass(frozen=True)
class Step:
    """One thing that is done to a network."""

    name: str
    stack: str  # a key of ALL
    without: Recipe  # everything but this
    alone: Recipe  # this and nothing else, but what it cannot do without
    base: Recipe = Recipe()  # the same without it


ORT, OV = (partial(Recipe, runtime) for runtime in ("ONNX Runtime", "OpenVINO"))
STEPS = (
    Step("norms folded", "PyTorch", Recipe(channels_last=True, numbers=SHORT), Recipe(folded=True)),
    Step("channels last", "PyTorch", Recipe(folded=True, numbers=SHORT), Recipe(channels_last=True)),
    Step("16 bits", "PyTorch", Recipe(folded=True, channels_last=True), Recipe(numbers=SHORT)),
    Step("OpenVINO, not ONNX Runtime", "a runtime", ORT(numbers="int8"), OV(), ORT()),
    Step("8 bits", "a runtime", OV(in_parts=True), OV(numbers="int8"), OV()),
    Step("additions in 8 bits", "a runtime", OV(numbers="int8", in_parts=True, sums=False), OV(numbers="int8"),
         OV(numbers="int8", sums=False)),
    Step("a batch in parts", "a runtime", OV(numbers="int8"), OV(in_parts=True), OV()),
)  # fmt: skip


def recipes() -> dict[str, Recipe]:
    """Everything that is timed, each once, by the name under which its rows stand."""
    found = {inference.REFERENCE: Recipe()} | {f"all of {stack}": recipe for stack, recipe in ALL.items()}
    for step in STEPS:
        for what, recipe in (("before", step.base), ("only", step.alone), ("all but", step.without)):
            if recipe not in found.values():
                found[f"{what} {step.name}"] = recipe
    return found


def name_of(recipe: Recipe) -> str:
    return next(name for name, one in recipes().items() if one == recipe)


def clock(s, batch: int) -> list[dict]:
    """Seconds of single answers of ResNet-18 with each step alone, with all of them, and with all but one."""
    with on_threads(max(s.threads)):
        return timings(s, batch, recipes())


def at(rows, batch: int) -> list[dict]:
    return stats.where(rows, what="time", batch=batch)


def gain(rows, batch: int, recipe: Recipe, over: Recipe) -> stats.Estimate | None:
    """How many times as fast one recipe is as another, where both could be followed."""
    own = at(rows, batch)
    there = {r["name"] for r in own}
    names = [name_of(one) for one in (recipe, over) if name_of(one) in there]
    return inference.speedup(own, *names) if len(names) == 2 else None


def estimates(rows, s):
    found = {}
    for batch in s.batches:
        for stack, recipe in ALL.items():
            found[f"{slug(stack)}_together_batch_{batch}"] = gain(rows, batch, recipe, Recipe())
        for step in STEPS:
            found[f"{slug(step.name)}_alone_batch_{batch}"] = gain(rows, batch, step.alone, step.base)
            found[f"{slug(step.name)}_at_the_end_batch_{batch}"] = gain(rows, batch, ALL[step.stack], step.without)
    return {name: one for name, one in found.items() if one}


def finding(rows, s, e):
    said = []
    for batch in s.batches:
        for stack in ALL:
            ends = {
                step.name: e[name]
                for step in STEPS
                if step.stack == stack and (name := f"{slug(step.name)}_at_the_end_batch_{batch}") in e
            }
            if ends:
                most = max(ends, key=lambda name: ends[name].mean)
                together = e[f"{slug(stack)}_together_batch_{batch}"]
                said.append(
                    f"at batch {batch} all of {stack} together {together}, and most is lost without {most}: {ends[most]}"
                )
    return f"Over the plain network, {'; '.join(said)}." if said else "No stack of steps could be made here."


def table(rows, s):
    e, shown = estimates(rows, s), []
    for step in STEPS:
        row = {"step": step.name, "stack": step.stack}
        for batch in s.batches:
            row |= {
                f"{end} {batch}": e.get(f"{slug(step.name)}_{end}_batch_{batch}") for end in ("alone", "at_the_end")
            }
        shown.append(row)
    for stack in ALL:
        together = {f"alone {b}": e.get(f"{slug(stack)}_together_batch_{b}") for b in s.batches}
        shown.append({"step": "all together", "stack": stack} | together)
    columns = {"step": "step", "stack": "in"}
    for batch in s.batches:
        columns |= {
            f"alone {batch}": f"alone, batch {batch}",
            f"at_the_end {batch}": f"after the others, batch {batch}",
        }
    return page.table(shown, columns)


def draw(rows, s):
    e = estimates(rows, s)
    looks = {"alone": (plots.ORANGE, "o", -0.15), "at_the_end": (plots.BLUE, "s", 0.15)}
    words = {"alone": "alone", "at_the_end": "after all others"}
    with plots.figure(len(s.batches), 1, height=1.2 + 2.6 * len(s.batches), sharex=True, squeeze=False) as (fig, axes):
        for ax, batch in zip(axes[:, 0], s.batches, strict=True):
            for end, (colour, shape, shift) in looks.items():
                found = {k: e.get(f"{slug(step.name)}_{end}_batch_{batch}") for k, step in enumerate(STEPS)}
                found = {k: one for k, one in found.items() if one}
                low, high = ([abs(getattr(o, side) - o.mean) for o in found.values()] for side in ("low", "high"))
                means, places = [o.mean for o in found.values()], [k + shift for k in found]
                options = {"fmt": shape, "color": colour, "capsize": 3, "elinewidth": 1.5, "label": words[end]}
                ax.errorbar(means, places, xerr=[low, high], **options)
            ax.axvline(1, color="grey", linewidth=1)
            ax.axhline(2.5, color="grey", linewidth=0.6)
            ax.set(xscale="log", title=f"{batch} picture{'s' if batch > 1 else ''} at a time")
            ax.set_yticks(range(len(STEPS)), [step.name for step in STEPS], fontsize=10)
            ax.set_ylim(len(STEPS) - 0.5, -0.5)
            ax.set_xticks([0.5, 1, 2, 4], ["½×", "1×", "2×", "4×"])
            ax.set_xticks([], minor=True)
        axes[-1, 0].set_xlabel("times as fast")
        fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    alike = [step.name for step in STEPS if _without_use(e, s, step)]
    return (
        "What each step brings alone and after all others of its stack: above the line in PyTorch, below it with a runtime. "
        f"Bars are 95 % intervals over rounds. By them no batch gains from {page.listed(alike, 'none of them')} after the others."
        if alike
        else "What each step brings alone and after all others of its stack: above the line in PyTorch, below it with a "
        "runtime. Bars are 95 % intervals over rounds. After the others each still brings something to some batch."
    )


def _without_use(e, s, step: Step) -> bool:
    ends = [e.get(f"{slug(step.name)}_at_the_end_batch_{batch}") for batch in s.batches]
    return any(ends) and all(one.low <= 1 for one in ends if one)


def runs(s) -> list[dict]:
    refuse(s)
    return conditions(batch=s.batches)


LADDER = Experiment(
    "steps",
    run=clock,
    conditions=runs,
    estimates=estimates,
    settings=("timed_side", "batches", "threads", "rounds"),
    tiny={"timed_side": 32, "batches": [1, 32], "threads": [1], "rounds": 6},
    finding=finding,
    figure=draw,
    alt="A panel for each batch size with a line for each step: how many times as fast it makes the network alone, and after "
    "all other steps, each as a mark with its interval on a logarithmic axis around a grey line at one.",
    table=table,
    notes=lambda rows, s: missing_notes(rows),
    timed=True,
)
