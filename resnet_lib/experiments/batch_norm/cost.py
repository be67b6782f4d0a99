"""Is batch normalisation acceleration: what does a step cost with it, an answer, and the way to an accuracy?"""

import statistics

import torch
import torch.nn.functional as F

from resnet_lib import bench, ceilings, inference, page, plots, precision, stats, train
from resnet_lib.experiments.batch_norm.networks import network, training
from resnet_lib.experiments.batch_norm.rates import RATES
from resnet_lib.experiments.batch_norm.trainings import best_rates, learning, learning_runs
from resnet_lib.study import Experiment

NUMBER = 10  # calls in each timing
ARMS = ("none", "batch norm")


def step_of(s, norm: str, images, labels):
    """One whole training step, as a callable to time."""
    with train.seeded(0):
        model = network(s, norm).to(s.device, memory_format=torch.channels_last).train()
    optimizer = train.make_optimizer(model, training(s, s.batch_size))
    dtype = ceilings.choose_precision(s.number_format, s.device)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with precision.autocast(dtype, s.device):
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()

    return step


def answer_of(model, images):
    def answer():
        with torch.no_grad():
            model(images)

    return answer


def times(s, number: int) -> list[dict]:
    """Seconds of a training step and of an answer, variant by variant and round by round."""
    images, labels = train.Batches(s.pictures, s.pictures.train, training(s, s.batch_size), s.device).first()
    calls = {norm: step_of(s, norm, images, labels) for norm in ("none", "batch", "group", "layer")}
    with train.seeded(0):
        nets = {
            norm: network(s, norm).to(s.device, memory_format=torch.channels_last).eval() for norm in ("none", "batch")
        }
    nets = {"none": nets["none"], "unfolded": nets["batch"], "folded": inference.folded(nets["batch"], images)}
    answers = {name: answer_of(net, images) for name, net in nets.items()}
    rows = []
    for what, variants in (("step", calls), ("answer", answers)):
        for row in bench.compare(variants, reference="none", rounds=s.rounds, number=number):
            named = {"what": what, "variant": row["name"]}
            rows += [named | {"round": k, "time_s": t} for k, t in enumerate(row["times_s"])]
    return rows


def cost(s, number: int = 0, **condition) -> list[dict]:
    """All timings, in turn; or one training, for the time that it takes to an accuracy."""
    return times(s, number) if number else learning(s, **condition)


def runs(s):
    if s.rounds < 3:
        raise ValueError(f"rounds={s.rounds} must be at least 3")
    arms = [{name: value for name, value in run.items() if name != "stage"} for run in learning_runs(s, ARMS)]
    return [{"number": NUMBER}, *arms]


def slower(rows, what: str, variant: str, reference: str = "none") -> stats.Estimate:
    """Time over the reference's, minus 1, round by round."""
    return stats.paired_change(stats.where(rows, what=what), "time_s", "variant", variant, reference, pair=("round",))


def estimates(rows, s):
    return {
        "step_time_change": slower(rows, "step", "batch"),
        "inference_time_change": slower(rows, "answer", "folded"),
        "unfolded_time_change": slower(rows, "answer", "unfolded"),
        "folding_change": slower(rows, "answer", "folded", "unfolded"),
        "time_to_accuracy_ratio": stats.paired_ratio(stats.where(rows, what="run"), "time_to_accuracy", "arm", *ARMS),
    }


def finding(rows, s, e):
    words = "more time by", "less time by", "not clearly more or less time"
    return (
        f"With batch normalisation a training step takes {page.change(e['step_time_change'], *words)}, and inference "
        f"{page.change(e['unfolded_time_change'], *words)}. Folded, inference takes "
        f"{page.change(e['inference_time_change'], *words)}, against the network that never had a norm; against the unfolded "
        f"one it takes {page.change(e['folding_change'], *words)}. "
        f"The time to the accuracy without batch normalisation over that with it is {e['time_to_accuracy_ratio']}."
    )


def table(rows, s):
    shown = []
    for what, variant in dict.fromkeys((r["what"], r["variant"]) for r in rows if "variant" in r):
        taken = [r["time_s"] * 1000 for r in stats.where(rows, what=what) if r["variant"] == variant]
        row = {
            "what": what,
            "variant": variant,
            "median": statistics.median(taken),
            "min": min(taken),
            "max": max(taken),
        }
        shown.append(row | {"change": None if variant == "none" else slower(rows, what, variant)})
    for row in shown:
        row["what"] = {"answer": "inference"}.get(row["what"], row["what"])
    headings = {
        "what": f"of {s.batch_size} pictures",
        "variant": "norm",
        "median": ("median, ms", ".2f"),
        "min": ("min", ".2f"),
        "max": ("max", ".2f"),
        "change": "change against none",
    }
    return page.table(shown, headings)


def draw(rows, s):
    rows = [r for r in rows if "variant" in r]
    base = {(r["what"], r["round"]): r["time_s"] for r in rows if r["variant"] == "none"}
    relative = [r | {"change": r["time_s"] / base[r["what"], r["round"]] - 1} for r in rows if r["variant"] != "none"]
    with plots.figure(1, 2, height=3.0, width_ratios=(3, 2)) as (_, axes):
        for ax, (what, title) in zip(axes, {"step": "training step", "answer": "inference"}.items(), strict=True):
            own = stats.where(relative, what=what)
            plots.dots(ax, own, "variant", "change", by="what", colours={what: plots.BLUE}, join=False)
            ax.axhline(0, color="grey", linestyle=":", linewidth=1.2)
            ax.set(title=title, xlim=(-0.5, len({r["variant"] for r in own}) - 0.5))
            plots.hundredths(ax.yaxis)
        axes[0].set_ylabel("more time than\nwithout a norm, %")
    words = "takes longer than", "takes less time than", "takes about as long as"
    step, folded = (page.trend(slower(rows, *one), *words) for one in (("step", "batch"), ("answer", "folded")))
    return (
        f"A training step with batch norm {step} one without a norm; folded inference {folded} that of a network without. "
        "Dots: rounds; bars: intervals of 95 %. The vertical axes differ."
    )


COST = Experiment(
    "cost",
    run=cost,
    needs=RATES,
    choose=best_rates,
    conditions=runs,
    estimates=estimates,
    settings=("layers", "width", "batch_size", "rounds", "epochs", "target_loss", "target_accuracy", "number_format"),
    counts=("spread_seeds",),
    tiny={"layers": 3, "width": 8, "batch_size": 128, "rounds": 3, "epochs": 1, "spread_seeds": 2},
    finding=finding,
    figure=draw,
    alt="Time of each variant over that of the network without a norm, minus one, a small dot for each round and the mean "
    "with its interval; left for training steps, right for answers.",
    table=table,
    kept=("step", "answer", "run"),
    timed=True,
)
