"""The chapter on ResNeXt, Inception and DenseNet: what it measures, and what it says of the strongest records."""

from resnet_lib import page
from resnet_lib.experiments.families.accuracy import ACCURACY, GAINS, PARAMETER_RATES, PARAMETERS, RATES
from resnet_lib.experiments.families.family import FAMILY
from resnet_lib.experiments.families.groups import GROUPED
from resnet_lib.experiments.families.memory import MEMORY
from resnet_lib.experiments.families.networks import ARMS
from resnet_lib.experiments.families.speed import SPEED

EXPERIMENTS = (FAMILY, RATES, ACCURACY, PARAMETER_RATES, PARAMETERS, MEMORY, SPEED, GROUPED)


SURVEY = {"resnet": "ResNet", "resnext": "ResNeXt", "inception_v4": "Inception-v4", "densenet": "DenseNet"}


def _changed(e, equal: str, name: str) -> str:
    return page.change(e[f"{equal}/{name}"], "gains", "loses", "makes no clear difference")


def _adding(e, adds: bool) -> str:
    return page.listed([name for key, name in SURVEY.items() if bool(e[f"family/{key}"].mean) is adds])


def answer(e):
    """The question's answer in three sentences."""
    return f"""\
**Of the survey's four networks, {_adding(e, True)} add an input to what was made of it; {_adding(e, False)} never do: they concatenate.**
At equal multiply-adds, in test accuracy, cardinality {_changed(e, "accuracy", "cardinality_gain")}, concatenation {_changed(e, "accuracy", "concatenation_gain")}, and adding to several paths {_changed(e, "accuracy", "addition_gain")}.
Our DenseNet has {e["accuracy/parameters_dense"].mean:.2f} times the parameters of the basic ResNet of as many multiply-adds, and keeps {e["accuracy/kept_bytes_dense"].mean:.1f} times its activations.
"""


def answers(e):
    """The predictions of the chapter, answered in their order."""
    gained = [f"{ARMS[arm]} over {ARMS[other]}" for n, (_, arm, other) in GAINS.items() if e[f"accuracy/{n}"].low > 0]
    return f"""\
1. {_adding(e, True)} do; {_adding(e, False)} do not. Inception-ResNet is the Inception that adds.
2. Clearly more accurate at equal multiply-adds: {page.listed(gained)}.
3. DenseNet's memory grows with its layers to the power {e["memory/power_dense"].mean:.2f}, ResNet's to the power {e["memory/power_basic"].mean:.2f}; the square is reached only where a block's layers make many more channels than it is given.
4. By its multiply-adds DenseNet-121 should be {e["speed/promised_densenet121"].mean:.2f} times as fast as ResNet-50; in training it is {e["speed/train_speedup_densenet121"]}, in inference {e["speed/infer_speedup_densenet121"]}.
"""


def practice(e):
    """What to do, when, and what it bought here."""
    branch = page.trend(
        e["accuracy/addition_gain"],
        "If you branch, add",
        "In a short training, do not count on additions to several paths",
        "Adding to several paths is free, so try it, and measure",
    )
    return f"""\
- **Start from a basic ResNet, and time what you would replace it with.** At equal multiply-adds and over it, a training step of our ResNeXt takes {e["speed/train_grouped"]}, of our DenseNet {e["speed/train_dense"]}, of our Inception-ResNet {e["speed/train_added"]}.
- **Consider DenseNet where parameters are dear and time is not.** At equal multiply-adds it has {e["accuracy/parameters_dense"].mean:.2f} times the parameters of the basic ResNet; at equal parameters concatenation {_changed(e, "parameters", "concatenation_gain")} in test accuracy.
- **Recompute the layers of a DenseNet when memory is short.** DenseNet-121 then keeps {e["memory/recomputing_densenet121"].mean:.1f} times less, and what a DenseNet keeps grows with its layers to the power {e["memory/power_dense_recomputed"].mean:.2f} instead of {e["memory/power_dense"].mean:.2f}.
- **{branch}.** It {_changed(e, "accuracy", "addition_gain")}, and changes neither the parameters nor what a step keeps.
- **Do not take multiply-adds for speed.** With 16 groups a convolution is {e["groups/speedup_equal_width_16"]} as fast as ungrouped, with a sixteenth of its work.
"""
