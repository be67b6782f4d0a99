"""From noise to picture: a GAN whose generator skips its coarse maps to the output, or does not."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from resnet_lib import blocks, data, page, plots, resnets, stats, train, unet
from resnet_lib.experiments.skip.networks import COLOURS, KINDS, as_bytes, level, shape
from resnet_lib.experiments.skip.playing import PatchDiscriminator, made_scores, play, relative_gain, whole
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

NOISE = 64  # numbers that a picture is made from
NULLS = ("real training pictures", "one picture, repeated")
MEASURES = {"frechet": "Fréchet distance", "variety": "variety"}


class SkipGenerator(nn.Module):
    """Noise (N, 64) → (N, colours, height, breadth), square where only the height is given; by doubling a small map; optionally with output skips.

    Source:  Karras et al. 2020, arXiv:1912.04958, figure 7. Departs: averages maps, so that no parameter is added.
    """

    def __init__(self, with_skips: bool, width: int, colours: int, height: int, breadth: int = 0):
        super().__init__()
        sides = (height, breadth or height)
        doublings = doublings_to(min(sides))
        self.with_skips, self.start = with_skips, tuple(side >> doublings for side in sides)
        self.first = nn.Linear(NOISE, width * math.prod(self.start))
        self.levels = nn.ModuleList(level(width, width) for _ in range(doublings + 1))
        self.head = blocks.conv1x1(width, colours, bias=True)

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        x = self.first(noise).unflatten(1, (-1, *self.start))
        maps = []
        for k, one in enumerate(self.levels):
            x = one(F.interpolate(x, scale_factor=2) if k else x)
            maps.append(x)
        if self.with_skips:
            x = torch.stack([F.interpolate(m, x.shape[2:]) for m in maps]).mean(0)
        return self.head(x)


def doublings_to(side: int) -> int:
    """From 2×2 for digits, else from 4×4 or a little more."""
    return max(2, int(math.log2(side)) - 2)


def null_scores(s, kind: str) -> dict:
    """The measures of real training pictures, and of one of them repeated: the scale for all others."""
    count = min(len(s.pictures.train), len(s.pictures.test))
    split = data.Split(s.pictures.train.images[:count], s.pictures.train.labels[:count])
    images, _ = whole(s, split)
    images = images[:1] if kind == NULLS[1] else images
    return made_scores(s, images.expand(count, -1, -1, -1))


def gan(s, kind: str, seed: int = 0) -> list[dict]:
    """Train one generator; its losses, its scores, and of the first seed eight pictures. Or score a null."""
    if kind in NULLS:
        return [{"what": "null"} | null_scores(s, kind)]
    colours, height, breadth = s.facts["shape"]
    with train.seeded(seed):
        maker = SkipGenerator(kind == "with skips", 2 * s.widths[0], colours, height, breadth).to(s.device)
        critic = PatchDiscriminator(colours).to(s.device)

    def given(images, generator):
        noise = torch.randn(len(images), NOISE, generator=generator, device=images.device)
        return noise, lambda picture: picture

    rows = play(s, maker, critic, s.gan_epochs, s.gan_rate, seed, given, 0.0)
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(s.pictures.test), NOISE, generator=draw).to(s.device)
    with torch.no_grad():
        made = torch.cat([maker.eval()(part) for part in noise.split(500)])
    rows.append({"what": "score"} | made_scores(s, made) | {"parameters": resnets.count_parameters(maker)})
    if seed == 0:
        rows.append({"what": "sample", "made": as_bytes(s, made[:8])})
    return rows


def scores(rows):
    return stats.where(rows, what="score")


def estimates(rows, s):
    return {"frechet_gain": relative_gain(scores(rows), "frechet")}


def finding(rows, s, e):
    collapsed = sum(r["collapsed"] for r in scores(rows))
    words = (
        "lower the Fréchet distance by",
        "raise the Fréchet distance by",
        "do not clearly change the Fréchet distance",
    )
    told = f"{collapsed} of {len(scores(rows))} runs collapsed, and are counted in" if collapsed else "No run collapsed"
    return f"Output skips {page.change(e['frechet_gain'], *words)}, as a share of that without them. {told}."


def table(rows, s):
    columns = {"frechet": "Fréchet distance", "variety": "variety", "classes_seen": "share of classes"}
    shown = []
    for kind in KINDS:
        own = [r for r in scores(rows) if r["kind"] == kind]
        row = {"kind": kind} | {c: stats.interval([r[c] for r in own]) for c in columns}
        shown.append(row | {"collapsed": f"{sum(r['collapsed'] for r in own)} of {len(own)}"})
    for null in (r for r in rows if r["what"] == "null"):
        row = {"kind": null["kind"]} | {c: f"{null[c]:.3g}" for c in columns}
        shown.append(row | {"collapsed": "yes" if null["collapsed"] else "no"})
    return page.table(shown, {"kind": "pictures"} | columns | {"collapsed": "collapsed"})


def draw_figure(rows, s):
    nulls = {r["kind"]: r for r in stats.where(rows, what="null")}
    names = [*KINDS, *nulls]
    with plots.figure(1, len(MEASURES), height=2.4, sharey=True) as (_, axes):
        for ax, (column, name) in zip(axes, MEASURES.items(), strict=True):
            for place, kind in enumerate(KINDS):
                values, look = [r[column] for r in scores(rows) if r["kind"] == kind], {"color": COLOURS[kind]}
                found = stats.interval(values)
                ax.plot(values, [place - 0.2] * len(values), "o", ms=4, mew=0, alpha=0.6, **look)
                bar = [[found.mean - found.low], [found.high - found.mean]]
                ax.errorbar([found.mean], [place], xerr=bar, fmt="s", capsize=3, elinewidth=1.5, **look)
            ax.plot([row[column] for row in nulls.values()], range(len(KINDS), len(names)), "D", color="grey")
            ax.set(xlabel=name, ylim=(len(names) - 0.5, -0.5))
        if all(row["frechet"] > 0 for row in nulls.values()):
            axes[0].set_xscale("log")
            plots.log_axis(axes[0].xaxis, [r["frechet"] for r in (*scores(rows), *nulls.values())])
        axes[0].set_yticks(range(len(names)), [name.replace(", ", ",\n") for name in names], fontsize=10)
    words = "lower", "raise", "do not clearly change"
    return (
        f"Output skips {page.trend(estimates(rows, s)['frechet_gain'], *words)} the Fréchet distance; both networks lie "
        "between real pictures and one repeated (grey). Dots are seeds, bars intervals of 95 %."
    )


def _runs(s):
    _, height, breadth = s.facts["shape"]
    shape(s)
    unet.refuse_indivisible(height, breadth, 2 ** doublings_to(min(height, breadth)))
    resnets.cifar_config(s.judge_depth)
    return conditions(kind=KINDS, seed=s.seeds) + conditions(kind=NULLS)


GAN = Experiment(
    "gan",
    run=gan,
    conditions=_runs,
    estimates=estimates,
    settings=("widths", "gan_epochs", "gan_rate", "batch_size", "judge_depth", "judge_epochs", "number_format"),
    tiny={"widths": [4, 8], "gan_epochs": 1, "judge_depth": 8, "judge_epochs": 1},
    finding=finding,
    figure=draw_figure,
    alt="Two panels: Fréchet distance, on a logarithmic axis, and variety of a GAN's pictures, a line each for networks "
    "without and with output skips, real training pictures, and one picture repeated; a small dot for each seed and the "
    "mean with its interval.",
    table=table,
    kept=("score", "null"),
)
