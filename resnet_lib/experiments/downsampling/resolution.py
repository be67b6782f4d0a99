"""Smaller pictures: what resolution costs, what the time it saves buys back, and what skipped pixels cost besides."""

from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_lib import page, plots, stats, train
from resnet_lib.experiments.depths import refuse
from resnet_lib.experiments.downsampling.training import (
    NETWORK,
    TINY,
    best_rates,
    configured,
    converged,
    judged,
    key_of,
    network,
    rates_experiment,
    taught,
    tried,
)
from resnet_lib.study import Experiment

WHOLE, HALF, LONGER = "whole", "half", "half, equal work"
NEARLY, NEARLY_LONGER = "three quarters", "three quarters, equal work"
SKIPPED, GROWING = "half, pixels skipped", "growing, equal work"
ARMS = (WHOLE, NEARLY, NEARLY_LONGER, HALF, LONGER, SKIPPED, GROWING)
SIDE = {NEARLY: 0.75, NEARLY_LONGER: 0.75, HALF: 0.5, LONGER: 0.5, SKIPPED: 0.5}  # of the picture's; the others see all
SMALL_STEPS = 0.5  # share of a growing training's steps that see half the side


class Resized(nn.Module):
    """A network that sees pictures (N, C, H, W) at a share of their side, in training and inference alike.

    A smaller picture is the mean of what each of its pixels covers; `skips` takes one pixel of each place instead.
    """

    def __init__(self, inside: nn.Module, share: float, skips: bool = False):
        super().__init__()
        self.inside, self.share, self.skips = inside, share, skips

    def forward(self, images: Tensor) -> Tensor:
        if self.share < 1:
            sides = [max(1, round(side * self.share)) for side in images.shape[2:]]
            how = {"mode": "nearest"} if self.skips else {"mode": "bilinear", "antialias": True}
            images = F.interpolate(images, sides, **how)
        return self.inside(images)


class Growing:
    """Classification by a Resized network that sees half the side in the first steps and all of it in the others.

    It counts the steps, so a replay of one would not be one: it does not declare itself `steps.repeatable`.
    """

    def __init__(self, steps: int):
        self.left, self.inside_task = round(SMALL_STEPS * steps), train.classification()

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> dict:
        if model.training:
            model.share = 0.5 if self.left > 0 else 1.0
            self.left -= 1
        return self.inside_task(model, images, labels, generator)


def work(arm: str) -> float:
    """Multiply-adds of an epoch, over those of one at full resolution: a convolution's are as its pixels."""
    if arm == GROWING:
        return SMALL_STEPS * 0.25 + 1 - SMALL_STEPS
    return SIDE.get(arm, 1.0) ** 2


def epochs_of(s, arm: str) -> int:
    return max(1, round(s.resolution_epochs / work(arm))) if arm.endswith("equal work") else s.resolution_epochs


def trained(s, arm: str, rate: float, seed: int) -> train.Fit:
    """A network trained at an arm's resolution; `model` sees the test pictures as it saw the last training pictures."""
    config = configured(s, rate, epochs_of(s, arm))
    count = config.epochs * (len(s.pictures.train) // config.batch_size)
    task = Growing(count) if arm == GROWING else None
    return taught(
        s, s.pictures, config, seed, task, lambda: Resized(network(s), SIDE.get(arm, 1.0), skips=arm == SKIPPED)
    )


def rate_trial(s, arm: str, rate: float, seed: int) -> list[dict]:
    """A trial of one learning rate."""
    return tried(s, trained(s, arm, rate, seed))


def learn_small(s, arm: str, rate: float, seed: int) -> list[dict]:
    """Accuracy on test pictures at the arm's resolution, and what its training took."""
    made = converged(trained(s, arm, rate, seed), f"the arm {arm!r}")
    last, config = made.rows[-1], epochs_of(s, arm)
    row = {"epochs": config, "work": config * work(arm) / s.resolution_epochs, "steps": last["step"]}
    row |= {"time_s": last["time_s"], "train_accuracy": 1 - last["train_error"]}
    return [row | {"accuracy": judged(s, made.model, s.pictures.test)["accuracy"]}]


def arms(s) -> list[dict]:
    refuse(s)
    return [{"arm": arm} for arm in ARMS]


NAMES, SETTINGS = ("arm",), (*NETWORK, "resolution_epochs")
RESOLUTION_TINY = TINY | {"resolution_epochs": 1}
RESOLUTION_RATES = rates_experiment("resolution_rates", rate_trial, arms, NAMES, SETTINGS, (), RESOLUTION_TINY)


def rates_of(rows, s) -> dict:
    return {"rate_of": best_rates(rows, NAMES)}


def runs(s) -> list[dict]:
    return [arm | {"rate": s.rate_of[key_of(arm, NAMES)], "seed": seed} for arm in arms(s) for seed in s.seeds]


GAINS = {  # name → one arm, minus another
    "half_gain": (HALF, WHOLE),
    "half_equal_work_gain": (LONGER, WHOLE),
    "three_quarters_gain": (NEARLY, WHOLE),
    "three_quarters_equal_work_gain": (NEARLY_LONGER, WHOLE),
    "growing_gain": (GROWING, WHOLE),
    "averaged_over_skipped": (HALF, SKIPPED),
}


def estimates(rows, s):
    found = {name: stats.paired_rows(rows, "accuracy", "arm", a, b, unit="accuracy") for name, (a, b) in GAINS.items()}
    whole = [r["accuracy"] for r in rows if r["arm"] == WHOLE]
    found["whole_accuracy"] = stats.interval(whole, unit="share")
    found["least_over_chance"] = stats.interval(
        [min(r["accuracy"] for r in rows if r["seed"] == seed) - 1 + s.chance_error for seed in _seeds(rows)],
        unit="accuracy",
    )
    return found


def _seeds(rows) -> list[int]:
    return sorted({r["seed"] for r in rows})


WORDS = "gains", "loses", "makes no clear difference"


def finding(rows, s, e):
    gains = {name: page.change(e[name], *WORDS) for name in GAINS}
    return (
        f"At full resolution the network reaches {e['whole_accuracy']} of test accuracy. Half the side, for as many epochs, "
        f"{gains['half_gain']}, and three quarters of it {gains['three_quarters_gain']}. Spent on more epochs, the work that "
        f"is saved changes the balance: half the side then {gains['half_equal_work_gain']}, three quarters "
        f"{gains['three_quarters_equal_work_gain']}, and pictures that grow in the middle of the training "
        f"{gains['growing_gain']}, all against full resolution at equal work. Averaging before skipping "
        f"{gains['averaged_over_skipped']} against skipping pixels."
    )


def draw(rows, s):
    with plots.figure(height=3.4) as (_, ax):
        for place, arm in enumerate(ARMS):
            own = [r["accuracy"] for r in rows if r["arm"] == arm]
            colour = plots.ORANGE if arm.endswith("equal work") or arm == WHOLE else plots.BLUE
            ax.plot(own, [place] * len(own), "o", color=colour, alpha=0.45, markersize=5, mew=0)
            ax.plot([fmean(own)], [place], "|", color=colour, markersize=16, mew=3)
        ax.set_yticks(range(len(ARMS)), ARMS)
        ax.invert_yaxis()
        ax.set_xlabel("test accuracy, %")
        plots.hundredths(ax.xaxis)
    e = estimates(rows, s)
    return (
        "At equal work (orange), half the side "
        f"{page.trend(e['half_equal_work_gain'], 'beats', 'is behind', 'is not told apart from')} the whole, and pictures that "
        f"grow {page.trend(e['growing_gain'], 'beat it', 'are behind it', 'are not told apart from it')}. Blue: as many epochs, "
        "less work. Dots are seeds, bars their means."
    )


def table(rows, s):
    cells = stats.cell_means(rows, "accuracy", ("arm", "rate", "epochs", "work"))
    for name in ("train_accuracy", "time_s"):
        for cell, other in zip(cells, stats.cell_means(rows, name, ("arm", "rate", "epochs", "work")), strict=True):
            cell[name] = other[name]
    heads = {"arm": "resolution", "rate": ("learning rate", "g"), "epochs": ("epochs", ".0f")}
    heads |= {"work": ("work", ".2f"), "train_accuracy": ("training accuracy", ".1%")}
    heads |= {"accuracy": ("test accuracy", ".1%"), "time_s": ("s", ".1f")}
    return page.table(cells, heads)


RESOLUTION = Experiment(
    "resolution",
    run=learn_small,
    conditions=runs,
    estimates=estimates,
    settings=SETTINGS,
    needs=RESOLUTION_RATES,
    choose=rates_of,
    tiny=RESOLUTION_RATES.tiny,
    finding=finding,
    figure=draw,
    table=table,
    alt="Test accuracy at seven resolutions and lengths of training, from full pictures to half the side with skipped pixels: a "
    "dot for each seed and a bar for the mean.",
)
