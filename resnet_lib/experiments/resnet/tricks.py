"""A bag of tricks: each alone beside one plain recipe, and all together."""

from statistics import fmean

from torch import nn

from resnet_lib import blocks, page, plots, resnets, stats, train
from resnet_lib.experiments.resnet.networks import cifar, draw_effects, judge, training
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

PLAIN = {"schedule": "step", "warmup": 0.0, "label_smoothing": 0.0, "ema_decay": 0.0}
BASELINE, TOGETHER = "plain recipe", "all together"


class AverageFirst(nn.Sequential):
    """ResNet-D's shortcut: average 2×2 pixels, then a 1×1 convolution of stride 1, then a norm.

    Source: He T. et al. 2018, arXiv:1812.01187, §4.2.
    """

    def __init__(self, in_channels: int, out_channels: int):
        pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)
        convolution = blocks.conv1x1(in_channels, out_channels)
        super().__init__(pool, convolution, nn.BatchNorm2d(out_channels))


def with_deep_stem(model: resnets.ResNet) -> None:
    """Three 3×3 convolutions at half width in place of the stem (ResNet-C)."""
    channels, width = model.conv1.in_channels, model.conv1.out_channels
    sizes, layers = [(channels, width // 2), (width // 2, width // 2)], []
    for before, after in sizes:
        layers += [blocks.conv3x3(before, after), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    model.conv1 = nn.Sequential(*layers, blocks.conv3x3(width // 2, width))
    blocks.initialise(model.conv1, "he")


def with_averaging_shortcuts(model: resnets.ResNet) -> None:
    for unit in model.units():
        if unit.stride == 2:
            unit.downsample = AverageFirst(unit.in_channels, unit.out_channels)
            blocks.initialise(unit.downsample, "he")


def decayed_everywhere(smoothing: float, decay: float) -> train.Task:
    """Classification, with the decay of norms and biases in the loss: the library's optimisers leave them alone."""
    classify = train.classification(smoothing)

    def task(model, images, labels, generator):
        measured = classify(model, images, labels, generator)
        if model.training:
            small = sum(p.square().sum() for p in model.parameters() if p.ndim <= 1)
            measured["loss"] = measured["loss"] + decay / 2 * small
        return measured

    return task


def ema_decay(s) -> float:
    """Averages the weights over about the last tenth of the steps."""
    return max(0.0, 1 - 10 / (s.trick_epochs * (s.facts["train"] // s.batch_size)))


def recipes(s) -> dict[str, dict]:
    """Each recipe: what changes in the training, in the network's shape, and in the built network."""
    alone = {
        BASELINE: {},
        "deep stem": {"surgery": [with_deep_stem]},
        "ResNet-D shortcuts": {"surgery": [with_averaging_shortcuts]},
        "label smoothing": {"training": {"label_smoothing": 0.1}},
        "EMA": {"training": {"ema_decay": ema_decay(s)}},
        "cosine": {"training": {"schedule": "cosine"}},
        "zero-γ": {"shape": {"zero_init_last_norm": True}},
        "warm-up": {"training": {"warmup": 0.1}},
        "no decay on norms": {"spare_norms": True},
    }
    every = {
        "training": {k: v for trick in alone.values() for k, v in trick.get("training", {}).items()},
        "shape": {"zero_init_last_norm": True},
        "surgery": [with_deep_stem, with_averaging_shortcuts],
        "spare_norms": True,
    }
    return alone | {TOGETHER: every}


def tricks(s, trick: str, seed: int) -> list[dict]:
    """Train one network by one recipe."""
    changes = recipes(s)[trick]
    config = training(s, epochs=s.trick_epochs, **(PLAIN | changes.get("training", {})))

    def make() -> resnets.ResNet:
        model = resnets.resnet_cifar(s.trick_depth, shortcut="B", **changes.get("shape", {}), **cifar(s))
        for operate in changes.get("surgery", []):
            operate(model)
        return model

    decay = 0.0 if changes.get("spare_norms") else config.weight_decay
    task = decayed_everywhere(config.label_smoothing, decay)
    fitted = train.fit(make, s.pictures, config, seed=seed, task=task, progress=False)
    row = {name: fitted.rows[-1][name] for name in ("train_loss", "time_s")}
    row |= {"parameters": resnets.count_parameters(fitted.model)} | judge(s, fitted.model)
    return [row | {"accuracy": 1 - row["test_error"]}]


def names(rows):
    """The single tricks, in their order."""
    return [t for t in dict.fromkeys(r["trick"] for r in rows) if t not in (BASELINE, TOGETHER)]


def gain(rows, trick, **options):
    return stats.paired_rows(rows, "accuracy", "trick", trick, BASELINE, unit="accuracy", **options)


def estimates(rows, s):
    """The gain of each trick and of all together, and how much the whole gains beyond the sum of its parts."""
    of = {(r["trick"], r["seed"]): r["accuracy"] for r in rows}
    seeds = sorted({r["seed"] for r in rows})
    sums = [sum(of[trick, n] - of[BASELINE, n] for trick in names(rows)) for n in seeds]
    whole = [of[TOGETHER, n] - of[BASELINE, n] for n in seeds]
    found = {"together_gain": gain(rows, TOGETHER), "together_over_sum": stats.paired(whole, sums, unit="accuracy")}
    slug = lambda trick: trick.replace("γ", "gamma").replace("-", "_").replace(" ", "_").lower()
    return found | {f"{slug(trick)}_gain": gain(rows, trick) for trick in names(rows)}


def sure(rows, trick):
    """Whether it helps or hurts where all intervals must hold at once (Bonferroni)."""
    careful = 1 - 0.05 / (len(names(rows)) + 1)
    return page.trend(gain(rows, trick, confidence=careful), "helps", "hurts", "–")


def _verb(names, verb: str) -> str:
    return f"{page.listed(names, 'none')} {verb}{'' if len(names) > 1 else 's'}"


def finding(rows, s, e):
    single = names(rows)
    helps = [trick for trick in single if gain(rows, trick).low > 0]
    hurts = [trick for trick in single if gain(rows, trick).high < 0]
    certain = [trick for trick in single if sure(rows, trick) != "–"]
    return (
        f"Of {len(single)} tricks alone, by its own interval {_verb(helps, 'help')}, and {_verb(hurts, 'hurt')}. Among so many "
        f"intervals one in twenty misses by chance; where all must hold at once, {_verb(certain, 'remain')}. All together "
        f"{page.change(e['together_gain'], 'gain', 'lose', 'make no clear difference')}; against the sum of the single gains "
        f"that is {page.change(e['together_over_sum'], 'more by', 'less by', 'not clearly more or less')}."
    )


def table(rows, s):
    plain_time, shown = fmean(r["time_s"] for r in rows if r["trick"] == BASELINE), []
    for trick in dict.fromkeys(r["trick"] for r in rows):
        own = [r for r in rows if r["trick"] == trick]
        row = {"trick": trick, "accuracy": stats.interval([r["accuracy"] for r in own], unit="share")}
        row |= {"loss": fmean(r["test_loss"] for r in own), "time": fmean(r["time_s"] for r in own) / plain_time}
        if trick != BASELINE:
            row |= {"gain": gain(rows, trick), "sure": sure(rows, trick)}
        shown.append(row)
    columns = {"trick": "recipe", "accuracy": "test accuracy", "gain": "gain, paired", "sure": "all intervals at once"}
    return page.table(shown, columns | {"loss": ("test loss", ".3f"), "time": ("time, plain = 1", ".2f")})


def draw(rows, s):
    with plots.figure(height=3.8) as (_, ax):
        draw_effects(ax, rows, "trick", BASELINE)
        ax.set(xlabel="test accuracy minus the plain recipe's, points")
    found = {trick: gain(rows, trick) for trick in (*names(rows), TOGETHER)}
    helps, hurts = ([t for t, e in found.items() if e.low > 0], [t for t, e in found.items() if e.high < 0])
    return f"By its own interval {_verb(helps, 'help')}, and {_verb(hurts, 'hurt')}. Dots are seeds, bars intervals of 95 %."


def _recipes(s):
    resnets.cifar_config(s.trick_depth)
    return list(recipes(s))


TRICKS = Experiment(
    "tricks",
    run=tricks,
    conditions=lambda s: conditions(trick=_recipes(s), seed=s.seeds),
    estimates=estimates,
    settings=("trick_depth", "trick_epochs", "batch_size", "learning_rate", "number_format"),
    tiny={"trick_depth": 8, "trick_epochs": 1, "batch_size": 64},
    finding=finding,
    figure=draw,
    alt="One line for each trick and one for all together: a small dot for each seed and the mean with its interval of the "
    "test accuracy minus the plain recipe's, with a vertical line at zero.",
    table=table,
)
