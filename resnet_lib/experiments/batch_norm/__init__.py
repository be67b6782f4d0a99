"""The chapter on batch normalisation: what it measures, and what it says of the strongest records."""

from resnet_lib import page
from resnet_lib.experiments.batch_norm.anywhere import ANYWHERE
from resnet_lib.experiments.batch_norm.convergence import CONVERGENCE
from resnet_lib.experiments.batch_norm.cost import COST
from resnet_lib.experiments.batch_norm.distribution import DISTRIBUTION, GRADIENTS
from resnet_lib.experiments.batch_norm.rate_scaling import RATE_SCALING
from resnet_lib.experiments.batch_norm.rates import RATES
from resnet_lib.experiments.batch_norm.shift import SHIFT
from resnet_lib.experiments.batch_norm.smoothness import SMOOTHNESS
from resnet_lib.experiments.batch_norm.statistics import CHANGED_PICTURES, STATISTICS

EXPERIMENTS = (
    RATES,
    CONVERGENCE,
    SHIFT,
    SMOOTHNESS,
    RATE_SCALING,
    DISTRIBUTION,
    GRADIENTS,
    ANYWHERE,
    STATISTICS,
    CHANGED_PICTURES,
    COST,
)

HALF = 0.5  # of the gain: whether the noise takes more than this
PREDICTIONS = (  # explanation, what it predicts, measure, the level that the measure must exceed
    ("covariate shift", "the shift is lower", "shift/reduction", 0),
    ("covariate shift", "also at the same learning rate", "shift/reduction_same_rate", 0),
    ("covariate shift", "gradients turn less as earlier layers move", "shift/turn_reduction", 0),
    ("covariate shift", "noise takes more than half of the gain", "shift/gain_lost_to_noise", HALF),
    ("covariate shift", "also beyond what it costs alone", "shift/gain_lost_beyond_noise", HALF),
    ("smoothness", "gradients change less, equal share of length", "smoothness/length_reduction", 0),
    ("smoothness", "also with noise, if that keeps the gain", "smoothness/noise_length_reduction", 0),
    ("smoothness", "gradients change less, own rate", "smoothness/own_rate_reduction", 0),
    ("rate scaling", "weights grow, so the effective rate falls", "rate_scaling/growth", 0),
    ("rate scaling", "held weights narrow the range of rates", "rate_scaling/held_range_loss", 0),
    ("rate scaling", "held weights cost training loss", "rate_scaling/held_loss_cost", 0),
)


def found_of(estimate, level: float) -> str:
    """Whether a prediction came true: the whole interval above the level, below it, or neither."""
    if estimate is None:
        return "not measured"
    return "as predicted" if estimate.low > level else "against it" if estimate.high < level else "open"


def explanations(e):
    """What each explanation of batch norm's gain predicts, what was measured, and whether they agree."""
    lines, words = [], {}
    for explanation in dict.fromkeys(name for name, *_ in PREDICTIONS):
        told = {}
        for name, prediction, measure, level in PREDICTIONS:
            if name == explanation:
                told.setdefault(found_of(e.get(measure), level), []).append(f"{prediction}, {e.get(measure, 'no run')}")
        words[explanation] = set(told)
        parts = " ".join(f"*{word.capitalize()}*: {'; '.join(predictions)}." for word, predictions in told.items())
        lines.append(f"- **{explanation.capitalize()}.** {parts}")
    whole = [name for name, found in words.items() if found == {"as predicted"}]
    broken = [name for name, found in words.items() if "against it" in found]
    all_true = (
        f"All predictions came true for {page.listed(whole)}."
        if whole
        else "No explanation saw all its predictions come true."
    )
    went_against = f"At least one went against {page.listed(broken)}." if broken else "None went against any."
    listed = "\n".join(lines)
    return f"""\
**Finding.** {all_true} {went_against}
The gain that is to be explained is {e["shift/loss_gain"]} of training loss; where its interval holds zero there is nothing to explain.

{listed}
"""


def answer(e):
    """The question's answer in three sentences."""
    beyond = e["shift/gain_lost_beyond_noise"]
    word = found_of(beyond, HALF)
    faster = "trains faster" if e["convergence/step_ratio"].low > 1 else "is not clearly faster"
    why = {
        "as predicted": "and a shift of the layers' inputs takes the gain away",
        "against it": "but not because its layers' inputs shift less",
        "open": "and whether that is because inputs shift less stays open",
    }
    half = {"as predicted": "more than half", "against it": "less than half", "open": "perhaps half"}
    return f"""\
**Batch normalisation {faster}, {why[word]}.**
Without it the same loss takes {e["convergence/step_ratio"]} as many steps, each network at its own best learning rate; the largest rate that trains is {e["convergence/lr_range_gain"]} higher with it, and the final accuracy by {e["convergence/accuracy_gain"]}.
The inputs do shift less, by {e["shift/reduction"]}; but put the shift back with noise, and {half[word]} of the gain is lost beyond what that noise costs any network: {beyond}.
"""


def answers(e):
    """The predictions of the chapter, answered in their order."""
    step, folded = (
        page.trend(e[f"cost/{name}"], "slower", "faster", "not clearly slower or faster")
        for name in ("step_time_change", "inference_time_change")
    )
    return f"""\
1. It needs {e["convergence/step_ratio"]} as many steps to a loss, and {e["cost/time_to_accuracy_ratio"]} the time to an accuracy.
2. The noise takes {e["shift/gain_lost_to_noise"]} of the gain in training loss; less what it costs a network without a norm, it takes {e["shift/gain_lost_beyond_noise"]}.
3. It refuses a batch of one, and of a batch of two says only which value is larger: {e["anywhere/refused_batches"]} of the sizes tried are of no use.
4. It is off by {e["statistics/short_run_difference"]}; after a long training by {e["statistics/long_run_difference"]}.
5. A step is {step}: {e["cost/step_time_change"]}. Folded inference is {folded}: {e["cost/inference_time_change"]}.
"""


def practice(e):
    """What to do, when, and what it bought here."""
    pair = page.trend(e["anywhere/batch_of_two_change"], "still better than", "worse than", "no clear match for")
    connected = page.trend(e["anywhere/fully_connected_change"], "helped", "hurt", "changed nothing clear")
    folding = page.trend(e["cost/folding_change"], "longer", "shorter", "not clearly different")
    return f"""\
- **Put batch norm into convolutional networks, and then search higher learning rates.** The largest that trains was {e["convergence/lr_range_gain"]} higher; at each network's best rate, doing without took {e["convergence/step_ratio"]} as many steps.
- **In fully connected layers, measure first.** At batch 128 it {connected}: {e["anywhere/fully_connected_change"]}.
- **Where a batch holds only a picture or two, use layer or group norm.** At batch 2, in fully connected layers, batch norm minus layer norm was {e["anywhere/batch_of_two_connected_change"]}; in convolutions it was {pair} group norm: {e["anywhere/batch_of_two_change"]}.
- **Before you judge a network after few steps, take its statistics anew** from the training set: after twenty steps that changed test accuracy by {e["statistics/short_accuracy_change"]}, after a long training by {e["statistics/accuracy_change"]}.
- **Where test pictures differ from training pictures in brightness or contrast, take the statistics from them.** At a quarter of the contrast that gave {e["changed_pictures/own_gain_contrast_025"]}, on unchanged pictures {e["changed_pictures/own_gain_none"]}.
- **Fold it into the convolution for inference,** where the norm comes right after it; the network then has no norm left to pay for. Here the time of inference was {folding}: {e["cost/folding_change"]}.
- **Count a step's price.** With batch norm it took {e["cost/step_time_change"]} more time; the way to an accuracy took {e["cost/time_to_accuracy_ratio"]} as long without it.
"""
