"""The chapter on residual connections: what it measures, and what it says of the strongest records."""

from resnet_lib import page
from resnet_lib.experiments.residual.depth import DEGRADATION, INFORMATION, RATES, REMOVAL, TRAINED_GRADIENTS
from resnet_lib.experiments.residual.gradients import GRADIENTS, SHATTERING
from resnet_lib.experiments.residual.shortcuts import SHORTCUTS
from resnet_lib.experiments.residual.tasks import THREE_TASKS
from resnet_lib.experiments.residual.tuning import LOSS_SLICE, TUNING
from resnet_lib.experiments.residual.unit import UNIT

EXPERIMENTS = (
    UNIT,
    GRADIENTS,
    SHATTERING,
    RATES,
    DEGRADATION,
    TUNING,
    LOSS_SLICE,
    TRAINED_GRADIENTS,
    INFORMATION,
    SHORTCUTS,
    REMOVAL,
    THREE_TASKS,
)


RISES = "rises by", "falls by", "does not clearly change"


def answer(e):
    """The question's answer in three sentences."""
    he = page.trend(e["gradients/he_init_gain"], "helps", "hurts", "changes nothing that shows")
    return f"""\
**The gain of a layer decides whether gradients survive; the addition is one way among others to set it.**
It saves {e["gradients/default_init_gain"]} of gradient under PyTorch's default weights, gains {e["gradients/batch_norm_gain"]} beside batch norm, and {he} under He's weights without it: {e["gradients/he_init_gain"]}.
What it does buy is depth: towards the deepest network the training error {page.change(e["degradation/plain_change"], *RISES)} without the addition and {page.change(e["degradation/residual_change"], *RISES)} with it.
"""


def answers(e):
    """The predictions of the chapter, answered in their order."""
    default, he, normalised = (e[f"gradients/{name}_gain"] for name in ("default_init", "he_init", "batch_norm"))
    deeper = page.trend(e["degradation/plain_change"], "higher", "lower", "not clearly different")
    return f"""\
1. It depends on the weights: with PyTorch's default the plain gradient vanishes, with He's on wide maps it is right, on small maps it shrinks.
2. Decades of gradient that the addition saves, negative where it makes things worse: default weights {default}; He's {he}; He's with batch norm {normalised}.
3. The deeper plain network's *training* error is {deeper}: {e["degradation/plain_change"]}.
"""


def practice(e):
    """What to do, when, and what it bought here."""
    return f"""\
- **Deeper than about twenty layers, add the input back.** Without it the training error of the deepest network {page.change(e["degradation/plain_change"], *RISES)} against twenty layers; against the residual one it is {page.change(e["degradation/deepest_gap"], "higher by", "lower by", "not clearly different")}, and on test pictures {page.change(e["degradation/deepest_test_gap"], "higher by", "lower by", "not clearly different")}.
- **Keep batch norm (or scale the branches) with it.** Without either, He's weights and an addition make the gradient grow with depth: {e["gradients/he_init_gain"]}.
- **Pad or project where dimensions change, whichever is simpler.** A projection gained {e["shortcuts/projection_gain"]} over zero padding, a branch that starts at zero {e["shortcuts/zero_init_gain"]}.
- **Search the learning rate all the same.** With batch norm the range of rates that train {page.change(e["tuning/lr_range_gain"], "widens by", "narrows by", "does not clearly change")}, and the error at the best rate {page.change(e["tuning/best_error_gain"], "falls by", "rises by", "does not clearly change")}.
- **Use it for other tasks too, and measure.** Held-out loss saved: classification {e["tasks/classification_gain"]}, regression {e["tasks/regression_gain"]}, generation {e["tasks/generation_gain"]}.
"""
