"""Where does the gradient go in an untrained U-Net, with skips and without?"""

import math

import torch
import torch.nn.functional as F

from resnet_lib import page, plots, probes, stats, train, unet
from resnet_lib.experiments.shapes import both
from resnet_lib.experiments.skip.networks import COLOURS, KINDS, first_batch, shape, skips_of, through_skips
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

ARMS = {  # initialisation and norm, with the gain g of each 3×3 convolution
    "PyTorch's init, no norm": ("pytorch", "none", 1 / 3),
    "He's init, no norm": ("he", "none", 2.0),
    "He's init, batch norm": ("he", "batch", 2.0),
}
NAMES = dict(zip(ARMS, ("default", "plain", "batch_norm"), strict=True))  # in the names of estimates


def predicted_decades(widths, side, convolutions, with_skips, norm="none", gain=2.0):
    """log10 of the gradient's norm at each unit over the last's, in the order in which the units run.

    Args: widths: channels at each resolution, finest first; side: of a square picture, in pixels, or its
        height and width; convolutions: a level; gain: fan-out times the variance of a convolution's weights,
        which a norm cancels.
    """

    sides = both(side)

    def factor(k):  # of the squared norm, from a unit's output at level k to its input
        return 1 / (1 - 1 / math.pi) if norm == "batch" else gain / 2 * math.prod(1 - 2 / (3 * (n >> k)) for n in sides)

    def narrowed(k):  # at the first unit of level k, which widens what comes from above
        return 1.0 if norm == "batch" else widths[k - 1] / widths[k]

    half = 0.5 if norm == "batch" else 1.0  # of a concatenation's gradient, for either map
    last, skipped, decoder, gradient = len(widths) - 1, [], [], 1.0
    for k in range(last):  # the decoder, backwards: its finest level ran last
        decoder += [gradient * factor(k) ** n for n in range(convolutions)]
        gradient *= half * factor(k) ** convolutions
        skipped.append(gradient if with_skips else 0.0)
        gradient *= 1 if with_skips else 2
    bottleneck = [gradient * factor(last) ** n for n in range(convolutions)]
    gradient *= factor(last) ** convolutions * narrowed(last)
    encoder = []
    for k in reversed(range(last)):
        gradient += skipped[k]
        encoder += [gradient * factor(k) ** n for n in range(convolutions)]
        gradient *= factor(k) ** convolutions * (narrowed(k) if k else 1)
    return [math.log10(g) / 2 for g in reversed(decoder + bottleneck + encoder)]


def with_defaults(made: unet.UNet) -> unet.UNet:
    """The network with PyTorch's default weights in its 3×3 convolutions; the others keep what they pass on."""
    for unit in made.units():
        unit[0].reset_parameters()
    return made


def gradients(s, arm: str, kind: str, convolutions: int, seed: int) -> list[dict]:
    """The gradient of a reconstruction's squared error by unit, and at the first convolution by path, in float64."""
    where = s.device if s.device.type == "cuda" else torch.device("cpu")
    init, norm, _ = ARMS[arm]
    with train.seeded(seed):
        made = unet.UNet(shape(s, skips=skips_of(kind), norm=norm, convolutions=convolutions))
        made = with_defaults(made) if init == "pytorch" else made
    made = made.to(where, torch.float64)
    images = first_batch(s, s.pictures.train, seed, where)[0].double()
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)).to(images)
    loss = lambda: F.mse_loss(made(images + noise / 2), images)  # noqa: E731
    measured = probes.gradient_norms(made, made.units(), loss)
    size = [math.log10(r["activation_gradient"]) for r in measured]
    rows = [{"what": "norm", "unit": k, "decades": d - size[-1]} for k, d in enumerate(size, 1)]
    rows = rows if convolutions == max(s.init_convolutions) else []
    rows.append({"what": "spread", "spread": max(size) - min(size)})
    if kind == "with skips":
        rows.append({"what": "paths", "skips_over_bottleneck": through_skips(made, loss)})
    return rows


def at_depth(rows, s, what, arm, **wanted):
    return stats.where(rows, what=what, arm=arm, convolutions=max(s.init_convolutions), **wanted)


def estimates(rows, s):
    """At the most convolutions a level, in each arm: the gradient's spread with skips and without, and which path leads."""
    middle = (len(s.widths) - 1) * max(s.init_convolutions) + max(1, max(s.init_convolutions) // 2)
    found = {}
    for arm, name in NAMES.items():
        own = at_depth(rows, s, "spread", arm)
        found[f"{name}_gain"] = stats.paired_rows(own, "spread", "kind", *KINDS, unit="decades")
        for kind, word in zip(KINDS, ("spread", "remaining"), strict=True):
            spread = [r["spread"] for r in stats.where(own, kind=kind)]
            found[f"{name}_{word}"] = stats.interval(spread, unit="decades")
        paths = [r["skips_over_bottleneck"] for r in at_depth(rows, s, "paths", arm)]
        found[f"{name}_skips_over_bottleneck"] = stats.interval(paths, unit="decades")
        own = at_depth(rows, s, "norm", arm, unit=middle)
        found[f"{name}_bottleneck_change"] = stats.paired_rows(
            own, "decades", "kind", "with skips", "without", unit="decades"
        )
    return found


def finding(rows, s, e):
    narrow = "narrow it by", "widen it by", "do not clearly change it"
    words = "larger by", "smaller by", "not clearly different"
    parts = [
        f"{arm}: without skips it is {e[f'{name}_spread']}, skips {page.change(e[f'{name}_gain'], *narrow)}, and at the first "
        f"convolution the gradient through them is {page.change(e[f'{name}_skips_over_bottleneck'], *words)} than that "
        "through the bottleneck"
        for arm, name in NAMES.items()
    ]
    return (
        f"The spread of the gradient, largest over smallest unit, with {max(s.init_convolutions)} convolutions a level. "
        f"{'. '.join(parts)}. A decade is a factor of ten."
    )


def table(rows, s):
    shown = []
    for cell in conditions(arm=ARMS, kind=KINDS):
        own = [r["spread"] for r in at_depth(rows, s, "spread", cell["arm"], kind=cell["kind"])]
        shown.append(cell | {"spread": stats.interval(own)})
    headings = {"arm": "weights and norm", "kind": "skips", "spread": "largest over smallest gradient, decades"}
    return page.table(shown, headings)


def draw(rows, s):
    many, last, side = max(s.init_convolutions), len(s.widths) - 1, s.facts["shape"][1:]
    with plots.figure(3, 1, height=5.8, sharex=True) as (_, axes):
        for ax, (arm, (_, norm, gain)) in zip(axes, ARMS.items(), strict=True):
            plots.lines(ax, at_depth(rows, s, "norm", arm), "unit", "decades", by="kind", colours=COLOURS)
            ax.axvspan(last * many + 0.5, (last + 1) * many + 0.5, color="black", alpha=0.08, lw=0)
            ax.set(title=arm, ylabel="gradient, decades\nover the last unit's")
            for kind in KINDS:
                theory = predicted_decades(s.widths, side, many, kind == "with skips", norm, gain)
                ax.plot(range(1, len(theory) + 1), theory, "--", color=COLOURS[kind], lw=1.5)
            ax.plot([], [], "--", color="grey", lw=1.5, label="predicted")
        axes[0].legend()
        axes[-1].set_xlabel("unit, from input to output; grey: the bottleneck")
    found = estimates(rows, s)
    words = [
        page.trend(found[f"{n}_gain"], "narrow", "widen", "do not clearly change") for n in ("default", "batch_norm")
    ]
    return (
        f"Skips {words[0]} the spread of the gradient under PyTorch's default weights, and {words[1]} it with batch norm; "
        "what lies at the bottleneck they go around. Thin lines are seeds; the dashed line of a colour is its prediction. "
        "The vertical axes differ."
    )


GRADIENTS = Experiment(
    "gradients",
    run=gradients,
    conditions=lambda s: conditions(arm=ARMS, kind=KINDS, convolutions=_convolutions(s), seed=s.seeds),
    estimates=estimates,
    settings=("widths", "init_convolutions", "batch_size"),
    tiny={"widths": [4, 8], "init_convolutions": [1, 2], "batch_size": 64},
    finding=finding,
    figure=draw,
    alt="Three panels under each other, one for each initialisation and norm: the gradient at each unit in decades over that "
    "at the last unit, with skips and without, one thin line for each seed; the prediction is dashed, and a grey band "
    "marks the bottleneck.",
    table=table,
)


def _convolutions(s):
    for convolutions in s.init_convolutions:
        shape(s, convolutions=convolutions)
    return s.init_convolutions
