"""What both generative questions share: the discriminator, the game, and the classifier that judges what was made."""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from resnet_lib import ceilings, data, precision, resnets, stats, train

COLLAPSED = 0.2  # of the variety of real pictures: below it a generator has collapsed


class PatchDiscriminator(nn.Module):
    """(N, C, H, W) → one logit for each overlapping patch: real, or made?

    Source: Isola et al. 2017, arXiv:1611.07004, §3.2.
    """

    def __init__(self, channels: int, width: int = 32, halvings: int = 1):
        super().__init__()
        widths = [width << k for k in range(halvings + 1)]
        layers = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for k, (before, after) in enumerate(zip(widths, widths[1:], strict=False), 1):
            stride = 2 if k < halvings else 1
            layers.append(nn.Conv2d(before, after, 4, stride, padding=1, bias=False))
            layers += [nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def said(logits: torch.Tensor, real: float) -> torch.Tensor:
    """Cross-entropy of a discriminator's logits if the answer for every patch is `real`."""
    answer = torch.full_like(logits, real, dtype=torch.float32)
    return F.binary_cross_entropy_with_logits(logits.float(), answer)


def play_step(s, maker, critic, adam, images, condition, shown, weight_l1: float) -> torch.Tensor:
    """The discriminator's step, then the generator's; returns their losses."""
    chosen_format = ceilings.choose_precision(s.number_format, s.device)
    losses = [torch.zeros((), device=s.device)]
    with precision.autocast(chosen_format, s.device):
        made = maker(condition)
        if critic:
            real, fake = critic(shown(images)), critic(shown(made.detach()))
            losses[0] = (said(real, 1.0) + said(fake, 0.0)) / 2
    if critic:
        adam[critic].zero_grad(set_to_none=True)
        losses[0].backward()
        adam[critic].step()
    with precision.autocast(chosen_format, s.device):
        losses.append(weight_l1 * F.l1_loss(made.float(), images) if weight_l1 else 0.0)
        losses[1] = losses[1] + said(critic(shown(made)), 1.0) if critic else losses[1]
    adam[maker].zero_grad(set_to_none=True)
    losses[1].backward()
    adam[maker].step()
    return torch.stack([loss.detach() for loss in losses])


def play(s, maker, critic, epochs: int, rate: float, seed: int, given: Callable, weight_l1: float) -> list[dict]:
    """Train a generator against a discriminator (None: with the L1 loss alone); losses by epoch.

    Args: given: (images, generator) → the generator's condition, and what the discriminator is shown of a picture.
    """
    source = train.Batches(s.pictures, s.pictures.train, train.TrainConfig(batch_size=s.batch_size), s.device)
    adam = {
        network: torch.optim.Adam(network.train().parameters(), rate, betas=(0.5, 0.999))
        for network in (maker, critic)
        if network
    }
    rows = []
    for epoch in range(epochs):
        draw, losses = torch.Generator(s.device).manual_seed(train.stream(seed, epoch, 1)), []
        for images, _ in source.training(seed, epoch):
            condition, shown = given(images, draw)
            losses.append(play_step(s, maker, critic, adam, images, condition, shown, weight_l1))
        mean = torch.stack(losses).mean(0).tolist()
        rows.append({"what": "loss", "epoch": epoch + 1, "discriminator": mean[0], "generator": mean[1]})
    return rows


@cache
def trained_judge(pictures: data.Dataset, config: train.TrainConfig, depth: int) -> nn.Module:
    """The classifier that judges, trained once for all runs of a process."""
    shape = {"in_channels": pictures.train.images.shape[1], "num_classes": len(pictures.class_names)}
    make = lambda: resnets.resnet_cifar(depth, **shape)
    with torch.enable_grad():  # who asks for it is done with training
        return train.fit(make, pictures, config, progress=False).model.eval()


def judge_config(s) -> train.TrainConfig:
    return train.TrainConfig(device=str(s.device), precision=s.number_format, epochs=s.judge_epochs)


@torch.no_grad()
def seen_by_judge(s, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, 64) in float64 and guessed classes (N,) for normalised pictures."""
    judge = trained_judge(s.pictures, judge_config(s), s.judge_depth)
    found = [judge.features(part).mean((2, 3)) for part in images.split(500)]
    guesses = torch.cat([judge.fc(features).argmax(1) for features in found])
    return torch.cat(found).double().cpu(), guesses.cpu()


def whole(s, split: data.Split) -> tuple[torch.Tensor, torch.Tensor]:
    """All of a split on the device, normalised: images and labels."""
    batches = train.Batches(s.pictures, split, judge_config(s), s.device).in_order(500)
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """|difference of means|² + trace(A + B − 2·(AB)^½) of two sets of features (N, D); A, B: covariances.

    Source: Heusel et al. 2017, arXiv:1706.08500, equation (6).
    """
    mean, (cov_a, cov_b) = (a.mean(0) - b.mean(0)).square().sum(), (x.T.cov() for x in (a, b))
    root = torch.linalg.eigvals(cov_a @ cov_b).real.clamp_min(0).sqrt().sum()
    return (mean + cov_a.trace() + cov_b.trace() - 2 * root).item()


def variety(a: torch.Tensor, real: torch.Tensor) -> float:
    """Total variance of features over that of real pictures."""
    return (a.var(0).sum() / real.var(0).sum()).item()


@torch.no_grad()
def made_scores(s, made: torch.Tensor, labels: torch.Tensor | None = None) -> dict:
    """Measures of generated pictures against the test pictures, and whether they have collapsed."""
    made = made.nan_to_num(0.0, 0.0, 0.0)  # what is not finite counts as blank
    real, _ = seen_by_judge(s, whole(s, s.pictures.test)[0])
    features, guesses = seen_by_judge(s, made)
    row = {"frechet": frechet(features, real), "variety": variety(features, real)}
    if labels is not None:
        row["accuracy"] = (guesses == labels.cpu()).float().mean().item()
    row["classes_seen"] = len(guesses.unique()) / s.facts["classes"]
    return row | {"collapsed": row["variety"] < COLLAPSED}


def relative_gain(rows, column: str) -> stats.Estimate:
    """1 − with skips / without, paired by seed."""
    return stats.shifted(stats.paired_ratio(rows, column, "kind", "with skips", "without", unit="relative"), 1, -1)
