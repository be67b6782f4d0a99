"""Wrong labels, drawn evenly or by class: what they cost, and what helps against them at how much more work."""

from dataclasses import replace
from statistics import fmean

import torch

from resnet_lib import data, noise, page, plots, stats, steps, train
from resnet_lib.experiments.depths import refuse
from resnet_lib.experiments.downsampling.training import (
    NETWORK,
    TINY,
    best_rates,
    configured,
    converged,
    judged,
    probabilities,
    rates_experiment,
    seeded_generator,
    taught,
    tried,
    with_training,
)
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

NOISES = {"evenly": noise.symmetric, "by class": noise.class_dependent}
SHORTER, SMOOTHED, ROBUST = "a third of the epochs", "label smoothing", "GCE loss"
DROPPED = "suspects dropped"
ORACLE = "exactly the wrong dropped"  # no remedy: what no finder of wrong labels can be expected to beat
REMEDIES = (SHORTER, SMOOTHED, ROBUST, DROPPED)
ARMS = ("nothing", *REMEDIES, ORACLE)
SMOOTHING, Q, FOLDS = 0.1, 0.7, 3
MILD, HARD = 0.1, 0.4  # shares of wrong labels, by the rules in claims.yml


def count_of(s) -> int:
    return round(s.noise_part * s.facts["train"])


def noised(s, kind: str, share: float, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first pictures of the training set, labels of which a share is wrong, and which are."""
    images, labels = (values[: count_of(s)] for values in (s.pictures.train.images, s.pictures.train.labels))
    generator = seeded_generator(train.stream(seed, 12))
    return images, *NOISES[kind](labels, s.facts["classes"], share, generator)


@steps.repeatable
def robust(model, images, labels, generator):
    """Classification by the generalised cross-entropy."""
    logits = model(images).float()
    error = (logits.detach().argmax(1) != labels).float().mean()
    return {"loss": noise.generalised_cross_entropy(logits, labels, Q), "error": error}


def held_out(s, images: torch.Tensor, labels: torch.Tensor, rate: float, seed: int) -> torch.Tensor:
    """Class probabilities (N, K) of each picture by a network that was not trained on it."""

    def predict(kept, asked):
        part = replace(s.pictures, train=data.Split(images[kept], labels[kept]))
        made = converged(taught(s, part, configured(s, rate, s.noise_epochs), seed), "a network on two thirds")
        return probabilities(s, made.model, images[asked])

    return noise.held_out(predict, len(labels), FOLDS)


def trained(s, arm: str, noise_kind: str, share: float, rate: float, seed: int):
    """A network trained on wrong labels by an arm; which were wrong, which were left out, and the epochs it all took."""
    images, labels, wrong = noised(s, noise_kind, share, seed)
    gone, epochs, searched = torch.zeros_like(wrong), s.noise_epochs, 0
    if arm == ORACLE:
        gone = wrong
    elif arm == DROPPED:
        gone = noise.confident_learning(held_out(s, images, labels, rate, seed), labels)
        searched = (FOLDS - 1) * s.noise_epochs
    elif arm == SHORTER:
        epochs = max(1, round(s.noise_epochs / 3))
    config = configured(s, rate, epochs, label_smoothing=SMOOTHING if arm == SMOOTHED else 0.0)
    dataset = with_training(s.pictures, images[~gone], labels[~gone], len(labels))
    made = taught(s, dataset, config, seed, robust if arm == ROBUST else None)
    return made, wrong, gone, epochs + searched


def rate_trial(s, arm: str, noise_kind: str, share: float, rate: float, seed: int) -> list[dict]:
    """A trial of one learning rate."""
    return tried(s, trained(s, arm, noise_kind, share, rate, seed)[0])


def learn_wrong(s, arm: str, noise_kind: str, share: float, rate: float, seed: int) -> list[dict]:
    """Accuracy on rightly labelled test pictures after training on wrong labels by an arm."""
    made, wrong, gone, epochs = trained(s, arm, noise_kind, share, rate, seed)
    model = converged(made, f"{arm} with {share:g} wrong labels").model
    row = {"accuracy": judged(s, model, s.pictures.test)["accuracy"], "train_error": made.rows[-1]["train_error"]}
    hits = (wrong & gone).sum().item()
    row |= {"epochs_in_all": epochs, "dropped": gone.sum().item(), "wrong": wrong.sum().item()}
    return [row | {"precision": hits / max(1, row["dropped"]), "recall": hits / max(1, row["wrong"])}]


def check(s) -> None:
    refuse(s)
    if not {MILD, HARD} <= set(s.noise_shares) or not 0 < min(s.noise_shares) <= max(s.noise_shares) < 1:
        raise ValueError(f"noise_shares={s.noise_shares} must lie between 0 and 1, among them {MILD} and {HARD}, by the rules in claims.yml")  # fmt: skip
    if not 0 < s.noise_part <= 1 or count_of(s) // FOLDS * (FOLDS - 1) < s.batch_size:
        raise ValueError(
            f"noise_part={s.noise_part} must be above 0 and at most 1, and two thirds of that part of {s.facts['train']} training "
            f"pictures must fill a batch of {s.batch_size}"
        )


def arms(s) -> list[dict]:
    """Each amount and kind of noise with no remedy; each remedy where 40 % are wrong, and where none is.

    By class no share from one half on: there the wrong label of a class is the more frequent one.
    """
    check(s)
    shares = [0.0, *sorted(s.noise_shares)]
    cells = [{"arm": "nothing", "noise_kind": "evenly", "share": share} for share in shares]
    cells += [{"arm": "nothing", "noise_kind": "by class", "share": share} for share in shares if 0 < share < 0.5]
    cells += conditions(arm=[*REMEDIES, ORACLE], noise_kind=NOISES, share=[HARD])
    return cells + [{"arm": arm, "noise_kind": "evenly", "share": 0.0} for arm in REMEDIES]


def rate_arms(s) -> list[dict]:
    """Each loss and length at 40 % of evenly drawn noise; what drops pictures trains as what does not."""
    check(s)
    return conditions(arm=("nothing", SHORTER, SMOOTHED, ROBUST, ORACLE), noise_kind=["evenly"], share=[HARD])


NAMES, SETTINGS = ("arm",), (*NETWORK, "noise_part", "noise_epochs")
NOISE_TINY = TINY | {"noise_part": 0.5, "noise_epochs": 1, "noise_shares": [0.1, 0.4]}
NOISE_RATES = rates_experiment("noise_rates", rate_trial, rate_arms, NAMES, SETTINGS, ("noise_shares",), NOISE_TINY)


def rates_of(rows, s) -> dict:
    return {"rate_of": best_rates(rows, NAMES)}


def runs(s) -> list[dict]:
    rate = s.rate_of | {DROPPED: s.rate_of[ORACLE]}
    return [arm | {"rate": rate[arm["arm"]], "seed": seed} for arm in arms(s) for seed in s.seeds]


def of_cell(rows, kind: str, share: float) -> list[dict]:
    return [r for r in rows if r["share"] == share and (r["noise_kind"] == kind or share == 0)]


def loss_at(rows, kind: str, share: float) -> stats.Estimate:
    """Accuracy with right labels minus that with a share of wrong ones, without a remedy, paired by seed."""
    own = [r for r in of_cell(rows, kind, share) + of_cell(rows, kind, 0.0) if r["arm"] == "nothing"]
    return stats.paired_rows(own, "accuracy", "share", 0.0, share, unit="accuracy")


def gain(rows, arm: str, kind: str, share: float) -> stats.Estimate:
    """Accuracy with a remedy minus that with none, paired by seed."""
    return stats.paired_rows(of_cell(rows, kind, share), "accuracy", "arm", arm, "nothing", unit="accuracy")


SHORT = {SHORTER: "shorter", SMOOTHED: "smoothing", ROBUST: "gce", DROPPED: "suspects", ORACLE: "oracle"}


def estimates(rows, s):
    found = {"loss_at_10_percent": loss_at(rows, "evenly", MILD), "loss_at_40_percent": loss_at(rows, "evenly", HARD)}
    found["loss_by_class_at_40_percent"] = loss_at(rows, "by class", HARD)
    for arm, name in SHORT.items():
        found[f"{name}_gain"] = gain(rows, arm, "evenly", HARD)
        found[f"{name}_gain_by_class"] = gain(rows, arm, "by class", HARD)
        if arm != ORACLE:
            found[f"{name}_gain_without_noise"] = gain(rows, arm, "evenly", 0.0)
    own = [r for r in of_cell(rows, "evenly", HARD) if r["arm"] == DROPPED]
    for name in ("precision", "recall"):
        found[f"suspects_{name}"] = stats.interval([r[name] for r in own], unit="share")
    right = [r["accuracy"] - 1 + s.chance_error for r in rows if r["arm"] == "nothing" and r["share"] == 0]
    return found | {"right_over_chance": stats.interval(right, unit="accuracy")}


WORDS = "gains", "loses", "makes no clear difference"


def finding(rows, s, e):
    remedies = "; ".join(f"{arm} {page.change(e[f'{SHORT[arm]}_gain'], *WORDS)}" for arm in REMEDIES)
    return (
        f"A tenth of wrong labels, drawn evenly, costs {e['loss_at_10_percent']} of test accuracy, four tenths cost "
        f"{e['loss_at_40_percent']}, and four tenths that follow the class {e['loss_by_class_at_40_percent']}. "
        f"Against the evenly drawn four tenths: {remedies}. "
        f"To drop exactly the wrong labels {page.change(e['oracle_gain'], *WORDS)}. "
        f"Of the suspects {e['suspects_precision']} were wrong and {e['suspects_recall']} of the wrong were found. "
        f"Where no label is wrong, dropping suspects {page.change(e['suspects_gain_without_noise'], *WORDS)}."
    )


def draw(rows, s):
    looks = {"evenly": plots.BLUE, "by class": plots.ORANGE}
    with plots.figure(2, 1, height=5.6, height_ratios=(5, 6)) as (_, (above, below)):
        bare = [r for r in rows if r["arm"] == "nothing"]
        bare += [r | {"noise_kind": "by class"} for r in bare if r["share"] == 0]
        plots.lines(above, bare, "share", "accuracy", by="noise_kind", marker=True, colours=looks)
        above.axhline(1 - s.chance_error, color="grey", linewidth=1, linestyle="--")
        above.set(xlabel="wrong labels, %", ylabel="test accuracy, %", title="no remedy")
        above.legend()
        plots.hundredths(above.xaxis, above.yaxis)
        for place, (kind, colour) in enumerate(looks.items()):
            for line, arm in enumerate((*REMEDIES, ORACLE)):
                found = gain(rows, arm, kind, HARD)
                ends = [[found.mean - found.low], [found.high - found.mean]]
                mark = plots.MARKERS[place]
                at = line + 0.22 * (2 * place - 1)
                below.errorbar([found.mean], [at], xerr=ends, fmt=mark, color=colour, capsize=3, elinewidth=1.5)
        below.axvline(0, color="grey", linewidth=1)
        below.set_yticks(range(len(REMEDIES) + 1), [*REMEDIES, ORACLE])
        below.set_ylim(len(REMEDIES) + 0.5, -0.5)
        below.set(xlabel=f"change at {100 * HARD:g} % wrong, points")
        plots.hundredths(below.xaxis)
    e = estimates(rows, s)
    clear = [arm for arm in REMEDIES if e[f"{SHORT[arm]}_gain"].low > 0]
    return (
        f"Four tenths of wrong labels, drawn evenly, cost {e['loss_at_40_percent']}; clearly against them: "
        f"{page.listed(clear)}. Dashed grey: guessing. Thin lines are seeds; bars: intervals of 95 %."
    )


def table(rows, s):
    columns = ("noise_kind", "share", "arm")
    cells = stats.cell_means(rows, "accuracy", columns)
    for cell in cells:
        own = [r for r in rows if all(r[name] == cell[name] for name in columns)]
        cell |= {
            name: fmean(r[name] for r in own)
            for name in ("train_error", "epochs_in_all", "dropped", "precision", "recall")
        }
        if not cell["dropped"]:
            cell |= {"precision": None, "recall": None}
    share = lambda value: "–" if value is None else f"{value:.0%}"  # noqa: E731
    heads = {
        "noise_kind": "wrong labels",
        "share": ("share", ".0%"),
        "arm": "remedy",
        "accuracy": ("test accuracy", ".1%"),
    }
    heads |= {"train_error": ("training error", ".1%"), "epochs_in_all": ("epochs, the search counted", ".1f")}
    heads |= {
        "dropped": ("dropped", ".0f"),
        "precision": ("of them wrong", share),
        "recall": ("of the wrong found", share),
    }
    return page.table(cells, heads)


LABEL_NOISE = Experiment(
    "label_noise",
    run=learn_wrong,
    conditions=runs,
    estimates=estimates,
    settings=SETTINGS,
    counts=("noise_shares",),
    needs=NOISE_RATES,
    choose=rates_of,
    tiny=NOISE_RATES.tiny,
    finding=finding,
    figure=draw,
    table=table,
    alt="Above: test accuracy against the share of wrong training labels, a line for evenly drawn ones and one for those that "
    "follow the class. Below: the change of accuracy by each remedy at four tenths of wrong labels, a dot and a bar for each kind.",
)
