"""The same network, faster: every way to run it, timed in turn, beside the accuracy that it keeps."""

from resnet_lib import inference, page, plots, stats
from resnet_lib.experiments.inference.accuracy import ACCURACY, changes
from resnet_lib.experiments.inference.networks import missing_notes, on_threads, refuse, timed_network, timings
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

PEER = "torchvision's, eager float32"
FAMILIES = {"PyTorch": (plots.BLUE, "o"), "ONNX Runtime": (plots.ORANGE, "s"), "OpenVINO": (plots.GREEN, "^")}


def clock(s, batch: int, threads: int) -> list[dict]:
    """Seconds of single answers of ResNet-18 in every way, in turn, and of torchvision's with the same weights."""
    import torchvision

    peer = torchvision.models.resnet18()
    peer.load_state_dict(timed_network().state_dict())
    with on_threads(threads):
        return timings(s, batch, inference.WAYS, {PEER: peer}, compiled=s.compiles)


def at(rows, batch: int, threads: int) -> list[dict]:
    return stats.where(rows, what="time", batch=batch, threads=threads)


def kept(rows, s) -> list[str]:
    """The plain network, and the ways whose accuracy was found to be its own, within half a point by the mean."""
    there = {r["name"] for r in rows if r["what"] == "time"}
    found = [name for name, one in s.accuracy_change.items() if name in there and abs(one) <= inference.KEPT]
    return [inference.REFERENCE, *found]


def best(rows, s, batch: int, threads: int) -> str:
    """The fastest of them in the rounds that choose."""
    return inference.fastest(at(rows, batch, threads), kept(rows, s))


def best_of_pytorch(rows, s, batch: int, threads: int) -> str:
    own = [name for name in kept(rows, s) if family(name) == "PyTorch"]
    return inference.fastest(at(rows, batch, threads), own)


def estimates(rows, s):
    found = {}
    for batch in s.batches:
        most = max(s.threads)
        for threads in sorted(s.threads):
            own = inference.speedup(at(rows, batch, threads), best(rows, s, batch, threads))
            found[f"best_speedup_batch_{batch}_threads_{threads}"] = own
        own = at(rows, batch, most)
        found[f"best_speedup_batch_{batch}"] = found[f"best_speedup_batch_{batch}_threads_{most}"]
        found[f"pytorch_speedup_batch_{batch}"] = inference.speedup(own, best_of_pytorch(rows, s, batch, most))
        found[f"torchvision_speedup_batch_{batch}"] = inference.speedup(own, PEER)
        middle, high = inference.percentiles(own, best(rows, s, batch, most))
        found[f"tail_batch_{batch}"] = stats.exact(high / middle, "times")
    exact = [r["off"] for r in rows if r["what"] == "time" and not is_rounded(r["name"])]
    found["float32_difference"] = stats.exact(max(exact), "relative")
    return found


def is_rounded(name: str) -> bool:
    """Whether a way counts in shorter numbers than float32."""
    return name in inference.WAYS and inference.WAYS[name].numbers != "float32"


def finding(rows, s, e):
    most, said = max(s.threads), []
    for batch in s.batches:
        own, name = at(rows, batch, most), best(rows, s, batch, most)
        middle, high = inference.percentiles(own, name)
        said.append(
            f"at batch {batch}, {name}, {e[f'best_speedup_batch_{batch}']}: {1000 * middle:.1f} ms, in 95 of 100 at most "
            f"{1000 * high:.1f} ms, {batch / middle:,.0f} pictures/s"
        )
    parity = "; ".join(f"{e[f'torchvision_speedup_batch_{b}']} at batch {b}" for b in s.batches)
    alone = "; ".join(f"{e[f'pytorch_speedup_batch_{b}']} at batch {b}" for b in s.batches)
    rounds = 1 + max(r["round"] for r in rows if r["what"] == "time") - inference.CHOOSING_ROUNDS
    return (
        f"The fastest way to run ResNet-18 that keeps its accuracy, over the plain network: {'; '.join(said)}. Without "
        f"another runtime than PyTorch: {alone}. Each was chosen in the first {inference.CHOOSING_ROUNDS} rounds and timed in "
        f"the other {rounds}. The null is torchvision's own ResNet-18, plain, over ours: {parity}."
    )


def table(rows, s):
    shown = []
    for name in dict.fromkeys(r["name"] for r in rows if r["what"] == "time"):
        change = s.accuracy_change.get(name)
        row = {"name": name, "kept": None if change is None else f"{100 * change:+.2f}"}
        row["off"] = max(r["off"] for r in rows if r["what"] == "time" and r["name"] == name)
        for batch, threads in _places(s):
            own = at(rows, batch, threads)
            if name not in {r["name"] for r in own}:
                continue
            middle, high = inference.percentiles(own, name)
            row[f"ms {batch} {threads}"] = f"{1000 * middle:.1f} ({1000 * high:.1f})"
            row[f"rate {batch} {threads}"] = batch * own[0]["flops"] / middle / 1e9
            row[f"gain {batch} {threads}"] = inference.speedup(own, name).mean
        shown.append(row)
    columns = {"name": "way to run it"}
    for batch, threads in _places(s):
        where = f"{batch} at a time, {threads} thread{'s' if threads > 1 else ''}"
        columns |= {f"ms {batch} {threads}": f"ms: {where}, median (95 %)"}
        columns |= {f"gain {batch} {threads}": ("times as fast", ".2f"), f"rate {batch} {threads}": ("GFLOP/s", ",.0f")}
    return page.table(shown, columns | {"off": ("logits off by", ".0e"), "kept": "change of test accuracy, points"})


def _places(s) -> list[tuple[int, int]]:
    return [(batch, threads) for batch in s.batches for threads in sorted(s.threads)]


def family(name: str) -> str:
    return inference.WAYS[name].runtime if name in inference.WAYS and inference.WAYS[name].from_file else "PyTorch"


def draw(rows, s):
    """Latency of one answer against throughput, with the change of accuracy beside each name."""
    few, many, most = min(s.batches), max(s.batches), max(s.threads)
    there = {r["name"] for r in at(rows, few, most)} & {r["name"] for r in at(rows, many, most)}
    names = [n for n in dict.fromkeys(r["name"] for r in rows if r["what"] == "time") if n in there and n != PEER]
    points = {}
    for name in names:
        delay, work = (inference.percentiles(at(rows, batch, most), name)[0] for batch in (few, many))
        points[name] = 1000 * delay, many / work
    with plots.figure(height=4.2 + 0.24 * len(names)) as (fig, ax):
        for place, name in enumerate(names, start=1):
            colour, shape = FAMILIES[family(name)]
            change = s.accuracy_change.get(name)
            said = "" if change is None or name == inference.REFERENCE else f": {100 * change:+.2f} points"
            full = name in kept(rows, s) or name == inference.REFERENCE
            look = {"markerfacecolor": colour if full else "white", "markeredgecolor": colour, "markersize": 15}
            ax.plot(*points[name], shape, color=colour, label=f"{place}  {name}{said}".replace("-0", "−0"), **look)
            ax.annotate(
                str(place), points[name], ha="center", va="center", fontsize=8, color="white" if full else colour
            )
        ax.set(xscale="log", yscale="log", xlabel=f"milliseconds for {few} picture{'s' if few > 1 else ''}, median")
        ax.set_ylabel(f"pictures a second, {many} at a time")
        ax.margins(0.1)
        ax.invert_xaxis()
        plots.log_axis(ax.xaxis, [x for x, _ in points.values()])
        plots.log_axis(ax.yaxis, [y for _, y in points.values()])
        fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", fontsize=9, markerscale=0.5)
    quick, busy = (best(rows, s, batch, most) for batch in (few, many))
    also = "" if quick == busy else f", and {busy} classifies most pictures a second"
    return (
        f"Up and to the right is faster: {quick} classifies {'one picture' if few == 1 else f'{few} pictures'} soonest{also}, of the ways that keep the accuracy within half a "
        "point. Points after a name: the change of test accuracy of a trained network; a hollow mark has lost more."
    )


def runs(s) -> list[dict]:
    refuse(s)
    return conditions(batch=s.batches, threads=s.threads)


def known_accuracy(rows, s) -> dict:
    """The change of test accuracy of each way, by its mean over seeds."""
    return {"accuracy_change": {name: float(f"{one.mean:.6g}") for name, one in changes(rows).items()}}


SPEED = Experiment(
    "speed",
    run=clock,
    conditions=runs,
    estimates=estimates,
    settings=("timed_side", "batches", "threads", "rounds", "compiles"),
    tiny={"timed_side": 32, "batches": [1, 32], "threads": [1], "rounds": 6, "compiles": False},
    finding=finding,
    figure=draw,
    alt="A scatter plot on two logarithmic axes, a numbered mark for each way to run ResNet-18: milliseconds for one picture, "
    "falling to the right, against pictures a second in a large batch. PyTorch, ONNX Runtime and OpenVINO have a colour and a "
    "shape each; the list below names the numbers with their change of test accuracy.",
    table=table,
    notes=lambda rows, s: missing_notes(rows),
    needs=ACCURACY,
    choose=known_accuracy,
    timed=True,
)
