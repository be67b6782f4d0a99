"""Which sample? Ways to choose pictures, at equal numbers and equal time, with the choosing counted."""

from collections.abc import Callable
from math import ceil

import torch
import torch.nn.functional as F

from resnet_lib import data, page, plots, stats, train
from resnet_lib.experiments.depths import refuse
from resnet_lib.experiments.downsampling.curve import CURVE_RATES, rates_of
from resnet_lib.experiments.downsampling.training import (
    NETWORK,
    TINY,
    configured,
    converged,
    judged,
    probabilities,
    seeded_generator,
    taught,
    with_training,
)
from resnet_lib.study import Experiment

RANDOM, STRATIFIED, SHORT = "random", "stratified", "random, as short"
EASY, HARD, FORGOTTEN, COVERED = "easy", "hard", "forgotten", "strata of hardness"
CENTRES, HERDED, TYPICAL, ATYPICAL = "k-centre", "herding", "most typical", "least typical"
BY_SCORE, BY_PLACE = (EASY, HARD, FORGOTTEN, COVERED), (CENTRES, HERDED, TYPICAL, ATYPICAL)
CHOSEN = (*BY_SCORE, *BY_PLACE)  # after an early network has looked at all pictures, which takes time
WAYS = (RANDOM, STRATIFIED, *CHOSEN)
ALL = "all"
MILD, STRATA = 0.6, 50  # the share in the rule in claims.yml; strata of hardness
FORWARD = 1 / 3  # of a training step's work: a backward pass is two forward ones


def looking_epochs(s) -> float:
    """What choosing costs, in epochs of the training set: to train the early network, to look after each epoch, to see."""
    return s.score_epochs * (1 + FORWARD) + FORWARD


@torch.no_grad()
def features(s, model, images: torch.Tensor) -> torch.Tensor:
    """What the last layer gets to see of pictures, (N, channels), on the CPU."""
    split = data.Split(images, torch.zeros(len(images), dtype=torch.int64))
    batches = train.Batches(s.pictures, split, train.TrainConfig(device=str(s.device)), s.device)
    return torch.cat([model.features(shown).float().mean((2, 3)).cpu() for shown, _ in batches.in_order(500)])


def looked(s, rate: float, seed: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Class probabilities (N, K) of the training pictures after each epoch of an early network; features after the last."""
    images, model, found = s.pictures.train.images, None, []
    for epoch in range(s.score_epochs):
        config = configured(s, rate, 1, schedule="constant")
        made = converged(taught(s, s.pictures, config, train.stream(seed, epoch, 13), model=model), "the early network")
        model = made.model
        found.append(probabilities(s, model, images))
    return found, features(s, model, images)


def el2n(found: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The length of the error vector, probabilities minus label, (N,): the higher, the harder.

    Source: Paul et al. 2021, arXiv:2107.07075, definition of the EL2N score. Departs: one network, not a mean of ten.
    """
    return (found - F.one_hot(labels, found.shape[1])).norm(dim=1)


def forgettings(found: list[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """How often a picture that was named rightly is named wrongly an epoch later, (N,); the most if it never was right.

    Source: Toneva et al. 2019, arXiv:1812.05159, §3. Departs: looked at after each epoch, and after few of them.
    """
    right = torch.stack([one.argmax(1) == labels for one in found]).int()
    lost = (right[:-1] > right[1:]).sum(0)
    return torch.where(right.any(0), lost, len(found) + 1).float()


def strata(score: torch.Tensor, count: int, cut: float, generator: torch.Generator) -> torch.Tensor:
    """So many indices, as evenly as can be from STRATA ranges of a score, after a cut of the hardest share.

    Source: Zheng et al. 2023, arXiv:2210.15809, algorithm 1. Departs: the score is EL2N.
    """
    order = score.argsort()[: len(score) - int(cut * len(score))]
    low, high = score[order[0]], score[order[-1]]
    place = ((score[order] - low) / (high - low).clamp_min(1e-12) * STRATA).long().clamp_max(STRATA - 1)
    mixed = torch.randperm(len(order), generator=generator)
    members = [order[mixed[place[mixed] == k]] for k in range(STRATA)]
    taken, left = [], count
    for position, own in enumerate(sorted(members, key=len)):  # small strata first: what they lack goes to the others
        share = ceil(left / (STRATA - position))
        taken.append(own[: min(share, left)])
        left -= len(taken[-1])
    return torch.cat(taken)


def cut_for(share: float) -> float:
    """The share of the hardest pictures to leave out first, as the authors chose it for CIFAR-10 by the share kept."""
    return 0.3 if share <= 0.1 else 0.1 if share <= 0.3 else 0.0


def centres(seen: torch.Tensor, count: int) -> torch.Tensor:
    """Greedy k-centre: again and again the picture that is farthest from all chosen ones; first the one nearest the mean.

    Source: Sener and Savarese 2018, arXiv:1708.00489, algorithm 1.
    """
    chosen = [int((seen - seen.mean(0)).norm(dim=1).argmin())]
    distance = (seen - seen[chosen[0]]).norm(dim=1)
    for _ in range(count - 1):
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (seen - seen[chosen[-1]]).norm(dim=1))
    return torch.tensor(chosen)


def herded(seen: torch.Tensor, count: int) -> torch.Tensor:
    """Again and again the picture that brings the mean of the chosen ones nearest to the mean of all.

    Source: Welling 2009, doi:10.1145/1553374.1553517, as Rebuffi et al. 2017, arXiv:1611.07725, algorithm 4, use it.
    """
    mean, total, free = seen.mean(0), torch.zeros_like(seen[0]), torch.zeros(len(seen))
    chosen = []
    for k in range(1, count + 1):
        off = ((total + seen) / k - mean).norm(dim=1) + free
        chosen.append(int(off.argmin()))
        total, free[chosen[-1]] = total + seen[chosen[-1]], torch.inf
    return torch.tensor(chosen)


def by_class(labels: torch.Tensor, count: int, choose: Callable[[torch.Tensor, int], torch.Tensor]) -> torch.Tensor:
    """So many indices, of each class in proportion; choose: (a class's indices, how many) → places among them."""
    shares = torch.bincount(labels).double() * count / len(labels)
    counts = shares.floor().long()
    for k in (shares - counts).argsort(descending=True)[: count - int(counts.sum())]:
        counts[k] += 1
    found = []
    for k, own_count in enumerate(counts.tolist()):
        own = (labels == k).nonzero()[:, 0]
        found.append(own[choose(own, own_count)] if own_count else own[:0])
    return torch.cat(found)


def typicality(seen: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Distance from the mean of its class, (N,): the lower, the more typical."""
    means = torch.zeros(int(labels.max()) + 1, seen.shape[1]).index_add_(0, labels, seen)
    return (seen - (means / torch.bincount(labels).clamp_min(1)[:, None])[labels]).norm(dim=1)


def choose(
    way: str, share: float, found: list[torch.Tensor], seen: torch.Tensor, labels: torch.Tensor, seed: int
) -> torch.Tensor:
    """Indices of the pictures that a way of choosing keeps."""
    generator, count = seeded_generator(train.stream(seed, 14)), round(share * len(labels))
    mixed = torch.randperm(len(labels), generator=generator)  # so that chance breaks ties
    hardness, lost, far = el2n(found[-1], labels)[mixed], forgettings(found, labels)[mixed], typicality(seen, labels)
    ways = {
        EASY: lambda: mixed[hardness.argsort(stable=True)[:count]],
        HARD: lambda: mixed[hardness.argsort(stable=True, descending=True)[:count]],
        FORGOTTEN: lambda: mixed[lost.argsort(stable=True, descending=True)[:count]],
        COVERED: lambda: mixed[strata(hardness, count, cut_for(share), generator)],
        CENTRES: lambda: centres(seen, count),
        HERDED: lambda: by_class(labels, count, lambda own, k: herded(seen[own], k)),
        TYPICAL: lambda: by_class(labels, count, lambda own, k: far[own].argsort()[:k]),
        ATYPICAL: lambda: by_class(labels, count, lambda own, k: far[own].argsort(descending=True)[:k]),
    }
    return ways[way]()


def fitted_to(s, kept: torch.Tensor, epochs: float, rate: float, seed: int):
    """A network trained on some of the pictures, for the steps of so many epochs of the training set."""
    whole = s.pictures.train
    rounds = max(1, int(epochs))
    length = max(s.batch_size, round(epochs * len(whole) / rounds))
    dataset = with_training(s.pictures, whole.images[kept], whole.labels[kept], length)
    return converged(taught(s, dataset, configured(s, rate, rounds), seed), f"a network on {len(kept)} pictures")


def select(s, share: float, rate: float, early_rate: float, seed: int) -> list[dict]:
    """Accuracy after training on a share of the pictures, chosen in each way, all of it in equal time."""
    labels, count = s.pictures.train.labels, round(share * len(s.pictures.train))
    generator = seeded_generator(train.stream(seed, 15))
    if share == 1:
        kept = {ALL: torch.arange(len(labels))}
    else:
        found, seen = looked(s, early_rate, seed)
        at_random = torch.randperm(len(labels), generator=generator)[:count]
        kept = {RANDOM: at_random, SHORT: at_random, STRATIFIED: torch.arange(count)}
        kept |= {way: choose(way, share, found, seen, labels, seed) for way in CHOSEN}
    rows = []
    for way, index in kept.items():
        late = way in (*CHOSEN, SHORT)
        epochs = s.selection_epochs - looking_epochs(s) * late
        made = fitted_to(s, index, epochs, rate, seed)
        row = {"way": way, "pictures": len(index), "steps": made.rows[-1]["step"], "time_s": made.rows[-1]["time_s"]}
        row |= {"val_accuracy": judged(s, made.model, s.pictures.val)["accuracy"]}
        counts = torch.bincount(labels[index], minlength=s.facts["classes"])
        row |= {"rarest": int(counts.min()), "commonest": int(counts.max())}  # pictures of a class
        rows.append(row | {"accuracy": judged(s, made.model, s.pictures.test)["accuracy"]})
    return rows


def runs(s) -> list[dict]:
    refuse(s)
    if MILD not in s.kept or len(set(s.kept)) < 2 or not set(s.kept) <= set(s.shares) - {1.0}:
        raise ValueError(
            f"kept={s.kept} must be two or more of shares={s.shares}, below 1, among them {MILD}, by the rules in claims.yml"
        )
    if round(min(s.kept) * s.facts["train"]) < s.facts["classes"]:
        raise ValueError(f"kept={s.kept}: the smallest of {s.facts['train']} pictures is less than one of each class")
    if s.score_epochs < 1 or s.selection_epochs - looking_epochs(s) < 1:
        raise ValueError(
            f"selection_epochs={s.selection_epochs}: to look for score_epochs={s.score_epochs} takes {looking_epochs(s):.1f} of "
            "them, and one at least must be left to train"
        )
    early = s.rate_of["1.0 | steps"]
    cells = [(share, s.rate_of[f"{share} | steps"]) for share in [*sorted(s.kept), 1.0]]
    return [
        {"share": share, "rate": rate, "early_rate": early, "seed": seed} for share, rate in cells for seed in s.seeds
    ]


def gain(rows, share: float, way: str, against: str) -> stats.Estimate:
    """Test accuracy by one way of choosing minus that by another, the same share, paired by seed."""
    return stats.paired_rows([r for r in rows if r["share"] == share], "accuracy", "way", way, against, unit="accuracy")


def over_all(rows, share: float, way: str) -> stats.Estimate:
    """Test accuracy from a chosen share minus that from all pictures, paired by seed."""
    own = [r for r in rows if (r["share"], r["way"]) == (share, way)] + [r for r in rows if r["way"] == ALL]
    return stats.paired_rows(own, "accuracy", "way", way, ALL, unit="accuracy")


def best_way(rows, share: float) -> str:
    """The way with the highest mean accuracy on validation pictures."""
    own = [r for r in rows if r["share"] == share and r["way"] in WAYS]
    return stats.best_setting(own, "val_accuracy", "way", highest=True)


def shares_of(rows) -> list[float]:
    return sorted({r["share"] for r in rows} - {1.0})


def named(way: str) -> str:
    return way.replace("-", "_").replace(" ", "_")


def estimates(rows, s):
    found = {
        "gain_of_best_subset": over_all(rows, MILD, best_way(rows, MILD)),
        "random_over_all": over_all(rows, MILD, RANDOM),
    }
    for end, share in (("mild", MILD), ("heavy", shares_of(rows)[0])):
        for way in CHOSEN:
            found[f"{named(way)}_{end}"] = gain(rows, share, way, RANDOM)
            found[f"{named(way)}_{end}_choice"] = gain(rows, share, way, SHORT)
        found[f"stratified_{end}"] = gain(rows, share, STRATIFIED, RANDOM)
        found[f"time_{end}"] = gain(rows, share, SHORT, RANDOM)
        found[f"strata_over_hard_{end}"] = gain(rows, share, COVERED, HARD)
    return found


WORDS = "beats it by", "is behind it by", "is not told apart from it"


def finding(rows, s, e):
    mild, heavy = MILD, shares_of(rows)[0]
    ahead = {end: [w for w in CHOSEN if e[f"{named(w)}_{end}"].low > 0] for end in ("mild", "heavy")}
    chosen = {end: [w for w in CHOSEN if e[f"{named(w)}_{end}_choice"].low > 0] for end in ("mild", "heavy")}
    return (
        f"Against a random sample of equal size and steps, the hardest {mild:.0%} {page.change(e['hard_mild_choice'], *WORDS)} and "
        f"the hardest {heavy:.0%} {page.change(e['hard_heavy_choice'], *WORDS)}; strata of hardness "
        f"{page.change(e['strata_of_hardness_heavy_choice'], *WORDS)} at {heavy:.0%}. "
        f"Clearly better by the choice alone: at {mild:.0%} {page.listed(chosen['mild'])}, at {heavy:.0%} "
        f"{page.listed(chosen['heavy'])}. "
        f"With the time of choosing counted: at {mild:.0%} {page.listed(ahead['mild'])}, at {heavy:.0%} {page.listed(ahead['heavy'])}. "
        f"The best way at {mild:.0%} on validation pictures, {best_way(rows, MILD)}, against all pictures in equal time: "
        f"{e['gain_of_best_subset']}."
    )


def draw(rows, s):
    kept = shares_of(rows)
    with plots.figure(2, 1, height=6.2, sharex=True) as (_, axes):
        for ax, ways, title in zip(
            axes, (BY_SCORE, BY_PLACE), ("by hardness", "by place among the features"), strict=True
        ):
            base = {(r["share"], r["seed"]): r["accuracy"] for r in rows if r["way"] == SHORT}
            shown = [r | {"gain": r["accuracy"] - base[r["share"], r["seed"]]} for r in rows if r["share"] < 1]
            free = [r for r in shown if r["way"] == RANDOM]
            plots.lines(ax, [r for r in shown if r["way"] in ways], "share", "gain", by="way", marker=True, colours=dict(zip(ways, plots.PALETTE, strict=False)))  # fmt: skip
            plots.lines(
                ax, free, "share", "gain", by="way", colours={RANDOM: "black"}, label=lambda _: "random, longer"
            )
            ax.axhline(0, color="grey", linewidth=1)
            ax.set(xscale="log", title=title, ylabel="over random, points")
            plots.hundredths(ax.yaxis)
            low, high = ax.get_ylim()
            ax.set_ylim(low - 0.4 * (high - low), high)  # room for the legend
            ax.legend(fontsize=10, ncols=2, loc="lower center")
        axes[-1].set_xticks(kept, [f"{100 * share:g}" for share in kept])
        axes[-1].minorticks_off()
        axes[-1].set_xlabel("pictures kept, %")
    words = "is better", "is worse", "is not told apart"
    mild, heavy = gain(rows, MILD, HARD, SHORT), gain(rows, kept[0], HARD, SHORT)
    return (
        f"Against as many at random in equally many steps (grey zero), keeping the hardest {page.trend(mild, *words)} at "
        f"{MILD:.0%} and {page.trend(heavy, *words)} at {kept[0]:.0%}. Black: random, with the time that choosing takes spent on "
        "training. Thin lines are seeds."
    )


def table(rows, s):
    kept = shares_of(rows)
    cells = {way: {"way": way} for way in (*WAYS, SHORT)}
    for cell in stats.cell_means([r for r in rows if r["way"] != ALL], "accuracy", ("way", "share")):
        cells[cell["way"]][f"{cell['share']}"] = cell["accuracy"]
    columns = {"way": "way of choosing"} | {f"{share}": (f"accuracy at {share:.0%}", ".1%") for share in kept}
    return page.table(list(cells.values()), columns)


SELECTION = Experiment(
    "selection",
    run=select,
    conditions=runs,
    estimates=estimates,
    settings=(*NETWORK, "selection_epochs", "score_epochs"),
    counts=("kept", "shares"),
    needs=CURVE_RATES,
    choose=rates_of,
    tiny=TINY | {"kept": [0.1, 0.6], "selection_epochs": 3, "score_epochs": 1},
    finding=finding,
    figure=draw,
    table=table,
    alt="Two panels of test accuracy over that from a random sample of equal size and steps, against the share of pictures kept "
    "on a logarithmic axis: four ways that choose by hardness above, four that choose by place among features below.",
)
