"""Does the optimiser matter, once each has had the same number of trials for its own settings?"""

import math
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from resnet_lib import page, plots, stats, train
from resnet_lib.experiments.tuning.trainings import CHOOSER, SETTINGS, error_of, network, training
from resnet_lib.study import Experiment

CHECKS = 8  # times that a training's validation error is taken, evenly spaced
HORIZON = 0.1  # share of the steps over which the average of the weights reaches
# Lowest and highest learning rate and weight decay tried. AdamW and Muon take their decay apart from the gradient, times
# the rate, SGD through the momentum: hence other ranges.
TRIED = {"SGD": ((0.01, 1.0), (1e-5, 1e-2)), "AdamW": ((3e-4, 3e-2), (1e-3, 1.0)), "Muon": ((3e-3, 0.3), (1e-3, 1.0))}
ARMS = {"default": None, "SGD": "SGD", "SGD, averaged": "SGD", "AdamW": "AdamW", "Muon": "Muon"}  # arm → whose settings


class Muon(torch.optim.Muon):
    """PyTorch's Muon, which takes matrices only, on convolutions: each filter is flattened to a row.

    Departs: the matrix (out, in · height · width) is made orthogonal, and not the convolution, whose operator it is not.
    """

    def __init__(self, filters: list[nn.Parameter], **options):
        self.filters = filters
        self.matrices = [nn.Parameter(flat(p.data)) for p in filters]
        for p, m in zip(filters, self.matrices, strict=True):
            if p.data_ptr() != m.data_ptr():
                raise ValueError(f"a filter of shape {tuple(p.shape)} and strides {p.stride()} has no flat view")
        super().__init__(self.matrices, adjust_lr_fn="original", **options)

    def step(self, closure=None):
        for p, m in zip(self.filters, self.matrices, strict=True):
            m.grad = flat(p.grad).contiguous()
        return super().step(closure)

    def zero_grad(self, set_to_none: bool = True):
        for p in self.filters:
            p.grad = None


def flat(values: torch.Tensor) -> torch.Tensor:
    """(out, in, height, width) → (out, height · width · in), a view of what lies with its channels last."""
    return values.permute(0, 2, 3, 1).flatten(1)


def optimisers(s, model: nn.Module, arm: str, rate: float, decay: float) -> list[torch.optim.Optimizer]:
    """What takes the steps; beside Muon, SGD at the base settings takes what is no filter."""
    kind = {"AdamW": "adamw"}.get(arm, "sgd")
    if arm != "Muon":
        config = training(s, optimizer=kind, learning_rate=rate, weight_decay=decay)
        return [train.make_optimizer(model, config)]
    filters = [p for p in model.parameters() if p.ndim == 4]
    others = [p for p in model.parameters() if p.ndim != 4]
    beside = torch.optim.SGD(others, lr=s.learning_rate, momentum=s.momentum, nesterov=True)
    return [Muon(filters, lr=rate, weight_decay=decay, momentum=0.95, nesterov=True), beside]


def optimised(s, arm: str, learning_rate: float, weight_decay: float, seed: int) -> list[dict]:
    """One training: validation error at CHECKS steps, at the end also test error and time.

    Departs: no number format is chosen for the steps; all optimisers compute in float32.
    Source: Keller Jordan 2024, Muon; Loshchilov and Hutter 2019, arXiv:1711.05101; Izmailov et al. 2018, arXiv:1803.05407.
    """
    config = training(s, precision="fp32")
    batches = train.Batches(s.pictures, s.pictures.train, config, s.device)
    total = config.epochs * (len(s.pictures.train) // config.batch_size)
    with train.seeded(seed):
        model = network(s, s.depth, s.width).to(s.device, memory_format=torch.channels_last)
    average = None
    if arm == "SGD, averaged":
        decay = torch.optim.swa_utils.get_ema_multi_avg_fn(1 - 1 / max(2.0, HORIZON * total))
        average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=decay, use_buffers=True)
    taken = optimisers(s, model, arm, learning_rate, weight_decay)
    highest = [[group["lr"] for group in one.param_groups] for one in taken]
    rows, step, time_s, loss = [], 0, 0.0, torch.zeros(())
    due = {round(total * k / CHECKS) for k in range(1, CHECKS + 1)}

    def ends() -> bool:
        return not math.isfinite(loss.item())

    def judged(split) -> float:
        if ends():
            return s.chance_error
        fit = train.Fit([{"diverged": False}], average.module if average else model)
        error = error_of(s, fit, config, split)
        model.train()
        return error

    for epoch in range(config.epochs):
        for images, labels in batches.training(seed, epoch):
            started = time.perf_counter()
            factor = train.lr_at(step, total, config) / config.learning_rate
            for one, rates in zip(taken, highest, strict=True):
                for group, rate in zip(one.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
            loss = F.cross_entropy(model(images), labels, label_smoothing=config.label_smoothing)
            for one in taken:
                one.zero_grad(set_to_none=True)
            loss.backward()
            for one in taken:
                one.step()
            if average:
                average.update_parameters(model)
            step, time_s = step + 1, time_s + time.perf_counter() - started
            if step in due and seed != CHOOSER:
                rows.append({"what": "curve", "step": step, "error": judged(s.pictures.val)})
        if ends():
            break
    rows += [{"what": "curve", "step": k, "error": s.chance_error} for k in sorted(due) if k > step and seed != CHOOSER]
    end = {"what": "end", "step": total, "error": judged(s.pictures.val), "time_s": time_s}
    return [*rows, end | ({} if seed == CHOOSER else {"test_error": judged(s.pictures.test)})]


def trials(kind: str, count: int) -> list[dict]:
    """Learning rates and weight decays spread evenly over the ranges of an optimiser, on logarithmic scales."""
    from scipy.stats import qmc

    spread = qmc.Halton(2, scramble=True, rng=np.random.default_rng(0)).random(count)
    found = []
    for point in spread:
        rate, decay = (low * (high / low) ** u for (low, high), u in zip(TRIED[kind], point, strict=True))
        found.append({"learning_rate": float(f"{rate:.3g}"), "weight_decay": float(f"{decay:.3g}")})
    return found


def best_of(rows) -> dict[str, dict]:
    """Each optimiser's settings with the lowest validation error."""
    found = {}
    for kind in TRIED:
        best = min(stats.where(rows, arm=kind), key=lambda r: r["error"])
        found[kind] = {name: best[name] for name in ("learning_rate", "weight_decay")}
    return found


def _trials(s):
    if s.optimiser_trials < 2:
        raise ValueError(f"optimiser_trials={s.optimiser_trials} must be at least 2: a best one is chosen")
    return [{"arm": kind} | one | {"seed": CHOOSER} for kind in TRIED for one in trials(kind, s.optimiser_trials)]


def trials_finding(rows, s, e):
    best = best_of(rows)
    said = "; ".join(
        f"{kind}: learning rate {b['learning_rate']:g}, weight decay {b['weight_decay']:g}" for kind, b in best.items()
    )
    return (
        f"Each optimiser had {len(rows) // len(TRIED)} trials with a seed that is not compared. They chose, for {said}."
    )


def trials_table(rows, s):
    columns = {"arm": "optimiser", "learning_rate": ("learning rate", ".3g"), "weight_decay": ("weight decay", ".3g")}
    return page.table(
        sorted(rows, key=lambda r: (r["arm"], r["error"])), columns | {"error": ("validation error", ".1%")}
    )


OPTIMISER_TRIALS = Experiment(
    "optimiser_trials",
    run=optimised,
    conditions=_trials,
    estimates=lambda rows, s: {"trials_each": stats.exact(len(rows) / len(TRIED), "trials")},
    settings=SETTINGS,
    counts=("optimiser_trials",),
    tiny={"optimiser_trials": 2},
    finding=trials_finding,
    table=trials_table,
)


def steps_to(rows, target: float) -> list[dict]:
    """By arm and seed, the step at which the validation error first is at most the target, on a line between checks."""
    found, curves = [], {}
    for r in stats.where(rows, what="curve"):
        curves.setdefault((r["arm"], r["seed"]), []).append((r["step"], r["error"]))
    for (arm, seed), curve in curves.items():
        before = (0, 1.0)
        for step, error in sorted(curve):
            if error <= target:
                part = (before[1] - target) / (before[1] - error)
                found.append({"arm": arm, "seed": seed, "steps": before[0] + part * (step - before[0])})
                break
            before = (step, error)
    return found


def target_of(rows) -> float:
    """The lowest validation error that every run reached."""
    lowest = {}
    for r in stats.where(rows, what="curve"):
        key = r["arm"], r["seed"]
        lowest[key] = min(r["error"], lowest.get(key, 1.0))
    return max(lowest.values())


def slug(arm: str) -> str:
    return arm.lower().replace(", ", "_")


def estimates(rows, s):
    """Test error saved and steps taken to a common target, against tuned SGD."""
    ends, steps, found = stats.where(rows, what="end"), steps_to(rows, target_of(rows)), {}
    for arm in ARMS:
        if arm != "SGD":
            found[f"{slug(arm)}_gain"] = stats.paired_rows(ends, "test_error", "arm", "SGD", arm, unit="accuracy")
            found[f"{slug(arm)}_steps"] = stats.paired_ratio(steps, "steps", "arm", arm, "SGD")
    found["sgd_accuracy"] = stats.interval([1 - r["test_error"] for r in stats.where(ends, arm="SGD")], unit="share")
    return found | {"target": stats.exact(target_of(rows), "error")}


def finding(rows, s, e):
    words = "gains", "loses", "makes no clear difference"
    told = "; ".join(f"{arm} {page.change(e[f'{slug(arm)}_gain'], *words)}" for arm in ARMS if arm != "SGD")
    steps = "; ".join(f"{arm} {e[f'{slug(arm)}_steps']}" for arm in ARMS if arm != "SGD")
    return (
        f"Tuned SGD reaches a test accuracy of {e['sgd_accuracy']}. Against it: {told}. Steps until a validation error of "
        f"{100 * e['target'].mean:.0f} %, which every run reached, over those of SGD: {steps}. The default arm had no trials: its settings "
        "are the chapter's base."
    )


def draw(rows, s):
    curves = sorted(stats.where(rows, what="curve"), key=lambda r: list(ARMS).index(r["arm"]))
    with plots.figure(height=3.8) as (_, ax):
        plots.lines(ax, curves, "step", "error", by="arm", marker=True)
        ax.axhline(target_of(rows), color="grey", linestyle=":", linewidth=1.2)
        ax.set(xlabel="training step", ylabel="validation error, %")
        plots.hundredths(ax.yaxis)
        ax.legend(fontsize=10)
    best = min(ARMS, key=lambda arm: np.mean([r["error"] for r in stats.where(rows, what="end", arm=arm)]))
    return f"The lowest mean error at the end is that of {best}. Dotted: the error that every run reached. Thin lines are seeds."


def table(rows, s):
    shown, steps = [], steps_to(rows, target_of(rows))
    for arm in ARMS:
        own = stats.where(rows, what="end", arm=arm)
        row = {"arm": arm, "rate": own[0]["learning_rate"], "decay": own[0]["weight_decay"]}
        row |= {"accuracy": stats.interval([1 - r["test_error"] for r in own], unit="share")}
        row |= {"steps": stats.interval([r["steps"] for r in stats.where(steps, arm=arm)])}
        shown.append(row | {"ms": 1000 * np.mean([r["time_s"] / r["step"] for r in own])})
    columns = {
        "arm": "optimiser",
        "rate": ("learning rate", ".3g"),
        "decay": ("weight decay", ".3g"),
        "accuracy": "test accuracy",
    }
    return page.table(shown, columns | {"steps": "steps to the target", "ms": ("ms a step", ".1f")})


def _compared(s):
    base = {"learning_rate": s.learning_rate, "weight_decay": s.weight_decay}
    chosen = {arm: s.best_of[kind] if kind else base for arm, kind in ARMS.items()}
    return [{"arm": arm} | chosen[arm] | {"seed": n} for arm in ARMS for n in s.seeds]


OPTIMISERS = Experiment(
    "optimisers",
    run=optimised,
    conditions=_compared,
    estimates=estimates,
    settings=SETTINGS,
    tiny=OPTIMISER_TRIALS.tiny,
    finding=finding,
    figure=draw,
    table=table,
    alt="Validation error against training step for the base settings, tuned SGD with and without an average of its weights, "
    "AdamW and Muon, thin lines for seeds, and a dotted line at the error that every run reached.",
    needs=OPTIMISER_TRIALS,
    choose=lambda rows, s: {"best_of": best_of(rows)},
)
