"""The chapter on Tensor Cores and numeric precision: what it measures, and what it says of the strongest records."""

from resnet_lib.experiments.tensor_cores.accumulation import ACCUMULATION
from resnet_lib.experiments.tensor_cores.cpu import CPU_UNITS
from resnet_lib.experiments.tensor_cores.gpu import GPU
from resnet_lib.experiments.tensor_cores.instructions import VECTOR_OR_MATRIX
from resnet_lib.experiments.tensor_cores.ladder import LADDER
from resnet_lib.experiments.tensor_cores.layers import LAYERS
from resnet_lib.experiments.tensor_cores.precision import PRECISION
from resnet_lib.experiments.tensor_cores.scaling import SCALING
from resnet_lib.experiments.tensor_cores.shapes import SHAPES
from resnet_lib.experiments.tensor_cores.throughput import THROUGHPUT

EXPERIMENTS = (ACCUMULATION, SCALING, THROUGHPUT, SHAPES, LAYERS, LADDER, PRECISION, CPU_UNITS, VECTOR_OR_MATRIX, GPU)


HALF_A_POINT = 0.005  # of accuracy: what the chapter asks about


def of_the_device(e, name: str):
    """The estimate of a Tensor Core where one was measured, else the CPU's, and the words that say which."""
    experiment, _, measure = name.partition("/")
    if name in e:
        return e[name], "on Tensor Cores"
    return e[f"{experiment}/cpu_{measure}"], "on a CPU, which has no Tensor Cores"


def rungs(e) -> dict:
    """The ladder's speed-ups, by rung as measures name them."""
    return {
        name.removeprefix("ladder/speedup_"): found for name, found in e.items() if name.startswith("ladder/speedup_")
    }


def quickest(climbed) -> str:
    """The rung with the largest speed-up, where there is one that is clear."""
    best = max(climbed, key=lambda rung: climbed[rung].mean)
    words = (
        "the fastest rung tried was" if climbed[best].low > 1 else "no rung was clearly faster than float32, at best"
    )
    return f"{words} {words_of(best)}, {climbed[best]}"


def words_of(rung: str) -> str:
    return rung.replace("_", " ")


def answer(e):
    """The question's answer in three sentences."""
    product, where = of_the_device(e, "throughput/bf16_large")
    step, _ = of_the_device(e, "layers/network_speedup")
    climbed = rungs(e)
    return f"""\
**Shorter numbers are faster only where the device has units for them and the network keeps those units busy.**
Here, {where}, a large product in bf16 runs at {product} the rate of float32, and a whole training step of a ResNet-50 at {step}; for a small network {quickest(climbed)}.
Accuracy minus that of float32: bf16 {e["precision/bf16_change"]}, fp16 with a scaled loss {e["precision/fp16_change"]}.
"""


def answers(e):
    """The predictions of the chapter, answered in their order."""
    product, where = of_the_device(e, "throughput/bf16_large")
    names = {"stem": "the first convolution", "convolution": "all convolutions", "norm": "batch normalisation"}
    parts = {name: of_the_device(e, f"layers/{part}_speedup")[0] for part, name in names.items()}
    most = max(parts, key=lambda name: parts[name].mean)
    parts = "; ".join(f"{name} {gain}" for name, gain in parts.items())
    changes = [e[f"precision/{form}_change"] for form in ("bf16", "fp16")]
    small = all(change.low > -HALF_A_POINT and change.high < HALF_A_POINT for change in changes)
    return f"""\
1. {where[0].upper()}{where[1:]}: a large product in bf16 runs at {product} the rate of float32; the count of multiply-adds promises twice the rate or more.
2. Of the three {most} gains most on average, in 16 bits, forward and backward: {parts}.
3. Of the gradients of the signals fp16 rounds {e["scaling/fp16_signals_lost"]} to zero, of the weights' {e["scaling/fp16_weights_lost"]}; bf16 {e["scaling/bf16_signals_lost"].mean:.2%} of the signals'.
4. {"No" if small else "That is not shown"}: accuracy changes by {e["precision/bf16_change"]} in bf16 and by {e["precision/fp16_change"]} in fp16, where other seeds alone change it by {e["precision/fp32_other_seeds_change"]}.
"""


def practice(e):
    """What to do, when, and what it bought here."""
    climbed = rungs(e)
    lines = [
        f'- **Measure before you shorten.** What a device reports is not what it gains: against float32 bf16 trained {climbed["bf16"]} as fast; `precision="auto"` measures before it chooses.',
        f"- **Lay the channels last first; it costs nothing.** So a step of a small network ran {climbed['channels_last']} as fast.",
        f"- **Then climb a rung at a time, compilation included, and keep what gains.** For a small network {quickest(climbed)}.",
        f"- **In fp16 scale the loss, in bf16 do not.** Unscaled, fp16 rounds {e['scaling/fp16_signals_lost']} of the signals' gradients to zero. Do not fuse SGD beside a loss scaler.",
        f"- **Keep sums in float32.** Kept in bf16, a sum of thousands of terms is off by {e['accumulation/bf16_error']}.",
        f"- **Use large batches.** Of a small network's step {e['shapes/fixed_measured']} do not depend on the batch.",
        f"- **Where 16 bits are faster, check accuracy against other seeds before you keep them.** bf16 changed it by {e['precision/bf16_change']}, other seeds by {e['precision/fp32_other_seeds_change']}.",
    ]
    return "\n".join(lines) + "\n"
