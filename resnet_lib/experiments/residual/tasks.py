"""One trunk, three tasks: does the addition help classification, regression and generation alike?"""

import torch
import torch.nn.functional as F
from torch import nn

from resnet_lib import blocks, page, plots, stats, train
from resnet_lib.experiments.depths import KINDS, training
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions


class Trunk(nn.Module):
    """Stem, units of equal dimensions, and a head: one vector (pooled) or one picture."""

    def __init__(self, inputs: int, outputs: int, units: int, residual: bool, pooled: bool, width: int = 16):
        super().__init__()
        self.stem = nn.Sequential(blocks.conv3x3(inputs, width), nn.BatchNorm2d(width), nn.ReLU())
        self.units = nn.Sequential(*(blocks.BasicBlock(width, width, residual=residual) for _ in range(units)))
        self.head = nn.Linear(width, outputs) if pooled else blocks.conv3x3(width, outputs, bias=True)
        self.pooled = pooled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.units(self.stem(x))
        return self.head(x.mean((2, 3)) if self.pooled else x)


def random_like(images, generator):
    """Noise of the pictures' shape, and for each picture a number between 0 and 1."""
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return noise, torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device)


def noise_level(model, images, labels, generator):
    """Regression: how much noise was added to a picture, between none and one standard deviation."""
    noise, level = random_like(images, generator)
    return {"loss": F.mse_loss(model(images + level * noise).float(), level.flatten(1))}


def flow(model, images, labels, generator):
    """Generation: the velocity that carries noise to pictures in a straight line.

    Source: Lipman et al. 2023, arXiv:2210.02747, equation (23) with a smallest deviation of 0.
    """
    noise, time = random_like(images, generator)
    between = (1 - time) * noise + time * images
    velocity = model(torch.cat([between, time.expand_as(images[:, :1])], 1))
    return {"loss": F.mse_loss(velocity.float(), images - noise)}


@torch.no_grad()
def generate(s, model: nn.Module, count: int = 6, steps: int = 40) -> torch.Tensor:
    """Pictures in [0, 1], (count, C, H, W), carried from noise in equal Euler steps."""
    x = torch.randn((count, *s.facts["shape"]), generator=torch.Generator().manual_seed(0)).to(s.device)
    for step in range(steps):
        time = torch.full_like(x[:, :1], (step + 0.5) / steps)
        x = x + model.eval()(torch.cat([x, time], 1)) / steps
    mean, std = (values.view(1, -1, 1, 1).to(s.device) for values in (s.pictures.mean, s.pictures.std))
    return x * std + mean


TASKS = ("classification", "regression", "generation")


def heads(s):
    """Inputs, outputs, whether the head is pooled, and the task, of each kind of task."""
    colours = s.facts["shape"][0]
    return {
        "classification": (colours, s.facts["classes"], True, train.classification()),
        "regression": (colours, 1, True, noise_level),
        "generation": (colours + 1, colours, False, flow),
    }


def tasks(s, task: str, kind: str, seed: int) -> list[dict]:
    """Train one trunk for one task; of the first seed's generators also six pictures that they made."""
    inputs, outputs, pooled, objective = heads(s)[task]
    make = lambda: Trunk(inputs, outputs, s.task_units, kind == "residual", pooled)  # noqa: E731
    config = training(s, epochs=s.task_epochs, optimizer="adamw", learning_rate=2e-3)
    fitted = train.fit(make, s.pictures, config, seed=seed, task=objective, progress=False)
    rows = [fitted.rows[-1] | {"what": "loss"}]
    if task == "generation" and seed == 0:
        made = (generate(s, fitted.model).clamp(0, 1) * 255).round().byte().tolist()
        rows.append({"what": "sample", "pictures": made})
    return rows


def estimates(rows, s):
    """By what share of the plain network's held-out loss the addition lowers it."""
    losses = [r for r in rows if r["what"] == "loss"]
    return {f"{task}_gain": saved([r for r in losses if r["task"] == task]) for task in TASKS}


def saved(rows):
    """1 - residual / plain of the held-out loss, paired by seed."""
    return stats.shifted(stats.paired_ratio(rows, "val_loss", "kind", "residual", "plain", unit="relative"), 1, -1)


def finding(rows, s, e):
    words = "lower by", "higher by", "not clearly different"
    parts = "; ".join(f"in {task} {page.change(e[f'{task}_gain'], *words)}" for task in TASKS)
    return f"With the addition the held-out loss, as a share of the plain network's, is: {parts}."


def draw(rows, s):
    with plots.figure(height=2.4) as (_, ax):
        found = estimates(rows, s)
        plots.forest(ax, [{"task": t, "saved": found[f"{t}_gain"]} for t in TASKS], "task", "saved")
        ax.set_xlabel("held-out loss saved, % of the plain network's")
        plots.hundredths(ax.xaxis)
    clear = [t for t in TASKS if found[f"{t}_gain"].low > 0]
    return f"The addition clearly lowers the held-out loss in {page.listed(clear, 'no task')}. Bars: intervals of 95 %."


def table(rows, s):
    losses = [r for r in rows if r["what"] == "loss"]
    shown = [
        {"task": task}
        | {
            kind: stats.interval([r["val_loss"] for r in losses if (r["task"], r["kind"]) == (task, kind)])
            for kind in KINDS
        }
        for task in TASKS
    ]
    return page.table(shown, {"task": "task", "plain": "held-out loss, plain", "residual": "held-out loss, residual"})


THREE_TASKS = Experiment(
    "tasks",
    run=tasks,
    conditions=lambda s: conditions(task=TASKS, kind=KINDS, seed=s.seeds),
    estimates=estimates,
    settings=("task_units", "task_epochs", "number_format"),
    tiny={"task_units": 1, "task_epochs": 1},
    finding=finding,
    figure=draw,
    alt="For each task a dot with an interval: the share of the plain network's held-out loss that the addition saves.",
    table=table,
)
