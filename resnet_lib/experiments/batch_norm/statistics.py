"""Whose statistics at test time: the running averages that frameworks keep, or the whole data set's?"""

import copy
from dataclasses import replace
from statistics import fmean

import torch
from torch import nn

from resnet_lib import data, page, plots, stats, train
from resnet_lib.experiments.batch_norm.networks import UPDATE_RATE, Network, network, steps, training
from resnet_lib.experiments.batch_norm.rates import RATES
from resnet_lib.experiments.batch_norm.trainings import best_rates
from resnet_lib.study import Experiment

Statistics = list[tuple[torch.Tensor, torch.Tensor]]  # mean and variance (C,) of each norm's input, first norm first

UPDATE_RATES = (0.01, 0.03, UPDATE_RATE, 0.3, 1.0)
TRACE = (5, 10, 20, 40, 80)  # steps of the short run at which averages are compared
SHORT = 20  # the step that a claim is about
CASES = {  # in which PyTorch's layer is held to the equation
    "2-d": ((32, 5), {}),
    "4-d": ((8, 5, 6, 6), {}),
    "4-d, channels last": ((8, 5, 6, 6), {"memory_format": torch.channels_last}),
    "4-d, float64": ((8, 5, 6, 6), {"dtype": torch.float64}),
}
CHANGES = {  # of test pictures: contrast about the mean, then brightness, of pixels in 0 … 1
    "none": (1.0, 0.0),
    "brighter by 0.2": (1.0, 0.2),
    "brighter by 0.4": (1.0, 0.4),
    "contrast × 0.5": (0.5, 0.0),
    "contrast × 0.25": (0.25, 0.0),
}
FLATTEST = "contrast × 0.25"


def equation(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """Batch norm in training: x (N, C, …) with the batch's own statistics applied.

    Source: Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 1.
    """
    over, spread = [d for d in range(x.ndim) if d != 1], [1, -1] + [1] * (x.ndim - 2)
    mean = x.mean(over)
    var = (x - mean.view(spread)).square().mean(over)
    normal = (x - mean.view(spread)) * (var + eps).rsqrt().view(spread)
    return gamma.view(spread) * normal + beta.view(spread)


def definition(case: str) -> list[dict]:
    """The largest absolute difference between PyTorch's layer in training and the equation."""
    shape, options = CASES[case]
    dtype, draw = options.get("dtype", torch.float32), torch.Generator().manual_seed(0)
    x = (3 * torch.randn(shape, generator=draw) + 1).to(dtype)
    torch.randn(shape, generator=draw)  # the chapter's check of gradients draws one here, and shares the numbers
    if len(shape) == 4:
        x = x.contiguous(memory_format=options.get("memory_format", torch.contiguous_format))
    layer = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(shape[1]).to(dtype)
    with torch.no_grad():
        for value in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
            value.copy_(0.5 + torch.rand(shape[1], generator=draw))
        difference = (equation(x, layer.weight, layer.bias) - layer(x)).abs().max().item()
    return [{"what": "definition", "difference": difference}]


def norms_of(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]


@torch.no_grad()
def use(model: nn.Module, statistics: Statistics) -> nn.Module:
    """Put statistics into the first norms of a network."""
    for norm, (mean, var) in zip(norms_of(model), statistics, strict=False):
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
    return model


@torch.no_grad()
def exact_statistics(model: nn.Module, batches) -> Statistics:
    """Mean and (biased) variance, float64, of every norm's input over all pictures; each layer sees the exact ones before it.

    Args: batches: of (images, labels), each picture once, in memory or gone through once a norm.
    """
    model, found = copy.deepcopy(model).eval(), []
    for norm in norms_of(model):
        values = []  # count, sum and sum of squares of each batch, in float64

        def add(module, given, values=values):
            x = given[0].double().transpose(0, 1).flatten(1)
            values.append((x.shape[1], x.sum(1), x.square().sum(1)))

        handle = norm.register_forward_pre_hook(add)
        for images, _ in batches:
            model(images)
        handle.remove()
        count, total, squares = (sum(column) for column in zip(*values, strict=True))
        mean = total / count
        found.append((mean, squares / count - mean.square()))
        use(model, found)
    return found


@torch.no_grad()
def averaged_statistics(model: nn.Module, batches) -> Statistics:
    """The batches' means and (unbiased) variances, averaged over one pass in training mode."""
    model = copy.deepcopy(model).train()
    for norm in norms_of(model):
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's way to ask for a plain average
    for images, _ in batches:
        model(images)
    return [(norm.running_mean, norm.running_var) for norm in norms_of(model)]


def variance_off(statistics: Statistics, exact: Statistics) -> list[float]:
    """Variance over the exact one, minus 1: mean of channels, layer by layer."""
    pairs = zip(statistics, exact, strict=True)
    return [(ours / true.clamp_min(1e-12) - 1).mean().item() for (_, ours), (_, true) in pairs]


def variance_left(variance, step: int, update_rate: float = UPDATE_RATE):
    """Predicted running over true variance, minus 1: it starts at 1, and the true one has not moved since the start."""
    return (1 - update_rate) ** step * (1 / variance - 1)


def follow(s, model: nn.Module) -> dict[float, Statistics]:
    """Running statistics at each update rate, kept by hooks side by side: they play no part in training."""
    start = lambda fill, norm: torch.full((norm.num_features,), fill, device=s.device)
    kept = {rate: [(start(0.0, norm), start(1.0, norm)) for norm in norms_of(model)] for rate in UPDATE_RATES}

    def hook(place):
        def remember(module, given):
            if module.training:
                var, mean = torch.var_mean(given[0].detach().float().transpose(0, 1).flatten(1), 1)
                for rate, averages in kept.items():
                    averages[place][0].lerp_(mean, rate)
                    averages[place][1].lerp_(var, rate)

        return remember

    for place, norm in enumerate(norms_of(model)):
        norm.register_forward_pre_hook(hook(place))
    return kept


def without_hooks(model: nn.Module) -> nn.Module:
    """A copy, in evaluation mode, whose norms keep nothing."""
    twin = copy.deepcopy(model)
    for norm in norms_of(twin):
        norm._forward_pre_hooks.clear()
    return twin.eval()


def pictures_of(s, split: data.Split) -> list:
    """A whole split in large batches, on the device."""
    return list(train.Batches(s.pictures, split, training(s, s.batch_size), s.device).in_order(500))


def accuracy_with(s, model: nn.Module, statistics: Statistics, split: data.Split) -> float:
    config = training(s, s.batch_size)
    return 1 - train.evaluate(use(model, statistics), s.pictures, split, config)["error"]


def compared(s, model: nn.Module, kept: dict[float, Statistics], what: str, step: int):
    """Running statistics at every update rate against the exact ones; the network with the exact ones; its own."""
    twin = without_hooks(model)
    exact = exact_statistics(twin, pictures_of(s, s.pictures.train))
    own = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms_of(twin)]
    both = zip(own, kept[UPDATE_RATE], strict=True)
    gap = max((a - b).abs().max().item() for x, y in both for a, b in zip(x, y, strict=True))
    best = {part: accuracy_with(s, twin, exact, getattr(s.pictures, part)) for part in ("val", "test")}
    expected = fmean(variance_left(var.clamp_min(1e-3), step).mean().item() for _, var in exact)
    rows = []
    for rate, statistics in kept.items():
        row = {"what": what, "step": step, "update_rate": rate, "off": fmean(variance_off(statistics, exact))}
        row["val_change"] = best["val"] - accuracy_with(s, twin, statistics, s.pictures.val)
        row |= {"accuracy": best["test"], "gap": None, "predicted": None, "test_change": None}
        if rate == UPDATE_RATE:
            row |= {"gap": gap, "predicted": expected}
            row["test_change"] = best["test"] - accuracy_with(s, twin, statistics, s.pictures.test)
        rows.append(row)
    return rows, use(twin, exact), own


def lost_between(s, model: Network) -> list[dict]:
    """Averaged batch variances over the exact ones by batch size, and what is predicted for the first layer.

    If a share of a unit's variance lies between pictures, a batch of N pictures misses that share over N, and dividing
    by m - 1 in place of m gives 1/m back.
    """
    split, config = s.pictures.train, training(s, s.batch_size)
    batches = pictures_of(s, split)
    exact, rows = exact_statistics(model, batches), []
    with torch.no_grad():
        first = model.layers[0].linear(torch.cat([images for images, _ in batches])).double()
    share = (first.mean((2, 3)).var(0) / exact[0][1].clamp_min(1e-12)).mean().item()
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    shuffled = train.Batches(s.pictures, data.Split(split.images[order], split.labels[order]), config, s.device)
    for size in (2, 8, 32, 128):
        whole = (batch for batch in shuffled.in_order(size) if len(batch[0]) == min(size, len(split)))
        off = variance_off(averaged_statistics(model, whole), exact)
        count = size * first[0, 0].numel()  # values of a unit in a batch
        predicted = (1 - share / size) * count / (count - 1) - 1
        rows.append({"what": "averaged", "size": size, "predicted": predicted, "first": off[0], "all": fmean(off)})
    return rows


def changed(split: data.Split, change: str) -> data.Split:
    """Pictures made brighter or flatter."""
    contrast, brightness = CHANGES[change]
    pixels = split.images.float() / 255
    pixels = ((pixels - pixels.mean()) * contrast + pixels.mean() + brightness).clamp(0, 1)
    return data.Split((pixels * 255).round().to(torch.uint8), split.labels)


def on_changed(s, model: nn.Module, statistics: Statistics, named: str) -> list[dict]:
    """Accuracy on changed test pictures with the given statistics, and with the pictures' own, taken without labels."""
    rows = []
    for change in CHANGES:
        part = changed(s.pictures.test, change)
        row = {"what": "changed", "network": named, "change": change}
        rows.append(row | {"statistics": "running", "accuracy": accuracy_with(s, model, statistics, part)})
        if norms_of(model):
            own = exact_statistics(model, pictures_of(s, part))
            rows.append(row | {"statistics": "the pictures' own", "accuracy": accuracy_with(s, model, own, part)})
    return rows


def networks_judged(s, rate: float, rate_without: float, seed: int) -> list[dict]:
    """A short and a long training, whose running averages are held to the exact ones, and changed test pictures.

    Args: rate, rate_without: the best learning rates with batch norm, and without a norm.
    """
    kept, rows = [], []
    with train.seeded(seed):
        model = network(s).to(s.device, memory_format=torch.channels_last)
        short = follow(s, model)
        config = training(s, s.batch_size, learning_rate=min(0.1, rate))
        for step in steps(s, model, config, seed, max(TRACE) + 1):
            rows += compared(s, model, short, "short", step)[0] if step in TRACE else []

    def make():
        model = network(s)
        kept.append(follow(s, model))
        return model

    schedule = {"epochs": s.long_epochs, "schedule": "one_cycle"}
    config = training(s, s.batch_size, learning_rate=rate, **schedule)
    fitted = train.fit(make, s.pictures, config, seed=seed, progress=False)
    found, model, running = compared(s, fitted.model, kept[0], "long", fitted.rows[-1]["step"])
    rows += found + lost_between(s, model) + on_changed(s, model, running, "batch norm")
    config = training(s, s.batch_size, learning_rate=rate_without, **schedule)
    plain = train.fit(lambda: network(s, "none"), s.pictures, config, seed=seed, progress=False).model
    return rows + on_changed(s, plain, [], "none")


def statistics(s, case: str = "", **condition) -> list[dict]:
    """PyTorch's layer against the equation in one case; or the networks of one seed against exact statistics."""
    return definition(case) if case else networks_judged(s, **condition)


def seed_runs(s) -> list[dict]:
    rates = {"rate": s.best_rates["batch norm"], "rate_without": s.best_rates["none"]}
    return [rates | {"seed": seed} for seed in s.seeds]


def at_own_rate(rows, what: str, step: int | None = None):
    """Comparisons at PyTorch's own update rate, of the long run or of one step of the short one."""
    return [r for r in stats.where(rows, what=what) if r["update_rate"] == UPDATE_RATE and step in (None, r["step"])]


def estimates(rows, s):
    short, long = at_own_rate(rows, "short", SHORT), at_own_rate(rows, "long")
    of = lambda own, value, unit: stats.interval([r[value] for r in own], unit=unit)
    return {
        "training_difference": stats.exact(max(r["difference"] for r in stats.where(rows, what="definition"))),
        "long_run_difference": of(long, "off", "relative"),
        "short_run_difference": of(short, "off", "relative"),
        "accuracy_change": of(long, "test_change", "accuracy"),
        "short_accuracy_change": of(short, "test_change", "accuracy"),
    }


def finding(rows, s, e):
    predicted = fmean(r["predicted"] for r in at_own_rate(rows, "short", SHORT))
    words = "higher by", "lower by", "not clearly different"
    return (
        f"In training PyTorch's layer is the equation to within {e['training_difference'].mean:.0e}. "
        "In evaluation the running variance differs from the exact one of the whole training set by "
        f"{e['long_run_difference']} after {at_own_rate(rows, 'long')[0]['step']} steps and by {e['short_run_difference']} "
        f"after {SHORT}, where {100 * predicted:+.0f} % was predicted. "
        f"With exact statistics test accuracy is {page.change(e['accuracy_change'], *words)}, after the long training, and "
        f"{page.change(e['short_accuracy_change'], *words)}, after {SHORT} steps."
    )


def draw_figure(rows, s):
    short, averaged = stats.where(rows, what="short"), stats.where(rows, what="averaged")
    parts = {"all": "all layers", "first": "first layer"}
    layers = [r | {"layers": name, "off": r[part]} for part, name in parts.items() for r in averaged]
    dashed = {"linestyle": "--", "color": "black", "linewidth": 1.2}

    def theory(ax, own, x, label):
        places = sorted({r[x] for r in own})
        ax.plot(places, [fmean(r["predicted"] for r in own if r[x] == p) for p in places], label=label, **dashed)

    with plots.figure(1, 3, width=8.4, height=3.4) as (figure, axes):
        plots.lines(axes[0], short, "step", "off", by="update_rate", label="r = {:g}".format, marker=True)
        theory(axes[0], [r for r in short if r["predicted"] is not None], "step", f"predicted, r = {UPDATE_RATE}")
        axes[0].set(xlabel="step", ylabel="running over exact\nvariance, minus 1, %")
        figure.legend(*axes[0].get_legend_handles_labels(), fontsize=10, ncol=4, loc="outside upper left")
        plots.lines(axes[1], short, "step", "val_change", by="update_rate", marker=True)
        axes[1].set(xlabel="step", ylabel="accuracy gained by\nexact ones, points")
        plots.hundredths(*(ax.yaxis for ax in axes))
        plots.lines(axes[2], layers, "size", "off", by="layers", marker=True)
        theory(axes[2], averaged, "size", "predicted, first layer")
        axes[2].set(xscale="log", xlabel="pictures in a batch", ylabel="averaged over exact\nvariance, minus 1, %")
        sizes = sorted({r["size"] for r in averaged})
        axes[2].set_xticks(sizes, sizes)
        axes[2].minorticks_off()
        axes[2].legend(fontsize=9, loc="lower right")
    return (
        f"The lower the update rate r, the longer running averages remember their start (PyTorch's is {UPDATE_RATE}); the "
        "smaller the batches, the more their averaged variance misses. Thin lines are seeds, dashed ones predictions."
    )


STATISTICS = Experiment(
    "statistics",
    run=statistics,
    needs=RATES,
    choose=best_rates,
    conditions=lambda s: [*({"case": case} for case in CASES), *seed_runs(s)],
    estimates=estimates,
    settings=("layers", "width", "batch_size", "long_epochs", "number_format"),
    tiny={"layers": 3, "width": 8, "batch_size": 128, "long_epochs": 1},
    finding=finding,
    figure=draw_figure,
    alt="Three panels: the running variance over the exact one minus one against the step, for five update rates; the "
    "accuracy lost by running averages at the same steps; and averaged batch variances against the batch size with the "
    "prediction dashed. One thin line for each seed.",
    kept=("definition", "short", "long", "averaged"),
)


def gain_name(change: str) -> str:
    return "own_gain_" + change.replace("× ", "").replace(" ", "_").replace(".", "")


def gain(rows, change: str) -> stats.Estimate:
    """Test accuracy with the changed pictures' own statistics minus with the running ones."""
    own = [r for r in rows if (r["network"], r["change"]) == ("batch norm", change)]
    return stats.paired_rows(own, "accuracy", "statistics", "the pictures' own", "running", unit="accuracy")


def changed_estimates(rows, s):
    lost = [r for r in rows if r["statistics"] == "running" and r["change"] in ("none", FLATTEST)]
    normed = [r for r in lost if r["network"] == "batch norm"]
    plain = [r for r in lost if r["network"] == "none"]
    cost = lambda own: stats.paired_rows(own, "accuracy", "change", "none", FLATTEST, unit="accuracy")
    gains = {gain_name(change): gain(rows, change) for change in CHANGES}
    return gains | {"lost_to_flatness": cost(normed), "lost_to_flatness_plain": cost(plain)}


def changed_finding(rows, s, e):
    gains = "; ".join(f"{change}, {e[gain_name(change)]}" for change in CHANGES if change != "none")
    return (
        f"With contrast at a quarter the network with batch norm loses {e['lost_to_flatness']} of accuracy if it answers "
        f"with its running statistics, where the network without a norm loses {e['lost_to_flatness_plain']}. "
        f"The pictures' own statistics give back: {gains}. "
        "On unchanged pictures, the null, they "
        f"{page.change(e[gain_name('none')], 'gain', 'lose', 'make no clear difference')}."
    )


def draw_changed(rows, s):
    named = []
    for r in rows:
        using = "no norm" if r["network"] == "none" else f"batch norm, {r['statistics']}"
        place = "unchanged" if r["change"] == "none" else r["change"].replace(" by ", "\nby ").replace(" × ", "\n× ")
        named.append(r | {"using": using, "place": place})
    colours = dict(
        zip(
            ("no norm", "batch norm, running", "batch norm, the pictures' own"),
            (plots.ORANGE, plots.BLUE, plots.GREEN),
            strict=True,
        )
    )
    with plots.figure(height=3.6) as (figure, ax):
        plots.dots(ax, named, "place", "accuracy", by="using", colours=colours, offset=0.15, join=False)
        ax.set(ylabel="test accuracy, %", ylim=(0, None))
        plots.hundredths(ax.yaxis)
        ax.tick_params(axis="x", labelsize=10)
        figure.legend(*ax.get_legend_handles_labels(), fontsize=10, ncol=2, loc="outside upper left")
    word = page.trend(gain(rows, FLATTEST), "keep", "lose more of", "do not clearly keep")
    return (
        f"Statistics of the changed pictures themselves {word} the accuracy that running statistics lose as pictures get "
        "flatter. Dots are seeds, bars intervals of 95 %."
    )


CHANGED_PICTURES = replace(
    STATISTICS,
    name="changed_pictures",
    conditions=seed_runs,
    estimates=changed_estimates,
    finding=changed_finding,
    figure=draw_changed,
    alt="Test accuracy for unchanged, brighter and flatter test pictures: network without a norm, batch norm with running "
    "statistics, and batch norm with the pictures' own statistics; a dot for each seed and the mean with its interval.",
    kept=("changed",),
)
