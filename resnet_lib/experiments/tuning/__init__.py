"""The chapter on tuning: what it measures, and what it says of the strongest records."""

from resnet_lib import page
from resnet_lib.experiments.tuning.factorial import FACTORIAL, LEVERS
from resnet_lib.experiments.tuning.maps import DECAYS, RATES, SETTINGS
from resnet_lib.experiments.tuning.noise import NOISE
from resnet_lib.experiments.tuning.optimisers import OPTIMISER_TRIALS, OPTIMISERS
from resnet_lib.experiments.tuning.range_test import RANGE_TEST
from resnet_lib.experiments.tuning.search import SEARCH
from resnet_lib.experiments.tuning.structure import FAMILIES, STRUCTURE, STRUCTURE_RATES

EXPERIMENTS = (
    FACTORIAL,
    RATES,
    RANGE_TEST,
    NOISE,
    DECAYS,
    SETTINGS,
    STRUCTURE_RATES,
    STRUCTURE,
    OPTIMISER_TRIALS,
    OPTIMISERS,
    SEARCH,
)

PREFIXES = (
    "",
    *(f"{a}_{b}_{c}_" for a in "nw" for b in "nw" for c in "nw" if "n" in (a, b, c)),
)  # of the factorial's shares
WORDS = "gains", "loses", "makes no clear difference"


def most(e, prefix: str = "") -> str:
    """The lever with the largest share, in words."""
    return LEVERS[max(LEVERS, key=lambda lever: e[f"factorial/{prefix}{lever}_share"].mean)]


def answer(e):
    """The question's answer in three sentences."""
    first = list(dict.fromkeys(most(e, prefix) for prefix in PREFIXES))
    decides = "depends on how far each may move" if len(first) > 1 else "was the same in all ranges tried"
    return f"""\
**Which lever decides {decides}: {page.listed(first)} came first, over eight choices of ranges.**
A learning rate about a factor of three off {page.change(e["rates/factor_three_loss"], "costs", "gains", "makes no clear difference")}, a tenth of the best one {page.change(e["rates/tenth_loss"], "costs", "gains", "makes no clear difference")}; the best weight decay {page.change(e["decays/weight_decay_gain"], *WORDS)} against none, and label smoothing or dropout {page.change(e["settings/regularisation_gain"], *WORDS)}.
Of structure, hyper-parameters and data the {most(e)} holds the largest share with wide ranges and the {most(e, "n_n_n_")} with narrow ones; over all choices of ranges the smallest share of a lever is {e["factorial/least_share"]}.
"""


def answers(e):
    """The predictions of the chapter, answered in their order."""
    structure = {words: e[f"structure/{name}_effect"] for name, words in FAMILIES.items()}
    largest = max(structure, key=lambda words: structure[words].mean)
    return f"""\
1. A factor of about three in the learning rate: {e["rates/factor_three_loss"]}; a tenth of the best: {e["rates/tenth_loss"]}. Weight decay against none: {e["decays/weight_decay_gain"]}.
2. The best rate grows as batch size to the power of {e["rates/exponent"]}.
3. With wide ranges: {e["factorial/structure_share"]} for width, {e["factorial/hyper_share"]} for the learning rate, {e["factorial/data_share"]} for the number of pictures; the seed holds {e["factorial/seed_share"]}.
4. In structure the largest distance is that of {largest}: {structure[largest]}.
5. TPE against random search: {e["search/tpe_gain"]} in validation error, {e["search/tpe_test_gain"]} in test error when its settings are trained anew.
"""


def practice(e):
    """What to do, when, and what it bought here."""
    return f"""\
- **Sweep the learning rate by factors of three, before all else, and again after any change of batch size, optimiser or network.** A tenth of the best rate cost {e["rates/tenth_loss"]}, a neighbour {e["rates/factor_three_loss"]}: find the basin, and do not polish inside it.
- **Use a range test to place the sweep, not instead of it.** Its rate of steepest fall lay {e["range_test/steepest_distance"]} from the best one.
- **Tune weight decay together with the learning rate.** The best one {page.change(e["decays/weight_decay_gain"], *WORDS)} against none.
- **Try label smoothing and dropout last, and measure.** Here, in short trainings, the best of them {page.change(e["settings/regularisation_gain"], *WORDS)}.
- **Give each optimiser the same number of trials, then compare.** AdamW {page.change(e["optimisers/adamw_gain"], *WORDS)} against SGD, Muon {page.change(e["optimisers/muon_gain"], *WORDS)}; no trials at all instead of some {page.change(e["optimisers/default_gain"], *WORDS)}.
- **Search at random or with TPE, and keep the test split for the end.** `python -m resnet_lib.tune` does both; against random TPE {page.change(e["search/tpe_gain"], *WORDS)}.
- **Say the range with every claim about what matters.** The largest share was that of the {most(e, "n_n_n_")} with narrow ranges and of the {most(e)} with wide ones.
"""
