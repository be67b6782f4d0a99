"""Skewed labels: leave them, cut the frequent classes, repeat the rare ones, weigh, adjust the logits, balance batches."""

from statistics import fmean

import torch
import torch.nn.functional as F

from resnet_lib import page, plots, stats, steps, train
from resnet_lib.experiments.depths import changed, refuse
from resnet_lib.experiments.downsampling.training import (
    NETWORK,
    TINY,
    best_rates,
    configured,
    converged,
    judged,
    key_of,
    rates_experiment,
    seeded_generator,
    taught,
    tried,
    with_training,
)
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

UNDER, ADJUSTED = "under-sampling", "logit adjustment"
REMEDIES = (UNDER, "over-sampling", "balanced batches", "class weights", ADJUSTED)
FAIR = "balanced, equally many"  # no remedy: what as many pictures would give without the skew
ARMS = ("nothing", *REMEDIES, FAIR)
JUDGED = (5, 50)  # pictures of the most frequent class for one of the rarest, by the rules in claims.yml


def class_counts(most: int, ratio: float, classes: int) -> list[int]:
    """Pictures of each class, from the most frequent to the rarest: a geometric fall, at least one of each.

    Source: Cui et al. 2019, arXiv:1901.05555, §5.1, the long-tailed CIFAR.
    """
    return [max(1, round(most * ratio ** (-k / (classes - 1)))) for k in range(classes)]


def first_of_each(labels: torch.Tensor, counts: dict[int, int]) -> torch.Tensor:
    """Indices of so many first pictures of each class, or of all that there are."""
    return torch.cat([(labels == k).nonzero()[:count, 0] for k, count in counts.items()])


def skewed(labels: torch.Tensor, classes: int, ratio: float, seed: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Indices of a skewed sample, of a balanced one as large, and the rarest class; the seed draws which are rare."""
    order = torch.randperm(classes, generator=seeded_generator(train.stream(seed, 11))).tolist()
    most = int(torch.bincount(labels, minlength=classes).min())
    counts = class_counts(most, ratio, classes)
    total = sum(counts)
    even = {k: total // classes + (place < total % classes) for place, k in enumerate(order)}
    return first_of_each(labels, dict(zip(order, counts, strict=True))), first_of_each(labels, even), order[-1]


def rebalanced(labels: torch.Tensor, classes: int, arm: str) -> torch.Tensor:
    """Indices of a skewed sample's pictures as an arm trains on them: cut to the rarest, or repeated to the most."""
    counts = torch.bincount(labels, minlength=classes)
    if arm == UNDER:
        return first_of_each(labels, dict.fromkeys(range(classes), int(counts.min())))
    if arm == "over-sampling":
        members = [(labels == k).nonzero()[:, 0] for k in range(classes)]
        return torch.cat([own[torch.arange(int(counts.max())) % len(own)] for own in members])
    return torch.arange(len(labels))


def classify(logits: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor) -> dict:
    return {"loss": loss, "error": (logits.detach().argmax(1) != labels).float().mean()}


def weighted(counts: torch.Tensor) -> train.Task:
    """Cross-entropy in which a picture weighs N / (K · pictures of its class); judged without weights."""
    weights = counts.sum() / (len(counts) * counts)

    @steps.repeatable
    def task(model, images, labels, generator):
        logits = model(images).float()
        return classify(logits, labels, F.cross_entropy(logits, labels, weights if model.training else None))

    return task


def adjusted(counts: torch.Tensor) -> train.Task:
    """Cross-entropy of logits to which the logarithm of their class's share is added in training, and there alone.

    Source: Menon et al. 2021, arXiv:2007.07314, equation (10), τ = 1.
    """
    prior = (counts / counts.sum()).log()

    @steps.repeatable
    def task(model, images, labels, generator):
        logits = model(images).float()
        return classify(logits, labels, F.cross_entropy(logits + prior if model.training else logits, labels))

    return task


class BalancedBatches:
    """Classification of batches that it draws itself: equally many of each class, with replacement.

    Of the batches that come it takes only the size. Where there are more classes than places, a batch begins at a class
    drawn anew, so that all come equally often.
    """

    def __init__(self, s, images: torch.Tensor, labels: torch.Tensor):
        self.s, order = s, labels.argsort(stable=True)
        self.images, self.labels = images[order].to(s.device), labels[order].to(s.device)
        self.counts = torch.bincount(labels, minlength=s.facts["classes"]).to(s.device)
        self.starts = self.counts.cumsum(0) - self.counts
        self.mean, self.std = (
            v.to(s.device).view(1, -1, 1, 1) for v in (s.pictures.mean, s.pictures.std.clamp_min(1 / 255))
        )

    def drawn(self, size: int, generator: torch.Generator) -> torch.Tensor:
        """Places of one batch's pictures in the sorted order, (size,)."""
        device, classes = self.counts.device, len(self.counts)
        first = torch.randint(classes, (1,), generator=generator, device=device)
        wanted = (first + torch.arange(size, device=device)) % classes
        within = torch.rand(size, generator=generator, device=device) * self.counts[wanted]
        return self.starts[wanted] + within.long()

    def __call__(self, model, images, labels, generator):
        if model.training:
            chosen = self.drawn(len(labels), generator)
            images, labels = changed(self.s, self.images[chosen], generator), self.labels[chosen]
            images = ((images / 255 - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        logits = model(images).float()
        return classify(logits, labels, F.cross_entropy(logits, labels))


def trained(s, arm: str, ratio: float, rate: float, seed: int):
    """A network trained on a skewed sample by one remedy, in equally many steps; and the rarest class."""
    whole, classes = s.pictures.train, s.facts["classes"]
    skew, even, rarest = skewed(whole.labels, classes, ratio, seed)
    chosen = even if arm == FAIR else skew
    images, labels = whole.images[chosen], whole.labels[chosen]
    counts, task = torch.bincount(labels, minlength=classes).float().to(s.device), None
    if arm == "class weights":
        task = weighted(counts)
    elif arm == ADJUSTED:
        task = adjusted(counts)
    elif arm == "balanced batches":
        task = BalancedBatches(s, images, labels)
    kept = rebalanced(labels, classes, "over-sampling" if arm == "balanced batches" else arm)  # for the norms' averages
    dataset = with_training(s.pictures, images[kept], labels[kept], len(whole))
    made = taught(s, dataset, configured(s, rate, s.skew_epochs), seed, task)
    return made, rarest, {"pictures": len(kept.unique()), "fewest": int(counts.min())}


def rate_trial(s, arm: str, ratio: float, rate: float, seed: int) -> list[dict]:
    """A trial of one learning rate."""
    return tried(s, trained(s, arm, ratio, rate, seed)[0])


def learn_skewed(s, arm: str, ratio: float, rate: float, seed: int) -> list[dict]:
    """What a network learns from a skewed sample by one remedy, judged on test pictures of all classes."""
    made, rarest, row = trained(s, arm, ratio, rate, seed)
    found = judged(s, converged(made, f"{arm} at 1:{ratio:g}").model, s.pictures.test)
    row |= {"rarest_recall": found["recalls"][rarest], "train_error": made.rows[-1]["train_error"]}
    return [row | {name: found[name] for name in ("accuracy", "balanced_accuracy", "calibration_error")}]


def arms(s) -> list[dict]:
    refuse(s)
    if not set(JUDGED) <= set(s.ratios) or min(s.ratios) <= 1:
        raise ValueError(f"ratios={s.ratios} must be above 1, among them {JUDGED}, by the rules in claims.yml")
    fewest = s.facts["train"] // s.facts["classes"]
    if fewest < max(s.ratios):
        raise ValueError(
            f"ratios={s.ratios}: with about {fewest} pictures a class, the rarest of 1:{max(s.ratios):g} has none"
        )
    return conditions(arm=ARMS, ratio=sorted(s.ratios))


NAMES, SETTINGS = ("arm", "ratio"), (*NETWORK, "skew_epochs")
SKEW_TINY = TINY | {"skew_epochs": 1, "ratios": [5, 50]}
SKEW_RATES = rates_experiment("imbalance_rates", rate_trial, arms, NAMES, SETTINGS, ("ratios",), SKEW_TINY)


def rates_of(rows, s) -> dict:
    return {"rate_of": best_rates(rows, NAMES)}


def runs(s) -> list[dict]:
    return [arm | {"rate": s.rate_of[key_of(arm, NAMES)], "seed": seed} for arm in arms(s) for seed in s.seeds]


def difference(
    rows, ratio: float, a: str, b: str, value: str = "balanced_accuracy", unit: str = "accuracy"
) -> stats.Estimate:
    """One arm minus another at one ratio, paired by seed."""
    return stats.paired_rows([r for r in rows if r["ratio"] == ratio], value, "arm", a, b, unit=unit)


def short(arm: str) -> str:
    return arm.replace("-", "").replace(" ", "_")


def estimates(rows, s):
    found = {}
    for ratio in JUDGED:
        found[f"loss_at_{ratio}"] = difference(rows, ratio, FAIR, "nothing")
        for arm in REMEDIES:
            found[f"{short(arm)}_gain_at_{ratio}"] = difference(rows, ratio, arm, "nothing")
            found[f"{short(arm)}_rarest_gain_at_{ratio}"] = difference(rows, ratio, arm, "nothing", "rarest_recall")
        found[f"undersampling_over_logit_adjustment_at_{ratio}"] = difference(rows, ratio, UNDER, ADJUSTED)
        found[f"calibration_change_at_{ratio}"] = difference(
            rows, ratio, UNDER, "nothing", "calibration_error", "error"
        )
    fair = [r["balanced_accuracy"] - 1 + s.chance_error for r in rows if r["arm"] == FAIR and r["ratio"] == max(JUDGED)]
    return found | {"fair_over_chance": stats.interval(fair, unit="accuracy")}


WORDS = "gains", "loses", "makes no clear difference"


def finding(rows, s, e):
    told = []
    for ratio in JUDGED:
        gains = [f"{arm} {page.change(e[f'{short(arm)}_gain_at_{ratio}'], *WORDS)}" for arm in (UNDER, ADJUSTED)]
        told.append(
            f"At 1:{ratio} the skew costs {e[f'loss_at_{ratio}']} of balanced accuracy; {gains[0]}, {gains[1]}, and between them "
            f"under-sampling {page.change(e[f'undersampling_over_logit_adjustment_at_{ratio}'], 'is ahead by', 'is behind by', 'is not told apart')}."
        )
    rarest = [
        f"{arm} {page.change(e[f'{short(arm)}_rarest_gain_at_{ratio}'], *WORDS)} at 1:{ratio}"
        for ratio, arm in ((ratio, most_for_the_rarest(e, ratio)) for ratio in JUDGED)
    ]
    return " ".join(told) + (
        f" Of the recall of the rarest class most is gained on average by these: {page.listed(rarest)}. At 1:{max(JUDGED)}, "
        f"under-sampling changes the calibration error by {e[f'calibration_change_at_{max(JUDGED)}']}."
    )


def most_for_the_rarest(e, ratio: int) -> str:
    """The remedy with the highest mean gain of the rarest class's recall."""
    return max(REMEDIES, key=lambda arm: e[f"{short(arm)}_rarest_gain_at_{ratio}"].mean)


def draw(rows, s):
    with plots.figure(2, len(JUDGED), height=5.8, sharex="row", sharey=True) as (_, axes):
        for (above, below), ratio in zip(axes.T, JUDGED, strict=True):
            own = [{"arm": arm, "gain": difference(rows, ratio, arm, "nothing")} for arm in ARMS[1:]]
            plots.forest(above, own, "arm", "gain")
            above.set_title(f"1:{ratio}")
            for place, arm in enumerate(ARMS[1:]):
                recall = [r["rarest_recall"] for r in rows if (r["ratio"], r["arm"]) == (ratio, arm)]
                below.plot(recall, [place] * len(recall), "o", color=plots.ORANGE, alpha=0.45, markersize=5, mew=0)
                below.plot([fmean(recall)], [place], "|", color=plots.ORANGE, markersize=16, mew=3)
            above.set_xlabel("gain of balanced\naccuracy, points", fontsize=11)
            below.set_xlabel("recall of the\nrarest class, %", fontsize=11)
            plots.hundredths(above.xaxis, below.xaxis)
    e, worst = estimates(rows, s), max(JUDGED)
    words = "beats", "is worse than", "is not told apart from"
    nothing = fmean(r["rarest_recall"] for r in rows if (r["ratio"], r["arm"]) == (worst, "nothing"))
    return (
        f"At 1:{worst}, under-sampling {page.trend(e[f'undersampling_gain_at_{worst}'], *words)} doing nothing and "
        f"{page.trend(e[f'undersampling_over_logit_adjustment_at_{worst}'], *words)} logit adjustment. Above: gains over doing "
        "nothing, with intervals of 95 %; below: dots are seeds, bars their means; doing nothing recognises "
        f"{nothing:.0%} of the rarest class there. Last lines: as many pictures without the skew."
    )


def draw_front(rows, s):
    """The remedies at the larger skew, for the first screen."""
    worst = max(JUDGED)
    shown = [{"arm": arm, "gain": difference(rows, worst, arm, "nothing")} for arm in (*REMEDIES, FAIR)]
    with plots.figure(height=2.6) as (_, ax):
        plots.forest(ax, shown, "arm", "gain")
        ax.set_xlabel(f"gain over doing nothing at 1:{worst}, points")
        plots.hundredths(ax.xaxis)
    found = difference(rows, worst, UNDER, ADJUSTED)
    return (
        f"Skewed labels: under-sampling {page.trend(found, 'beats', 'is behind', 'is not told apart from')} logit adjustment "
        f"({found}). Last line: as many pictures without the skew. Bars: intervals of 95 %."
    )


def table(rows, s):
    columns = ("ratio", "arm")
    cells = stats.cell_means(rows, "balanced_accuracy", columns)
    for name in ("rarest_recall", "calibration_error", "accuracy", "train_error", "pictures"):
        for cell, other in zip(cells, stats.cell_means(rows, name, columns), strict=True):
            cell[name] = other[name]
    heads = {"ratio": ("skew", lambda value: f"1:{value:g}"), "arm": "remedy", "pictures": ("pictures used", ",.0f")}
    heads |= {"balanced_accuracy": ("balanced accuracy", ".1%"), "rarest_recall": ("recall of the rarest", ".1%")}
    heads |= {"calibration_error": ("calibration error", ".3f"), "train_error": ("training error", ".1%")}
    return page.table(sorted(cells, key=lambda c: c["ratio"]), heads)


IMBALANCE = Experiment(
    "imbalance",
    run=learn_skewed,
    conditions=runs,
    estimates=estimates,
    settings=SETTINGS,
    counts=("ratios",),
    needs=SKEW_RATES,
    choose=rates_of,
    tiny=SKEW_RATES.tiny,
    finding=finding,
    figure=draw,
    table=table,
    alt="A line for each remedy, a column of panels for each skew. Above: the gain of balanced accuracy over doing nothing, a dot "
    "with a bar for its interval. Below: the recall of the rarest class, a dot for each seed and a stroke for their mean.",
)
