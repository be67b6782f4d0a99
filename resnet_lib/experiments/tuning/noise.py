"""How large is the gradient's noise beside the gradient, and does that say which batch is too large?"""

import torch
import torch.nn.functional as F

from resnet_lib import data, page, plots, stats, train
from resnet_lib.experiments.tuning.maps import RATES
from resnet_lib.experiments.tuning.trainings import SETTINGS, SETTLING, basin, network, training
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

PARTS, SMALL = 32, 32  # batches whose gradients are taken, and pictures in each


def noise(s, epochs: int, seed: int) -> list[dict]:
    """The gradient noise scale after so many epochs: the variance of one picture's gradient over the gradient squared.

    Gradients of PARTS batches of SMALL pictures, and their mean, the gradient of the whole, give both without bias.
    Source: McCandlish et al. 2018, arXiv:1812.06162, appendix A.1. Departs: the norms' statistics stand still, so that a
    batch's gradient is the mean of its pictures', which batch norm in training does not give.
    """
    config = training(s, **({"epochs": epochs} if epochs else {}))
    with train.seeded(seed):
        model = network(s, s.depth, s.width).to(s.device)
    if epochs:
        fit = train.fit(model, s.pictures, config, seed=seed, on_divergence="record", progress=False)
        if fit.rows[-1]["diverged"]:
            raise ArithmeticError(
                f"the base settings diverge at the learning rate {s.learning_rate:g}: give a smaller one"
            )
        model = fit.model
    train.settle(model, train.Batches(s.pictures, s.pictures.train, config, s.device), SETTLING)
    count = min(PARTS, len(s.pictures.train) // SMALL)
    part = data.Split(s.pictures.train.images[: count * SMALL], s.pictures.train.labels[: count * SMALL])
    weights, gradients = list(model.parameters()), []
    for images, labels in train.Batches(s.pictures, part, config, s.device).in_order(SMALL):
        loss = F.cross_entropy(model(images).float(), labels)
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]).double())
    return [{"what": "noise"} | scale_of(torch.stack(gradients), SMALL)]


def scale_of(gradients: torch.Tensor, small: int) -> dict:
    """Unbiased |G|² and tr Σ from the gradients of equally large batches, (batches, weights), and their ratio.

    Equations (A.2) and (A.3). A ratio that comes out as no positive number, by chance, is None.
    """
    big = small * len(gradients)
    of_small, of_big = gradients.square().sum(1).mean().item(), gradients.mean(0).square().sum().item()
    squared = (big * of_big - small * of_small) / (big - small)
    trace = (of_small - of_big) / (1 / small - 1 / big)
    return {
        "gradient_squared": squared,
        "trace": trace,
        "scale": trace / squared if squared > 0 and trace > 0 else None,
    }


def known(rows) -> dict[int, list[float]]:
    """The scales by epochs trained, where at least two seeds gave one."""
    found = {
        k: [r["scale"] for r in rows if r["epochs"] == k and r["scale"]] for k in sorted({r["epochs"] for r in rows})
    }
    return {k: values for k, values in found.items() if len(values) > 1}


def estimates(rows, s):
    of = known(rows)
    found = {f"scale_after_{k}": stats.interval(v, method="log-t", unit="pictures") for k, v in of.items()}
    return found | {"largest_good_batch": stats.exact(s.largest_good_batch, "pictures")}


def notes(rows, s):
    lost = sorted({r["epochs"] for r in rows} - set(known(rows)))
    return [f"noise/scale_after_{k}: fewer than two seeds gave a positive ratio" for k in lost]


def finding(rows, s, e):
    told = "; ".join(f"after {k} epochs {e[f'scale_after_{k}']}" for k in known(rows))
    return (
        f"The gradient noise scale is, by training: {told}. A batch far below it is mostly noise, one far above it repeats "
        f"itself. In the map the largest batch whose best error is within one standard error of the best is "
        f"{e['largest_good_batch'].mean:.0f}, at equal epochs; the theory speaks of examples needed to reach a loss, and "
        "leaves the factor between the two open."
    )


def table(rows, s):
    shown = [{"epochs": k, "scale": stats.interval(v, method="log-t", unit="pictures")} for k, v in known(rows).items()]
    return page.table(shown, {"epochs": "epochs trained", "scale": "noise scale"})


def draw(rows, s):
    of = known(rows)
    with plots.figure(height=3) as (_, ax):
        for place, values in enumerate(of.values()):
            e = stats.interval(values, method="log-t")
            ax.plot([place - 0.1] * len(values), values, "o", color=plots.BLUE, alpha=0.6, ms=5, mew=0)
            ax.errorbar([place], [e.mean], [[e.mean - e.low], [e.high - e.mean]], fmt="o", color=plots.BLUE, capsize=3)
        ax.axhline(s.largest_good_batch, color="black", linestyle="--", linewidth=1.2)
        ax.set_xticks(range(len(of)), [f"{k} epochs" for k in of])
        ax.set(yscale="log", xlabel="trained for", ylabel="noise scale, pictures", xlim=(-0.5, len(of) - 0.5))
        plots.log_axis(ax.yaxis, [*(v for values in of.values() for v in values), s.largest_good_batch])
    return (
        "The gradient noise scale by training, a dot for each seed, and the geometric mean with its interval of 95 %. Dashed: the "
        "largest batch that does as well as the best."
    )


def _chosen(rows, s) -> dict:
    """The largest batch size among the cells that are as good as the best one, of all rates and sizes."""
    return {"largest_good_batch": max(cell[0] for cell in basin(rows, ("batch_size", "learning_rate")))}


NOISE = Experiment(
    "noise",
    run=noise,
    conditions=lambda s: conditions(epochs=sorted({0, 1, s.epochs}), seed=s.seeds),
    estimates=estimates,
    settings=SETTINGS,
    finding=finding,
    figure=draw,
    table=table,
    notes=notes,
    alt="The gradient noise scale in pictures on a logarithmic axis, after no, one and all epochs of training, a dot for each "
    "seed and the mean with its interval; a dashed line at the largest batch size that trains as well as the best.",
    needs=RATES,
    choose=_chosen,
)
