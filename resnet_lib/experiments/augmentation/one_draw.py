"""A way to get it wrong: one draw for the whole batch. How much more does the batch's mean loss spread?"""

import math
from statistics import fmean, stdev

import torch
import torch.nn.functional as F

from resnet_lib import stats, train
from resnet_lib.experiments.augmentation.recipes import NETWORK, change, fitted, seeded_generator, training
from resnet_lib.experiments.depths import refuse
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

REPEATS = 48  # draws of one batch
EACH, ALL = "crop", "crop, one draw"


def one_draw(s, seed: int) -> list[dict]:
    """Spread over draws of a batch's mean loss: one draw for each picture, against one for all."""
    model, _ = fitted(s.pictures, "none", seed, s.depth, s.width, training(s))
    images = s.pictures.train.images[: s.batch_size].to(s.device) / 255
    labels = s.pictures.train.labels[: s.batch_size].to(s.device)
    generator, rows = seeded_generator(seed, s.device), []
    with train.seeded(seed), torch.no_grad():
        for name in (EACH, ALL):
            losses = [
                F.cross_entropy(model.eval()(change(name, images, generator)), labels).item() for _ in range(REPEATS)
            ]
            rows.append({"change": name, "loss": fmean(losses), "loss_sd": stdev(losses)})
    return rows


def variances(rows):
    """The variance of the mean loss over the draws, in decades."""
    return [r | {"decades": 2 * math.log10(r["loss_sd"])} for r in rows]


def estimates(rows, s):
    return {"variance_ratio": stats.paired_rows(variances(rows), "decades", "change", ALL, EACH, unit="decades")}


def finding(rows, s, e):
    middle, low, high = (10 ** getattr(e["variance_ratio"], name) for name in ("mean", "low", "high"))
    return (
        f"With one draw for all, the variance of the mean loss of {s.batch_size} pictures over the draws is {middle:.1f} times "
        f"as large as with a draw for each (95 % interval {low:.1f} to {high:.1f}, geometric mean of {len(s.seeds)} seeds); "
        f"{s.batch_size} times was the most possible. What that does to the accuracy stands in experiment 2."
    )


def runs(s):
    refuse(s)
    return conditions(seed=s.seeds)


ONE_DRAW = Experiment(
    "one_draw",
    run=one_draw,
    conditions=runs,
    estimates=estimates,
    settings=NETWORK,
    tiny={"depth": 8, "width": 2, "batch_size": 64, "epochs": 1, "train_size": 128},
    finding=finding,
)
