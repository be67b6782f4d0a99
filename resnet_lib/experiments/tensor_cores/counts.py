"""Multiply-adds of one instruction, by the shapes in the manuals."""

from resnet_lib import devices, page

INSTRUCTIONS = {  # name → (format, multiply-adds, what one instruction multiplies, source)
    "AVX2 FMA": ("fp32", 8, "8 lanes", "Intel SDM, VFMADD231PS ymm"),
    "AVX-512 FMA": ("fp32", 16, "16 lanes", "Intel SDM, VFMADD231PS zmm"),
    "avx512_fp16": ("fp16", 32, "32 lanes", "Intel SDM, VFMADD231PH zmm"),
    "avx512_bf16": ("bf16", 16 * 2, "16 lanes of pairs", "Intel SDM, VDPBF16PS zmm"),
    "avx_vnni": ("int8", 8 * 4, "8 lanes of fours", "Intel SDM, VPDPBUSD ymm"),
    "avx512_vnni": ("int8", 16 * 4, "16 lanes of fours", "Intel SDM, VPDPBUSD zmm"),
    "amx_bf16": ("bf16", 16 * 16 * 32, "16×32 times 32×16", "Intel SDM, TDPBF16PS"),
    "amx_int8": ("int8", 16 * 16 * 64, "16×64 times 64×16", "Intel SDM, TDPBSSD"),
    "fma.rn.f16x2, a warp": ("fp16", 32 * 2, "32 lanes of pairs", "PTX ISA, fma"),
    "mma.m16n8k16, a warp": ("fp16", 16 * 8 * 16, "16×16 times 16×8", "PTX ISA, mma"),
}
VECTOR, MATRIX = "fma.rn.f16x2, a warp", "mma.m16n8k16, a warp"
FLAGS = {"AVX2 FMA": {"avx2", "fma"}, "AVX-512 FMA": {"avx512f"}}  # as Linux names them


# Dense rates in TFLOP/s (TOP/s in int8) and the rate of memory in GB/s, as NVIDIA documents them. Where a data sheet
# gives rates with sparsity, they are halved here.
DOCUMENTED = {  # GPU → (rates by format, memory, source)
    "T4": ({"fp32": 8.1, "fp16": 65, "int8": 130}, 320, "T4 data sheet, 2019"),
    "V100 SXM2": ({"fp32": 15.7, "fp16": 125}, 900, "V100 data sheet, 2020"),
    "A100 SXM, 80 GB": (
        {"fp32": 19.5, "tf32": 156, "fp16": 312, "bf16": 312, "int8": 624},
        2039,
        "A100 data sheet, 2021",
    ),
    "L4": (
        {"fp32": 30.3, "tf32": 60, "fp16": 121, "bf16": 121, "fp8": 242.5, "int8": 242.5},
        300,
        "L4 data sheet, 2023",
    ),
    "H100 SXM": (
        {"fp32": 67, "tf32": 494.5, "fp16": 989.5, "bf16": 989.5, "fp8": 1979, "int8": 1979},
        3350,
        "H100 data sheet, 2023",
    ),
    "H200 SXM": (
        {"fp32": 67, "tf32": 494.5, "fp16": 989.5, "bf16": 989.5, "fp8": 1979, "int8": 1979},
        4800,
        "H200 data sheet, 2024",
    ),
}


def documented() -> page.Table:
    """Peaks that NVIDIA documents, with the FLOP for each byte from which arithmetic is the limit."""
    rows = [
        {"gpu": gpu, "format": form, "peak": rate, "memory": memory, "ridge": 1e3 * rate / memory, "source": source}
        for gpu, (rates, memory, source) in DOCUMENTED.items()
        for form, rate in rates.items()
    ]
    headings = {"gpu": "GPU", "format": "format", "peak": ("TFLOP/s", "g"), "memory": ("GB/s", "g")}
    return page.table(rows, headings | {"ridge": ("ridge point, FLOP/byte", ".0f"), "source": "source"})


def reported() -> list[str]:
    """The counted instructions that this machine's CPU reports."""
    flags = devices.cpu_flags()
    found = [name for name, needed in FLAGS.items() if needed <= flags]
    return found + [name for name in devices.instruction_sets() if name in INSTRUCTIONS]


def table() -> page.Table:
    rows = [
        {"name": name, "format": form, "adds": adds, "shape": shape, "source": source}
        for name, (form, adds, shape, source) in INSTRUCTIONS.items()
    ]
    headings = {"name": "instruction", "format": "operands", "shape": "shape", "adds": "multiply-adds"}
    return page.table(rows, headings | {"source": "manual"})
