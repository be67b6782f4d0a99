"""Does accuracy survive? The same small network, seeds and schedule in every format, and two controls."""

from functools import partial

import torch
from torch import nn

from resnet_lib import page, plots, precision, stats, train
from resnet_lib.experiments.tensor_cores.formats import refusals, slug
from resnet_lib.experiments.tensor_cores.networks import small_network
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

MARGIN = 0.005  # of accuracy, as in claims.yml
OTHER = 1000  # added to the seeds of the control


class Rounded(nn.Module):
    """Rounds to fp8 on the way forward, and lets the gradient pass as if it had not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        form = precision.FORMATS["fp8"]
        short = x.detach().clamp(-form.maximum, form.maximum).to(form.dtype).to(x.dtype)
        return x + (short - x.detach())


def eight_bit_network(s):
    model = small_network(s)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.utils.parametrize.register_parametrization(layer, "weight", Rounded())
            layer.register_forward_pre_hook(lambda layer, given: (Rounded()(given[0]),))
    return model


ARMS = {  # arm → (format of the products, how the network is made, added to the seed)
    "fp32": ("fp32", small_network, 0),
    "fp32 again": ("fp32", small_network, 0),
    "fp32, other seeds": ("fp32", small_network, OTHER),
    "tf32": ("tf32", small_network, 0),
    "bf16": ("bf16", small_network, 0),
    "fp16": ("fp16", small_network, 0),
    "fp8, emulated": ("fp32", eight_bit_network, 0),
}
BASELINE, *OTHERS = ARMS


def accuracy(s, arm: str, seed: int | None = None) -> list[dict]:
    """Test accuracy of one training run; without a seed, why the arm does not run here."""
    form, make, more = ARMS[arm]
    if seed is None:
        return [{"refused": refusals(s.device)[form]}]
    own = train.TrainConfig(
        epochs=s.accuracy_epochs,
        batch_size=s.batch_size,
        learning_rate=s.learning_rate,
        precision=form,
        device=str(s.device),
    )
    make_own = partial(make, s)
    fitted = train.fit(make_own, s.pictures, own, seed=seed + more, on_divergence="record", progress=False)
    error = train.evaluate(fitted.model, s.pictures, s.pictures.test, own)["error"]
    return [{"accuracy": 1 - error, "time_s": fitted.rows[-1]["time_s"]}]


def runs(s):
    for name, least in {"accuracy_seeds": 2, "accuracy_width": 1}.items():
        if getattr(s, name) < least:
            raise ValueError(f"{name}={getattr(s, name)} must be at least {least}")
    refused = refusals(s.device)
    present = [arm for arm, (form, *_) in ARMS.items() if not refused[form]]
    absent = [{"arm": arm} for arm in ARMS if arm not in present]
    return [*conditions(arm=present, seed=range(s.accuracy_seeds)), *absent]


def trained(rows) -> list[dict]:
    return [r for r in rows if "accuracy" in r]


def arms_of(rows) -> list[str]:
    """The arms beside the baseline that were trained."""
    return [arm for arm in dict.fromkeys(r["arm"] for r in trained(rows)) if arm != BASELINE]


def changes(rows) -> dict[str, stats.Estimate]:
    """Arm → accuracy minus float32's with the same seed."""
    return {
        arm: stats.paired_rows(trained(rows), "accuracy", "arm", arm, BASELINE, unit="accuracy")
        for arm in arms_of(rows)
    }


def equivalence(rows, arm: str) -> dict:
    """Whether an arm's accuracy is shown to lie within the margin of float32's: two one-sided tests."""
    base = {r["seed"]: r["accuracy"] for r in trained(rows) if r["arm"] == BASELINE}
    differences = [r["accuracy"] - base[r["seed"]] for r in trained(rows) if r["arm"] == arm]
    return stats.equivalent(differences, margin=MARGIN)


def estimates(rows, s):
    return {f"{slug(arm)}_change": change for arm, change in changes(rows).items()}


def notes(rows, s):
    return [f"precision/{slug(r['arm'])}_change: {r['refused']}" for r in rows if "refused" in r]


def finding(rows, s, e):
    base = stats.interval([r["accuracy"] for r in trained(rows) if r["arm"] == BASELINE], unit="share")
    luck = e["fp32_other_seeds_change"].sd
    power = stats.seeds_needed(luck, MARGIN, paired=True) if luck else 2
    within = [arm for arm in arms_of(rows) if equivalence(rows, arm)["equivalent"]]
    few = (
        f" Too few, then: an arm that is not shown equivalent here is not shown different either, unless its interval "
        f"leaves out ±{stats.quantity(MARGIN, 'accuracy')}."
        if power > base.n
        else ""
    )
    return (
        f"Float32 reaches an accuracy of {base} on {s.facts['test']:,} test pictures, of which one counts "
        f"{stats.quantity(1 / s.facts['test'], 'accuracy')}. Shown to be within ±{stats.quantity(MARGIN, 'accuracy')}: "
        f"{', '.join(within) or 'no arm'}. Trained again with the same seeds it changes by {e['fp32_again_change']}; with other "
        f"seeds by {e['fp32_other_seeds_change']}. With that spread between runs, a difference of "
        f"{stats.quantity(MARGIN, 'accuracy')} would need about {power} pairs of runs to be found; here there are {base.n}.{few}"
    )


def table(rows, s):
    shown = []
    for arm, change in changes(rows).items():
        test = equivalence(rows, arm)
        word = "equivalent" if test["equivalent"] else "not shown equivalent"
        shown.append({"arm": arm, "change": change, "p": test["p_value"], "word": word})
    headings = {"arm": "arm", "change": "accuracy minus float32's", "p": ("p of the equivalence test", ".2g")}
    return page.table(shown, headings | {"word": f"within ±{stats.quantity(MARGIN, 'accuracy')}"})


def draw(rows, s):
    base = {r["seed"]: r["accuracy"] for r in trained(rows) if r["arm"] == BASELINE}
    changed = [
        r | {"change": r["accuracy"] - base[r["seed"]], "what": "all"} for r in trained(rows) if r["arm"] != BASELINE
    ]
    with plots.figure(height=3.6) as (_, ax):
        plots.dots(ax, changed, "arm", "change", by="what", colours={"all": plots.BLUE}, join=False)
        ax.axhspan(-MARGIN, MARGIN, color="grey", alpha=0.25)
        names = list(dict.fromkeys(r["arm"] for r in changed))
        ax.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names], fontsize=10)
        ax.set(ylabel="test accuracy minus\nfloat32's, points", xlim=(-0.5, len(names) - 0.5))
        plots.hundredths(ax.yaxis)
    margin = stats.quantity(MARGIN, "accuracy")
    within = [arm for arm in arms_of(rows) if equivalence(rows, arm)["equivalent"]]
    return (
        f"Shown to be within {margin} of float32: {page.listed(within)}. Grey: ±{margin}. Dots are {len(base)} seeds, bars "
        "intervals of 95 %."
    )


PRECISION = Experiment(
    "precision",
    run=accuracy,
    conditions=runs,
    estimates=estimates,
    settings=("accuracy_width", "accuracy_epochs", "batch_size", "learning_rate"),
    counts=("accuracy_seeds",),
    tiny={"accuracy_width": 2, "accuracy_epochs": 1, "batch_size": 16, "accuracy_seeds": 2},
    finding=finding,
    figure=draw,
    alt="Change of test accuracy against float32 for each number format and control, a small dot for each seed and a "
    "large one for the mean with its interval, and a grey band of plus and minus half a point.",
    table=table,
    notes=notes,
)
