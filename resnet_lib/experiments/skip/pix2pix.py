"""From picture to picture: pix2pix with and without skips, and without its discriminator as a control."""

from dataclasses import replace

import torch
import torch.nn.functional as F

from resnet_lib import page, plots, resnets, stats, train, unet
from resnet_lib.experiments.skip.networks import COLOURS, KINDS, as_bytes, psnr, shape, to_pixels
from resnet_lib.experiments.skip.playing import PatchDiscriminator, made_scores, play, relative_gain, whole
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

PAIRS = ("edges", "grey")
LOSSES = ("L1 + GAN", "L1")
WEIGHT_L1 = 100.0  # Isola et al. 2017, §3.3
MEASURES = {"l1": "mean absolute error", "accuracy": "class still seen", "frechet": "Fréchet distance"}


def paired_input(images: torch.Tensor, pair: str) -> torch.Tensor:
    """What pix2pix starts from, (N, 1, H, W): the mean of the channels, or its edges."""
    grey = images.mean(1, keepdim=True)
    if pair == "grey":
        return grey
    sobel = torch.tensor([[1.0, 2, 1], [0, 0, 0], [-1, -2, -1]], device=images.device)
    slopes = F.conv2d(F.pad(grey, (1, 1, 1, 1), "replicate"), torch.stack([sobel, sobel.T])[:, None])
    strength = slopes.norm(dim=1, keepdim=True)
    return (strength > 1.5 * strength.mean((1, 2, 3), keepdim=True)).to(images.dtype)


def pix2pix(s, kind: str, loss: str, seed: int) -> list[dict]:
    """Train one generator; its losses, its scores on the test pictures, and of the first seed six pictures."""
    with train.seeded(seed):
        kept = None if kind == "with skips" else ()
        maker = unet.UNet(replace(shape(s), skips=kept, in_channels=1)).to(s.device)
        critic = PatchDiscriminator(1 + s.facts["shape"][0]).to(s.device) if loss == "L1 + GAN" else None

    def given(images, generator):
        condition = paired_input(images, s.pair)
        return condition, lambda picture: torch.cat([condition, picture.to(images.dtype)], 1)

    rows = play(s, maker, critic, s.pair_epochs, s.pair_rate, seed, given, WEIGHT_L1)
    test_images, test_labels = whole(s, s.pictures.test)
    with torch.no_grad():
        made = torch.cat([maker.eval()(paired_input(part, s.pair)) for part in test_images.split(500)])
    pixels, target = to_pixels(s, made), to_pixels(s, test_images)
    row = {"what": "score", "l1": (pixels - target).abs().mean().item()}
    row["psnr"] = psnr(pixels, target).mean().item()
    rows.append(row | made_scores(s, made, test_labels))
    if seed == 0:
        start = paired_input(test_images[:6], s.pair).expand_as(test_images[:6])
        shown = {"made": as_bytes(s, made[:6]), "wanted": as_bytes(s, test_images[:6])}
        shown["seen"] = (start.clamp(0, 1) * 255).round().byte().tolist()
        rows.append({"what": "sample"} | shown)
    return rows


def scores(rows, loss=None):
    return [r for r in rows if r["what"] == "score" and loss in (None, r["loss"])]


def estimates(rows, s):
    played, alone = (scores(rows, loss) for loss in LOSSES)
    return {
        "l1_gain": relative_gain(played, "l1"),
        "l1_gain_without_gan": relative_gain(alone, "l1"),
        "frechet_gain": relative_gain(played, "frechet"),
        "accuracy_gain": stats.paired_rows(played, "accuracy", "kind", "with skips", "without", unit="accuracy"),
    }


def finding(rows, s, e):
    collapsed = sum(r["collapsed"] for r in scores(rows))
    words = "lower it by", "raise it by", "do not clearly change it"
    told = f"{collapsed} of {len(scores(rows))} runs collapsed" if collapsed else "No run collapsed"
    seen = page.change(e["accuracy_gain"], "raise by", "lower by", "do not clearly change")
    return (
        f"Held-out L1 from {s.pair} to the picture, as a share of that without skips: skips "
        f"{page.change(e['l1_gain'], *words)}; where there is no discriminator they "
        f"{page.change(e['l1_gain_without_gan'], *words)}. The share of pictures whose class our classifier still sees they "
        f"{seen}. {told}."
    )


def table(rows, s):
    shown = []
    for cell in conditions(loss=LOSSES, kind=KINDS):
        own = [r for r in scores(rows) if cell.items() <= r.items()]
        row = cell | {c: stats.interval([r[c] for r in own]) for c in ("l1", "psnr", "accuracy", "frechet")}
        shown.append(row | {"collapsed": f"{sum(r['collapsed'] for r in own)} of {len(own)}"})
    columns = {"loss": "loss", "kind": "skips", "l1": "L1", "psnr": "PSNR, dB", "accuracy": "class still seen"}
    return page.table(shown, columns | {"frechet": "Fréchet distance", "collapsed": "collapsed"})


def draw(rows, s):
    with plots.figure(len(MEASURES), 1, height=5.4, sharex=True) as (figure, axes):
        for ax, (column, name) in zip(axes, MEASURES.items(), strict=True):
            plots.dots(ax, scores(rows), "loss", column, by="kind", colours=COLOURS, offset=0.2, join=False)
            ax.set(ylabel=name.replace(" ", "\n", 1), xlim=(-0.5, len(LOSSES) - 0.5))
        plots.hundredths(axes[1].yaxis)
        axes[1].set_ylabel("class still\nseen, %")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    found = estimates(rows, s)
    full, alone = (
        page.trend(found[name], "is lower", "is higher", "is not clearly different")
        for name in ("l1_gain", "l1_gain_without_gan")
    )
    return f"With skips the error of the full loss {full}, and that of L1 alone {alone}. Dots are seeds, bars intervals of 95 %."


def _losses(s):
    if s.pair not in PAIRS:
        raise ValueError(f"pair={s.pair!r} is not one of {', '.join(PAIRS)}")
    if shape(s).in_channels == 1 and s.pair == "grey":
        raise ValueError(f"pair={s.pair!r}: {s.facts['name']} is grey already: take pair='edges'")
    resnets.cifar_config(s.judge_depth)
    return LOSSES


PIX2PIX = Experiment(
    "pix2pix",
    run=pix2pix,
    conditions=lambda s: conditions(kind=KINDS, loss=_losses(s), seed=s.seeds),
    estimates=estimates,
    settings=(
        "widths",
        "pair",
        "pair_epochs",
        "pair_rate",
        "batch_size",
        "judge_depth",
        "judge_epochs",
        "number_format",
    ),
    tiny={"widths": [4, 8], "pair_epochs": 1, "judge_depth": 8, "judge_epochs": 1},
    finding=finding,
    figure=draw,
    alt="Three panels: mean absolute error, class still seen, and Fréchet distance of pix2pix with and without skips, for "
    "the full loss and for L1 alone; a small dot for each seed and the mean with its interval.",
    table=table,
    kept=("score",),  # pictures would make a large record
)
