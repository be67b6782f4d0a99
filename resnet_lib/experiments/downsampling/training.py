"""The network that this chapter trains, on which of the pictures, at which learning rate, and how it is judged."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from resnet_lib import data, page, resnets, stats, train
from resnet_lib.experiments.depths import CHOOSER, SETTLING, changed
from resnet_lib.experiments.depths import network as network_of
from resnet_lib.study import Experiment

NETWORK = ("depth", "width", "batch_size", "flips", "number_format")  # settings of every training
TINY = {"depth": 8, "width": 2, "batch_size": 32, "flips": False, "train_size": 520, "test_size": 60}
BINS = 15  # of confidence, for the calibration error


def seeded_generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(s) -> resnets.ResNet:
    """ResNet-`depth` whose first stage has `width` channels."""
    return network_of(s, "residual", s.depth, widths=(s.width, 2 * s.width, 4 * s.width))


def configured(s, rate: float, epochs: int, **changes) -> train.TrainConfig:
    given = {"learning_rate": rate, "epochs": epochs, "batch_size": s.batch_size} | changes
    return train.TrainConfig(**given, precision=s.number_format, device=str(s.device))


def with_training(dataset: data.Dataset, images: torch.Tensor, labels: torch.Tensor, length: int) -> data.Dataset:
    """The data set with these pictures to train on, repeated to this length: so many pictures make an epoch."""
    index = torch.arange(length) % len(labels)
    return replace(dataset, train=data.Split(images[index], labels[index]))


def taught(
    s, dataset: data.Dataset, config: train.TrainConfig, seed: int, task: train.Task | None = None, model=None
) -> train.Fit:
    """A network trained on a data set's training pictures, cropped and flipped, with plain averages in its norms."""
    made = train.fit(
        model or partial(network, s),
        dataset,
        config,
        seed=seed,
        task=task,
        augmentation=lambda images, generator: changed(s, images, generator),
        on_divergence="record",
        progress=False,
    )
    if not made.rows[-1]["diverged"]:
        train.settle(made.model, train.Batches(dataset, dataset.train, config, s.device), SETTLING)
    return made


@torch.no_grad()
def probabilities(s, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Class probabilities (N, K) of pictures, on the CPU."""
    split = data.Split(images, torch.zeros(len(images), dtype=torch.int64))
    batches = train.Batches(s.pictures, split, train.TrainConfig(device=str(s.device)), s.device)
    return torch.cat([model.eval()(shown).float().softmax(1).cpu() for shown, _ in batches.in_order(500)])


def recalls(guess: torch.Tensor, labels: torch.Tensor, classes: int) -> list[float]:
    """The share of each class's pictures that are given its name; a class without pictures has none, and counts as 0."""
    from sklearn.metrics import recall_score

    return recall_score(labels, guess, labels=range(classes), average=None, zero_division=0).tolist()


def calibration_error(found: torch.Tensor, labels: torch.Tensor) -> float:
    """Expected calibration error: |accuracy − confidence|, averaged over bins of confidence by their sizes.

    Source: Guo et al. 2017, arXiv:1706.04599, equation (3), with BINS bins of equal width.
    """
    confidence, guess = found.max(1)
    place = (confidence * BINS).long().clamp_max(BINS - 1)
    off = (guess == labels).float() - confidence
    return (torch.zeros(BINS).index_add_(0, place, off).abs().sum() / len(labels)).item()


def judged(s, model: nn.Module, split: data.Split) -> dict:
    """Accuracy, balanced accuracy, calibration error, and the recall of each class, on a split."""
    found = probabilities(s, model, split.images)
    guess = found.argmax(1)
    own = recalls(guess, split.labels, s.facts["classes"])
    return {
        "accuracy": (guess == split.labels).float().mean().item(),
        "balanced_accuracy": sum(own) / len(own),
        "calibration_error": calibration_error(found, split.labels),
        "recalls": own,
    }


def converged(made: train.Fit, what: str) -> train.Fit:
    """The same. Raises: ArithmeticError where it diverged at the learning rate that was chosen for it."""
    if made.rows[-1]["diverged"]:
        raise ArithmeticError(f"{what} diverged at the learning rate that was chosen for it: give smaller rates")
    return made


def tried(s, made: train.Fit) -> list[dict]:
    """A trial's row: balanced accuracy on validation pictures, by which a rate is chosen; 0 if it diverged."""
    diverged = made.rows[-1]["diverged"]
    score = 0.0 if diverged else judged(s, made.model, s.pictures.val)["balanced_accuracy"]
    return [{"score": score, "diverged": diverged}]


def key_of(row: dict, names: Sequence[str]) -> str:
    return " | ".join(str(row[name]) for name in names)


def best_rates(rows: list[dict], names: Sequence[str]) -> dict[str, float]:
    """The rate with the highest validation score for each arm, by the values of its columns."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(key_of(row, names), []).append(row)
    return {key: stats.best_setting(group, "score", "rate", highest=True) for key, group in groups.items()}


def refuse_rates(s) -> None:
    if not s.rates or min(s.rates) <= 0:
        raise ValueError(f"rates={s.rates} must be one or more learning rates above 0")


def rates_experiment(
    name: str,
    run: Callable,
    arms: Callable,
    names: tuple[str, ...],
    settings: tuple[str, ...],
    counts: tuple[str, ...],
    tiny: dict,
) -> Experiment:
    """The experiment that chooses each arm's learning rate.

    Args: arms: (s) → the arms; names: the columns that tell them apart; the rest as in Experiment.
    """

    def conditions(s):
        refuse_rates(s)
        return [arm | {"rate": rate, "seed": CHOOSER} for arm in arms(s) for rate in s.rates]

    def estimates(rows, s):
        ends = stats.at_an_end(best_rates(rows, names).values(), (r["rate"] for r in rows))
        return {"at_an_end": stats.exact(ends, "arms")}

    def finding(rows, s, e):
        chosen, rates = best_rates(rows, names), sorted({r["rate"] for r in rows})
        counts = [f"{sum(rate == best for best in chosen.values())} chose {rate:g}" for rate in rates]
        return (
            f"Of {len(chosen)} arms {page.listed(counts)}, by the balanced accuracy on validation pictures of one seed that is "
            f"not compared. {e['at_an_end'].mean:.0f} lie at an end of what was tried."
        )

    def table(rows, s):
        lines: dict[str, dict] = {}
        for row in rows:
            lines.setdefault(key_of(row, names), {n: row[n] for n in names})[f"{row['rate']:g}"] = row["score"]
        columns = {n: n for n in names}
        columns |= {f"{rate:g}": (f"at {rate:g}", ".1%") for rate in sorted({r["rate"] for r in rows})}
        return page.table(list(lines.values()), columns)

    return Experiment(
        name,
        run=run,
        conditions=conditions,
        estimates=estimates,
        settings=settings,
        counts=("rates", *counts),
        tiny={"rates": [0.03, 0.1]} | tiny,
        finding=finding,
        table=table,
    )
