"""Vector or matrix instruction? Multiply-adds by the manual, and the rates of both on a GPU."""

import torch

from resnet_lib import bench, stats
from resnet_lib.experiments.tensor_cores import counts
from resnet_lib.experiments.tensor_cores.counts import INSTRUCTIONS, MATRIX, VECTOR
from resnet_lib.experiments.tensor_cores.formats import filed
from resnet_lib.experiments.tensor_cores.throughput import THROUGHPUT, matrix_rates
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

KERNEL = """
extern "C" __global__ void fmas(unsigned* out, int steps) {
    unsigned x0 = 0, x1 = 0, x2 = 0, x3 = 0, factor = 0x38003800, term = 0x3C003C00;  // pairs of 0.5, 1
    for (int i = 0; i < steps; i++) {
        asm volatile("fma.rn.f16x2 %0, %0, %1, %2;" : "+r"(x0) : "r"(factor), "r"(term));
        asm volatile("fma.rn.f16x2 %0, %0, %1, %2;" : "+r"(x1) : "r"(factor), "r"(term));
        asm volatile("fma.rn.f16x2 %0, %0, %1, %2;" : "+r"(x2) : "r"(factor), "r"(term));
        asm volatile("fma.rn.f16x2 %0, %0, %1, %2;" : "+r"(x3) : "r"(factor), "r"(term));
    }
    out[blockIdx.x * blockDim.x + threadIdx.x] = x0 | x1 | x2 | x3;
}"""


def vector_rate(s) -> float:
    """FLOP/s of float16 vector FMAs on a GPU: x ← x/2 + 1 in four chains a thread, which must end at 2."""
    kernel, steps = torch.cuda._compile_kernel(KERNEL, "fmas"), 2048
    blocks = 16 * torch.cuda.get_device_properties(s.device).multi_processor_count
    out = torch.zeros(256 * blocks, dtype=torch.int32, device=s.device)
    call = lambda: kernel(grid=(blocks, 1, 1), block=(256, 1, 1), args=[out, steps])
    taken = bench.timed(call, s.device, seconds=s.seconds)
    if not (out == 0x40004000).all():
        raise ArithmeticError("the chains of FMAs do not end at 2")
    return len(out) * steps * 4 * 2 * 2 / taken.median  # four chains of pairs, two FLOPs each


def instructions(s, kind: str, round: int = 0) -> list[dict]:
    """The counts of the manuals, or the rate of vector FMAs on a GPU."""
    if kind == "count":
        return [
            {"instruction": name, "form": form, "multiply_adds": adds, "source": source}
            for name, (form, adds, _, source) in INSTRUCTIONS.items()
        ]
    try:
        return [{"form": "fp16", "rate": vector_rate(s)}]
    except (AttributeError, OSError, RuntimeError) as error:  # PyTorch without a CUDA compiler
        return [{"form": "fp16", "why": f"the kernel does not compile here ({type(error).__name__})"}]


def runs(s):
    vectors = conditions(kind=["vector"], round=range(s.rounds)) if s.device.type == "cuda" else []
    return [{"kind": "count"}, *vectors]


def adds_of(rows, name: str) -> int:
    return next(r["multiply_adds"] for r in rows if r.get("instruction") == name)


def _filed(rows, s):
    vectors = [r for r in rows if r["kind"] == "vector"]
    why = next((r["why"] for r in vectors if "why" in r), "")
    pairs = [(s.matrix_rates[str(r["round"])], r["rate"]) for r in vectors if "rate" in r and s.matrix_rates]
    ratio = (
        stats.interval([matrix / vector for matrix, vector in pairs], method="log-t", unit="times") if pairs else None
    )
    return filed("instructions", {"rate_ratio": ("fp16", ratio, why)}, s.absent, s.device_type)


def estimates(rows, s):
    return _filed(rows, s)[0] | {
        "operations_ratio": stats.exact(adds_of(rows, MATRIX) / adds_of(rows, VECTOR), "times")
    }


def notes(rows, s):
    return _filed(rows, s)[1]


def finding(rows, s, e):
    matrix, vector = (adds_of(rows, name) for name in (MATRIX, VECTOR))
    measured = (
        f" Measured, a large float16 product runs at {e['rate_ratio']} the rate of vector FMAs."
        if "rate_ratio" in e
        else ""
    )
    return (
        f"One matrix instruction of a warp does {matrix:,} multiply-adds, and its vector instruction {vector}: by the manual, "
        f"the first does {matrix / vector:.0f} times as many.{measured}"
    )


VECTOR_OR_MATRIX = Experiment(
    "instructions",
    run=instructions,
    needs=THROUGHPUT,
    choose=matrix_rates,
    conditions=runs,
    estimates=estimates,
    settings=("seconds",),
    counts=("rounds",),
    tiny={"seconds": 0.002, "rounds": 4},
    finding=finding,
    table=lambda rows, s: counts.table(),
    notes=notes,
    timed=True,
)
