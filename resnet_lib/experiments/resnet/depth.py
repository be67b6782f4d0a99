"""Does depth need no design? Accuracy and cost against depth, and against width at equal computation."""

import itertools
from dataclasses import replace
from statistics import fmean

import torch

from resnet_lib import bench, page, plots, resnets, stats, train
from resnet_lib.experiments.resnet.networks import (
    COST_BATCH,
    ROUNDS,
    batches,
    cifar,
    cifar_parameters,
    flops_here,
    judge,
    predicted,
    step_of,
    training,
)
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions


def stacked(s, depth: int, width: int, epochs: int, seed: int) -> list[dict]:
    """Train one CIFAR ResNet; its stages are width, 2 width and 4 width wide."""
    make = lambda: resnets.resnet_cifar(depth, widths=(width, 2 * width, 4 * width), **cifar(s))
    fitted = train.fit(make, s.pictures, training(s, epochs=epochs), seed=seed, progress=False)
    last = fitted.rows[-1]
    row = {name: last[name] for name in ("train_loss", "train_error", "time_s")}
    row |= judge(s, fitted.model) | {"val_error_running": last["val_error"]}
    return [row | {"what": "run", "accuracy": 1 - row["test_error"]}]


def gain(rows, deeper, shallower):
    return stats.paired_rows(rows, "accuracy", "depth", deeper, shallower, unit="accuracy")


def estimates(rows, s):
    """Accuracy from 8 to 56 layers and beyond 110, the computation, and where returns stop."""
    best = stats.best_setting(rows, "accuracy", "depth", highest=True)
    depths = sorted({r["depth"] for r in rows})
    stops = min(d for d in depths if d == best or gain(rows, best, d).low <= 0)
    return {
        "gain_to_56": gain(rows, 56, 8),
        "gain_beyond_110": gain(rows, max(depths), 110),
        "flops_change": stats.exact(flops_here(s, 56) - flops_here(s, 8), "FLOPs"),
        "returns_stop": stats.exact(stops, "layers"),
    }


def finding(rows, s, e):
    best = stats.best_setting(rows, "accuracy", "depth", highest=True)
    deepest = max(r["depth"] for r in rows)
    at = [r for r in rows if r["depth"] == deepest]
    running, settled = (fmean(r[name] for r in at) for name in ("val_error_running", "val_error"))
    return (
        f"From 8 to 56 layers test accuracy changes by {e['gain_to_56']}, and computation by "
        f"{flops_here(s, 56) / flops_here(s, 8):.1f} times. From 110 to {deepest} layers accuracy changes by "
        f"{e['gain_beyond_110']}. The mean is highest at {best} layers, and returns stop at {e['returns_stop'].mean:.0f}: from "
        f"there on the distance to the best is not told apart from zero. Judged by running averages, as is usual, the "
        f"validation error at {deepest} layers would be {running:.3f} instead of {settled:.3f}."
    )


def table(rows, s):
    shown = []
    for depth in sorted({r["depth"] for r in rows}):
        own = [r for r in rows if r["depth"] == depth]
        row = {"depth": depth, "flops": flops_here(s, depth), "accuracy": stats.interval([r["accuracy"] for r in own])}
        shown.append(row | {name: fmean(r[name] for r in own) for name in ("train_error", "time_s")})
    columns = {"depth": "layers", "accuracy": "test accuracy", "train_error": ("training error", ".3f")}
    columns |= {"flops": ("MFLOPs a picture", lambda flops: f"{flops / 1e6:.1f}")}
    return page.table(shown, columns | {"time_s": ("training time, s", ".1f")})


def draw(rows, s):
    means = stats.summarise(sorted(rows, key=lambda r: r["depth"]), "accuracy", ("depth",))
    mean = [r["mean"] for r in means]
    bars = [[r["mean"] - r["low"] for r in means], [r["high"] - r["mean"] for r in means]]
    with plots.figure(2, 1, height=5.4, sharey=True) as (_, axes):
        for ax, place in zip(axes, (int, lambda depth: flops_here(s, depth) / 1e6), strict=True):
            at = [place(r["depth"]) for r in rows]
            ax.plot(at, [r["accuracy"] for r in rows], "o", color=plots.ORANGE, ms=5, mew=0, zorder=3)
            at = [place(r["depth"]) for r in means]
            ax.errorbar(at, mean, yerr=bars, color=plots.BLUE, capsize=3, marker="s")
            ax.set(xscale="log", ylabel="test accuracy")
            apart = [at[0], *(b for a, b in itertools.pairwise(at) if b > 1.3 * a)]  # labels need room
            ax.set_xticks(apart, [f"{x:.3g}" for x in apart])
            ax.minorticks_off()
        axes[0].set_xlabel("layers")
        axes[1].set_xlabel("MFLOPs of one picture's forward pass")
    most = max(means, key=lambda r: r["mean"])
    return (
        f"Mean test accuracy is {mean[0]:.3f} at {means[0]['depth']} layers, highest with {most['mean']:.3f} at "
        f"{most['depth']}, and {mean[-1]:.3f} at {means[-1]['depth']}. Dots are seeds, bars intervals of 95 %."
    )


def draw_front(rows, s):
    """For the first screen: accuracy and computation against depth, side by side."""
    means = stats.summarise(sorted(rows, key=lambda r: r["depth"]), "accuracy", ("depth",))
    at = [r["depth"] for r in means]
    bars = [[r["mean"] - r["low"] for r in means], [r["high"] - r["mean"] for r in means]]
    with plots.figure(1, 2, height=2.5, width=7.6) as (_, axes):
        axes[0].plot([r["depth"] for r in rows], [r["accuracy"] for r in rows], "o", color=plots.ORANGE, ms=4, mew=0)
        axes[0].errorbar(at, [r["mean"] for r in means], yerr=bars, color=plots.BLUE, capsize=3, marker="s")
        axes[1].plot(at, [flops_here(s, depth) / 1e6 for depth in at], color=plots.BLUE, marker="s")
        axes[0].set(xlabel="layers", ylabel="test accuracy")
        axes[1].set(xlabel="layers", ylabel="MFLOPs a picture")
    return "Stacking at equal settings: what accuracy does, and what it costs. Dots are seeds, bars intervals of 95 %."


def _depths(s):
    for depth in s.depths:
        resnets.cifar_config(depth)
    if missing := {8, 56, 110} - set(s.depths):
        raise ValueError(f"depths={s.depths} lacks {sorted(missing)}, which the rules in claims.yml compare")
    if max(s.depths) <= 110:
        raise ValueError(f"depths={s.depths}: one must be deeper than 110, by the rules in claims.yml")
    return conditions(depth=s.depths, width=[16], epochs=[s.depth_epochs], seed=s.seeds)


DEPTH = Experiment(
    "depth",
    run=stacked,
    conditions=_depths,
    estimates=estimates,
    settings=("depths", "depth_epochs", "batch_size", "learning_rate", "number_format"),
    tiny={"depths": [8, 56, 110, 116], "depth_epochs": 1, "batch_size": 64},
    finding=finding,
    figure=draw,
    alt="Two panels of test accuracy, above against depth and below against computation in FLOPs, both on a logarithmic "
    "axis, a dot for each seed and the mean with its interval.",
    table=table,
)


def width_for(s, depth: int) -> int:
    """The base width whose computation at this depth is nearest to that of ResNet-20 of width 16."""
    budget = flops_here(s, 20)
    return min(range(1, 200), key=lambda w: abs(flops_here(s, depth, w) - budget))


def width_estimates(rows, s):
    depths = {r["depth"] for r in rows}
    return {"deep_over_wide": gain(rows, max(depths), min(depths))}


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
    shapes = [{"depth": d, "width": width_for(s, d), "epochs": s.depth_epochs} for d in s.width_depths]
    return [shape | {"seed": n} for shape in shapes for n in s.seeds]


WIDTH_DEPTH = replace(
    DEPTH,
    name="width_depth",
    conditions=_widths,
    estimates=width_estimates,
    settings=("width_depths", "depth_epochs", "batch_size", "learning_rate", "number_format"),
    tiny={"width_depths": [8, 14], "depth_epochs": 1, "batch_size": 64},
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
    row["flops"] = predicted(model.config, s.facts["shape"][2])[1]
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
