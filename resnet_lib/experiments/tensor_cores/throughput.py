"""The ceilings of a device: products, a convolution and copies of memory in every format that runs."""

from resnet_lib import ceilings, page, plots, stats
from resnet_lib.experiments.tensor_cores.formats import NEEDED, absent, filed, refusals, running
from resnet_lib.experiments.tensor_cores.rates import faster, refuse_times, slim
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

CHANNELS = 256  # of the convolution that is timed
LAYOUTS = ("channels_last", "contiguous")
PROBE, SLOWEST_S = 64, 2.0  # side of the product that predicts a large one, and the longest that is waited for
RULED = {"product_sides": 128, "large": 8192}  # sides that the rules in claims.yml ask for


def here(device) -> list[dict]:
    """A row for each format: why it does not run on the device, and why no Tensor Core multiplies in it."""
    return [
        {
            "form": name,
            "device": device.type,
            "refused": why,
            "absent": absent(name, device) if name in NEEDED else "Tensor Cores do not multiply in it",
        }
        for name, why in refusals(device).items()
    ]


def too_slow(side: int, form: str, device) -> float:
    """Seconds that one product would take, told from a small one, where that is too long to wait for; else 0.

    A format that a device multiplies without instructions of its own, as some CPUs do fp8, takes minutes at a large side.
    """
    if side <= RULED["product_sides"] or device.type != "cpu":
        return 0.0
    once = ceilings.matmul(PROBE, form, device, seconds=1e-3)["min_s"] * (side / PROBE) ** 3  # a hiccup is no slowness
    return once if once > SLOWEST_S else 0.0


def throughput(s, kind: str, side: int = 0, form: str = "", channels: int = 0, layout: str = "", round: int = 0):
    """The rate of one product, of one convolution or of copying; or which formats run here."""
    if kind == "format":
        return here(s.device)
    if kind == "bandwidth":
        return slim([ceilings.bandwidth(s.device, seconds=5 * s.seconds)])
    if kind == "matmul":
        if once := too_slow(side, form, s.device):
            return [{"kind": "too slow", "once_s": once}]
        return slim([ceilings.matmul(side, form, s.device, seconds=s.seconds)])
    shape = {"batch": s.conv_shape[0], "side": s.conv_shape[1], "layout": layout}
    return slim([ceilings.convolution(channels, form, s.device, seconds=s.seconds, **shape)])


def runs(s):
    """All formats take turns within a round."""
    sides, needed = set(s.product_sides), RULED["product_sides"]
    if len(sides) < 2 or min(sides) < 1 or needed not in sides:
        must = f"at least two sizes of at least 1, and {needed} among them, by the rules in claims.yml"
        raise ValueError(f"product_sides={s.product_sides} must hold {must}")
    if odd := [side for side in s.product_sides if side % 16]:
        raise ValueError(f"product_sides={s.product_sides}: {odd} are no multiples of 16, as fp8 needs")
    if len(s.conv_shape) != 2 or min(s.conv_shape) < 1:
        raise ValueError(f"conv_shape={s.conv_shape} must be pictures and pixels, at least [1, 1]")
    refuse_times(s)
    forms, turns = running(s.device), range(s.rounds)
    convolved = [name for name in forms if name in ceilings.CONVOLUTIONS]
    return [
        {"kind": "format"},
        *conditions(kind=["matmul"], round=turns, side=sorted(s.product_sides), form=forms),
        *conditions(kind=["convolution"], round=turns, channels=[CHANNELS], form=convolved, layout=LAYOUTS),
        {"kind": "bandwidth"},
    ]


def reasons(rows) -> dict[str, str]:
    """Format → why no Tensor Core multiplied in it, "" where one did."""
    return {r["form"]: r["absent"] for r in stats.where(rows, kind="format")}


def device_type(rows) -> str:
    return stats.where(rows, kind="format")[0]["device"]


def large(s) -> int:
    return RULED["large"] if RULED["large"] in s.product_sides else max(s.product_sides)


def peaks(rows) -> dict[str, float]:
    """The best correct rate of every format, of products and convolutions, FLOP/s."""
    timed = [r for r in rows if r["kind"] in ("matmul", "convolution") and ceilings.is_correct(r)]
    return {
        form: max(r["rate"] for r in timed if r["form"] == form) for form in dict.fromkeys(r["form"] for r in timed)
    }


def bandwidth(rows) -> float:
    """Byte/s of a copy, read and written."""
    return stats.where(rows, kind="bandwidth")[0]["rate"]


def limits(rows, s) -> dict:
    """What the layers and the ladder are held to, and whether Tensor Cores reached it."""
    return {
        "ceilings": peaks(rows),
        "bandwidth": bandwidth(rows),
        "absent": reasons(rows),
        "device_type": device_type(rows),
    }


def matrix_rates(rows, s) -> dict:
    """Rates of the largest float16 products by round, and why no Tensor Core made them."""
    own = [r for r in stats.where(rows, kind="matmul") if (r["form"], r["side"]) == ("fp16", large(s))]
    return {
        "matrix_rates": {str(r["round"]): r["rate"] for r in own},
        "absent": reasons(rows),
        "device_type": device_type(rows),
    }


def measures(rows, s) -> dict[str, tuple]:
    """Name → (format, rate over float32's, what else is missing)."""
    products, filters = stats.where(rows, kind="matmul"), stats.where(rows, kind="convolution")
    few = "" if large(s) == RULED["large"] else f"needs {RULED['large']} in product_sides={s.product_sides}"
    wanted = {
        f"{form}_large": (form, faster(products, form, side=large(s)), few)
        for form in ("bf16", "tf32", "fp16", "fp8", "int8")
    }
    wanted["bf16_small"] = ("bf16", faster(products, "bf16", side=RULED["product_sides"]), "")
    wanted["convolution"] = ("bf16", faster(filters, "bf16", layout=LAYOUTS[0]), "")
    return wanted


def layout_gain(rows, form: str) -> stats.Estimate:
    """Rate with channels last over that picture by picture, by round."""
    own = [r for r in stats.where(rows, kind="convolution") if r["form"] == form]
    return stats.paired_ratio(own, "rate", "layout", *LAYOUTS, pair=("round",))


def estimates(rows, s):
    found = filed("throughput", measures(rows, s), reasons(rows), device_type(rows))[0]
    forms = dict.fromkeys(r["form"] for r in stats.where(rows, kind="convolution"))
    return found | {f"channels_last_{form}": layout_gain(rows, form) for form in forms}


def notes(rows, s):
    return filed("throughput", measures(rows, s), reasons(rows), device_type(rows))[1]


def finding(rows, s, e):
    gains = {name.removesuffix("_large"): gain for name, (_, gain, _) in measures(rows, s).items() if "_large" in name}
    gains = {form: gain for form, gain in gains.items() if gain}
    quick = [f"{form} {gain}" for form, gain in gains.items() if gain.low > 1.2]
    slow = [f"{form} {gain}" for form, gain in gains.items() if gain.high < 1]
    forms = dict.fromkeys(r["form"] for r in stats.where(rows, kind="convolution"))
    layouts = "; ".join(f"{form} {layout_gain(rows, form)}" for form in forms)
    refused = [f"{r['form']} ({r['refused']})" for r in stats.where(rows, kind="format") if r["refused"]]
    return (
        f"At side {large(s)}, faster than float32 by a fifth or more: {', '.join(quick) or 'no format'}. "
        f"Slower than float32: {', '.join(slow) or 'no format'}. "
        f"Memory is copied at {bandwidth(rows) / 1e9:.1f} GB/s. "
        f"Channels last over picture by picture, in the convolution: {layouts}."
        + (f" Does not run here: {'; '.join(refused)}." if refused else "")
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def table(rows, s):
    top, memory, wanted = peaks(rows), bandwidth(rows), measures(rows, s)
    shown = []
    for r in stats.where(rows, kind="format"):
        form = r["form"]
        row = {"form": form, "core": "no" if r["absent"] else "yes"}
        errors = [m["error"] for m in stats.where(rows, kind="matmul") if m["form"] == form]
        if form in top:
            row |= {"peak": top[form] / 1e9, "ridge": top[form] / memory}
        row["error"] = max(errors) if errors else None
        if form != "fp32":
            row["large"] = wanted[f"{form}_large"][1]
            row["small"] = faster(stats.where(rows, kind="matmul"), form, side=RULED["product_sides"])
            row["conv"] = faster(stats.where(rows, kind="convolution"), form, layout=LAYOUTS[0])
        shown.append(row)
    return page.table(
        shown,
        {
            "form": "format",
            "core": "on Tensor Cores",
            "peak": ("ceiling, GFLOP/s", _short),
            "ridge": ("ceiling over memory, FLOP/byte", _short),
            "large": f"side {large(s)}, over fp32",
            "small": f"side {RULED['product_sides']}, over fp32",
            "conv": "convolution, over fp32",
            "error": ("largest error", ".0e"),
        },
    )


def draw(rows, s):
    timed = [r | {"giga": r["rate"] / 1e9} for r in rows if r["kind"] in ("matmul", "convolution")]
    products, filters = stats.where(timed, kind="matmul"), stats.where(timed, kind="convolution")
    sides = sorted({r["side"] for r in products})
    with plots.figure(1, 2, width=8.4, height=3.6) as (_, (left, right)):
        plots.lines(left, products, "side", "giga", by="form", seed="round", marker=True)
        left.set(xscale="log", yscale="log", xlabel="side of the square product", ylabel="GFLOP/s")
        left.set_xticks(sides, [str(side) for side in sides], fontsize=9)
        left.set_xticks([], minor=True)
        plots.log_axis(left.yaxis, [r["giga"] for r in products])
        left.legend(ncols=3, fontsize=10, loc="lower left", bbox_to_anchor=(0, 1))
        shown = [r | {"layout": r["layout"].replace("_", " ")} for r in filters]
        plots.dots(right, shown, "form", "giga", by="layout", offset=0.15, join=False)
        right.set(xlabel="format of a convolution", ylim=(0, None))
        right.legend(fontsize=10, loc="lower left", bbox_to_anchor=(0, 1))
    gains = {name.removesuffix("_large"): gain for name, (_, gain, _) in measures(rows, s).items() if "_large" in name}
    quick = [form for form, gain in gains.items() if gain and gain.low > 1]
    not_quick = [form for form, gain in gains.items() if gain and gain.low <= 1]
    return (
        f"In large products faster than fp32: {page.listed(quick)}; not clearly faster: {page.listed(not_quick)}. "
        "Thin lines and dots are rounds, bars intervals of 95 %. The vertical axes differ."
    )


THROUGHPUT = Experiment(
    "throughput",
    run=throughput,
    conditions=runs,
    estimates=estimates,
    settings=("product_sides", "conv_shape", "seconds"),
    counts=("rounds",),
    tiny={"product_sides": [64, 128], "conv_shape": [1, 4], "seconds": 0.002, "rounds": 4},
    finding=finding,
    figure=draw,
    alt="Left, rate of square products against their side, both axes logarithmic, one line a format, thin lines for "
    "rounds. Right, rate of a convolution of 256 channels for each format, channels last and contiguous, a dot for each "
    "round.",
    table=table,
    notes=notes,
    timed=True,
)
