"""The chapter's network, its training with any settings, and how a best setting is chosen and compared."""

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt

from torch import nn

from resnet_lib import data, resnets, stats, train

VARIED = ("learning_rate", "batch_size", "momentum", "weight_decay", "warmup", "label_smoothing")  # as TrainConfig's
SETTINGS = (*VARIED, "epochs", "depth", "width", "number_format")  # of every training in this chapter
SETTLING = 4  # batches over which the norms' statistics are taken anew before a network is judged
GLANCE = 64  # validation pictures that `fit` looks at after each epoch; what counts is judged at the end
CHOOSER = 1000  # the seed that chooses learning rates where each network has its own: none of those compared
ACTIVATIONS = {
    "ReLU": lambda: nn.ReLU(inplace=True),
    "LeakyReLU": lambda: nn.LeakyReLU(0.01, inplace=True),
    "GELU": lambda: nn.GELU(),
    "SiLU": lambda: nn.SiLU(inplace=False),
}


def network(s, depth: int, width: int, activation: str = "ReLU", dropout: float = 0.0) -> resnets.ResNet:
    """A CIFAR ResNet with any activation function, and dropout before its last layer.

    Source: He et al. 2015, §4.2. Departs: the activation functions keep the weights that He drew for ReLU.
    """
    shape = {"in_channels": s.facts["shape"][0], "num_classes": s.facts["classes"]}
    model = resnets.resnet_cifar(depth, widths=(width, 2 * width, 4 * width), **shape)
    if activation != "ReLU":
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.ReLU):
                    setattr(module, name, ACTIVATIONS[activation]())
    if dropout:
        model.fc = nn.Sequential(nn.Dropout(dropout), model.fc)
    return model


def training(s, **changes) -> train.TrainConfig:
    """The base settings, some of them changed."""
    base = {name: getattr(s, name) for name in (*VARIED, "epochs")}
    return train.TrainConfig(**base | {"precision": s.number_format, "device": str(s.device)} | changes)


def first(split: data.Split, count: int) -> data.Split:
    return data.Split(split.images[:count], split.labels[:count])


def fitted(s, model, pictures: data.Dataset, config: train.TrainConfig, seed: int) -> train.Fit:
    """Train; only a glance at the validation pictures after each epoch, since the last one is judged apart."""
    glance = replace(pictures, val=first(pictures.val, GLANCE))
    return train.fit(model, glance, config, seed=seed, on_divergence="record", progress=False)


def error_of(
    s, fit: train.Fit, config: train.TrainConfig, split: data.Split, pictures: data.Dataset | None = None
) -> float:
    """The error on a split with settled statistics; a training that failed, or did worse than guessing, counts as it.

    Running averages remember their start for some tens of steps, and large batches take few.
    Args: pictures: whose training part the network was trained on, where that is not the whole.
    """
    if fit.rows[-1]["diverged"]:
        return s.chance_error
    model = train.settle(
        fit.model, train.Batches(s.pictures, (pictures or s.pictures).train, config, s.device), SETTLING
    )
    return min(train.evaluate(model, s.pictures, split, config)["error"], s.chance_error)


def cell(s, seed: int, **changes) -> dict:
    """The condition of one training: all its settings, so that experiments which ask for the same one share it."""
    base = {name: getattr(s, name) for name in VARIED} | {"schedule": "one_cycle", "dropout": 0.0}
    return base | changes | {"seed": seed}


def trained(s, seed: int, dropout: float, **settings) -> list[dict]:
    """One training of the chapter's network; its validation error and its last training error."""
    config = training(s, **settings)
    fit = fitted(s, lambda: network(s, s.depth, s.width, dropout=dropout), s.pictures, config, seed)
    last = fit.rows[-1]
    train_error = s.chance_error if last["diverged"] else last["train_error"]
    row = {"error": error_of(s, fit, config, s.pictures.val), "train_error": train_error}
    return [row | {"what": "run", "diverged": last["diverged"]}]


def celled(rows: Sequence[dict], by: Sequence[str]) -> list[dict]:
    """The rows with their values of some columns as one, `cell`."""
    return [r | {"cell": tuple(r[name] for name in by)} for r in rows]


def seeds_of(rows: Sequence[dict]) -> list[int]:
    return sorted({r["seed"] for r in rows})


def chosen_elsewhere(
    rows: Sequence[dict], by: Sequence[str], value: str = "error", worst: bool = False
) -> dict[int, dict]:
    """By seed, its row in the cell that the other seeds find best (or worst): no result chooses itself."""
    found, rows = {}, celled(rows, by)
    for seed in seeds_of(rows):
        cell = stats.best_setting([r for r in rows if r["seed"] != seed], value, "cell", highest=worst)
        (found[seed],) = stats.where(rows, seed=seed, cell=cell)
    return found


def gain(better: dict[int, dict], worse: dict[int, dict], value: str = "error") -> stats.Estimate:
    """How much lower the first's error is, paired by seed: a gain in accuracy."""
    seeds = sorted(better)
    return stats.paired([worse[n][value] for n in seeds], [better[n][value] for n in seeds], unit="accuracy")


def basin(rows: Sequence[dict], by: Sequence[str], value: str = "error") -> list[tuple]:
    """The cells whose mean error is at most the lowest mean and one standard error of it, the lowest first.

    Source: Breiman et al. 1984, Classification and regression trees, §3.4.3: the rule of one standard error.
    """
    means = sorted(stats.summarise(celled(rows, by), value, ("cell",)), key=lambda r: r["mean"])
    limit = means[0]["mean"] + means[0]["sd"] / sqrt(means[0]["n"])
    return [r["cell"] for r in means if r["mean"] <= limit]
