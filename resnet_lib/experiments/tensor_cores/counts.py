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
