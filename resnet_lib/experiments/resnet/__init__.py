"""The chapter on ResNet: what it measures, and what it says of the strongest records."""

from resnet_lib import page
from resnet_lib.experiments.resnet.depth import DEPTH, DEPTH_COST, RATES, WIDTH_DEPTH
from resnet_lib.experiments.resnet.forms import FORM_TIMES, SIGNALS, SURVEY_BLOCK, SURVEY_FORMULA2
from resnet_lib.experiments.resnet.learnt import PROBES
from resnet_lib.experiments.resnet.tricks import TRICKS
from resnet_lib.experiments.resnet.units import BLOCKS
from resnet_lib.experiments.resnet.whole import NETWORKS

EXPERIMENTS = (
    BLOCKS,
    NETWORKS,
    SURVEY_BLOCK,
    SURVEY_FORMULA2,
    FORM_TIMES,
    SIGNALS,
    RATES,
    DEPTH,
    DEPTH_COST,
    WIDTH_DEPTH,
    TRICKS,
    PROBES,
)


WORDS = "gained", "lost", "made no clear difference"


def answer(e):
    """The question's answer in three sentences."""
    word = page.trend(e["survey_block/accuracy_change"], "better", "worse", "not clearly different")
    return f"""\
**ResNet is not the block that the survey writes down, depth is not free, and width is another way to spend the same computation.**
The survey's block is {word} in accuracy: {e["survey_block/accuracy_change"]}; from 8 to 56 layers accuracy {page.change(e["depth/gain_to_56"], "rises by", "falls by", "does not clearly change")}, while computation grows.
At equal computation the deepest network, against the widest, {page.change(e["width_depth/deep_over_wide"], *WORDS)}.
"""


def answers(e):
    """The predictions of the chapter, answered in their order."""
    helps = [name for name in e if name.startswith("tricks/") and name.endswith("_gain") and e[name].low > 0]
    shown = "; ".join(f"{name[7:-5].replace('_', ' ')} {e[name]}" for name in helps) or "none by its own interval"
    return f"""\
1. It makes it skewed: the branch has a skewness of {e["signals/survey_skewness"]}, in the original {e["signals/original_skewness"]}.
2. Without a last activation it can; a last ReLU leaves nothing negative, and a last LeakyReLU shrinks what is negative to a hundredth.
3. Accuracy {page.change(e["depth/gain_to_56"], "rises by", "falls by", "does not clearly change")}; computation changes by {e["depth/flops_change"].mean / 1e6:+.0f} MFLOPs a picture.
4. In this short run: {shown}.
"""


def practice(e):
    """What to do, when, and what it bought here."""
    return f"""\
- **Use the original block, not the survey's.** In test accuracy the survey's {page.change(e["survey_block/accuracy_change"], *WORDS)}: its order alone {page.change(e["survey_block/order_effect"], *WORDS)}, no last activation {page.change(e["survey_block/end_effect"], *WORDS)}, LeakyReLU {page.change(e["survey_block/slope_effect"], *WORDS)}. Its formula, which leaves the sum free, {page.change(e["survey_block/formula_accuracy_change"], *WORDS)}.
- **Stop stacking where returns stop, and count the cost first.** Here they stopped at {e["depth/returns_stop"].mean:.0f} layers.
- **At a fixed budget of computation, try wider before deeper when steps are few.** Against the widest network the deepest {page.change(e["width_depth/deep_over_wide"], *WORDS)}.
- **Do not add tricks on trust in a short training.** All together {page.change(e["tricks/together_gain"], *WORDS)}.
"""
