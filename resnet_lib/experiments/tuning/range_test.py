"""Does one short training with a rising learning rate find the basin that a whole sweep finds?"""

import math

import numpy as np
import torch.nn.functional as F

from resnet_lib import plots, stats, train
from resnet_lib.experiments.tuning.maps import RATES
from resnet_lib.experiments.tuning.trainings import SETTINGS, basin, network, training
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

LOWEST, HIGHEST = 1e-3, 10.0  # learning rates at the first and the last step
KEPT = 0.9  # of the running average of the loss, per step
OVER = 4.0  # times the lowest loss, at which the test ends
RULES = ("steepest", "tenth")


def range_test(s, seed: int) -> list[dict]:
    """The loss of each step while the rate rises by one factor a step, and the rates that two rules read off.

    Source: Smith 2015, arXiv:1506.01186, §3.3. Departs: the rate rises geometrically and the loss is read, as common
    use has it, where Smith raises it linearly and reads the accuracy. The rules: where the smoothed loss falls fastest
    per factor of the rate; a tenth of the rate at which it is lowest.
    """
    config, pairs = training(s), []
    with train.seeded(seed):
        model = network(s, s.depth, s.width).to(s.device).train()
    optimizer = train.make_optimizer(model, config)
    batches = train.Batches(s.pictures, s.pictures.train, config, s.device)
    while len(pairs) < s.range_steps:
        for images, labels in batches.training(seed, len(pairs)):
            if len(pairs) == s.range_steps:
                break
            rate = LOWEST * (HIGHEST / LOWEST) ** (len(pairs) / (s.range_steps - 1))
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = F.cross_entropy(model(images).float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            pairs.append((rate, loss.item()))
    curve = smoothed(pairs)
    rows = [{"what": "curve", "rate": rate, "loss": loss} for rate, loss in curve]
    return [*rows, {"what": "read", **suggestions(curve)}]


def smoothed(pairs: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """(rate, loss) with a running average of the loss, corrected for its start, up to where the loss has exploded."""
    average, lowest, found = 0.0, math.inf, []
    for step, (rate, loss) in enumerate(pairs, start=1):
        average = KEPT * average + (1 - KEPT) * loss
        now = average / (1 - KEPT**step)
        if not math.isfinite(now) or now > OVER * lowest:
            break
        lowest = min(lowest, now)
        found.append((rate, now))
    return found


def suggestions(curve: list[tuple[float, float]]) -> dict[str, float]:
    """The rate by each rule; the first tenth of the curve, where the average has seen little, is left out."""
    rates, losses = np.array(curve[len(curve) // 10 :]).T
    slope = np.gradient(losses, np.log(rates))
    return {"steepest": float(rates[slope.argmin()]), "tenth": float(rates[losses.argmin()] / 10)}


def estimates(rows, s):
    """By rule, decades from the best rate of the sweep, and the share of seeds in which it lies in the sweep's basin."""
    read, found = stats.where(rows, what="read"), {}
    for rule in RULES:
        found[f"{rule}_distance"] = stats.interval([math.log10(r[rule] / s.basin[0]) for r in read], unit="decades")
        inside = [s.edges[0] <= r[rule] <= s.edges[1] for r in read]
        found[f"{rule}_inside"] = stats.exact(sum(inside) / len(inside), "share")
    return found


def finding(rows, s, e):
    names = {"steepest": "The rate of steepest fall", "tenth": "A tenth of the rate of lowest loss"}
    told = [
        f"{name} lies {e[f'{rule}_distance']} from the best rate of the sweep, {s.basin[0]:g}, and in {e[f'{rule}_inside'].mean:.0%} "
        "of the seeds inside the sweep's basin."
        for rule, name in names.items()
    ]
    return f"{' '.join(told)} The test takes {s.range_steps} steps, a small part of one training of the sweep."


def draw(rows, s):
    curves, read = stats.where(rows, what="curve"), stats.where(rows, what="read")
    with plots.figure(height=3.4) as (_, ax):
        ax.axvspan(*s.edges, color=plots.GREEN, alpha=0.25, label="basin of the sweep")
        for n in sorted({r["seed"] for r in curves}):
            own = stats.where(curves, seed=n)
            ax.plot([r["rate"] for r in own], [r["loss"] for r in own], color=plots.BLUE, linewidth=1.2)
        for rule, marker, name in (("steepest", "v", "steepest fall"), ("tenth", "D", "a tenth of the lowest's")):
            for k, r in enumerate(read):
                at = min(stats.where(curves, seed=r["seed"]), key=lambda c: abs(math.log(c["rate"] / r[rule])))
                label = name if not k else None
                ax.plot([r[rule]], [at["loss"]], marker, color=plots.ORANGE, ms=9, label=label, zorder=4)
        ax.set(xscale="log", xlabel="learning rate of the step", ylabel="training loss, smoothed, nats")
        ax.legend(fontsize=10)
    e = estimates(rows, s)
    return (
        f"The rate of steepest fall lies in the sweep's basin in {e['steepest_inside'].mean:.0%} of the seeds, a tenth of the "
        f"lowest's in {e['tenth_inside'].mean:.0%}. The basin reaches half way to the next rate tried. A line a seed."
    )


def _chosen(rows, s) -> dict:
    """The basin of the sweep at the base batch size, the best rate first, and its edges."""
    own = stats.where(rows, batch_size=s.batch_size)
    good = [rate for (rate,) in basin(own, ("learning_rate",))]
    return {"basin": good, "edges": edges(good, sorted({r["learning_rate"] for r in own}))}


def edges(good: list[float], tried: list[float]) -> list[float]:
    """Half way, by factors, to the next rate tried that is not good; at an end of those tried, as far as on its other side."""
    low, high = tried.index(min(good)), tried.index(max(good))
    below = tried[low - 1] if low else tried[0] ** 2 / tried[1]
    above = tried[high + 1] if high + 1 < len(tried) else tried[-1] ** 2 / tried[-2]
    return [math.sqrt(below * tried[low]), math.sqrt(above * tried[high])]


def _runs(s):
    if s.range_steps < 20:
        raise ValueError(f"range_steps={s.range_steps} must be at least 20, for a slope to be read")
    return conditions(seed=s.seeds)


RANGE_TEST = Experiment(
    "range_test",
    run=range_test,
    conditions=_runs,
    estimates=estimates,
    settings=(*SETTINGS, "range_steps"),
    tiny={"range_steps": 30},
    finding=finding,
    figure=draw,
    alt="Smoothed training loss against the learning rate of the step on a logarithmic axis, a line for each seed that falls "
    "and then rises; a shaded band for the basin of the sweep, and markers for the rates that two rules choose.",
    needs=RATES,
    choose=_chosen,
)
