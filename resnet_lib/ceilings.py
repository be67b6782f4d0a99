"""How fast a device computes in each number format, measured: products, convolutions, copies of memory.

`python -m resnet_lib.ceilings` measures the machine at hand.
"""

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_lib import bench, devices, precision, records
from resnet_lib.precision import FORMATS, number_format

PRODUCTS = (*FORMATS, "int8")  # what `matmul` multiplies in
CONVOLUTIONS = ("fp32", "tf32", "fp16", "bf16")  # PyTorch convolves in no other


def refusals(device: torch.device) -> dict[str, str]:
    """For each of `PRODUCTS`, "" where a product in it runs on the device, else why not. It is tried, not looked up."""
    return {name: _refusal(name, device) for name in PRODUCTS}


def _refusal(name: str, device: torch.device) -> str:
    if name == "tf32" and (device.type != "cuda" or torch.cuda.get_device_capability(device)[0] < 8):
        return "TF32 is a mode of NVIDIA GPUs from compute capability 8.0 on"  # elsewhere its switch does nothing
    try:
        _multiply(*_operands((64, 64, 64), name, device), name)
        devices.synchronise(device)
    except Exception as error:  # kernels that are missing show as errors of many kinds
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
    return ""


def matmul(size: int | tuple[int, int, int], name: str, device: torch.device, *, seconds: float = 0.2) -> dict:
    """Measure a product of random matrices, (m, k) times (k, n), the second one stored by columns.

    Args:
        size: the side of square matrices, or (m, k, n).
        name: one of `PRODUCTS`. "fp8" multiplies float8_e4m3fn into bfloat16, "int8" into int32.
        seconds: of measuring.
    Returns: kind, format, size, m, k, n, then what `_timed` says. Where memory does not suffice, all sides are
        halved until it does, and `note` says so.
    Raises: ValueError on bad input; what PyTorch raises where the format does not run here (see `refusals`).
    """
    m, k, n = (size,) * 3 if isinstance(size, int) else size
    _check(name, PRODUCTS, m=m, k=k, n=n)

    def measure(share: int) -> dict:
        rows, inner, columns = (max(1, side // share) for side in (m, k, n))
        operands = (rows + columns) * inner * _bytes(name)
        with _room(2 * operands + (4 * rows + 8 * inner) * columns, device):
            copies = _copies(operands, device)
            sets = list(
                zip(*(_repeated(x, copies) for x in _operands((rows, inner, columns), name, device)), strict=True)
            )
            a, b = sets[0]
            exact = a[:16].double() @ b.double().t()
            error = _difference(_multiply(a, b, name)[:16], exact)
            calls = [lambda a=a, b=b: _multiply(a, b, name) for a, b in sets]
            shape = {"size": max(rows, inner, columns), "m": rows, "k": inner, "n": columns}
            return shape | _timed(calls, 2 * rows * inner * columns, error, name, device, seconds)

    with number_format(name):
        return {"kind": "matmul", "format": name} | _fitting(measure, min(m, k, n), f"{m}×{k} times {k}×{n}")


def convolution(
    channels: int,
    name: str,
    device: torch.device,
    *,
    side: int = 28,
    batch: int = 32,
    kernel: int = 3,
    layout: str = "channels_last",
    seconds: float = 0.2,
) -> dict:
    """Measure a convolution (forward, padded to the same size) of random pictures, as many channels out as in.

    Args:
        name: one of `CONVOLUTIONS`.
        side: of the pictures in pixels; batch: pictures; kernel: side of the filters, odd.
        layout: how pictures and filters lie in memory, "channels_last" or "contiguous".
    Returns: kind, format, channels, side, batch, kernel, layout, then what `_timed` says. Where memory does not
        suffice, the batch is halved until it does, and `note` says so.
    Raises: ValueError on bad input.
    """
    _check(name, CONVOLUTIONS, channels=channels, side=side, batch=batch, kernel=kernel)
    if kernel % 2 == 0:
        raise ValueError(f"kernel={kernel} must be odd, so that the padding keeps the size")
    if layout not in ("channels_last", "contiguous"):
        raise ValueError(f"layout={layout!r} is not one of 'channels_last', 'contiguous'")

    def measure(share: int) -> dict:
        pictures = max(1, batch // share)
        operands = (pictures * side**2 + channels * kernel**2) * channels * _bytes(name)
        with _room(4 * operands, device):
            shapes = (pictures, channels, side, side), (channels, channels, kernel, kernel)
            numbers = [torch.randn(shape, device=device).to(FORMATS[name].dtype) for shape in shapes]
            copies = _copies(operands, device)
            if layout == "channels_last":
                repeated = [[x.permute(0, 3, 1, 2) for x in _repeated(y.permute(0, 2, 3, 1), copies)] for y in numbers]
            else:
                repeated = [_repeated(x, copies) for x in numbers]
            sets = list(zip(*repeated, strict=True))
            images, filters = sets[0]
            exact = F.conv2d(images[:2].double(), filters.double(), padding=kernel // 2)
            error = _difference(F.conv2d(images, filters, padding=kernel // 2)[:2], exact)
            calls = [lambda x=x, w=w: F.conv2d(x, w, padding=kernel // 2) for x, w in sets]
            shape = {"channels": channels, "side": side, "batch": pictures, "kernel": kernel, "layout": layout}
            flops = 2 * pictures * side**2 * channels**2 * kernel**2
            return shape | _timed(calls, flops, error, name, device, seconds)

    with number_format(name), torch.no_grad():
        return {"kind": "convolution", "format": name} | _fitting(measure, batch, f"a batch of {batch}")


def bandwidth(device: torch.device, *, size: int | None = None, seconds: float = 0.2) -> dict:
    """Measure how fast memory is copied: bytes read and bytes written over time, as STREAM counts them.

    Args: size: bytes of the copied block; twice the last cache, and at least 64 MiB, if not given.
    Returns: kind "bandwidth", bytes (of the block), rate, rate_min, rate_max (bytes/s), time_s, timings, note.
    """
    size = max(2**26, 2 * bench.cache_bytes(device)) if size is None else size
    _check("", ("",), size=size)

    def measure(share: int) -> dict:
        part = max(4, size // share)
        with _room(2 * part, device):
            block = torch.randn(2**16, device=device)  # drawing takes longer than copying
            source = block.repeat(math.ceil(part / block.nbytes))[: part // 4]
            target = torch.empty_like(source)
            taken = bench.timed(lambda: target.copy_(source), device, seconds=seconds)
            if not torch.equal(source, target):
                raise ArithmeticError(f"a copy of {part} bytes on {device} differs from what was copied")
            moved = 2 * source.nbytes
            return {"bytes": source.nbytes} | _rates(moved, taken)

    return {"kind": "bandwidth"} | _fitting(measure, size, f"a block of {size} bytes")


def _check(name: str, allowed: tuple[str, ...], **sizes: int) -> None:
    if name not in allowed:
        raise ValueError(f"name={name!r} is not one of {', '.join(map(repr, allowed))}")
    for key, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{key}={value!r} must be a whole number of at least 1")


def _bytes(name: str) -> int:
    return 1 if name == "int8" else FORMATS[name].dtype.itemsize


def _operands(shape: tuple[int, int, int], name: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random (m, k) and (n, k), the second operand transposed."""
    m, k, n = shape
    parts = torch.randn(m, k, device=device), torch.randn(n, k, device=device)
    if name == "int8":
        return tuple((part * 32).clamp(-127, 127).to(torch.int8) for part in parts)
    return tuple(part.to(FORMATS[name].dtype) for part in parts)


def _repeated(operand: Tensor, copies: int) -> tuple[Tensor, ...]:
    """Copies in memory of their own."""
    return operand.expand(copies, *operand.shape).contiguous().unbind()


def _multiply(a: Tensor, b: Tensor, name: str) -> Tensor:
    if name == "int8":
        return torch._int_mm(a, b.t())  # no public function multiplies these two formats
    if name == "fp8":
        one = _one(a.device)
        return torch._scaled_mm(a, b.t(), one, one, out_dtype=torch.bfloat16)
    return a @ b.t()


@cache
def _one(device: torch.device) -> Tensor:
    return torch.ones((), device=device)


def _difference(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()


def _copies(operands: int, device: torch.device) -> int:
    """Sets of operands that, taken in turn, exceed the last cache, within a quarter of the free memory."""
    return max(1, min(bench.cache_bytes(device), bench.free_bytes(device) // 4) // operands + 1)


@contextlib.contextmanager
def _room(needed: int, device: torch.device) -> Iterator[None]:
    """Refuse at once what cannot fit: Linux grants memory that it lacks, and ends the program that then uses it."""
    free = bench.free_bytes(device)
    if needed > free:
        raise MemoryError(f"{needed / 2**30:.3g} GiB are needed and {free / 2**30:.3g} GiB free")
    yield


def _fitting(measure: Callable[[int], dict], largest: int, asked: str) -> dict:
    """What `measure(share)` returns for the whole, or a half, a quarter, … where memory does not suffice."""
    share = 1
    while True:
        try:
            row = measure(share)
            break
        except (MemoryError, RuntimeError) as error:
            short = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
            if not short or 2 * share > largest:
                raise
            share *= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    note = f"{asked} does not fit into memory; each side was divided by {share}" if share > 1 else ""
    return row | {"note": note}


def _timed(
    calls: list[Callable[[], Tensor]], flops: int, error: float, name: str, device: torch.device, seconds: float
) -> dict:
    """Rates of calls that take turns.

    Returns: flops, sets (of operands, which together exceed the cache), error (relative, against float64),
        error_bound (what rounding in this format explains, if sums are kept in float32), and `_rates` in FLOP/s.
    """
    rounding = {"int8": 0.0, "fp8": FORMATS["bf16"].epsilon}.get(name, FORMATS.get(name, FORMATS["fp32"]).epsilon)
    bound = rounding + (64 * FORMATS["fp32"].epsilon if name != "int8" else 0.0)
    found = {"flops": flops, "sets": len(calls), "error": error, "error_bound": bound}
    return found | _rates(flops, bench.timed(bench.rotate(calls), device, seconds=seconds))


def _rates(amount: float, taken: bench.Spread) -> dict:
    rates = {"rate": amount / taken.median, "rate_min": amount / taken.max, "rate_max": amount / taken.min}
    return rates | {"time_s": taken.median, "min_s": taken.min, "max_s": taken.max, "timings": taken.n}


def choose_precision(name: str, device: torch.device) -> str:
    """The number format of convolutions and matrix products: "fp32", "tf32", "bf16" or "fp16".

    Args:
        name: "auto" is measured, once a process: 16 bits where a convolution gains a fifth or more by them, else fp32.
            An instruction set says what a device can do, not what it gains: some CPUs that have the one for bfloat16
            multiply float32 faster.
    Raises: ValueError where the name is none of `precision.PRECISIONS`.
    """
    if name not in precision.PRECISIONS:
        raise ValueError(f"precision={name!r} is not one of {', '.join(map(repr, precision.PRECISIONS))}")
    return _quickest(device, torch.get_num_threads()) if name == "auto" else name


@cache
def _quickest(device: torch.device, threads: int) -> str:
    short = precision.reported(device)
    if short == "fp32":
        return short
    rates = [convolution(64, kind, device, side=16, batch=64, seconds=0.05)["rate"] for kind in (short, "fp32")]
    return short if rates[0] > 1.2 * rates[1] else "fp32"


def peak(rows: Iterable[dict], kind: str, name: str = "") -> float:
    """The best rate of a kind ("matmul", "convolution", "bandwidth") and format among rows whose error is in bounds.

    Raises: ValueError where there is none.
    """
    found = [row["rate"] for row in rows if row["kind"] == kind and row.get("format", "") == name and is_correct(row)]
    if not found:
        raise ValueError(f"no correct measurement of kind={kind!r} and format={name!r} among the rows")
    return max(found)


def is_correct(row: dict) -> bool:
    """Whether a measured result was as near to float64's as its format allows; a fast wrong one counts for nothing."""
    return row.get("error", 0.0) <= row.get("error_bound", 0.0)


def ceilings(device: torch.device, *, seconds: float = 0.2, largest: int = 16384) -> dict:
    """What the device reaches in each format: products and convolutions of growing size, and copies of memory.

    Args:
        seconds: for each measurement. Sizes grow until one call takes a third of it, so a slow device stops early.
        largest: the largest side of a product.
    Returns: device (as `devices.describe` says), instruction_sets, rows, notes (what could not be measured, and why).
    """
    rows = list(_ceilings(device, seconds, largest))
    return {
        "device": devices.describe(device),
        "instruction_sets": devices.instruction_sets(),
        "rows": rows,
        "notes": [f"{name}: {why}" for name, why in refusals(device).items() if why]
        + [f"{row['kind']}, {row.get('format', '')}: {row['note']}" for row in rows if row["note"]],
    }


def _ceilings(device: torch.device, seconds: float, largest: int) -> Iterator[dict]:
    refused = refusals(device)
    for name in PRODUCTS:
        side = min(512, largest)
        while not refused[name] and side <= largest:
            yield (row := matmul(side, name, device, seconds=seconds))
            side = 2 * side if row["time_s"] < seconds / 3 and not row["note"] else largest + 1
    for name in CONVOLUTIONS:
        for channels in (64, 256):
            batch = 8
            while not refused[name] and batch <= 512:
                yield (row := convolution(channels, name, device, batch=batch, seconds=seconds))
                batch = 8 * batch if row["time_s"] < seconds / 10 and not row["note"] else 513
    yield bandwidth(device, seconds=seconds)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m resnet_lib.ceilings", description="Measure what this machine reaches in each number format."
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, …")
    parser.add_argument("--seconds", type=float, default=0.2, help="time for each measurement (default: 0.2)")
    parser.add_argument("--largest", type=int, default=16384, help="largest side of a product (default: 16384)")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON document")
    options = parser.parse_args(arguments)
    try:
        device = devices.choose(options.device)
        if options.seconds <= 0 or options.largest < 1:
            raise ValueError(f"seconds={options.seconds} and largest={options.largest} must be above 0")
    except ValueError as error:
        parser.error(str(error))
    found = ceilings(device, seconds=options.seconds, largest=options.largest)
    print(json.dumps(found, indent=1) if options.json else "\n".join(_report(found)))
    return 0


def _report(found: dict) -> Iterator[str]:
    """The lines for a reader of what `ceilings` returns."""
    rows, sets = found["rows"], ", ".join(found["instruction_sets"])
    yield f"{records.machine(found['device'])}; torch {torch.__version__}; the CPU's instruction sets: {sets or 'none'}"
    yield f"{'':12}{'format':7}{'size':>15}{'TFLOP/s':>10}  {'[min … max]':19}{'error':>8}"
    for row in (row for row in rows if row["kind"] != "bandwidth"):
        product = row["kind"] == "matmul"
        size = "{m}×{k}×{n}" if product else "{batch}×{channels}×{side}×{side}"
        speed = f"{_tera(row['rate']):>10}  [{_tera(row['rate_min'])} … {_tera(row['rate_max'])}]"
        error = f"{row['error']:8.0e}{'' if is_correct(row) else ' WRONG'}"
        yield f"{row['kind']:12}{row['format']:7}{size.format(**row):>15}{speed:31}{error}"
    memory = peak(rows, "bandwidth")
    yield f"{'copy':12}{memory / 1e9:.4g} GB/s, read and written"
    yield "Ceilings: the best rate, over fp32's, and the FLOP for each byte from which arithmetic is the limit:"
    for kind in ("matmul", "convolution"):
        for name in dict.fromkeys(row["format"] for row in rows if row["kind"] == kind and is_correct(row)):
            best = peak(rows, kind, name)
            times = f"{best / peak(rows, kind, 'fp32'):.3g} times"
            yield f"{kind:12}{name:7}{_tera(best):>8} TFLOP/s{times:>12}{best / memory:8.1f} FLOP/byte"
    yield from found["notes"]


def _tera(rate: float) -> str:
    return f"{rate / 1e12:.4g}" if rate >= 1e12 else f"{rate / 1e12:.3f}"


if __name__ == "__main__":
    sys.exit(main())
