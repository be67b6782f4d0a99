"""The same network, faster: every way to run it for inference, timed in turn, and the accuracy it keeps."""

import torch

from resnet_lib import bench, inference, page, plots, resnets, stats, train
from resnet_lib.experiments.resnet.networks import batches, cifar, training
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

INFERENCE_ROUNDS = 7
CHOOSING_ROUNDS = 3  # the first rounds choose the fastest way, the others say how fast it is
PEER = "torchvision's, eager float32"


def lived_in(model: resnets.ResNet, side: int, seed: int = 0) -> resnets.ResNet:
    """The network in evaluation mode, after a few batches of noise: its norms have statistics of their own."""
    draw = torch.Generator().manual_seed(seed)
    channels = model.config.in_channels
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.randn(8, channels, side, side, generator=draw))
    return model.eval()


def latency(s, batch: int) -> list[dict]:
    """Seconds a batch for every way to run ResNet-18, in turn; how far its logits are off."""
    import torchvision

    with train.seeded(0):
        model = lived_in(resnets.resnet18_imagenet(), 64).to(s.device)
        images = torch.randn(batch, 3, s.inference_side, s.inference_side).to(s.device)
        calibration = torch.randn(max(8, batch), 3, s.inference_side, s.inference_side).to(s.device)
    ways, notes = inference.variants(model, images, calibration, compiled=s.inference_compile)
    expected = ways[inference.REFERENCE](images)
    peer = torchvision.models.resnet18().to(s.device).eval()
    peer.load_state_dict(model.state_dict())
    ways[PEER] = torch.no_grad()(peer)
    off = {name: ((way(images) - expected).abs().max() / expected.abs().max()).item() for name, way in ways.items()}
    calls = {name: (lambda way=way: way(images)) for name, way in ways.items()}
    timed = bench.compare(calls, reference=inference.REFERENCE, rounds=INFERENCE_ROUNDS)
    rows = []
    for row in timed:
        speedups = [a / b for a, b in zip(timed[0]["times_s"], row["times_s"], strict=True)]
        for turn, (time_s, speedup) in enumerate(zip(row["times_s"], speedups, strict=True)):
            one = {"what": "latency", "way": row["name"], "round": turn, "time_s": time_s}
            rows.append(one | {"speedup": speedup, "off": off[row["name"]]})
    return rows + [{"what": "note", "note": note} for note in notes]


def kept_accuracy(s, seed: int) -> list[dict]:
    """Test accuracy of one trained network, run in every way."""
    make = lambda: resnets.resnet_cifar(s.inference_depth, **cifar(s))
    config = training(s, epochs=s.inference_epochs)
    fitted = train.fit(make, s.pictures, config, seed=seed, progress=False)
    model = fitted.model.eval().to(memory_format=torch.contiguous_format)
    tested = s.pictures.test
    shown = list(batches(s, tested).in_order(min(256, len(tested))))
    calibration = batches(s, s.pictures.train).first(seed)[0].contiguous()
    ways, _ = inference.variants(model, shown[0][0], calibration, compiled=s.inference_compile)
    rows = []
    for name, way in ways.items():
        right = [(way(images).argmax(1) == labels).sum() for images, labels in shown]
        rows.append({"what": "accuracy", "way": name, "accuracy": torch.stack(right).sum().item() / len(tested)})
    return rows


def ways(s, what: str, batch: int = 0, seed: int = 0) -> list[dict]:
    """Time every way at one batch size, or judge one trained network in every way."""
    return latency(s, batch) if what == "latency" else kept_accuracy(s, seed)


def timed(rows):
    return stats.where(rows, what="latency")


def speedup_of(rows, way, batch, rounds=range(CHOOSING_ROUNDS, INFERENCE_ROUNDS)):
    own = [r for r in timed(rows) if r["way"] == way and r["batch"] == batch]
    return stats.interval([r["speedup"] for r in own if r["round"] in rounds], method="log-t", unit="×")


def fastest_at(rows, batch):
    """The way with the largest mean speed-up in the first rounds; neither the plain network nor torchvision's."""
    first = [r for r in timed(rows) if r["batch"] == batch and r["round"] < CHOOSING_ROUNDS]
    ours = [r for r in first if r["way"] not in (inference.REFERENCE, PEER)]
    return stats.best_setting(ours, "speedup", "way", highest=True)


def kept(rows):
    """Of each way the accuracy minus the plain network's, paired by seed."""
    own = [r for r in rows if r["what"] == "accuracy"]
    change = lambda way: stats.paired_rows(own, "accuracy", "way", way, inference.REFERENCE, unit="accuracy")
    return {way: change(way) for way in dict.fromkeys(r["way"] for r in own)}


def is_rounded(row) -> bool:
    """Whether a way counts in shorter numbers than float32."""
    return any(word in row["way"] for word in ("bits", "float16"))


def estimates(rows, s):
    found = {f"best_speedup_batch_{b}": speedup_of(rows, fastest_at(rows, b), b) for b in s.inference_batches}
    found |= {f"torchvision_speedup_batch_{b}": speedup_of(rows, PEER, b) for b in s.inference_batches}
    exact = max(r["off"] for r in timed(rows) if not is_rounded(r))
    found["float32_difference"] = stats.exact(exact, "relative")
    found["rounded_difference"] = stats.exact(max(r["off"] for r in timed(rows) if is_rounded(r)), "relative")
    slug = lambda way: "".join(c if c.isalnum() else "_" for c in way)
    return found | {f"accuracy_change_{slug(way)}": change for way, change in kept(rows).items()}


def finding(rows, s, e):
    best = "; ".join(
        f"{e[f'best_speedup_batch_{b}']} at batch {b} ({fastest_at(rows, b)})" for b in s.inference_batches
    )
    parity = "; ".join(f"{e[f'torchvision_speedup_batch_{b}']} at batch {b}" for b in s.inference_batches)
    return (
        f"The fastest way to run ResNet-18, over the plain network: {best}. It was chosen in the first {CHOOSING_ROUNDS} "
        f"rounds and measured in the other {INFERENCE_ROUNDS - CHOOSING_ROUNDS}. The null is torchvision's own ResNet-18, plain, "
        f"over ours: {parity}."
    )


def table(rows, s):
    changes, shown = kept(rows), []
    for way in dict.fromkeys(r["way"] for r in timed(rows)):
        own = [r for r in timed(rows) if r["way"] == way]
        row = {"way": way, "off": max(r["off"] for r in own), "kept": changes.get(way)}
        for batch in s.inference_batches:
            times = sorted(r["time_s"] for r in own if r["batch"] == batch)
            low, middle, high = (1000 * times[k] for k in (0, len(times) // 2, -1))
            row[f"time{batch}"] = f"{middle:.1f} ({low:.1f} to {high:.1f})"
            row[f"gain{batch}"] = f"{speedup_of(rows, way, batch).mean:.2f}"
        shown.append(row)
    columns = {"way": "way to run it"}
    for batch in s.inference_batches:
        columns |= {f"time{batch}": f"ms for {batch}, median (range)", f"gain{batch}": "speed-up"}
    return page.table(shown, columns | {"off": ("logits off by", ".0e"), "kept": "change of test accuracy"})


def draw(rows, s):
    rows = [r for r in timed(rows) if r["way"] != inference.REFERENCE]
    names = list(dict.fromkeys(r["way"] for r in rows))[::-1]
    batch_sizes = sorted({r["batch"] for r in rows})
    height = 1.0 + len(batch_sizes) * (0.5 + 0.27 * len(names))
    with plots.figure(len(batch_sizes), 1, height=height, sharex=True, squeeze=False) as (_, axes):
        for ax, batch in zip(axes[:, 0], batch_sizes, strict=True):
            for place, name in enumerate(names):
                values = [r["speedup"] for r in rows if r["way"] == name and r["batch"] == batch]
                ax.plot(values, [place] * len(values), "o", color=plots.BLUE, ms=4, alpha=0.4, mew=0)
                ax.plot(sorted(values)[len(values) // 2], place, "s", color=plots.BLUE, ms=7)
            ax.axvline(1, color="grey", linestyle=":")
            ax.set(xscale="log", title=f"batch {batch}", yticks=range(len(names)))
            ax.set_yticklabels(names, fontsize=10)
            ticks = [0.5, 1, 2, 4, 8]
            ax.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
            ax.set_xticks([], minor=True)
        ax.set_xlabel("speed-up over eager float32, round by round")
    tops = []
    for batch in batch_sizes:
        mean = stats.summarise([r for r in rows if r["batch"] == batch], "speedup", ("way",))
        top = max(mean, key=lambda r: r["mean"])
        tops.append(f"{top['mean']:.1f}× at batch {batch} ({top['way']})")
    return f"The largest mean speed-up is {' and '.join(tops)}. Dots are rounds, squares their medians."


def _runs(s):
    resnets.cifar_config(s.inference_depth)
    timings = [{"what": "latency", "batch": batch} for batch in s.inference_batches]
    return timings + conditions(what=["accuracy"], seed=s.seeds)


INFERENCE = Experiment(
    "inference",
    run=ways,
    conditions=_runs,
    estimates=estimates,
    settings=(
        "inference_side",
        "inference_batches",
        "inference_compile",
        "inference_depth",
        "inference_epochs",
        "batch_size",
        "learning_rate",
        "number_format",
    ),
    tiny={
        "inference_side": 32,
        "inference_batches": [1],
        "inference_depth": 8,
        "inference_epochs": 1,
        "batch_size": 64,
    },
    finding=finding,
    figure=draw,
    alt="One panel for each batch size: speed-up over the plain float32 network for every way to run ResNet-18, a small dot "
    "for each round and a square for the median, on one logarithmic axis; a dotted line marks no speed-up.",
    table=table,
    notes=lambda rows, s: sorted({r["note"] for r in rows if r["what"] == "note"}),
    timed=True,
)
