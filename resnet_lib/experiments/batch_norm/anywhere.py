"""Can batch normalisation be used in any layer, at any batch size?"""

import itertools
import math
from dataclasses import replace

import torch
from torch import nn

from resnet_lib import data, page, plots, resnets, stats, train
from resnet_lib.experiments.batch_norm.networks import network, refuse_networks, training
from resnet_lib.study import Experiment

KINDS = {
    "convolution": ("batch", "group", "layer", "none"),
    "connected": ("batch", "layer", "none"),
    "residual": ("batch", "none"),
}
NORM_COLOURS = {"batch": plots.BLUE, "group": plots.GREEN, "layer": plots.PINK, "none": plots.ORANGE}
WHOLE = 128  # the batch size at which all pictures are used, and for which the rates stand
SIZES = tuple(2**k for k in range(9))  # batches that single layers are given
LAYERS = {
    "fully connected": (nn.BatchNorm1d, (16,)),
    "convolution, maps of 4×4": (nn.BatchNorm2d, (16, 4, 4)),
    "convolution, maps of 1×1": (nn.BatchNorm2d, (16, 1, 1)),
}
USELESS = 1e-3  # of the gradient that the largest batch lets through


def network_of(s, kind: str, norm: str) -> nn.Module:
    """A network of one kind; a residual one without a norm has branches that start at zero.

    Source: Zhang et al. 2019, arXiv:1901.09321. Departs: only the zero start of a branch; nothing else is scaled.
    """
    if kind != "residual":
        return network(s, norm, flat=kind == "connected")
    shape = {"in_channels": s.facts["shape"][0], "num_classes": s.facts["classes"]}
    model = resnets.resnet_cifar(8, norm=norm, **shape)
    for unit in model.units() if norm == "none" else []:
        nn.init.zeros_(unit.conv2.weight)  # as a norm scaled by zero would make it
    return model


def accuracy_at(s, kind: str, norm: str, size: int, whole: bool, rate: float, seed: int) -> list[dict]:
    """Validation error and test accuracy at one batch size; the rate is scaled with the root of the batch."""
    count = (0 if whole else s.batch_pictures) or None
    few = replace(s.pictures, train=data.Split(s.pictures.train.images[:count], s.pictures.train.labels[:count]))
    config = training(
        s,
        size,
        epochs=s.epochs if whole else s.batch_epochs,
        learning_rate=rate * math.sqrt(size / WHOLE),
        schedule="one_cycle",
    )
    make = lambda: network_of(s, kind, norm)
    fitted = train.fit(make, few, config, seed=seed, on_divergence="record", progress=False)
    last = fitted.rows[-1]
    if last["diverged"]:
        return [{"val_error": s.chance_error, "accuracy": 1 - s.chance_error, "diverged": True}]
    error = train.evaluate(fitted.model, s.pictures, s.pictures.test, config)["error"]
    return [{"val_error": last["val_error"], "accuracy": 1 - error, "diverged": False}]


def taken(size: int, make=nn.BatchNorm1d, shape: tuple[int, ...] = (16,)) -> dict:
    """Whether PyTorch's layer trains on a batch of this size, and the median size of its gradient to its input."""
    x = torch.randn(size, *shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    try:
        (gradient,) = torch.autograd.grad((make(shape[0])(x) * direction).sum(), x)
    except ValueError as error:
        return {"size": size, "runs": False, "gradient": 0.0, "says": str(error).split(",")[0]}
    return {"size": size, "runs": True, "gradient": gradient.abs().median().item(), "says": ""}


def anywhere(s, layer: str = "", **condition) -> list[dict]:
    """One training of a network; or, of a single layer, what it makes of batches of every size."""
    return [taken(size, *LAYERS[layer]) for size in SIZES] if layer else accuracy_at(s, **condition)


def sizes_of(s) -> list[tuple[int, bool]]:
    """Batch sizes, and whether all pictures are used."""
    return [(WHOLE, True), *((size, False) for size in s.batch_sizes)]


def runs(s):
    refuse_networks(s)
    if 2 not in s.batch_sizes or min(s.batch_sizes) < 1:
        raise ValueError(f"batch_sizes={s.batch_sizes} must hold 2, by a rule in claims.yml, and no size below 1")
    if not s.batch_rates or min(s.batch_rates) <= 0:
        raise ValueError(f"batch_rates={s.batch_rates} must be at least one positive number")
    pictures, largest = len(s.pictures.train), max(WHOLE, *s.batch_sizes)
    if pictures < largest or 0 < s.batch_pictures < max(s.batch_sizes):
        raise ValueError(
            f"{pictures} training pictures, of which batch_pictures={s.batch_pictures} (0: all), must fill a batch of "
            f"{largest}, and of batch_sizes={s.batch_sizes}"
        )
    cells = [(kind, norm) for kind, norms in KINDS.items() for norm in norms]
    return [
        *({"layer": layer} for layer in LAYERS),
        *(
            {"kind": kind, "norm": norm, "size": size, "whole": whole, "rate": rate, "seed": seed}
            for (kind, norm), (size, whole), rate, seed in itertools.product(cells, sizes_of(s), s.batch_rates, s.seeds)
            if (kind, norm, size) != ("connected", "batch", 1)  # which is refused
        ),
    ]


def cell_of(row) -> tuple:
    return row["kind"], row["norm"], row["size"], row["whole"]


def at_best(rows):
    """The trainings of each network and batch size at the rate with the lowest mean validation error."""
    cells = {}
    for row in rows:
        if "kind" in row:
            cells.setdefault(cell_of(row), []).append(row)
    best = {cell: stats.best_setting(own, "val_error", "rate") for cell, own in cells.items()}
    return [row for cell, own in cells.items() for row in own if row["rate"] == best[cell]]


def refused(rows, layer: str) -> list[int]:
    """Batch sizes that a single layer refuses."""
    return [r["size"] for r in rows if r.get("layer") == layer and not r["runs"]]


def useless(rows, layer: str) -> list[int]:
    """Batch sizes that it refuses, or through which hardly any of the largest batch's gradient comes."""
    own = [r for r in rows if r.get("layer") == layer]
    floor = USELESS * max(own, key=lambda r: r["size"])["gradient"]
    return [r["size"] for r in own if not r["runs"] or r["gradient"] < floor]


def estimates(rows, s):
    def change(kind, size, whole, a, b):
        own = [r for r in at_best(rows) if (r["kind"], r["size"], r["whole"]) == (kind, size, whole)]
        return stats.paired_rows(own, "accuracy", "norm", a, b, unit="accuracy")

    return {
        "convolution_change": change("convolution", WHOLE, True, "batch", "none"),
        "fully_connected_change": change("connected", WHOLE, True, "batch", "none"),
        "batch_of_two_change": change("convolution", 2, False, "batch", "group"),
        "batch_of_two_connected_change": change("connected", 2, False, "batch", "layer"),
        "refused_batches": stats.exact(len(useless(rows, "fully connected")), "batch sizes"),
    }


def finding(rows, s, e):
    no = {layer: refused(rows, layer) for layer in LAYERS}
    dead = {layer: [size for size in useless(rows, layer) if size not in no[layer]] for layer in LAYERS}
    parts = [
        page.listed([f"{page.listed(list(map(str, sizes)))} ({layer})" for layer, sizes in of.items() if sizes])
        for of in (no, dead)
    ]
    words = "gains", "loses", "makes no clear difference"
    return (
        f"At batch {WHOLE}, against no norm, batch norm {page.change(e['convolution_change'], *words)} of test accuracy in "
        f"convolutions, and {page.change(e['fully_connected_change'], *words)} in fully connected layers. "
        f"At batch 2, against group norm in convolutions, it {page.change(e['batch_of_two_change'], *words)}; against layer "
        f"norm in fully connected layers, it {page.change(e['batch_of_two_connected_change'], *words)}. "
        f"Of the batches from {SIZES[0]} to {SIZES[-1]} pictures a single layer refuses {parts[0]}, and takes with hardly any "
        f"gradient {parts[1]}."
    )


def points(estimate: stats.Estimate) -> str:
    """As short as a table of six columns of them needs it."""
    return f"{100 * estimate.mean:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def table(rows, s):
    best, shown = at_best(rows), {}
    sizes = sorted({cell_of(r)[2:] for r in best}, key=lambda size: (not size[1], size[0]))
    for kind, norm in dict.fromkeys(cell_of(r)[:2] for r in best):
        shown[kind, norm] = {"network": f"{kind}, {norm}"}
        for size, whole in sizes:
            own = [r["accuracy"] for r in best if cell_of(r) == (kind, norm, size, whole)]
            shown[kind, norm][f"{size} {whole}"] = stats.interval(own) if own else None
    columns = {
        f"{size} {whole}": (f"batch {size}, {'all' if whole else s.batch_pictures or 'all'} pictures", points)
        for size, whole in sizes
    }
    return page.table(list(shown.values()), {"network": "test accuracy, points"} | columns)


def draw(rows, s):
    rows = sorted((r for r in at_best(rows) if not r["whole"]), key=lambda r: r["size"])
    with plots.figure(1, 3, width=8.4, height=3.2, sharey=True) as (figure, axes):
        for ax, kind in zip(axes, KINDS, strict=True):
            own = [r for r in rows if r["kind"] == kind]
            plots.dots(ax, own, "size", "accuracy", by="norm", colours=NORM_COLOURS, offset=0.08)
            ax.set_title({"connected": "fully connected"}.get(kind, kind))
        axes[0].set_ylabel("test accuracy, %")
        plots.hundredths(axes[0].yaxis)
        figure.legend(*axes[0].get_legend_handles_labels(), ncols=4, loc="outside upper center")
        axes[1].set_xlabel("pictures in a batch, equal epochs")
    means, best = stats.cell_means(rows, "accuracy", ("kind", "norm", "size")), {}
    for r in sorted(means, key=lambda r: r["accuracy"]):
        best[r["kind"], r["norm"]] = r["size"]
    return (
        f"In convolutions batch norm does best at a batch of {best['convolution', 'batch']}, layer norm at "
        f"{best['convolution', 'layer']}; in fully connected layers batch norm at {best['connected', 'batch']}, layer norm at "
        f"{best['connected', 'layer']}. Equal epochs, so small batches take more steps. Dots are seeds, bars intervals of 95 %."
    )


ANYWHERE = Experiment(
    "anywhere",
    run=anywhere,
    conditions=runs,
    estimates=estimates,
    settings=("layers", "width", "epochs", "batch_pictures", "batch_epochs", "number_format"),
    counts=("batch_sizes", "batch_rates"),
    tiny={"layers": 3, "width": 8, "epochs": 1, "batch_sizes": [2], "batch_pictures": 32, "batch_epochs": 1}
    | {"batch_rates": [0.1]},
    finding=finding,
    figure=draw,
    alt="Three panels of test accuracy against batch size: convolutional, fully connected and residual "
    "networks, with batch norm, group norm, layer norm and none, a dot for each seed and the mean with its interval.",
    table=table,
)
