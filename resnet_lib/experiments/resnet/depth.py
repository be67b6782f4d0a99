"""Does depth need no design? Accuracy and cost against depth, and against width at equal computation."""

from statistics import fmean

import torch

from resnet_lib import bench, page, plots, resnets, stats, train
from resnet_lib.experiments import depths
from resnet_lib.experiments.resnet.networks import (
    COST_BATCH,
    ROUNDS,
    batches,
    cifar,
    judge,
    predicted,
    step_of,
    training,
)
from resnet_lib.experiments.shapes import cifar_parameters, flops_here, nearest_width
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

RISES = "rises by", "falls by", "does not clearly change"
RATES = depths.rates("depth_rates", ("residual",), [8, 56, 62])


def judged(rows):
    """The rows with the accuracy on test pictures."""
    return [r | {"accuracy": 1 - r["test_error"]} for r in rows]


def gain(rows, deeper, shallower, column="accuracy"):
    return stats.paired_rows(judged(rows), column, "depth", deeper, shallower, unit="accuracy")


def estimates(rows, s):
    """Accuracy from 8 to 56 layers and beyond, training error likewise, computation, and where returns stop."""
    chosen = stats.best_setting(rows, "val_error", "depth")
    layers = sorted({r["depth"] for r in rows})
    stops = min(d for d in layers if d == chosen or gain(rows, chosen, d).low <= 0)
    base = [1 - r["test_error"] for r in rows if r["depth"] == s.looked_depth]
    return {
        "gain_to_56": gain(rows, 56, 8),
        "train_error_to_56": stats.paired_rows(rows, "train_error", "depth", 56, 8, unit="error"),
        "flops_change": stats.exact(flops_here(s, 56) - flops_here(s, 8), "FLOPs"),
        "returns_stop": stats.exact(stops, "layers"),
        "base_accuracy": stats.interval(base, unit="share"),
    } | ({"gain_beyond_56": gain(rows, max(layers), 56)} if max(layers) > 56 else {})


def finding(rows, s, e):
    deepest, chosen = max(r["depth"] for r in rows), stats.best_setting(rows, "val_error", "depth")
    beyond = ""
    if "gain_beyond_56" in e:
        beyond = f"From 56 to {deepest} layers accuracy {page.change(e['gain_beyond_56'], *RISES)}. "
    return (
        f"From 8 to 56 layers test accuracy {page.change(e['gain_to_56'], *RISES)}, the training error "
        f"{page.change(e['train_error_to_56'], *RISES)}, and computation is {flops_here(s, 56) / flops_here(s, 8):.1f} times "
        f"as much. {beyond}Validation chooses {chosen} layers, and returns stop at {e['returns_stop'].mean:.0f}: from "
        f"there on the distance to that one is not told apart from zero. ResNet-{s.looked_depth} reaches "
        f"{e['base_accuracy']} in {s.depth_epochs} epochs."
    )


def table(rows, s):
    shown = []
    for depth in sorted({r["depth"] for r in rows}):
        own = stats.where(judged(rows), depth=depth)
        row = {"depth": depth, "rate": own[0]["rate"], "flops": flops_here(s, depth)}
        row |= {name: stats.interval([r[name] for r in own]) for name in ("accuracy", "train_error")}
        shown.append(row | {"time_s": fmean(r["time_s"] for r in own)})
    columns = {"depth": "layers", "rate": ("learning rate", "g"), "accuracy": "test accuracy"}
    columns |= {"train_error": "training error", "flops": ("MFLOPs a picture", lambda flops: f"{flops / 1e6:.1f}")}
    return page.table(shown, columns | {"time_s": ("training time, s", ".0f")})


def draw(rows, s):
    """Accuracy and training error against depth and against computation, for the chapter and its first screen."""
    rows = judged(rows)
    panels = {"accuracy": "test accuracy, %", "train_error": "training error, %"}
    with plots.figure(1, 2, height=2.8, width=7.6) as (_, axes):
        for ax, (column, name) in zip(axes, panels.items(), strict=True):
            means = stats.summarise(sorted(rows, key=lambda r: r["depth"]), column, ("depth",))
            at = [r["depth"] for r in means]
            bars = [[r["mean"] - r["low"] for r in means], [r["high"] - r["mean"] for r in means]]
            ax.plot([r["depth"] for r in rows], [r[column] for r in rows], "o", color=plots.ORANGE, ms=4, mew=0)
            ax.errorbar(at, [r["mean"] for r in means], yerr=bars, color=plots.BLUE, capsize=3, marker="s")
            ax.set(xscale="log", xlabel="layers", ylabel=name)
            ax.set_xticks(at, [str(depth) for depth in at])
            ax.minorticks_off()
        plots.hundredths(*(ax.yaxis for ax in axes))
    words = {name: page.trend(gain(rows, 56, 8, name), "rises", "falls", "does not clearly change") for name in panels}
    return (
        f"From 8 to 56 layers test accuracy {words['accuracy']} and training error {words['train_error']}, each depth at its "
        "own learning rate. Dots are seeds, bars intervals of 95 %."
    )


def _depths(s):
    depths.checked("depths", s.depths)
    if missing := {8, 56, s.looked_depth} - set(s.depths):
        raise ValueError(
            f"depths={s.depths} lacks {sorted(missing)}: the rules in claims.yml and looked_depth need them"
        )
    return depths.arms(s, ("residual",), s.depths)


DEPTH = Experiment(
    "depth",
    run=depths.trained,
    conditions=_depths,
    estimates=estimates,
    settings=("looked_depth", "depth_epochs", "flips", "number_format"),
    counts=("depths",),
    tiny={"depths": [8, 56, 62], "looked_depth": 8, "depth_epochs": 1},
    finding=finding,
    figure=draw,
    alt="Two panels against the number of layers on a logarithmic axis: test accuracy and training error, a dot for each "
    "seed and the mean with its interval.",
    table=table,
    kept=("end",),
    needs=RATES,
    choose=lambda rows, s: {"rate_of": depths.rates_of(rows)},
)


def stacked(s, depth: int, width: int, epochs: int, seed: int) -> list[dict]:
    """Train one CIFAR ResNet; its stages are width, 2 width and 4 width wide."""
    make = lambda: resnets.resnet_cifar(depth, widths=(width, 2 * width, 4 * width), **cifar(s))
    fitted = train.fit(make, s.pictures, training(s, epochs=epochs), seed=seed, progress=False)
    last = fitted.rows[-1]
    row = {name: last[name] for name in ("train_loss", "train_error", "time_s")}
    row |= judge(s, fitted.model) | {"val_error_running": last["val_error"]}
    return [row | {"what": "run", "accuracy": 1 - row["test_error"]}]


def width_for(s, depth: int) -> int:
    """The base width whose computation at this depth is nearest to that of ResNet-20 of width 16."""
    return nearest_width(lambda w: flops_here(s, depth, w), flops_here(s, 20))


def width_estimates(rows, s):
    layers = {r["depth"] for r in rows}
    return {"deep_over_wide": gain(rows, max(layers), min(layers))}


def width_finding(rows, s, e):
    times = {d: fmean(r["time_s"] for r in rows if r["depth"] == d) for d in {r["depth"] for r in rows}}
    slowest = max(times, key=times.get)
    return (
        f"At equal computation, {max(times)} layers minus {min(times)}: {e['deep_over_wide']}. Equal computation is not equal "
        f"time: the slowest of these networks takes {times[slowest] / min(times.values()):.1f} times as long as the fastest, "
        f"at {slowest} layers."
    )


def width_table(rows, s):
    shown, (colours, _, _) = [], s.facts["shape"]
    for depth in sorted({r["depth"] for r in rows}):
        own = [r for r in rows if r["depth"] == depth]
        width = own[0]["width"]
        row = {"depth": depth, "width": width, "budget": flops_here(s, depth, width) / flops_here(s, 20) - 1}
        row |= {"parameters": cifar_parameters(depth, width, colours, s.facts["classes"])}
        row |= {"accuracy": stats.interval([r["accuracy"] for r in own])}
        shown.append(row | {"time_s": fmean(r["time_s"] for r in own)})
    columns = {"depth": "layers", "width": "width of the first stage", "budget": ("FLOPs against the budget", "+.1%")}
    columns |= {"parameters": ("parameters", ","), "accuracy": "test accuracy", "time_s": ("training time, s", ".1f")}
    return page.table(shown, columns)


def draw_width(rows, s):
    named = [r | {"network": f"{r['depth']}\nw={r['width']}", "kind": "equal FLOPs"} for r in rows]
    with plots.figure(height=3) as (_, ax):
        plots.dots(ax, named, "network", "accuracy", by="kind")
        ax.set(xlabel="layers, and width of the first stage", ylabel="test accuracy")
    most = max(stats.summarise(rows, "accuracy", ("depth", "width")), key=lambda r: r["mean"])
    return (
        f"At equal computation the mean accuracy is highest at {most['depth']} layers of width {most['width']} "
        f"({most['mean']:.3f}). Dots are seeds, bars intervals of 95 %."
    )


def _widths(s):
    for depth in s.width_depths:
        resnets.cifar_config(depth)
    if len(set(s.width_depths)) < 2:
        raise ValueError(f"width_depths={s.width_depths}: at least two depths are needed to compare them")
    shapes = [{"depth": d, "width": width_for(s, d), "epochs": s.width_epochs} for d in s.width_depths]
    return [shape | {"seed": n} for shape in shapes for n in s.seeds]


WIDTH_DEPTH = Experiment(
    "width_depth",
    run=stacked,
    conditions=_widths,
    estimates=width_estimates,
    settings=("width_depths", "width_epochs", "batch_size", "learning_rate", "number_format"),
    tiny={"width_depths": [8, 14], "width_epochs": 1, "batch_size": 64},
    finding=width_finding,
    figure=draw_width,
    alt="Test accuracy against depth at equal computation, a dot for each seed and the mean with its interval.",
    table=width_table,
)


def cost(s, depth: int) -> list[dict]:
    """What one training step of a CIFAR ResNet takes: computation, weights, time, memory for activations."""
    images, labels = batches(s, s.pictures.train, COST_BATCH).first()
    with train.seeded(0):
        model = resnets.resnet_cifar(depth, **cifar(s)).to(s.device, memory_format=torch.channels_last)
    saved, step = {}, step_of(s, model, images, labels)

    def keep(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    row = {"what": "cost", "parameters": resnets.count_parameters(model)}
    row["flops"] = predicted(model.config, s.facts["shape"][1:])[1]
    row["activation_bytes"] = sum(size for at, size in saved.items() if at not in weights)
    row["step_s"] = bench.measure(step, repeats=ROUNDS, warmup=1).median
    row["peak_bytes"] = None
    if s.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        row["peak_bytes"] = torch.cuda.max_memory_allocated() - before
    return [row]


def ends(rows):
    ordered = sorted(rows, key=lambda r: r["depth"])
    return ordered[0], ordered[-1]


def cost_estimates(rows, s):
    first, last = ends(rows)
    return {
        "step_ratio": stats.exact(last["step_s"] / first["step_s"], "times"),
        "memory_ratio": stats.exact(last["activation_bytes"] / first["activation_bytes"], "times"),
    }


def cost_finding(rows, s, e):
    first, last = ends(rows)
    return (
        f"Stacking never reduces computation: from {first['depth']} to {last['depth']} layers a training step takes "
        f"{e['step_ratio'].mean:.0f} times as long and keeps {e['memory_ratio'].mean:.0f} times as many bytes for the "
        f"backward pass, at a batch of {COST_BATCH}."
    )


def cost_table(rows, s):
    in_mib = lambda size: f"{size / 2**20:.1f}"
    columns = {"depth": "layers", "parameters": ("parameters", ",")}
    columns |= {"flops": ("MFLOPs a picture", lambda flops: f"{flops / 1e6:.1f}"), "step_s": ("seconds a step", ".3f")}
    columns |= {"activation_bytes": ("kept for the backward pass, MiB", in_mib)}
    return page.table(rows, columns | {"peak_bytes": ("peak on the GPU, MiB", in_mib)})


def draw_cost(rows, s):
    names = {"step_s": "seconds\na step", "activation_bytes": "bytes kept for\nthe backward pass"}
    rows = sorted(rows, key=lambda r: r["depth"])
    with plots.figure(2, 1, height=4.8, sharex=True) as (_, axes):
        for ax, (column, name) in zip(axes, names.items(), strict=True):
            depths, values = ([r[key] for r in rows] for key in ("depth", column))
            ax.plot(depths, values, color=plots.BLUE, marker="o", label="measured")
            line = [values[-1] * depth / depths[-1] for depth in depths]
            ax.plot(depths, line, "--", color="black", linewidth=1.2, label="proportional to depth")
            ax.set(xscale="log", yscale="log", ylabel=name)
        axes[0].legend()
        axes[1].set_xlabel("layers")
    first, last = ends(rows)
    return (
        f"From {first['depth']} to {last['depth']} layers a step takes {last['step_s'] / first['step_s']:.0f} times as long; "
        "dashed: proportional to depth."
    )


def _cost_depths(s):
    for depth in s.cost_depths:
        resnets.cifar_config(depth)
    return conditions(depth=s.cost_depths)


DEPTH_COST = Experiment(
    "depth_cost",
    run=cost,
    conditions=_cost_depths,
    estimates=cost_estimates,
    settings=("cost_depths", "batch_size", "learning_rate", "number_format"),
    tiny={"cost_depths": [8, 14], "batch_size": 64},
    finding=cost_finding,
    figure=draw_cost,
    alt="Two panels on logarithmic axes: seconds of a training step and memory kept for the backward pass against the "
    "number of layers, with a dashed line proportional to depth.",
    table=cost_table,
    timed=True,
)
