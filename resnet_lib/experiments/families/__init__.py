"""The chapter on ResNeXt, Inception and DenseNet: what it measures, and what it says of the strongest records."""

from resnet_lib import page
from resnet_lib.experiments.families.accuracy import ACCURACY, GAINS, PARAMETER_RATES, PARAMETERS, RATES
from resnet_lib.experiments.families.family import FAMILY
from resnet_lib.experiments.families.groups import GROUPED
from resnet_lib.experiments.families.memory import MEMORY
from resnet_lib.experiments.families.networks import ARMS
from resnet_lib.experiments.families.speed import SPEED

EXPERIMENTS = (FAMILY, RATES, ACCURACY, PARAMETER_RATES, PARAMETERS, MEMORY, SPEED, GROUPED)


def _changed(e, equal: str, name: str) -> str:
    return page.change(e[f"{equal}/{name}"], "gains", "loses", "makes no clear difference")


def answer(e):
    """The question's answer in three sentences."""
    return f"""\
**Two of the survey's four networks add, and two never do: Inception-v4 and DenseNet concatenate.**
At equal multiply-adds, in test accuracy, cardinality {_changed(e, "accuracy", "cardinality_gain")}, concatenation {_changed(e, "accuracy", "concatenation_gain")}, and adding to several paths {_changed(e, "accuracy", "addition_gain")}.
Concatenation is paid for in memory: our DenseNet has {e["accuracy/parameters_dense"].mean:.2f} times the parameters of the plainest ResNet and keeps {e["accuracy/kept_bytes_dense"].mean:.1f} times its activations.
"""


def answers(e):
    """The predictions of the chapter, answered in their order."""
    gained = page.listed(
        [f"{ARMS[arm]} over {ARMS[other]}" for n, (_, arm, other) in GAINS.items() if e[f"accuracy/{n}"].low > 0]
    )
    return f"""\
1. No: ResNet-50 and ResNeXt-50 add in every unit, DenseNet and Inception-v4 in none; Inception-ResNet is the Inception that adds.
2. At equal multiply-adds clearly more accurate: {gained}.
3. DenseNet's memory grows with its layers to the power {e["memory/power_dense"].mean:.2f}, ResNet's to the power {e["memory/power_basic"].mean:.2f}.
4. DenseNet-121 should be {e["speed/promised_densenet121"].mean:.2f} times as fast as ResNet-50 by its multiply-adds; in training it is {e["speed/train_speedup_densenet121"]}, in inference {e["speed/infer_speedup_densenet121"]}.
"""


def practice(e):
    """What to do, when, and what it bought here."""
    return f"""\
- **Start from a plain ResNet.** It is the fastest at equal multiply-adds: over it a training step of our ResNeXt takes {e["speed/train_grouped"]}, of our DenseNet {e["speed/train_dense"]}, of our Inception-ResNet {e["speed/train_added"]}.
- **Take DenseNet where parameters are dear and time is not.** At equal parameters concatenation {_changed(e, "parameters", "concatenation_gain")} in test accuracy.
- **Recompute the layers of a DenseNet when memory is short.** That saves {e["memory/recomputing_densenet121"].mean:.1f} times for DenseNet-121, and its memory then grows with the layers to the power {e["memory/power_dense_recomputed"].mean:.2f} instead of {e["memory/power_dense"].mean:.2f}.
- **If you branch, add.** With several paths the addition {_changed(e, "accuracy", "addition_gain")} at no cost in parameters or memory.
- **Do not trust multiply-adds for speed: time the layer.** With 16 groups a convolution is {e["groups/speedup_equal_width_16"]} as fast as ungrouped, with a sixteenth of its work.
"""
