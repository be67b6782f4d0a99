"""Where does the gradient go in an untrained U-Net, with skips and without?"""

import math

import torch
import torch.nn.functional as F

from resnet_lib import page, plots, probes, stats, train, unet
from resnet_lib.experiments.skip.networks import COLOURS, KINDS, first_batch, shape, skips_of, through_skips
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

NORMS = ("none", "batch")


def predicted_decades(widths, side, convolutions, with_skips, norm="none"):
    """log10 of the gradient's norm at each unit over the last's, in the order in which the units run.

    Args: widths: channels at each resolution, finest first; side: of a square picture, in pixels, or height and width; convolutions: a level.
    """

    sides = (side, side) if isinstance(side, int) else tuple(side)

    def factor(k):  # of the squared norm, from a unit's output at level k to its input
        return 1 / (1 - 1 / math.pi) if norm == "batch" else math.prod(1 - 2 / (3 * (n >> k)) for n in sides)

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


def gradients(s, norm: str, kind: str, convolutions: int, seed: int) -> list[dict]:
    """The gradient of a reconstruction's squared error by unit, and at the first convolution by path, in float64."""
    where = s.device if s.device.type == "cuda" else torch.device("cpu")
    with train.seeded(seed):
        made = unet.UNet(shape(s, skips=skips_of(kind), norm=norm, convolutions=convolutions))
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


def at_depth(rows, s, what, norm):
    deepest = max(s.init_convolutions)
    return [r for r in rows if (r["what"], r["norm"], r["convolutions"]) == (what, norm, deepest)]


def estimates(rows, s):
    """At the most convolutions a level: how much skips narrow the gradient's spread, what is left, and which path leads."""
    found = {
        name: stats.paired_rows(at_depth(rows, s, "spread", norm), "spread", "kind", *KINDS, unit="decades")
        for name, norm in {"plain_gain": "none", "batch_norm_gain": "batch"}.items()
    }
    left = [r["spread"] for r in at_depth(rows, s, "spread", "batch") if r["kind"] == "with skips"]
    found["remaining_spread"] = stats.interval(left, unit="decades")
    for name, norm in {"skips_over_bottleneck": "batch", "skips_over_bottleneck_plain": "none"}.items():
        paths = [r["skips_over_bottleneck"] for r in at_depth(rows, s, "paths", norm)]
        found[name] = stats.interval(paths, unit="decades")
    middle = (len(s.widths) - 1) * max(s.init_convolutions) + max(1, max(s.init_convolutions) // 2)
    for name, norm in {"bottleneck_change": "batch", "bottleneck_change_plain": "none"}.items():
        own = [r for r in at_depth(rows, s, "norm", norm) if r["unit"] == middle]
        found[name] = stats.paired_rows(own, "decades", "kind", "with skips", "without", unit="decades")
    return found


def finding(rows, s, e):
    return (
        f"With {max(s.init_convolutions)} convolutions a level, skips narrow the spread of the gradient by "
        f"{e['plain_gain']} without batch normalisation and by {e['batch_norm_gain']} with it; with both, "
        f"{e['remaining_spread']} are left between the largest and the smallest. "
        f"At the first convolution the gradient through the skips is above that through the bottleneck by "
        f"{e['skips_over_bottleneck_plain']} without a norm, and by {e['skips_over_bottleneck']} with it; a negative "
        "number means that the bottleneck passes more."
    )


def table(rows, s):
    shown = []
    for cell in conditions(norm=NORMS, kind=KINDS):
        own = [r["spread"] for r in at_depth(rows, s, "spread", cell["norm"]) if r["kind"] == cell["kind"]]
        shown.append(cell | {"spread": stats.interval(own)})
    headings = {"norm": "norm", "kind": "skips", "spread": "largest over smallest gradient, decades"}
    return page.table(shown, headings)


def draw(rows, s):
    many, last, side = max(s.init_convolutions), len(s.widths) - 1, s.facts["shape"][1:]
    with plots.figure(2, 1, height=5.6, sharex=True) as (_, axes):
        for ax, norm in zip(axes, NORMS, strict=True):
            plots.lines(ax, at_depth(rows, s, "norm", norm), "unit", "decades", by="kind", colours=COLOURS)
            ax.axvspan(last * many + 0.5, (last + 1) * many + 0.5, color="black", alpha=0.08, lw=0)
            ax.set(title=f"norm: {norm}", ylabel="gradient, decades\nover the last unit's")
            for kept, name in ((True, None), (False, "predicted")):
                theory = predicted_decades(s.widths, side, many, kept, norm)
                ax.plot(range(1, len(theory) + 1), theory, "k--", lw=1.2, label=name)
        axes[0].legend()
        axes[1].set_xlabel("unit, from input to output; grey: the bottleneck")
    middle = last * many + many // 2 + 1 if many == 1 else last * many + many // 2
    some = [r for r in at_depth(rows, s, "norm", "none") if r["unit"] in (1, middle)]
    at = stats.summarise(some, "decades", ("unit", "kind"))
    words = {(r["unit"], r["kind"]): f"{r['mean']:+.2f}" for r in at}
    cut, kept = (f"{predicted_decades(s.widths, side, many, k)[0]:+.2f}" for k in (False, True))
    return (
        f"Without a norm the first unit's gradient is {words[1, 'without']} decades without and "
        f"{words[1, 'with skips']} with skips (predicted: {cut} and {kept}); amid the bottleneck it is "
        f"{words[middle, 'without']} and {words[middle, 'with skips']}. Dashed: predicted. Thin lines are seeds."
    )


GRADIENTS = Experiment(
    "gradients",
    run=gradients,
    conditions=lambda s: conditions(norm=NORMS, kind=KINDS, convolutions=_convolutions(s), seed=s.seeds),
    estimates=estimates,
    settings=("widths", "init_convolutions", "batch_size"),
    tiny={"widths": [4, 8], "init_convolutions": [1, 2], "batch_size": 64},
    finding=finding,
    figure=draw,
    alt="Two panels under each other, without and with batch normalisation: the gradient at each unit in decades over that "
    "at the last unit, with skips and without, one thin line for each seed; the prediction is dashed, and a grey band "
    "marks the bottleneck.",
    table=table,
)


def _convolutions(s):
    for convolutions in s.init_convolutions:
        shape(s, convolutions=convolutions)
    return s.init_convolutions
