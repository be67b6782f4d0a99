"""The chapter on augmentation and preprocessing: what it measures, and what it says of the strongest records."""

from resnet_lib import page
from resnet_lib.experiments.augmentation.alone import GEOMETRIC, MODERN_OPERATIONS, PHOTOMETRIC
from resnet_lib.experiments.augmentation.amount import AMOUNT
from resnet_lib.experiments.augmentation.clean import CLEAN, REAL_LABELS
from resnet_lib.experiments.augmentation.cost import COST
from resnet_lib.experiments.augmentation.fitted import FITTED, NEWER
from resnet_lib.experiments.augmentation.inputs import NORMALISE
from resnet_lib.experiments.augmentation.learning import MODERN, SITUATIONS, UNSEEN
from resnet_lib.experiments.augmentation.longer import LONGER
from resnet_lib.experiments.augmentation.one_draw import ONE_DRAW
from resnet_lib.experiments.augmentation.robustness import ROBUSTNESS, clear_gains

EXPERIMENTS = (
    ONE_DRAW,
    ROBUSTNESS,
    GEOMETRIC,
    PHOTOMETRIC,
    MODERN_OPERATIONS,
    FITTED,
    AMOUNT,
    LONGER,
    COST,
    NORMALISE,
    CLEAN,
    REAL_LABELS,
)


BOUGHT = "bought", "cost", "made no clear difference"


def answer(e):
    """The question's answer in three sentences."""
    seen = clear_gains(e, [f"robustness/{kind}_gain" for kind in SITUATIONS])
    never = clear_gains(e, [f"robustness/{kind}_gain" for kind in UNSEEN])
    price = page.trend(e["robustness/unchanged_gain"], "gain too", "pay for it", "show no price")
    return f"""\
**Augmentation prepares a network for the changes that it draws, for others less surely.**
Of {len(SITUATIONS)} kinds of change, training on them helps clearly with {seen}; of {len(UNSEEN)} that no network saw, training on all five helps clearly with {never}, and unchanged pictures {price} ({e["robustness/unchanged_gain"]}).
With a tenth of the pictures a changed one stands in for {e["amount/worth_at_a_tenth"]} as many real ones; without batch norm, standardised inputs {page.trend(e["normalise/gain_without_batch_norm"], "help", "hurt", "show no effect")} ({e["normalise/gain_without_batch_norm"]}) and with it {page.trend(e["normalise/gain_with_batch_norm"], "too", "hurt", "show no effect")} ({e["normalise/gain_with_batch_norm"]}).
"""


def answers(e):
    """The predictions of the chapter, answered in their order."""
    noise, equal_time, raw = (
        e[name]
        for name in ("robustness/noise_left_out_gain", "time/gain_at_equal_time", "normalise/raw_with_batch_norm")
    )
    return f"""\
1. Under noise, after training on the four others: {page.trend(noise, "better", "worse", "not told apart")}, {noise}.
2. Twice as many, by counting on paper; measured, the standard recipe makes a tenth of the pictures worth {e["amount/worth_at_a_tenth"]} as many.
3. To augment instead of training longer, at equal time: {page.trend(equal_time, "better", "worse", "not told apart")}, {equal_time}; training longer without it {page.change(e["time/longer_gain"], "gains", "loses", "makes no clear difference")}.
4. With batch normalisation, inputs divided by 255: {page.trend(raw, "better", "worse", "not told apart")}, {raw}; a null was predicted.
"""


def practice(e):
    """What to do, when, and what it bought here."""
    best = {end: max(MODERN, key=lambda name: e[f"modern/{name}_gain{end}"].mean) for end in ("", "_at_a_tenth")}
    words = [
        f"{name.replace('_', ' ')} {page.change(e[f'modern/{name}_gain{end}'], *BOUGHT)}" for end, name in best.items()
    ]
    longest = max(NEWER, key=lambda name: e[f"fitted/{name}_gain"].mean)
    fitted = f"{longest.replace('_', ' ')} {page.change(e[f'fitted/{longest}_gain'], *BOUGHT)}"
    return f"""\
- **Flip where the label stays: photographs, not characters.** Flips {page.change(e["geometric/flip_gain"], *BOUGHT)} on photographs and {page.change(e["geometric/digits_flip_gain"], *BOUGHT)} on digits.
- **Draw the changes that your pictures will meet.** Training on it bought, against its own kind: shifts {e["robustness/shift_gain"]}, turns {e["robustness/rotation_gain"]}, noise {e["robustness/noise_gain"]}; on unchanged pictures all five together {page.change(e["robustness/unchanged_gain"], *BOUGHT)}.
- **Spend spare training time on augmentation, not on more epochs of the same pictures.** At equal time it {page.change(e["time/gain_at_equal_time"], *BOUGHT)}; longer training alone {page.change(e["time/longer_gain"], *BOUGHT)}.
- **Pile on newer operations only where the network has learnt its pictures by heart.** The best of five over crop and flip: seen a few times {words[0]}; a tenth of the pictures, as many steps, {words[1]}; all of them until crop and flip are fitted, {fitted}.
- **Draw for each picture.** One draw for a whole batch cost {e["geometric/one_draw_loss"]}.
- **Augment whole batches on the device.** Crop and flip took {e["cost/crop_flip_share"]} of a step; single pictures in workers took {e["cost/loader_ratio"]} as long.
- **Standardise inputs where there is no batch norm.** It {page.change(e["normalise/gain_without_batch_norm"], *BOUGHT)}; with batch norm it {page.change(e["normalise/gain_with_batch_norm"], *BOUGHT)}.
- **Remove the labels that held-out networks believe least, not all that they contradict, and look at them first.** With a tenth of them wrong that {page.change(e["clean/ranked_labels_gain"], *BOUGHT)}; removing all suspects, of which {e["clean/labels_precision"]} were wrong, {page.change(e["clean/label_errors_gain"], *BOUGHT)}; removing copies {page.change(e["clean/duplicates_gain"], *BOUGHT)}.
"""
