"""Are fewer multiply-adds faster? Steps and inference in turn; and what each network reaches in equal time."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from resnet_lib import bench, ceilings, page, plots, precision, stats, train
from resnet_lib.experiments.families.accuracy import ACCURACY
from resnet_lib.experiments.families.networks import (
    ARMS,
    COLOURS,
    IMAGENET,
    build,
    config_of,
    cost,
    counted,
    equal_arms,
    inverse,
    published,
    shape_of,
    training,
)
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

MODES = {"train": "training", "infer": "inference"}
REFERENCE = {"arms": "basic", "published": "resnet50"}


def step_of(s, model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """One training step with its optimiser, in the number format of training."""
    dtype = ceilings.choose_precision(s.number_format, s.device)
    optimizer = train.make_optimizer(model.train(), training(s))

    def step() -> None:
        with precision.autocast(dtype, s.device):
            loss = F.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def answer_of(s, model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """One forward pass in evaluation mode."""
    dtype, model = ceilings.choose_precision(s.number_format, s.device), model.eval()

    def answer() -> None:
        with torch.no_grad(), precision.autocast(dtype, s.device):
            model(images)

    return answer


def speed(s, which: str, mode: str) -> list[dict]:
    """Seconds of a batch for each network, in turn, with its multiply-adds."""
    if which == "arms":
        makers = {arm: partial(build, config_of(s, "flops", arm)) for arm in ARMS}
        costs = {arm: cost(config_of(s, "flops", arm), **shape_of(s)) for arm in ARMS}
        shape, classes = [s.batch_size, *s.facts["shape"]], s.facts["classes"]
    else:
        makers = {name: partial(published, name) for name in s.published_networks}
        shape, classes = [s.published_batch, 3, s.published_side, s.published_side], 1000
        with torch.device("meta"):
            costs = {name: counted(make().eval(), torch.empty(1, *shape[1:])) for name, make in makers.items()}
    calls = {}
    for name, make in makers.items():
        with train.seeded(0):
            model = make().to(s.device, memory_format=torch.channels_last)
            images = torch.randn(shape).to(s.device, memory_format=torch.channels_last)
            labels = torch.randint(classes, (shape[0],)).to(s.device)
        calls[name] = (step_of if mode == "train" else answer_of)(s, model, images, labels)
    timed = bench.compare(calls, reference=REFERENCE[which], rounds=s.rounds, warmup=1)
    return [{"network": r["name"], "times_s": r["times_s"], "batch": shape[0]} | costs[r["name"]] for r in timed]


def curves(rows, s) -> dict:
    """The validation accuracy after every epoch of the trainings whose arms are timed here."""
    own = stats.where(rows, what="curve")
    found = {}
    for row in sorted(own, key=lambda r: r["epoch"]):
        found.setdefault(f"{row['arm']} {row['seed']}", []).append(1 - row["val_error"])
    return {"curves": found}


def slower(rows, which: str, mode: str, network: str) -> stats.Estimate:
    """Time of a network over that of the reference, round by round."""
    of = {r["network"]: r["times_s"] for r in stats.where(rows, which=which, mode=mode)}
    pairs = zip(of[network], of[REFERENCE[which]], strict=True)
    return stats.interval([a / b for a, b in pairs], method="log-t", unit="times")


def at_equal_time(rows, s) -> list[dict]:
    """Validation accuracy of every arm and seed when the first arm has ended, straight between epochs.

    An arm that is cut short has not yet lowered its learning rate to zero, which this counts against it.
    """
    found, chance = [], 1 - s.chance_error
    for name, reached in s.curves.items():
        arm, seed = name.split()
        done = len(reached) / slower(rows, "arms", "train", arm).mean  # epochs
        known = [chance, *reached]
        before = min(int(done), len(reached) - 1)
        share = min(1.0, done - before)
        value = known[before] + share * (known[before + 1] - known[before])
        found.append({"arm": arm, "seed": int(seed), "accuracy": value})
    return found


def estimates(rows, s):
    found = {}
    for arm in ARMS:
        for mode in MODES:
            found[f"{mode}_{arm}"] = slower(rows, "arms", mode, arm)
    for name in dict.fromkeys(r["network"] for r in stats.where(rows, which="published")):
        for mode in MODES:
            found[f"{mode}_speedup_{name}"] = inverse(slower(rows, "published", mode, name))
        of = {r["network"]: r["madds"] for r in stats.where(rows, which="published", mode="train")}
        found[f"promised_{name}"] = stats.exact(of["resnet50"] / of[name], "times")
    same = at_equal_time(rows, s)
    for arm in ARMS:
        if arm != "basic":
            found[f"equal_time_{arm}"] = stats.paired_rows(same, "accuracy", "arm", arm, "basic", unit="accuracy")
    return found


def finding(rows, s, e):
    times = page.listed([f"{ARMS[arm]} {e[f'train_{arm}']}" for arm in ARMS if arm != "basic"])
    other = page.listed(
        [
            f"{IMAGENET[name]} should be {e[f'promised_{name}'].mean:.2f} times as fast and is {e[f'train_speedup_{name}']} in "
            f"training and {e[f'infer_speedup_{name}']} in inference"
            for name in dict.fromkeys(r["network"] for r in stats.where(rows, which="published"))
            if name != "resnet50"
        ]
    )
    raises = [arm for arm in ARMS if arm != "basic" and e[f"equal_time_{arm}"].low > 0]
    return (
        f"At equal multiply-adds a training step takes, over one of {ARMS['basic']}: {times}. By its multiply-adds, over "
        f"ResNet-50: {other}. In the time of the training of {ARMS['basic']}, more accurate than it: "
        f"{page.listed([ARMS[arm] for arm in raises])}."
    )


def table(rows, s):
    shown, same = [], at_equal_time(rows, s)
    for which, names in (("arms", ARMS), ("published", IMAGENET)):
        own = stats.where(rows, which=which)
        for network in dict.fromkeys(r["network"] for r in own):
            row = {"name": names[network], "madds": stats.where(own, network=network)[0]["madds"] / 1e6}
            for mode in MODES:
                row[mode] = f"{slower(rows, which, mode, network).mean:.2f}"
            if which == "arms":
                reached = [r["accuracy"] for r in stats.where(same, arm=network)]
                row["accuracy"] = stats.interval(reached, unit="share")
            shown.append(row)
    columns = {"name": "network", "madds": ("millions of multiply-adds", ",.1f")}
    columns |= {"train": "time of a training step, over the first's", "infer": "of inference"}
    return page.table(shown, columns | {"accuracy": "validation accuracy at equal time"})


def draw(rows, s):
    """Accuracy against time of training, and the time of the published networks against what multiply-adds promise."""
    with plots.figure(2, 1, height=7.0) as (fig, axes):
        for arm, label in ARMS.items():
            slow = slower(rows, "arms", "train", arm).mean
            own = [reached for name, reached in s.curves.items() if name.split()[0] == arm]
            for index, reached in enumerate(own):
                x = [slow * (k + 1) / len(reached) for k in range(len(reached))]
                look = {"color": COLOURS[arm], "linewidth": 0.8, "alpha": 0.6}
                axes[0].plot(x, reached, marker=plots.MARKERS[list(ARMS).index(arm)], ms=4, **look)
                if not index:
                    axes[0].plot([], [], color=COLOURS[arm], marker=plots.MARKERS[list(ARMS).index(arm)], label=label)
        axes[0].axvline(1, color="grey", linestyle=":")
        axes[0].set(xscale="log", xlabel=f"time, trainings of {ARMS['basic']}", ylabel="validation accuracy, %")
        plots.hundredths(axes[0].yaxis)
        plots.log_axis(axes[0].xaxis, [0.25, slow, 4])
        names = [r["network"] for r in stats.where(rows, which="published", mode="train")]
        found = estimates(rows, s)
        for place, name in enumerate(names):
            for (mode, words), colour, shift in zip(
                MODES.items(), (plots.BLUE, plots.ORANGE), (-0.15, 0.15), strict=True
            ):
                of = {r["network"]: r["times_s"] for r in stats.where(rows, which="published", mode=mode)}
                ratios = [b / a for a, b in zip(of[name], of["resnet50"], strict=True)]
                axes[1].plot(ratios, [place + shift] * len(ratios), "o", color=colour, ms=4, alpha=0.6, mew=0)
                axes[1].plot([], [], "o", color=colour, label=None if place else words)
            promised = found[f"promised_{name}"].mean
            axes[1].plot(
                promised, place, "|", color="black", ms=22, mew=2, label=None if place else "promised by multiply-adds"
            )
        axes[1].set_yticks(range(len(names)), [IMAGENET[name] for name in names])
        axes[1].invert_yaxis()
        axes[1].set(xscale="log", xlabel="speed over ResNet-50")
        plots.log_axis(axes[1].xaxis, [0.2, *(found[f"promised_{name}"].mean for name in names)])
        axes[1].legend(fontsize=10)
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=10)
    late = [
        IMAGENET[n] for n in names if n != "resnet50" and found[f"train_speedup_{n}"].high < found[f"promised_{n}"].mean
    ]
    return (
        f"Above: accuracy against time, thin lines are seeds; dotted: where {ARMS['basic']} ends. Below: slower in training "
        f"than the multiply-adds promise: {page.listed(late)}; dots are rounds."
    )


def _timings(s) -> list[dict]:
    equal_arms(s, "flops")
    if "resnet50" not in s.published_networks:
        raise ValueError(
            f"published_networks={s.published_networks} must hold 'resnet50', over which the others are timed"
        )
    if s.rounds < 3:
        raise ValueError(f"rounds={s.rounds} must be at least 3, so that a ratio has an interval")
    return conditions(which=REFERENCE, mode=MODES)


SPEED = Experiment(
    "speed",
    run=speed,
    needs=ACCURACY,
    choose=curves,
    conditions=_timings,
    estimates=estimates,
    settings=(
        "network_size",
        "batch_size",
        "published_networks",
        "published_side",
        "published_batch",
        "rounds",
        "number_format",
    ),
    tiny={"rounds": 3},
    finding=finding,
    figure=draw,
    alt="Two panels. Validation accuracy against time for six small networks of equal multiply-adds, a line for each seed. "
    "Speed over ResNet-50 of the published networks in training and inference, a dot for each round, with a bar at what the "
    "multiply-adds promise.",
    table=table,
    timed=True,
)
