"""The chapter on less data, chosen well: what it measures, and what it says of the strongest records."""

from resnet_lib import page
from resnet_lib.experiments.downsampling.curve import CURVE_RATES, LEARNING_CURVE
from resnet_lib.experiments.downsampling.labels import LABEL_NOISE, NOISE_RATES
from resnet_lib.experiments.downsampling.resolution import RESOLUTION, RESOLUTION_RATES
from resnet_lib.experiments.downsampling.selection import CHOSEN, SELECTION, named
from resnet_lib.experiments.downsampling.skew import IMBALANCE, REMEDIES, SKEW_RATES, most_for_the_rarest, short

EXPERIMENTS = (
    CURVE_RATES,
    LEARNING_CURVE,
    SELECTION,
    NOISE_RATES,
    LABEL_NOISE,
    SKEW_RATES,
    IMBALANCE,
    RESOLUTION_RATES,
    RESOLUTION,
)

GAINS = "gains", "loses", "makes no clear difference"


def answer(e):
    """The question's answer in three sentences."""
    under, over = (
        e[f"imbalance/{name}_at_50"] for name in ("undersampling_gain", "undersampling_over_logit_adjustment")
    )
    worse = page.trend(e["learning_curve/gain_equal_steps"], "better", "worse", "no different that shows")
    return f"""\
**Less data generalises {worse}; what a sample saves is time, and how it is drawn matters most where it is small.**
Against all pictures, a tenth of them {page.change(e["learning_curve/gain_equal_steps"], *GAINS)} at equal steps and {page.change(e["learning_curve/gain_equal_epochs"], *GAINS)} at equal epochs.
Cutting frequent classes to the rarest at 1:50 {page.change(under, *GAINS)} against doing nothing and {page.trend(over, "beats", "is behind", "is not told apart from")} logit adjustment ({over}); four tenths of wrong labels cost {e["label_noise/loss_at_40_percent"]}.
"""


def answers(e):
    """The predictions of the chapter, answered in their order."""
    better = "better", "worse", "not told apart"
    mild, heavy = (e[f"selection/hard_{end}_choice"] for end in ("mild", "heavy"))
    crossed = mild.low > 0 and heavy.high < 0
    under, adjusted = (e[f"imbalance/{name}_gain_at_50"] for name in ("undersampling", "logit_adjustment"))
    evenly, by_class = (e[f"label_noise/{name}at_40_percent"] for name in ("loss_", "loss_by_class_"))
    return f"""\
1. A tenth of the pictures against all, at equal epochs: {page.trend(e["learning_curve/gain_equal_epochs"], *better)}, {e["learning_curve/gain_equal_epochs"]}; at equal steps: {page.trend(e["learning_curve/gain_equal_steps"], *better)}, {e["learning_curve/gain_equal_steps"]}.
2. Hard pictures first, against random at equal steps, at 60 % kept: {page.trend(mild, *better)}, {mild}; at the smallest share: {page.trend(heavy, *better)}, {heavy}. The predicted crossing {"shows" if crossed else "does not show"}.
3. At 1:50, against doing nothing, under-sampling: {page.trend(under, *better)}, {under}; logit adjustment: {page.trend(adjusted, *better)}, {adjusted}; under-sampling minus logit adjustment: {e["imbalance/undersampling_over_logit_adjustment_at_50"]}.
4. Four tenths of wrong labels cost {evenly} drawn evenly and {by_class} by class; dropping suspects {page.change(e["label_noise/suspects_gain"], *GAINS)} and {page.change(e["label_noise/suspects_gain_by_class"], *GAINS)}.
5. Half the side, against all of it, at equal work: {page.trend(e["resolution/half_equal_work_gain"], *better)}, {e["resolution/half_equal_work_gain"]}; pictures that grow: {page.trend(e["resolution/growing_gain"], *better)}, {e["resolution/growing_gain"]}.
"""


def practice(e):
    """What to do, when, and what it bought here: a table of situations, each line from the records."""

    def over(name: str) -> str:
        return page.change(e[name], *GAINS)

    most = {at: max(REMEDIES, key=lambda arm: e[f"imbalance/{short(arm)}_gain_at_{at}"].mean) for at in (5, 50)}
    skew = {at: over(f"imbalance/{short(arm)}_gain_at_{at}") for at, arm in most.items()}
    own = {name.removeprefix("imbalance/"): one for name, one in e.items()}
    found = {at: most_for_the_rarest(own, at) for at in (5, 50)}
    rarest = {at: f"{arm} {over(f'imbalance/{short(arm)}_rarest_gain_at_{at}')}" for at, arm in found.items()}
    ends = {end: max(CHOSEN, key=lambda way: e[f"selection/{named(way)}_{end}"].mean) for end in ("mild", "heavy")}
    chosen = {end: f"the highest mean, {way}, {over(f'selection/{named(way)}_{end}')}" for end, way in ends.items()}
    lines = [
        ("pictures enough, time for few steps", "draw from all pictures, see each less often",
         f"a tenth at equal steps {over('learning_curve/gain_equal_steps')}"),
        ("time for a tenth of the steps", "know what it costs",
         f"a tenth at equal epochs {over('learning_curve/gain_equal_epochs')}"),
        ("room for 60 % of the pictures", "take them at random unless choosing is free",
         f"against random in equal time, {chosen['mild']}; the hardest {over('selection/hard_mild')}"),
        ("room for the smallest share tried", "never the hardest alone",
         f"against random in equal time, {chosen['heavy']}; the hardest {over('selection/hard_heavy')}"),
        ("a skew of 1:5", f"first try {most[5]}",
         f"{most[5]} {skew[5]}; under-sampling {over('imbalance/undersampling_gain_at_5')}"),
        ("a skew of 1:50", f"first try {most[50]}",
         f"{most[50]} {skew[50]}; under-sampling {over('imbalance/undersampling_gain_at_50')}"),
        ("rare classes that must be found", "look at their own recall",
         f"at 1:5 {rarest[5]}; at 1:50 {rarest[50]}, of the rarest class's recall"),
        ("a tenth of wrong labels", "weigh the cost of checking them", f"they cost {e['label_noise/loss_at_10_percent']}"),
        ("four tenths of wrong labels, drawn evenly", "have labels mended before you change the loss",
         f"exactly the wrong dropped {over('label_noise/oracle_gain')}; suspects dropped {over('label_noise/suspects_gain')}; GCE "
         f"{over('label_noise/gce_gain')}; smoothing {over('label_noise/smoothing_gain')}; fewer epochs "
         f"{over('label_noise/shorter_gain')}"),
        ("as many, all of a class alike", "the same, and doubt a loss that doubts",
         f"exactly the wrong dropped {over('label_noise/oracle_gain_by_class')}; suspects dropped "
         f"{over('label_noise/suspects_gain_by_class')}; GCE {over('label_noise/gce_gain_by_class')}"),
        ("labels of unknown quality", "look at the suspects before dropping them",
         f"where no label is wrong, dropping suspects {over('label_noise/suspects_gain_without_noise')}"),
        ("time for a quarter of the work", "smaller pictures before fewer pictures",
         f"half the side {over('resolution/half_gain')}; averaging first {over('resolution/averaged_over_skipped')} against "
         "skipping pixels"),
        ("time, and pictures larger than they need be", "try a smaller side for longer, or one that grows",
         f"at equal work three quarters of the side {over('resolution/three_quarters_equal_work_gain')}, half of it "
         f"{over('resolution/half_equal_work_gain')}, growing {over('resolution/growing_gain')}"),
    ]  # fmt: skip
    head = "| you have | what to do | measured here, in test accuracy |\n| --- | --- | --- |\n"
    return head + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
