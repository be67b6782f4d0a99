"""CIFAR ResNets and their plain twins trained to several depths, and what they are like afterwards.

What two chapters ask of the same trainings: each run is made once, and both keep the rows that they speak of.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from resnet_lib import augment, data, page, probes, resnets, stats, train
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

KINDS = ("plain", "residual")
SETTLING = 20  # batches over which the norms' statistics are taken anew before a network is judged
LOOKED_AT = 12  # units at most that are looked into, evenly spaced, with the first and the last
PROBED = 6000  # training pictures at most that a probe is fitted to
MAPPED = 256  # pictures whose activation maps are taken
CHOOSER = 1000  # the seed that chooses the learning rates: none of those that are compared


def network(s, kind: str, depth: int, **changes) -> resnets.ResNet:
    """ResNet-`depth` for the pictures at hand, or its plain twin."""
    shape = {"in_channels": s.facts["shape"][0], "num_classes": s.facts["classes"]}
    return resnets.resnet_cifar(depth, residual=kind == "residual", **shape, **changes)


def training(s, **changes) -> train.TrainConfig:
    return train.TrainConfig(device=str(s.device), precision=s.number_format, **changes)


def changed(s, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shifted by up to an eighth of the side, as by 4 pixels on CIFAR's 32, and mirrored where that keeps the class."""
    reach = max(1, min(images.shape[2:]) // 8)
    return augment.random_crop_flip(images, reach, 0.5 if s.flips else 0.0, generator)


def fitted(s, kind: str, depth: int, rate: float, epochs: int, seed: int) -> train.Fit:
    return train.fit(
        lambda: network(s, kind, depth),
        s.pictures,
        training(s, epochs=epochs, learning_rate=rate),
        seed=seed,
        augmentation=lambda images, generator: changed(s, images, generator),
        on_divergence="record",
        progress=False,
    )


def tried(s, kind: str, depth: int, rate: float, seed: int) -> list[dict]:
    """The last epoch of a shorter training: by its loss each network's learning rate is chosen."""
    row = fitted(s, kind, depth, rate, s.rate_epochs, seed).rows[-1]
    return [{"loss": 1e9 if row["diverged"] else row["train_loss"], "diverged": row["diverged"]}]


def rates_of(rows: list[dict]) -> dict[str, float]:
    """The learning rate with the lowest training loss for each network, by kind and depth."""
    best: dict[str, dict] = {}
    for row in sorted(rows, key=lambda r: r["rate"]):
        name = f"{row['kind']} {row['depth']}"
        if name not in best or row["loss"] < best[name]["loss"]:
            best[name] = row
    return {name: row["rate"] for name, row in best.items()}


def trained(s, kind: str, depth: int, rate: float, seed: int) -> list[dict]:
    """Train one network; its curve, its errors, what its units tell, what it loses with one, where it looks."""
    fit = fitted(s, kind, depth, rate, s.depth_epochs, seed)
    if fit.rows[-1]["diverged"]:
        raise ArithmeticError(
            f"a {kind} network of {depth} layers diverged at the learning rate {rate} that a short training chose: "
            f"give depth_rates smaller values"
        )
    batches = train.Batches(s.pictures, s.pictures.train, training(s), s.device)
    with train.seeded(seed):
        fresh = train.settle(network(s, kind, depth).to(s.device), batches, SETTLING)
    rows = [row | {"what": "curve"} for row in fit.rows]
    model = train.settle(fit.model, batches, SETTLING)
    rows.append({"what": "end", "train_error": rows[-1]["train_error"], "time_s": rows[-1]["time_s"]})
    for name in ("val", "test"):
        rows[-1][f"{name}_error"] = train.evaluate(model, s.pictures, getattr(s.pictures, name), training(s))["error"]
    rows += information(s, fresh, "random") + information(s, model, "trained") + removal(s, model)
    return rows + gradients(s, model, seed) + activation_maps(s, model, seed)


def some(units: list) -> dict[int, object]:
    """At most LOOKED_AT of the units, evenly spaced, with the first and the last, by their number from 1."""
    places = torch.linspace(0, len(units) - 1, min(LOOKED_AT, len(units))).round().long().unique()
    return {int(p) + 1: units[int(p)] for p in places}


def information(s, model: nn.Module, state: str) -> list[dict]:
    """What linear maps read out of each unit's output: the class, and the picture itself; with three controls.

    Controls: the class from the pixels, and from the last unit with shuffled labels; the network's own accuracy.
    """
    watched, model = some(model.units()), model.eval()
    x, y, raw, picture, guesses = {}, {}, {}, {}, []
    for name, split in (("train", s.pictures.train), ("val", s.pictures.val)):
        part = data.Split(split.images[:PROBED], split.labels[:PROBED])
        shown = list(train.Batches(s.pictures, part, training(s), s.device).in_order(500))
        x[name] = probes.features(model, watched.values(), shown)
        y[name] = torch.cat([labels for _, labels in shown])
        raw[name] = torch.cat([images.flatten(1) for images, _ in shown])
        picture[name] = torch.cat([F.adaptive_avg_pool2d(images, 8).flatten(1) for images, _ in shown])
    with torch.no_grad():
        guesses = torch.cat([model(images).argmax(1) for images, _ in shown])
    order = torch.randperm(len(y["train"]), generator=torch.Generator().manual_seed(0)).to(y["train"].device)
    classes = s.facts["classes"]

    def accuracy(fit_on, labels, judge_on) -> float:
        return probes.probe_accuracy(fit_on, labels, judge_on, y["val"], classes)

    rows = []
    for unit, fit_on, judge_on in zip(watched, x["train"], x["val"], strict=True):
        row = {"unit": unit, "accuracy": accuracy(fit_on, y["train"], judge_on)}
        row["reconstruction"] = probes.explained_variance(fit_on, picture["train"], judge_on, picture["val"])
        rows.append(row | {"cka_first": probes.cka(judge_on, x["val"][0]), "what": "unit"})
    own = (guesses == y["val"]).float().mean().item()
    rows.append({"what": "own", "unit": len(model.units()), "accuracy": own})
    rows.append({"what": "pixels", "unit": 0, "accuracy": accuracy(raw["train"], y["train"], raw["val"])})
    wrong = accuracy(x["train"][-1], y["train"][order], x["val"][-1])
    rows.append({"what": "shuffled", "unit": len(model.units()), "accuracy": wrong})
    return [row | {"state": state} for row in rows]


def removal(s, model: nn.Module) -> list[dict]:
    """Validation error with units taken out after training: each alone, and several at random."""
    whole = enumerate(model.units(), 1)
    units = {k: u for k, u in whole if u.stride == 1 and u.in_channels == u.out_channels}

    def error_without(*gone: int) -> float:
        with probes.removed(*(units[k] for k in gone)):
            return train.evaluate(model, s.pictures, s.pictures.val, training(s))["error"]

    rows = [{"unit": 0, "removed": 0, "error": error_without()}]
    rows += [{"unit": k, "removed": 1, "error": error_without(k)} for k in some(list(units)).values()]
    order = torch.randperm(len(units), generator=torch.Generator().manual_seed(0)).tolist()
    for count in (2, 4, 8):
        if count <= len(units):
            gone = [list(units)[place] for place in order[:count]]
            rows.append({"unit": 0, "removed": count, "error": error_without(*gone)})
    return [row | {"what": "removal"} for row in rows]


def gradients(s, model: nn.Module, seed: int) -> list[dict]:
    """Activation gradients by unit on the first training batch, in decades over the last unit's."""
    images, labels = train.Batches(s.pictures, s.pictures.train, training(s), s.device).first(seed)
    rows = probes.gradient_norms(model.train(), model.units(), lambda: F.cross_entropy(model(images), labels))
    size = [math.log10(max(row["activation_gradient"], 1e-30)) for row in rows]
    return [{"what": "trained", "unit": k, "decades": d - size[-1]} for k, d in enumerate(size, 1)]


@torch.no_grad()
def activation_maps(s, model: resnets.ResNet, seed: int, shown: int = 6) -> list[dict]:
    """Class activation maps of the class guessed first, the logits they explain, and what covering a cell costs.

    Source: Zhou et al. 2016, arXiv:1512.04150, equations (1) and (2). Departs: a mean over positions, not their sum.
    """
    model = model.eval()
    part = data.Split(s.pictures.val.images[:MAPPED], s.pictures.val.labels[:MAPPED])
    images, labels = next(train.Batches(s.pictures, part, training(s), s.device).in_order(MAPPED))
    features = model.features(images).float()
    logits = model.fc(features.mean((2, 3)))
    guess = logits.argmax(1)
    maps = torch.einsum("nchw,nc->nhw", features, model.fc.weight[guess])
    value = lambda all_logits: all_logits.gather(1, guess[:, None])[:, 0]  # noqa: E731
    off = (maps.mean((1, 2)) + model.fc.bias[guess] - value(logits)).abs().max().item()
    cost = {}
    for name, place in (("highest", maps.flatten(1).argmax(1)), ("lowest", maps.flatten(1).argmin(1))):
        cell = F.one_hot(place, maps[0].numel()).view_as(maps)[:, None].float()
        covered = images * (1 - F.interpolate(cell, images.shape[2:], mode="nearest"))
        cost[name] = (value(logits) - value(model(covered).float())).mean().item()
    rows = [{"what": "cover", "off": off, **cost}]
    for k in range(shown if seed == 0 else 0):
        rows.append({"what": "map", "map": maps[k].tolist(), "label": int(labels[k]), "guess": int(guess[k])})
    return rows


def checked(name: str, depths: list[int], least: int = 1) -> list[int]:
    """Refuse at once, not after an hour, depths that fit no network, or too few of them to compare."""
    for depth in depths:
        resnets.cifar_config(depth)
    if len(set(depths)) < least:
        raise ValueError(f"{name}={depths}: at least {least} different depths are needed to compare them")
    return depths


def refuse(s) -> None:
    """Refuse at once, not after an hour, a depth that fits no network, or pictures too small to be changed."""
    resnets.cifar_config(s.depth)
    _, height, width = s.facts["shape"]
    if min(height, width) < 8:
        raise ValueError(f"pictures of {width}×{height} pixels are too small: 8 or more along each side")


def rate_conditions(s, kinds) -> list[dict]:
    if min(s.depth_rates) <= 0 or len(set(s.depth_rates)) < 2:
        raise ValueError(f"depth_rates={s.depth_rates} must be at least two different rates above 0")
    return conditions(kind=kinds, depth=checked("depths", s.depths, least=2), rate=s.depth_rates, seed=[CHOOSER])


def arms(s, kinds, depths) -> list[dict]:
    """The runs of these networks, each at the learning rate that was chosen for it."""
    if s.looked_depth not in s.depths:
        raise ValueError(f"looked_depth={s.looked_depth} must be one of depths={s.depths}")
    cells = conditions(kind=kinds, depth=checked("depths", depths), seed=s.seeds)
    return [
        {"kind": c["kind"], "depth": c["depth"], "rate": s.rate_of[f"{c['kind']} {c['depth']}"], "seed": c["seed"]}
        for c in cells
    ]


def rates_estimates(rows, s):
    """How many networks chose a rate at an end of those tried, beyond which a better one may lie."""
    ends = stats.at_an_end(rates_of(rows).values(), (r["rate"] for r in rows))
    return {"at_an_end": stats.exact(ends, "networks")}


def rates_finding(rows, s, e):
    chosen = ", ".join(f"{rate:g} for {name} layers" for name, rate in rates_of(rows).items())
    tried_rates = sorted({r["rate"] for r in rows})
    return (
        f"Of {', '.join(f'{rate:g}' for rate in tried_rates)} the training loss after {s.rate_epochs} epochs chose {chosen}. "
        f"{e['at_an_end'].mean:.0f} of these {len(rates_of(rows))} lie at an end of what was tried."
    )


def rates_table(rows, s):
    shown = {}
    for r in rows:
        at = shown.setdefault((r["kind"], r["depth"]), {"kind": r["kind"], "depth": r["depth"]})
        at[f"{r['rate']:g}"] = r["loss"]
    columns = {"kind": "network", "depth": "layers"}
    columns |= {f"{rate:g}": (f"loss at {rate:g}", ".3f") for rate in sorted({r["rate"] for r in rows})}
    return page.table(list(shown.values()), columns)


def rates(name: str, kinds: tuple[str, ...], tiny_depths: list[int]) -> Experiment:
    """The experiment that chooses each network's learning rate, for the kinds that a chapter trains."""
    return Experiment(
        name,
        run=tried,
        conditions=lambda s: rate_conditions(s, kinds),
        estimates=rates_estimates,
        settings=("rate_epochs", "flips", "number_format"),
        counts=("depths", "depth_rates"),
        tiny={"depths": tiny_depths, "depth_rates": [0.03, 0.1], "rate_epochs": 1},
        finding=rates_finding,
        table=rates_table,
    )
