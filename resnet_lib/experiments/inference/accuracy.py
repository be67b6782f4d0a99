"""What every way to run a trained network names the test pictures, against what the plain network names them."""

from dataclasses import replace

import torch

from resnet_lib import data, inference, page, plots, resnets, runtimes, stats, train
from resnet_lib.experiments.inference.networks import missing_notes, slug, trained
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

BATCH = 250  # pictures that are judged together
FEW = 8  # pictures that are too few for ranges, or are they?
EIGHT = inference.WAYS["ONNX Runtime, 8 bits"]


def judge(s, seed: int) -> list[dict]:
    """One trained network in every way, and in 8 bits that were set wrongly, on the test pictures."""
    model, config = trained(s, seed)
    config = replace(config, channels_last=False)
    size = min(BATCH, len(s.pictures.test))
    shown = padded(s, config, size)
    looked = min(s.calibration_pictures, len(s.pictures.train))
    calibration = next(train.Batches(s.pictures, s.pictures.train, config, s.device).in_order(looked))[0]
    example = shown[0][0]
    files = runtimes.Files(model, example, calibration)
    ways, missing = inference.variants(model, example, calibration, compiled=s.compiles, files=files)
    made = [{"what": "way"} | row for row in inference.judged(ways, shown)]
    if "ONNX Runtime, 8 bits" in ways:
        made += [{"what": "check"} | row for row in checks(s, model, files, shown)]
    return made + [{"what": "missing", "name": name, "why": why} for name, why in missing.items()]


def padded(s, config, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The test pictures in batches of one size, since what is compiled is so for one; the last has fewer labels."""
    test = s.pictures.test
    more = -len(test) % size
    images = torch.cat([test.images, test.images[:more]])
    labels = torch.cat([test.labels, torch.full((more,), inference.UNKNOWN)])
    return list(train.Batches(s.pictures, data.Split(images, labels), config, s.device).in_order(size))


def checks(s, model, files, shown) -> list[dict]:
    """The same network in 8 bits that were set otherwise: by one scale a layer, by few pictures, by the wrong ones."""
    mean, std = (v.to(s.device).view(1, -1, 1, 1) for v in (s.pictures.mean, s.pictures.std.clamp_min(1 / 255)))
    calibration, draw = files.calibration, torch.Generator().manual_seed(0)
    sources = {
        "one scale a layer": (calibration, replace(EIGHT, per_channel=False)),
        f"ranges from {FEW} pictures": (calibration[:FEW], EIGHT),
        "ranges from noise": (torch.randn(calibration.shape, generator=draw), EIGHT),
        "ranges from pictures not normalised": (calibration * std + mean, EIGHT),
    }
    ways = {inference.REFERENCE: torch.no_grad()(model)}
    for name, (pictures, recipe) in sources.items():
        ways[name] = inference.built(recipe, model, files.example, files.calibrated(pictures))
    return [row for row in inference.judged(ways, shown) if row["name"] != inference.REFERENCE]


def names_of(rows) -> list[str]:
    """The ways that every seed has, without the reference; first those of the first seed."""
    seeds = {r["seed"] for r in rows}
    own = [r for r in rows if r["what"] == "way" and r["name"] != inference.REFERENCE]
    counted = {name: {r["seed"] for r in own if r["name"] == name} for name in dict.fromkeys(r["name"] for r in own)}
    return [name for name, there in counted.items() if there == seeds]


def change(rows, name: str) -> stats.Estimate:
    """Of one way or check, the accuracy minus the plain network's, paired by seed."""
    own = [r for r in rows if r["what"] in ("way", "check")]
    return stats.paired_rows(own, "accuracy", "name", name, inference.REFERENCE, unit="accuracy")


def changes(rows) -> dict[str, stats.Estimate]:
    return {name: change(rows, name) for name in names_of(rows)}


def mean_of(rows, name: str, value: str, unit: str) -> stats.Estimate:
    return stats.interval([r[value] for r in rows if r.get("name") == name and value in r], unit=unit)


def check_names(rows) -> list[str]:
    return list(dict.fromkeys(r["name"] for r in rows if r["what"] == "check"))


def worst_of(rows) -> str:
    """The way whose accuracy may have fallen furthest: the lowest end of an interval."""
    return min(changes(rows).items(), key=lambda pair: pair[1].low)[0]


def estimates(rows, s):
    found = {f"change_{slug(name)}": one for name, one in changes(rows).items()}
    found["worst_change"] = change(rows, worst_of(rows))
    found |= {f"change_{slug(name)}": change(rows, name) for name in check_names(rows)}
    plain = [r["accuracy"] for r in rows if r.get("name") == inference.REFERENCE]
    found["plain_accuracy"] = stats.interval(plain, unit="share")
    found["over_chance"] = stats.interval([a + s.chance_error - 1 for a in plain], unit="accuracy")
    found["worst_same"] = mean_of(rows, worst_of(rows), "same", "share")
    return found


def finding(rows, s, e):
    wrong = [f"{name}: {e[f'change_{slug(name)}']}" for name in check_names(rows)]
    said = f" In 8 bits that were set otherwise, {'; '.join(wrong)}." if wrong else ""
    return (
        f"Of {len(names_of(rows))} ways to run a network of {e['plain_accuracy']} accuracy, the one that loses most is "
        f"{worst_of(rows)}: {e['worst_change']}. It names {e['worst_same']} of the pictures as the plain network does.{said}"
    )


def table(rows, s):
    shown = []
    for name in [inference.REFERENCE, *names_of(rows), *check_names(rows)]:
        own = [r for r in rows if r.get("name") == name and "accuracy" in r]
        mean = lambda value, own=own: sum(r[value] for r in own) / len(own)
        row = {value: mean(value) for value in ("accuracy", "same", "lost", "gained")}
        row["change"] = None if name == inference.REFERENCE else change(rows, name)
        shown.append(row | {"name": name if own[0]["what"] == "way" else f"8 bits, {name}"})
    columns = {"name": "way to run it", "accuracy": ("test accuracy", ".2%"), "change": "minus the plain network's"}
    columns |= {"same": ("same first guess", ".2%"), "lost": ("right, now wrong", ".2%")}
    return page.table(shown, columns | {"gained": ("wrong, now right", ".2%")})


def draw(rows, s):
    plain = {r["seed"]: r["accuracy"] for r in rows if r.get("name") == inference.REFERENCE}
    panels = [(names_of(rows), plots.BLUE), (check_names(rows), plots.ORANGE)]
    panels = [(names, colour) for names, colour in panels if names]
    sizes = {"height_ratios": [len(names) + 1 for names, _ in panels]}
    height = 1.0 + 0.33 * sum(sizes["height_ratios"])
    with plots.figure(len(panels), 1, height=height, squeeze=False, gridspec_kw=sizes) as (_, axes):
        for ax, (names, colour) in zip(axes[:, 0], panels, strict=True):
            shown = [{"name": name, "change": change(rows, name)} for name in names]
            plots.forest(ax, shown, "name", "change", colour=colour)
            for place, name in enumerate(names):
                dots = [r["accuracy"] - plain[r["seed"]] for r in rows if r.get("name") == name and "accuracy" in r]
                ax.plot(dots, [place + 0.25] * len(dots), "o", color=colour, alpha=0.5, markersize=4, mew=0)
            for bound in (-inference.KEPT, inference.KEPT):
                ax.axvline(bound, color="grey", linewidth=1, linestyle="--")
            ax.tick_params(axis="y", labelsize=10)
            plots.hundredths(ax.xaxis)
        if len(panels) > 1:
            axes[1, 0].set_title("8 bits, set otherwise")
        axes[-1, 0].set_xlabel("test accuracy, change in points")
    found = changes(rows)
    kept = sum(one.low >= -inference.KEPT and one.high <= inference.KEPT for one in found.values())
    below = " Below, 8 bits that were set otherwise, on a scale of their own." if len(panels) > 1 else ""
    return (
        f"{kept} of {len(found)} ways are within half a point (dashed) of the plain network with their whole interval. "
        f"Small dots are seeds.{below}"
    )


def runs(s) -> list[dict]:
    resnets.cifar_config(s.depth)
    return conditions(seed=s.seeds)


ACCURACY = Experiment(
    "accuracy",
    run=judge,
    conditions=runs,
    estimates=estimates,
    settings=(
        "depth", "width", "epochs", "batch_size", "learning_rate", "flips", "number_format", "calibration_pictures",
        "compiles",
    ),
    tiny={
        "depth": 8, "width": 4, "epochs": 1, "batch_size": 32, "train_size": 520, "test_size": 60,
        "calibration_pictures": 32, "compiles": False,
    },
    finding=finding,
    figure=draw,
    alt="A line for each way to run the network: its test accuracy minus the plain network's as a dot with its interval and "
    "small dots for the seeds, around a grey line at zero, with dashed lines half a point to both sides; in a second panel with "
    "an axis of its own the same for 8 bits whose ranges were set otherwise.",
    table=table,
    notes=lambda rows, s: missing_notes(rows),
)  # fmt: skip
