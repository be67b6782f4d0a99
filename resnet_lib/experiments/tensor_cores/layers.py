"""Every layer of a ResNet-50: its time against the roofline's, and what mixed precision gains in training."""

import copy
from statistics import median

import torch
from torch import nn

from resnet_lib import bench, page, plots, precision, resnets, stats, train
from resnet_lib.experiments.tensor_cores.formats import filed, mixed
from resnet_lib.experiments.tensor_cores.networks import training_step
from resnet_lib.experiments.tensor_cores.throughput import THROUGHPUT, limits
from resnet_lib.study import Experiment

KINDS = {
    nn.Conv2d: "convolution",
    nn.Linear: "linear",
    nn.BatchNorm2d: "norm",
    nn.ReLU: "ReLU",
    nn.MaxPool2d: "pooling",
}
BRIEF = 3e-5  # seconds; about ten times what an operation on one number takes on a CPU


def cost_of(layer: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[int, int]:
    """FLOPs of a layer forward, and the numbers it must at least read or write: input, weights, output."""
    each = {nn.BatchNorm2d: 6, nn.ReLU: 1, nn.MaxPool2d: 8}.get(type(layer))
    if isinstance(layer, nn.Conv2d | nn.Linear):
        each = 2 * layer.weight[0].numel()  # a multiply-add for every weight of an output
    numbers = x.numel() + y.numel() + sum(p.numel() for p in layer.parameters())
    return y.numel() * each, numbers


def layers_of(model: nn.Module, images: torch.Tensor) -> list[dict]:
    """Every different layer of a network with its shapes and costs, and how often it runs."""
    found = {}

    def note(layer, given, made):
        shape = tuple(given[0].shape)
        flops, numbers = cost_of(layer, given[0], made)
        row = {"layer": layer, "shape": shape, "flops": flops, "numbers": numbers, "count": 0}
        found.setdefault((repr(layer), shape), row)["count"] += 1

    hooks = [m.register_forward_hook(note) for m in model.modules() if type(m) in KINDS]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return list(found.values())


def resnet50_layers(pictures: int, pixels: int) -> list[dict]:
    with torch.device("meta"):  # shapes only: nothing is computed
        return layers_of(resnets.resnet50_imagenet(), torch.empty(pictures, 3, pixels, pixels))


def extra(s) -> dict[str, tuple]:
    """Layers beside the network's own, with the shapes of their inputs."""
    shape = (s.layer_shape[1] // 4, s.layer_shape[1] // 4)
    return {
        "linear 4096": (nn.Linear(4096, 4096), (s.batch_size, 4096)),
        "251 channels": (nn.Conv2d(251, 251, 3, padding=1), (s.layer_shape[0], 251, *shape)),
        "256 channels": (nn.Conv2d(256, 256, 3, padding=1), (s.layer_shape[0], 256, *shape)),
    }


def layer_calls(layer: nn.Module, shape: tuple, form: str, device) -> dict:
    """A layer forward in a format, and forward and backward in mixed precision, as callables; channels last."""
    rows_last = {"memory_format": torch.channels_last} if len(shape) == 4 else {}
    dtype = precision.FORMATS[form].dtype
    with train.seeded(0):
        x = torch.randn(shape).to(device, **rows_last)
        layer = copy.deepcopy(layer).to_empty(device=device).to(**rows_last).train()
        for p in layer.parameters():
            nn.init.normal_(p, std=0.05)
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
    if isinstance(layer, nn.ReLU):
        layer.inplace = False  # a leaf of the graph may not be changed
    pure, short = copy.deepcopy(layer).to(dtype), x.to(dtype)
    pictures_in = len(shape) == 4 and shape[1] <= 4  # the first layer: float32 in, no gradient out
    given = x if pictures_in else short.clone().requires_grad_()
    wanted = [t for t in (given, *layer.parameters()) if t.requires_grad]

    def forward():
        with torch.no_grad():
            pure(short)

    def both():
        with precision.autocast(form, device):
            made = layer(given)
        torch.autograd.grad(made, wanted, torch.ones_like(made))

    return {"forward": forward, "both": both}


def layer_times(s, place: int | str) -> list[dict]:
    """Seconds of one layer, in float32 and in 16 bits, forward and both ways, in turn."""
    inside, counted = isinstance(place, int), resnet50_layers(*s.layer_shape)
    layer, shape = (counted[place]["layer"], counted[place]["shape"]) if inside else extra(s)[place]
    calls = {
        f"{what} {form}": call
        for form in ("fp32", mixed(s.device))
        for what, call in layer_calls(layer, shape, form, s.device).items()
    }
    with precision.number_format("fp32"):
        timed = bench.compare(calls, rounds=s.rounds, warmup=1)
    about = {"kind": KINDS[type(layer)], "shape": list(shape), "count": 1}
    if inside:
        about |= {k: counted[place][k] for k in ("count", "flops", "numbers")}
    return [
        about | dict(zip(("what", "form"), r["name"].split(), strict=True)) | {"times_s": r["times_s"]} for r in timed
    ]


def network_times(s) -> list[dict]:
    """Seconds of a training step of the whole network, in float32 twice (the null) and in 16 bits."""
    pictures, pixels = s.layer_shape
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(pictures, 3, pixels, pixels, generator=draw)
    labels = torch.randint(1000, (pictures,), generator=draw)
    short = mixed(s.device)
    forms = {"fp32": "fp32", "fp32 again": "fp32", short: short}
    calls = {
        name: training_step(resnets.resnet50_imagenet, images, labels, s.device, form, last=True)
        for name, form in forms.items()
    }
    timed = bench.compare(calls, rounds=s.rounds, warmup=1)
    return [{"what": "step", "form": r["name"], "times_s": r["times_s"]} for r in timed]


def layers(s, place: int | str = "", network: str = "") -> list[dict]:
    """Times of one layer, or of a training step of the whole network."""
    return network_times(s) if network else layer_times(s, place)


def runs(s):
    shape = s.layer_shape
    if len(shape) != 2 or shape[0] < 2 or shape[1] < 32:
        raise ValueError(f"layer_shape={shape} must be pictures and pixels, at least [2, 32]")
    places = [*range(len(resnet50_layers(*shape))), *extra(s)]
    return [*({"place": place} for place in places), {"network": "resnet50"}]


def is_own(row) -> bool:
    """Whether a row is of the network's own layers."""
    return isinstance(row.get("place"), int)


PARTS = {  # of training → the rows whose times make it up
    "convolution": lambda r: is_own(r) and r["what"] == "both" and r["kind"] == "convolution",
    "linear": lambda r: r.get("place") == "linear 4096" and r["what"] == "both",
    "stem": lambda r: is_own(r) and r["what"] == "both" and r["kind"] == "convolution" and r["shape"][1] == 3,
    "unaligned": lambda r: r.get("place") == "251 channels" and r["what"] == "both",
    "aligned": lambda r: r.get("place") == "256 channels" and r["what"] == "both",
    "norm": lambda r: is_own(r) and r["what"] == "both" and r["kind"] == "norm",
    "network": lambda r: r["what"] == "step",
}


def short_format(rows) -> str:
    """The 16 bits that the rows were timed in."""
    return next(r["form"] for r in rows if r["what"] == "both" and r["form"] != "fp32")


def total(rows, form: str, keep) -> list[float]:
    """Seconds of all the rows kept, round by round, each as often as the network runs it."""
    own = [r for r in rows if r["form"] == form and keep(r)]
    return [sum(r.get("count", 1) * r["times_s"][k] for r in own) for k in range(len(own[0]["times_s"]))]


def gained(rows, keep, form: str) -> stats.Estimate:
    """Time in float32 over that in another format, round by round."""
    pairs = zip(total(rows, "fp32", keep), total(rows, form, keep), strict=True)
    return stats.interval([a / b for a, b in pairs], method="log-t", unit="times")


def forward_rows(rows) -> list[dict]:
    return [r for r in rows if is_own(r) and r["what"] == "forward"]


def predicted(row, s) -> tuple[float, str]:
    """Seconds that the two measured ceilings allow this layer forward, and which of them binds."""
    work = row["flops"] / s.ceilings[row["form"]]
    moved = row["numbers"] * precision.FORMATS[row["form"]].dtype.itemsize / s.bandwidth
    return max(work, moved), "arithmetic" if work > moved else "memory"


def over_roof(rows, s, form: str) -> stats.Estimate:
    """Time of all layers forward over what the roofline allows them, by round."""
    own = forward_rows(rows)
    allowed = sum(r["count"] * predicted(r, s)[0] for r in own if r["form"] == form)
    return stats.interval([t / allowed for t in total(own, form, lambda r: True)], method="log-t", unit="times")


def gains(rows) -> dict[str, stats.Estimate]:
    return {part: gained(rows, keep, short_format(rows)) for part, keep in PARTS.items()}


def _filed(rows, s):
    wanted = {f"{part}_speedup": (short_format(rows), gain, "") for part, gain in gains(rows).items()}
    return filed("layers", wanted, s.absent, s.device_type)


def estimates(rows, s):
    found = _filed(rows, s)[0] | {"null": gained(rows, PARTS["network"], "fp32 again")}
    return found | {f"roofline_{form}": over_roof(rows, s, form) for form in ("fp32", short_format(rows))}


def notes(rows, s):
    return _filed(rows, s)[1]


def finding(rows, s, e):
    short, own, speed = short_format(rows), forward_rows(rows), gains(rows)
    brief = sum(predicted(r, s)[0] < BRIEF for r in own)
    most, least = (pick(speed, key=lambda part: speed[part].mean) for pick in (max, min))
    faster = [part for part, gain in speed.items() if gain.low > 1]
    slower = [part for part, gain in speed.items() if gain.high < 1]
    return (
        f"All layers forward take {e['roofline_fp32']} as long as the roofline allows in float32, and "
        f"{e[f'roofline_{short}']} in {short}. The roofline knows no fixed cost: {brief} of the {len(own)} predictions are "
        f"shorter than {1e6 * BRIEF:.0f} µs, and there it must fail. "
        f"In training, float32 over mixed precision in {short}: whole step {speed['network']}, convolutions "
        f"{speed['convolution']}, first convolution {speed['stem']}, linear {speed['linear']}, norms {speed['norm']}, "
        f"251 channels {speed['unaligned']} beside 256 channels {speed['aligned']}. "
        f"Mixed precision is faster for: {', '.join(faster) or 'none'}; slower for: {', '.join(slower) or 'none'}. "
        f"The largest ratio has {most}, the smallest {least}. The null, float32 over itself, is {e['null']}: a ratio "
        f"closer to 1 than that says nothing."
    )


def table(rows, s):
    own, shown = forward_rows(rows), []
    for kind, form in dict.fromkeys((r["kind"], r["form"]) for r in own):
        part = [r for r in own if (r["kind"], r["form"]) == (kind, form)]
        ratios = sorted(median(r["times_s"]) / predicted(r, s)[0] for r in part)
        row = {"kind": kind, "form": form, "n": len(part)}
        row["memory"] = sum(predicted(r, s)[1] == "memory" for r in part)
        row["share"] = sum(r["count"] * sum(r["times_s"]) for r in part) / sum(total(own, form, lambda r: True))
        row["ratio"] = f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        shown.append(row)
    headings = {
        "kind": "layer",
        "form": "format",
        "n": "different",
        "memory": "bound by memory, by prediction",
        "share": ("share of the time", ".0%"),
        "ratio": "measured over predicted, median (range)",
    }
    return page.table(shown, headings)


def on_the_roof(rows, s) -> list[dict]:
    """Forward rows of the network's own layers with their intensity, rate, and predicted time in µs."""
    placed = []
    for r in forward_rows(rows):
        intensity = r["flops"] / (precision.FORMATS[r["form"]].dtype.itemsize * r["numbers"])
        giga = r["flops"] / median(r["times_s"]) / 1e9
        placed.append(r | {"intensity": intensity, "giga": giga, "us": 1e6 * predicted(r, s)[0]})
    return placed


def looks(rows, form: str):
    """For each kind of layer in a format: its rows, and how they are drawn."""
    for kind, colour, shape in zip(KINDS.values(), plots.PALETTE, plots.MARKERS, strict=False):
        look = {"color": colour, "ms": 6, "alpha": 0.7, "label": kind}
        yield [r for r in rows if (r["kind"], r["form"]) == (kind, form)], shape, look


def draw_roofline(rows, s) -> str:
    placed, forms = on_the_roof(rows, s), ("fp32", short_format(rows))
    low, high = (f(r["intensity"] for r in placed) for f in (min, max))
    reached = []
    with plots.figure(1, 2, width=8.4, height=4.0, sharex=True, sharey=True) as (fig, axes):
        for ax, form in zip(axes, forms, strict=True):
            top, copied = s.ceilings[form] / 1e9, s.bandwidth / 1e9
            ends = [low / 2, top / copied, high * 2]
            ax.plot(ends, [min(top, x * copied) for x in ends], color="black", label="roof")
            for part, shape, look in looks(placed, form):
                ax.plot([r["intensity"] for r in part], [r["giga"] for r in part], shape, **look)
            ax.set(xscale="log", yscale="log", title=form, xlabel="arithmetic intensity, FLOP/byte")
            convs = [r for r in placed if (r["kind"], r["form"]) == ("convolution", form)]
            share = median(r["giga"] / min(top, r["intensity"] * copied) for r in convs)
            reached.append(f"{share:.0%} in {form}")
        axes[0].set_ylabel("GFLOP/s")
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return f"Above: the median convolution reaches {page.listed(reached)} of what its roof allows."


def draw_predictions(rows, s) -> str:
    placed, forms, ratios = on_the_roof(rows, s), ("fp32", short_format(rows)), []
    shortest, longest = (f(r["us"] for r in placed) for f in (min, max))
    with plots.figure(1, 2, width=8.4, height=4.0, sharex=True, sharey=True) as (fig, axes):
        for ax, form in zip(axes, forms, strict=True):
            ax.plot([shortest, longest], [shortest, longest], color="black", label="as predicted")
            for part, shape, look in looks(placed, form):
                middle = [1e6 * median(r["times_s"]) for r in part]
                spans = [[1e6 * f(r["times_s"]) for r in part] for f in (min, max)]
                below = [m - low for m, low in zip(middle, spans[0], strict=True)]
                above = [high - m for m, high in zip(middle, spans[1], strict=True)]
                x = [r["us"] for r in part]
                ax.errorbar(x, middle, (below, above), marker=shape, linewidth=0, elinewidth=1, **look)
                ratios += [m / r["us"] for m, r in zip(middle, part, strict=True)]
            ax.set(xscale="log", yscale="log", title=form, xlabel="predicted by the roofline, µs")
        axes[0].set_ylabel("measured, µs")
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    slow = sum(ratio > 1 for ratio in ratios)
    near = sum(0.5 < ratio < 2 for ratio in ratios)
    return (
        f"Below: {slow} of {len(ratios)} layers take longer than the roofline allows; {near} lie within a factor of two. Bars go "
        "from the fastest to the slowest round."
    )


LAYERS = Experiment(
    "layers",
    run=layers,
    needs=THROUGHPUT,
    choose=limits,
    conditions=runs,
    estimates=estimates,
    settings=("layer_shape", "batch_size", "rounds"),
    tiny={"layer_shape": [2, 32], "batch_size": 16, "rounds": 4},
    finding=finding,
    figure=lambda rows, s: f"{draw_roofline(rows, s)} {draw_predictions(rows, s)}",
    alt="Two panels each, float32 and 16 bits. Rate of every layer against its arithmetic intensity on logarithmic axes, "
    "under the roof that memory and arithmetic make; colours and shapes tell convolutions, norms, activations, pooling and "
    "the linear layer apart. Then measured time of every layer of a ResNet-50 forward against the time that the roofline "
    "predicts, bars from the fastest to the slowest round, with the diagonal of equality.",
    table=table,
    notes=notes,
    timed=True,
)
