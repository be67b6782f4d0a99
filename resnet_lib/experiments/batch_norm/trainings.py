"""The trainings of the five arms, which several questions share: tuned, learning in earnest, and watched."""

import copy
import itertools
import math
from dataclasses import replace

import torch

from resnet_lib import probes, stats, train
from resnet_lib.experiments.batch_norm.networks import ARMS, Network, network, refuse_networks, training
from resnet_lib.experiments.batch_norm.watching import watched
from resnet_lib.sweep import conditions

SETTINGS = (
    "layers",
    "width",
    "batch_size",
    "rates",
    "tuning_epochs",
    "epochs",
    "target_loss",
    "target_accuracy",
    "number_format",
)
TINY = {"layers": 3, "width": 8, "batch_size": 128, "rates": [0.03, 0.3], "tuning_epochs": 1, "epochs": 1}
TINY |= {"spread_seeds": 2}
TRAINS_BY = 0.1  # of training error below guessing
WINDOW = 5  # steps whose mean loss must reach the level


def weight_lengths(model: Network) -> list[torch.Tensor]:
    return [layer.linear.weight.detach().norm() for layer in model.layers]


def holding_lengths() -> train.Task:
    """Classification in which the layers' weights keep the lengths that they have at first."""
    classify, first = train.classification(), []

    def task(model, images, labels, generator):
        if model.training:
            first[:] = first or weight_lengths(model)
            with torch.no_grad():
                for layer, length in zip(model.layers, first, strict=True):
                    layer.linear.weight.mul_(length / layer.linear.weight.norm())
        return classify(model, images, labels, generator)

    return task


def fit_arm(s, arm: str, config: train.TrainConfig, seed: int):
    """Train one arm: rows by epoch, the network, every step's loss, and the network as it was at first."""
    losses, fresh = [], []

    def make():
        model = network(s, **ARMS[arm])
        fresh.append(copy.deepcopy(model))
        return model

    task = train.recording(holding_lengths() if "held" in arm else train.classification(), losses)
    fitted = train.fit(make, s.pictures, config, seed=seed, task=task, on_divergence="record", progress=False)
    return fitted.rows, fitted.model, torch.stack(losses).cpu(), fresh[0]


def tuning(s, arm: str, rate: float, seed: int) -> list[dict]:
    """A short training at one rate: whether it trains, its errors, and how the weights' squared length has grown."""
    config = training(s, s.batch_size, epochs=s.tuning_epochs, learning_rate=rate)
    rows, model, _, fresh = fit_arm(s, arm, config, seed)
    last, worst = rows[-1], s.chance_error
    if last["diverged"]:
        return [{"what": "tuning", "trains": False, "train_error": worst, "val_error": worst, "growth": None}]
    ends = [sum(size.item() ** 2 for size in weight_lengths(m)) for m in (fresh, model)]
    row = {name: min(last[name], worst) for name in ("train_error", "val_error")}
    trains = row["train_error"] <= worst - TRAINS_BY
    return [{"what": "tuning"} | row | {"trains": trains, "growth": ends[1] / ends[0]}]


def loss_level(s) -> float:
    """The training loss to reach, in nats: a share of the loss of guessing."""
    return s.target_loss * math.log(s.facts["classes"])


def crossing(places, values, level) -> tuple[float, bool]:
    """Where values first reach the level from below, linear between places, and whether; the last place if never."""
    for (a, before), (b, after) in itertools.pairwise(zip(places, values, strict=True)):
        if after >= level:
            share = max(0.0, (level - before) / (after - before)) if after > before else 1.0
            return a + (b - a) * share, True
    return places[-1], False


def unit_spread(model: Network, images: torch.Tensor) -> float:
    """How much the units' means and deviations before ReLU differ, in units of the layer's mean deviation, mean of layers."""
    model = copy.deepcopy(model).to(images.device).float().train()
    layers = [layer.norm for layer in model.layers]
    with train.seeded(0), torch.no_grad(), probes.outputs(layers) as kept:  # the same noise every time
        model(images)
    found = []
    for x in kept:
        std, mean = torch.std_mean(x.transpose(0, 1).flatten(1), 1)
        found.append((mean.std() + std.std()) / 2 / std.mean())
    return torch.stack(found).mean().item()


def learning(s, arm: str, rate: float, seed: int) -> list[dict]:
    """A longer training: steps to the loss, time to the accuracy, where it ends, and the curve of the loss."""
    config = training(s, s.batch_size, epochs=s.epochs, learning_rate=rate)
    rows, model, losses, fresh = fit_arm(s, arm, config, seed)
    images, _ = next(train.Batches(s.pictures, s.pictures.train, config, s.device).in_order(256))
    smooth, every = losses.unfold(0, min(WINDOW, len(losses)), 1).mean(1), max(1, len(losses) // 25)
    below = (smooth <= loss_level(s)).nonzero()
    row = {"what": "run", "diverged": rows[-1]["diverged"], "steps": len(losses), "reached": len(below) > 0}
    row["steps_to_loss"] = int(below[0]) + WINDOW if len(below) else len(losses)
    row["spread_init"] = unit_spread(fresh, images)
    done = [r for r in rows if not r["diverged"]]
    accuracy = [1 - s.chance_error, *(1 - r["val_error"] for r in done)]
    seconds = [0.0, *(r["time_s"] for r in done)]
    row["time_to_accuracy"], row["arrived"] = crossing(seconds, accuracy, s.target_accuracy)
    if row["diverged"]:
        worst = math.log(s.facts["classes"])
        row |= {"train_loss": worst, "quiet_loss": worst, "accuracy": 1 - s.chance_error, "spread_trained": None}
        row |= {"time_to_accuracy": rows[-1]["time_s"], "arrived": False}
    else:
        row |= {"train_loss": rows[-1]["train_loss"], "spread_trained": unit_spread(model, images)}
        row["accuracy"] = 1 - train.evaluate(model, s.pictures, s.pictures.test, config)["error"]
        row["quiet_loss"] = train.evaluate(model, s.pictures, s.pictures.train, config)["loss"]
    places = range(0, len(smooth), every)
    return [row, *({"what": "curve", "step": k + WINDOW, "loss": smooth[k].item()} for k in places)]


STAGES = {"tune": tuning, "learn": learning, "watch": watched}


def trained(s, stage: str, arm: str, rate: float, seed: int) -> list[dict]:
    """One arm at one learning rate, at one of the STAGES."""
    return STAGES[stage](s, arm, rate, seed)


def tuning_runs(s, arms=ARMS) -> list[dict]:
    return conditions(stage=["tune"], arm=list(arms), rate=s.rates, seed=s.seeds)


def learning_runs(s, arms=ARMS) -> list[dict]:
    """Each arm at its own best rate; arms take turns, so that a machine that grows busy slows them all."""
    return [
        {"stage": "learn", "arm": arm, "rate": s.best_rates[arm], "seed": seed}
        for seed in range(s.spread_seeds)
        for arm in arms
    ]


def watched_runs(s) -> list[dict]:
    """Each arm at its own best rate, and as a control batch norm at the rate that is best without it."""
    own = [(arm, s.best_rates[arm]) for arm in ARMS if "held" not in arm]
    pairs = dict.fromkeys([*own, ("batch norm", s.best_rates["none"])])
    return [{"stage": "watch", "arm": arm, "rate": rate, "seed": seed} for arm, rate in pairs for seed in s.seeds]


def refuse(s) -> None:
    """Refuse at once settings with which no comparison of arms can end."""
    refuse_networks(s)
    if len(s.rates) < 2 or sorted(set(s.rates)) != list(s.rates) or s.rates[0] <= 0:
        raise ValueError(f"rates={s.rates} must be at least two, positive, each higher than the one before")
    if not (0 < s.target_loss < 1 and 0 < s.target_accuracy < 1):
        raise ValueError(f"target_loss={s.target_loss} and target_accuracy={s.target_accuracy} must lie in (0, 1)")
    if s.spread_seeds < 2:
        raise ValueError(f"spread_seeds={s.spread_seeds} must be at least 2: one question is a spread over seeds")
    if not 1 <= s.batch_size <= len(s.pictures.train):
        raise ValueError(
            f"batch_size={s.batch_size} must lie between 1 and the {len(s.pictures.train)} training pictures"
        )


def where_all_train(rows):
    """The rows at those rates of each arm at which every seed trains; all of an arm that has no such rate."""
    good = {}
    for r in rows:
        good[r["arm"], r["rate"]] = good.get((r["arm"], r["rate"]), True) and r["trains"]
    some = {arm for (arm, _), trains in good.items() if trains}
    return [r for r in rows if good[r["arm"], r["rate"]] or r["arm"] not in some]


def best_rates(rows, s):
    """The settings chosen by the tuning runs: each arm's rate of lowest mean validation error, where every seed trains."""
    usable = where_all_train(rows)
    of_arm = {arm: [r for r in usable if r["arm"] == arm] for arm in ARMS}
    return {"best_rates": {arm: stats.best_setting(own, "val_error", "rate") for arm, own in of_arm.items()}}


def largest_rates(rows, s):
    """log10 of the largest learning rate that trains, for each arm and seed; the lowest tried if none does."""
    found = []
    for arm, seed in dict.fromkeys((r["arm"], r["seed"]) for r in rows):
        trains = [r["rate"] for r in rows if (r["arm"], r["seed"]) == (arm, seed) and r["trains"]]
        found.append({"arm": arm, "seed": seed, "decades": math.log10(max(trains, default=min(s.rates)))})
    return found


def range_gain(rows, s, a: str, b: str) -> stats.Estimate:
    """By how many decades the largest rate that trains is higher in arm a than in arm b."""
    return stats.paired_rows(largest_rates(rows, s), "decades", "arm", a, b, unit="decades")


def at_own_rates(rows, s):
    """The rows of each arm at its own best rate."""
    return [r for r in rows if r["rate"] == s.best_rates[r["arm"]]]


def at_rate_without(rows, s):
    """The rows of every arm at the rate that is best without a norm."""
    return [r for r in rows if r["rate"] == s.best_rates["none"]]


def seed_means(rows, value: str):
    """For each arm and seed the mean of a column over the steps and layers at which it was taken."""
    return stats.cell_means(rows, value, ("arm", "seed"))


def reduction(rows, value: str, a: str, b: str) -> stats.Estimate:
    """By what share of arm a's value arm b's is lower: mean over seeds of (a - b) / a."""
    change = stats.paired_change(rows, value, "arm", b, a)
    return replace(change, mean=-change.mean, low=-change.high, high=-change.low)
