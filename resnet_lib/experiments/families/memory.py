"""What a training step keeps between its passes: predicted from the shapes, counted, with and without recomputing."""

import math
from dataclasses import replace

import torch

from resnet_lib import page, plots, stats, train
from resnet_lib.experiments.families.networks import (
    ARMS,
    IMAGENET,
    build,
    config_of,
    counted,
    measured_bytes,
    predicted_bytes,
    published,
)
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

LEAST_SIDE = 75  # of a picture that every published network takes
GROWN = {"basic": "ResNet", "dense": "DenseNet"}
GROWN_BATCH = 4  # pictures; what is kept is proportional to them


def grown(s, arm: str, layers: int):
    """The small network of an arm with another number of units a stage, or layers a block."""
    return replace(config_of(s, "flops", arm), blocks=(layers,) * 3)


def memory(s, network: str, layers: int = 0) -> list[dict]:
    """Bytes kept for the backward pass by one network in float32, by prediction and by counting what autograd saves."""
    shape = s.facts["shape"] if layers else [3, s.published_side, s.published_side]
    batch = GROWN_BATCH if layers else s.published_batch
    make = (lambda: build(grown(s, network, layers))) if layers else (lambda: published(network))
    rows = []
    with torch.device("meta"):
        costs = counted(make().eval(), torch.empty(1, *shape))
    for recomputed in (False, True):
        with torch.device("meta"):
            model = make()
            predicted = predicted_bytes(model, torch.empty(batch, *shape), model.units() if recomputed else ())
        with train.seeded(0):
            model = make().to(s.device)
            images = torch.randn(batch, *shape).to(s.device)
        measured = measured_bytes(model, images, model.units() if recomputed else ())
        row = {"recomputed": recomputed, "predicted": predicted / batch, "measured": measured / batch}
        rows.append(row | costs | {"batch": batch})
    return rows


def of_published(rows, recomputed: bool = False) -> list[dict]:
    return [r for r in rows if not r.get("layers") and r["recomputed"] is recomputed]


def of_grown(rows, arm: str, recomputed: bool = False) -> list[dict]:
    own = [r for r in rows if r.get("layers") and r["network"] == arm and r["recomputed"] is recomputed]
    return sorted(own, key=lambda r: r["layers"])


def power(rows) -> float:
    """The power of the number of layers with which what is kept grows, between the two deepest networks."""
    a, b = rows[-2:]
    return math.log(b["measured"] / a["measured"]) / math.log(b["layers"] / a["layers"])


def estimates(rows, s):
    off = max(abs(r["measured"] / r["predicted"] - 1) for r in rows)
    found = {"prediction_off": stats.exact(off, "relative")}
    for arm in GROWN:
        for recomputed in (False, True):
            name = f"power_{arm}{'_recomputed' if recomputed else ''}"
            found[name] = stats.exact(power(of_grown(rows, arm, recomputed)))
    again = {r["network"]: r["measured"] for r in of_published(rows, True)}
    for r in of_published(rows):
        found[f"recomputing_{r['network']}"] = stats.exact(r["measured"] / again[r["network"]], "times")
    return found


def finding(rows, s, e):
    saved = page.listed(
        [f"{e['recomputing_' + r['network']].mean:.1f} times for {IMAGENET[r['network']]}" for r in of_published(rows)]
    )
    off = e["prediction_off"].mean
    agree = f"differ by at most {off:.2%}" if off else "agree to the byte"
    return (
        f"Prediction and count {agree}. With more layers, what {GROWN['dense']} keeps "
        f"grows as their number to the power {e['power_dense'].mean:.2f}, and {GROWN['basic']}'s to the power "
        f"{e['power_basic'].mean:.2f}. With the units recomputed the powers are {e['power_dense_recomputed'].mean:.2f} and "
        f"{e['power_basic_recomputed'].mean:.2f}; recomputing saves {saved}."
    )


def table(rows, s):
    shown = []
    for r in [*of_published(rows), *(r for arm in GROWN for r in of_grown(rows, arm))]:
        again = next(
            a for a in rows if a["recomputed"] and a["network"] == r["network"] and a.get("layers") == r.get("layers")
        )
        name = f"{ARMS[r['network']]}, {r['layers']} a stage" if r.get("layers") else IMAGENET[r["network"]]
        mib = {key: one["measured"] / 2**20 for key, one in (("kept", r), ("again", again))}
        shown.append(r | mib | {"name": name, "predicted": r["predicted"] / 2**20, "madds": r["madds"] / 1e6})
    columns = {"name": "network", "parameters": ("parameters", ","), "madds": ("millions of multiply-adds", ",.1f")}
    columns |= {"predicted": ("predicted, MiB a picture", ".2f"), "kept": ("counted", ".2f")}
    return page.table(shown, columns | {"again": ("with units recomputed", ".2f")})


def draw(rows, s):
    colours = {"basic": plots.BLUE, "dense": plots.PINK}
    with plots.figure(height=4.2) as (fig, ax):
        for arm, name in GROWN.items():
            for recomputed, dash in ((False, "-"), (True, "--")):
                own = of_grown(rows, arm, recomputed)
                x = [r["layers"] for r in own]
                look = {"color": colours[arm], "linestyle": dash, "linewidth": 1.5}
                ax.plot(x, [r["predicted"] / 2**20 for r in own], **look)
                label = f"{name}, units recomputed" if recomputed else name
                mark = {"marker": "s" if arm == "dense" else "o", "color": colours[arm], "linestyle": ""}
                ax.plot(
                    x, [r["measured"] / 2**20 for r in own], mfc="white" if recomputed else None, label=label, **mark
                )
        ax.set(xscale="log", yscale="log", xlabel="layers a block, or units a stage", ylabel="kept for a picture, MiB")
        plots.log_axis(ax.xaxis, [r["layers"] for r in own])
        ax.set_xticks([r["layers"] for r in own], [str(r["layers"]) for r in own])
        plots.log_axis(ax.yaxis, [r["measured"] / 2**20 for r in rows if r.get("layers")])
        fig.legend(loc="outside upper center", ncols=2, fontsize=10)
    e = estimates(rows, s)
    return (
        f"What DenseNet keeps grows with its layers to the power {e['power_dense'].mean:.2f}, and to the power "
        f"{e['power_dense_recomputed'].mean:.2f} where layers are recomputed; ResNet's to the power {e['power_basic'].mean:.2f}. "
        "Lines are predicted from the shapes, marks counted."
    )


def _networks(s) -> list[dict]:
    if unknown := [name for name in s.published_networks if name not in IMAGENET]:
        raise ValueError(f"published_networks holds {unknown[0]!r}; allowed: {', '.join(IMAGENET)}")
    if s.published_side < LEAST_SIDE or s.published_batch < 1:
        raise ValueError(
            f"published_side={s.published_side} must be at least {LEAST_SIDE} pixels, which Inception's stem needs, and "
            f"published_batch={s.published_batch} at least 1"
        )
    if len(set(s.growth_layers)) < 2 or min(s.growth_layers) < 1:
        raise ValueError(f"growth_layers={s.growth_layers} must be at least two different numbers of at least 1")
    return [{"network": name} for name in s.published_networks] + conditions(network=GROWN, layers=s.growth_layers)


MEMORY = Experiment(
    "memory",
    run=memory,
    conditions=_networks,
    estimates=estimates,
    settings=("network_size", "published_side", "published_batch"),
    counts=("published_networks", "growth_layers"),
    tiny={
        "network_size": "small",
        "published_networks": ["resnet50", "densenet121"],
        "published_side": 75,
        "published_batch": 1,
        "growth_layers": [1, 2],
    },
    finding=finding,
    figure=draw,
    alt="Memory kept for one picture against the number of layers, on logarithmic axes, for ResNet and DenseNet with and "
    "without recomputing: predicted lines and counted marks. DenseNet's line is the steepest, and recomputing makes it less "
    "steep.",
    table=table,
)
