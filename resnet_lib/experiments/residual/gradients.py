"""Gradients at initialisation: their size by depth, what theory predicts, and whether neighbours agree on them."""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F

from resnet_lib import page, plots, probes, stats, train
from resnet_lib.experiments.depths import KINDS, checked, network
from resnet_lib.experiments.shapes import Side, both
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

ARMS = {  # initialisation and norm, with the gain g of each convolution
    "PyTorch's init, no BN": ("pytorch", "none", 1 / 3),
    "He's init, no BN": ("he", "none", 2.0),
    "He's init, BN": ("he", "batch", 2.0),
}
GAINS = dict(zip(ARMS, ("default_init_gain", "he_init_gain", "batch_norm_gain"), strict=True))
NOISE = 0.1  # of a picture's neighbour, in standard deviations of a pixel


def predicted_decades(sides: list[Side], kind: str, norm: str, gain: float) -> list[float]:
    """log10 of each unit's activation gradient over the last's, from the size of each unit's map alone.

    Follows the second moment upwards and the gradient's growth downwards, with random numbers in place of a network.
    Args:    sides: pixels of each unit's map along a side, or along both; gain: fan-in times the variance of a convolution's weights.
    Source:  He et al. 2015b, arXiv:1502.01852, equation (14); Yang et al. 2019, arXiv:1902.08129, for batch norm.
    Departs: channels are independent, and what changes between stages is left out; zero padding is in.
    """
    generator = torch.Generator().manual_seed(0)

    def draw() -> torch.Tensor:
        return torch.randn(30_000, dtype=torch.float64, generator=generator)

    x, growth = draw().relu(), []
    for side in sides:
        height, width = both(side)
        kept = (1 - 2 / (3 * height)) * (1 - 2 / (3 * width))  # of a sum over nine pixels, beside zero padding
        linear_gain = torch.tensor((gain * kept) ** 2 / 2)
        branch_gain = 1 / ((1 - 1 / math.pi) * x.var()) if norm == "batch" else linear_gain
        branch = draw() * (1.0 if norm == "batch" else (linear_gain * x.square().mean()).sqrt())
        total = branch + x if kind == "residual" else branch
        gate = (total > 0).double().mean()
        growth.append((gate * ((kind == "residual") + branch_gain)).log10() / 2)
        x = total.relu()
    return [float(sum(growth[k + 1 :])) for k in range(len(sides))]


def gradients(s, arm: str, kind: str, depth: int, seed: int) -> list[dict]:
    """Gradients of a fresh network on one batch, in float64, so that a vanishing one is not taken for an underflow.

    Returns: by unit, log10 of the gradient over the last unit's (of all units in the deepest network, else of the
        first); and the cosine between the input gradients at a picture and at its neighbour.
    """
    init, norm, _ = ARMS[arm]
    where = s.device if s.device.type == "cuda" else torch.device("cpu")
    with train.seeded(seed):
        model = network(s, kind, depth, init=init, norm=norm)
    model = model.to(where, torch.float64)
    config = train.TrainConfig(batch_size=64, precision="fp32")
    images, labels = train.Batches(s.pictures, s.pictures.train, config, where).first(seed)
    images = images.double()
    rows = probes.gradient_norms(model, model.units(), lambda: F.cross_entropy(model(images), labels))
    last = math.log10(rows[-1]["activation_gradient"])
    rows = [{"what": "norm", "decades": math.log10(row["activation_gradient"]) - last} | row for row in rows]
    rows = rows if depth == max(s.init_depths) else rows[:1]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed), dtype=images.dtype).to(where)
    pair = [probes.input_gradients(model, moved) for moved in (images, images + NOISE * noise)]
    return rows + [{"what": "similarity", "similarity": F.cosine_similarity(*pair).mean().item()}]


def first_units(rows):
    """The first unit of every network: how far its gradient is from the last unit's."""
    return [r | {"spread": abs(r["decades"])} for r in rows if r["what"] == "norm" and r["unit"] == 1]


def estimates(rows, s):
    """By how many decades the addition brings the first unit's gradient nearer to the last's, in the deepest network."""
    ends = [r for r in first_units(rows) if r["depth"] == max(s.init_depths)]
    return {
        name: stats.paired_rows(
            [r for r in ends if r["arm"] == arm], "spread", "kind", "plain", "residual", unit="decades"
        )
        for arm, name in GAINS.items()
    }


def finding(rows, s, e):
    words = "nearer by", "further away by", "not clearly nearer or further away"
    lines = "; ".join(f"with {arm} {page.change(e[name], *words)}" for arm, name in GAINS.items())
    plain = [r for r in first_units(rows) if r["kind"] == "plain" and r["arm"] == list(ARMS)[2]]
    alone = stats.interval([r["decades"] for r in plain if r["depth"] == max(s.init_depths)])
    return (
        f"At {max(s.init_depths)} layers the addition brings the first unit's gradient to that of the last unit: {lines}. "
        f"A decade is a factor of ten. With batch normalisation alone, in the plain network, the gradient changes by "
        f"{alone.mean:+.1f} decades from the last unit to the first."
    )


def table(rows, s):
    by_depth = stats.summarise(first_units(rows), "decades", ("arm", "kind", "depth"))
    means = {(r["arm"], r["kind"], r["depth"]): r["mean"] for r in by_depth}
    shown = [
        {"arm": arm, "kind": kind} | {f"at{depth}": means[arm, kind, depth] for depth in s.init_depths}
        for arm in ARMS
        for kind in KINDS
    ]
    depths = {f"at{depth}": (f"{depth} layers, decades", "+.1f") for depth in s.init_depths}
    return page.table(shown, {"arm": "initialisation", "kind": "network"} | depths)


def draw(rows, s):
    with plots.figure(3, 1, height=6.4, sharex=True) as (_, axes):
        _curves(axes, rows, s)
        for ax in axes:
            ax.set_ylabel("gradient, decades\nover the last unit's")
        axes[-1].set_xlabel(f"unit of ResNet-{max(s.init_depths)} and its plain twin, from input to output")
    found = estimates(rows, s)
    flatter = [arm for arm, name in GAINS.items() if found[name].low > 0]
    steeper = [arm for arm, name in GAINS.items() if found[name].high < 0]
    return (
        f"The addition makes the gradient flatter with {page.listed(flatter)}, and steeper with {page.listed(steeper)}. "
        "Thin lines are seeds; the dashed line of a colour is its prediction. The vertical axes differ."
    )


def draw_front(rows, s):
    """The same in a row, for the first screen."""
    with plots.figure(1, 3, height=2.2, width=7.6, sharex=True) as (_, axes):
        _curves(axes, rows, s)
        axes[1].legend(loc="upper right", fontsize=9)
        axes[0].set_ylabel("gradient, decades")
        axes[1].set_xlabel("unit, from input to output")
    return (
        f"Gradient over the last unit's at initialisation, {max(s.init_depths)} layers; a decade is a factor of ten, flat is "
        "healthy. Thin lines are seeds, dashed ones predictions; the vertical axes differ."
    )


def _curves(axes, rows, s):
    depth, (_, height, width) = max(s.init_depths), s.facts["shape"]
    rows, units = [r for r in rows if r["what"] == "norm" and r["depth"] == depth], (depth - 2) // 2
    stages = [tuple(max(1, side >> stage) for side in (height, width)) for stage in range(3)]
    sides = [size for size in stages for _ in range(units // 3)]
    for ax, (arm, (_, norm, gain)) in zip(axes, ARMS.items(), strict=True):
        plots.lines(ax, [r for r in rows if r["arm"] == arm], "unit", "decades", by="kind")
        for kind, colour in plots.COLOURS.items():
            theory = predicted_decades(sides, kind, norm, gain)
            ax.plot(range(1, units + 1), theory, "--", color=colour, linewidth=1.5)
        ax.plot([], [], "--", color="grey", linewidth=1.5, label="predicted")
        ax.set_title(arm)
        ax.yaxis.get_major_locator().set_params(integer=True)
    axes[1].legend(loc="upper right")


GRADIENTS = Experiment(
    "gradients",
    run=gradients,
    conditions=lambda s: conditions(arm=list(ARMS), kind=KINDS, depth=_depths(s), seed=s.seeds),
    estimates=estimates,
    settings=("init_depths",),
    tiny={"init_depths": [8]},
    finding=finding,
    figure=draw,
    alt="Three panels under each other, one for each arm. In each, the log of the activation gradient over that of the "
    "last unit against the unit number, for the deepest plain and residual network, one thin line a seed, with the "
    "prediction dashed.",
    table=table,
    kept=("norm",),
)


def _depths(s):
    checked("init_depths", s.init_depths)
    return s.init_depths


def similarity_estimates(rows, s):
    """How much more the gradients of neighbouring pictures agree with the addition, in the deepest network."""
    deepest = [r for r in rows if r["depth"] == max(s.init_depths)]
    return {
        name.replace("_gain", "_similarity_gain"): stats.paired_rows(
            [r for r in deepest if r["arm"] == arm], "similarity", "kind", "residual", "plain", unit="cosine"
        )
        for arm, name in GAINS.items()
    }


def similarity_finding(rows, s, e):
    words = "higher by", "lower by", "not clearly different"
    gains = "; ".join(
        f"with {arm} {page.change(e[name.replace('_gain', '_similarity_gain')], *words)}" for arm, name in GAINS.items()
    )
    return f"At {max(s.init_depths)} layers the cosine of neighbouring gradients is, with the addition: {gains}."


def draw_similarity(rows, s):
    with plots.figure(3, 1, height=5.4, sharex=True, sharey=True) as (_, axes):
        for ax, arm in zip(axes, ARMS, strict=True):
            plots.dots(ax, [r for r in rows if r["arm"] == arm], "depth", "similarity", by="kind", offset=0.15)
            ax.set(title=arm, ylabel="cosine", ylim=(-0.3, 1.3))
        axes[0].legend()
        axes[-1].set_xlabel("layers")
    found = similarity_estimates(rows, s)
    clear = [arm for arm, name in GAINS.items() if found[name.replace("_gain", "_similarity_gain")].low > 0]
    return (
        f"In the deepest networks the addition clearly keeps the gradients of neighbouring pictures alike with "
        f"{page.listed(clear, 'no arm')} (1: the same direction, 0: unrelated). Dots are seeds, bars intervals of 95 %."
    )


SHATTERING = replace(
    GRADIENTS,
    name="shattering",
    estimates=similarity_estimates,
    finding=similarity_finding,
    figure=draw_similarity,
    alt="Cosine similarity of input gradients at neighbouring pictures against depth, plain and residual, one panel for "
    "each arm, a dot for each seed.",
    table=None,
    kept=("similarity",),
)
