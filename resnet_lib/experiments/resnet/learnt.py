"""What did the network learn? Linear probes by depth with three controls, and class activation maps."""

from statistics import fmean

import torch
import torch.nn.functional as F
from torch import nn

from resnet_lib import data, plots, probes, resnets, stats, train
from resnet_lib.experiments.resnet.networks import SETTLING, batches, cifar, training
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

PROBED = 2000  # pictures at most that a probe is fitted to, and judged on
MAPPED = 256  # pictures whose maps are taken


def probe(s, model: nn.Module, state: str) -> list[dict]:
    """Accuracy of linear probes on each unit and on the pixels, and of one on shuffled labels."""
    where, x, y, raw = next(model.parameters()).device, {}, {}, {}
    for name, split in (("train", s.pictures.train), ("val", s.pictures.val)):
        part = data.Split(split.images[:PROBED], split.labels[:PROBED])
        shown = list(batches(s, part).in_order(500))
        x[name] = probes.features(model.eval(), model.units(), shown)
        y[name] = torch.cat([labels for _, labels in shown])
        raw[name] = torch.cat([images.flatten(1) for images, _ in shown])
    shuffled = torch.randperm(len(y["train"]), generator=torch.Generator().manual_seed(0)).to(where)

    def row(unit, what, inputs, labels):
        judged = (inputs["val"], y["val"], s.facts["classes"])
        accuracy = probes.probe_accuracy(inputs["train"], labels, *judged)
        return {"what": what, "state": state, "unit": unit, "accuracy": accuracy}

    units = [{name: x[name][k] for name in x} for k in range(len(x["train"]))]
    rows = [row(k, "unit", inputs, y["train"]) for k, inputs in enumerate(units, 1)]
    rows.append(row(0, "pixels", raw, y["train"]))
    return [*rows, row(len(units), "shuffled", units[-1], y["train"][shuffled])]


@torch.no_grad()
def activation_maps(s, model: resnets.ResNet, seed: int, shown: int = 6) -> list[dict]:
    """Class activation maps of the class guessed first, the logits they explain, and what covering a cell costs.

    Source: Zhou et al. 2016, arXiv:1512.04150, equations (1) and (2). Departs: a mean over positions, not their sum.
    """
    model = model.eval()
    part = data.Split(s.pictures.val.images[:MAPPED], s.pictures.val.labels[:MAPPED])
    images, labels = next(batches(s, part).in_order(MAPPED))
    features = model.features(images).float()
    logits = model.fc(features.mean((2, 3)))
    guess = logits.argmax(1)
    maps = torch.einsum("nchw,nc->nhw", features, model.fc.weight[guess])
    value = lambda all_logits: all_logits.gather(1, guess[:, None])[:, 0]
    off = (maps.mean((1, 2)) + model.fc.bias[guess] - value(logits)).abs().max().item()
    cost = {}
    for name, place in (("highest", maps.flatten(1).argmax(1)), ("lowest", maps.flatten(1).argmin(1))):
        cell = F.one_hot(place, maps[0].numel()).view_as(maps)[:, None].float()
        covered = images * (1 - F.interpolate(cell, images.shape[2:], mode="nearest"))
        cost[name] = (value(logits) - value(model(covered).float())).mean().item()
    rows = [{"what": "cover", "state": "trained", "off": off, **cost}]
    for k in range(shown if seed == 0 else 0):
        rows.append({"what": "map", "map": maps[k].tolist(), "label": int(labels[k]), "guess": int(guess[k])})
    return rows


def learnt(s, seed: int) -> list[dict]:
    make = lambda: resnets.resnet_cifar(s.form_depth, **cifar(s))
    source = batches(s, s.pictures.train)
    with train.seeded(seed):
        fresh = train.settle(make().to(s.device), source, SETTLING)
    fitted = train.fit(make, s.pictures, training(s, epochs=s.probe_epochs), seed=seed, progress=False)
    model = train.settle(fitted.model, source, SETTLING)
    return [*probe(s, fresh, "random"), *probe(s, model, "trained"), *activation_maps(s, model, seed)]


def units(rows, state):
    return [r for r in rows if r["what"] == "unit" and r["state"] == state]


def last_over_first(rows, state):
    own = units(rows, state)
    last = max(r["unit"] for r in own)
    return stats.paired_rows(own, "accuracy", "unit", last, 1, unit="accuracy")


def estimates(rows, s):
    covers = [r for r in rows if r["what"] == "cover"]
    of_units = [r for r in rows if r["what"] == "unit"]
    last = [r for r in of_units if r["unit"] == max(q["unit"] for q in of_units)]
    return {
        "last_over_first": last_over_first(rows, "trained"),
        "trained_over_random": stats.paired_rows(last, "accuracy", "state", "trained", "random", unit="accuracy"),
        "random_last_over_first": last_over_first(rows, "random"),
        "map_difference": stats.exact(max(r["off"] for r in covers)),
        "cover_gain": stats.interval([r["highest"] - r["lowest"] for r in covers], unit="logits"),
    }


def control(rows, what):
    return fmean(r["accuracy"] for r in rows if r["what"] == what and r["state"] == "trained")


def finding(rows, s, e):
    return (
        f"Accuracy of a linear probe, last block minus first: {e['last_over_first']} trained, {e['random_last_over_first']} at "
        f"initialisation. On the last block, trained minus at initialisation: {e['trained_over_random']}. For scale: "
        f"{control(rows, 'pixels'):.3f} on the pixels themselves and {control(rows, 'shuffled'):.3f} with shuffled labels, "
        f"where guessing gives {1 / s.facts['classes']:.3f}. The activation maps explain the logits to within "
        f"{e['map_difference'].mean:.1e}; covering the map's highest cell lowers the logit by {e['cover_gain']} more than "
        "covering its lowest."
    )


def draw(rows, s):
    of_units = [r for r in rows if r["what"] == "unit"]
    with plots.figure(height=3.4) as (_, ax):
        plots.lines(ax, of_units, "unit", "accuracy", by="state", marker=True)
        for what, style in (("pixels", ":"), ("shuffled", "--")):
            ax.axhline(control(rows, what), color="grey", linestyle=style, label=what)
        ax.set(xlabel="unit, from input to output", ylabel="accuracy of a linear probe", ylim=(0, 1))
        ax.legend()
    last = max(r["unit"] for r in of_units)
    mean = {(r["state"], r["unit"]): r["mean"] for r in stats.summarise(of_units, "accuracy", ("state", "unit"))}
    return (
        f"From the first to the last unit the probe's accuracy goes from {mean['trained', 1]:.2f} to "
        f"{mean['trained', last]:.2f} trained, and from {mean['random', 1]:.2f} to {mean['random', last]:.2f} at "
        "initialisation. Thin lines are seeds."
    )


def _seeds(s):
    resnets.cifar_config(s.form_depth)
    return conditions(seed=s.seeds)


PROBES = Experiment(
    "probes",
    run=learnt,
    conditions=_seeds,
    estimates=estimates,
    settings=("form_depth", "probe_epochs", "batch_size", "learning_rate", "number_format"),
    tiny={"form_depth": 20, "probe_epochs": 1, "batch_size": 64},
    finding=finding,
    figure=draw,
    alt="Accuracy of a linear probe against the unit, from input to output, for the trained network and at initialisation, "
    "one thin line for each seed, with dotted lines for the pixels and for shuffled labels.",
)
