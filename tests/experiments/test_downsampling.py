"""What decides the down-sampling chapter's verdicts, on rows made by hand and on a few pictures."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnet_lib import data, noise
from resnet_lib.experiments import depths, downsampling
from resnet_lib.experiments.downsampling import curve, labels, resolution, selection, skew, training
from tests.experiments.conftest import made_up_pictures, settings

SEEDS = (0, 1, 2)
FACTS = {"train": 1000, "classes": 10, "shape": [3, 16, 16]}


def running(**changes):
    """Settings as a run gets them, with a few pictures."""
    pictures = made_up_pictures(count=60, classes=3)
    values = {"depth": 8, "width": 2, "batch_size": 16, "flips": False, "number_format": "fp32"} | changes
    return SimpleNamespace(
        pictures=pictures, device=torch.device("cpu"), facts=pictures.about(), seeds=[0, 1, 2], **values
    )


class Says(nn.Module):
    """Says the same logits whatever it is shown."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, images):
        return self.logits[: len(images)]


# --- how a network is trained and judged


def test_a_sample_is_repeated_to_the_length_asked_for():
    s = running()
    made = training.with_training(s.pictures, s.pictures.train.images[:4], s.pictures.train.labels[:4], 10)
    assert len(made.train) == 10 and torch.equal(made.train.images[4:8], made.train.images[:4])
    assert made.val is s.pictures.val and made.test is s.pictures.test


def test_recall_is_of_each_class_and_a_class_without_pictures_counts_as_none():
    guess, given = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 1])
    assert training.recalls(guess, given, 3) == pytest.approx([2 / 3, 1.0, 0.0])


def test_the_calibration_error_is_zero_for_honest_confidence_and_the_excess_for_boasting():
    honest = torch.tensor([[0.75, 0.25]] * 4)
    labels_ = torch.tensor([0, 0, 0, 1])
    assert training.calibration_error(honest, labels_) == pytest.approx(0, abs=1e-6)
    boasting = torch.tensor([[1.0, 0.0]] * 4)
    assert training.calibration_error(boasting, labels_) == pytest.approx(0.25)
    both = torch.cat([honest, boasting])  # two bins, each by its size
    assert training.calibration_error(both, labels_.repeat(2)) == pytest.approx(0.125)


def test_accuracy_counts_pictures_and_balanced_accuracy_counts_classes():
    s = running()
    split = data.Split(s.pictures.test.images[:5], torch.tensor([0, 0, 0, 1, 2]))
    found = training.judged(s, Says(5 * F.one_hot(torch.tensor([0, 0, 0, 0, 0]), 3).float()), split)
    assert found["accuracy"] == pytest.approx(0.6) and found["balanced_accuracy"] == pytest.approx(1 / 3)
    assert found["recalls"] == [1.0, 0.0, 0.0]


def test_each_arm_gets_the_rate_of_its_own_best_validation_score():
    scores = {("a", 0.1): 0.5, ("a", 0.3): 0.4, ("b", 0.1): 0.2, ("b", 0.3): 0.6}
    rows = [{"arm": arm, "ratio": 5, "rate": rate, "score": score} for (arm, rate), score in scores.items()]
    assert training.best_rates(rows, ("arm", "ratio")) == {"a | 5": 0.1, "b | 5": 0.3}


def test_a_training_that_diverged_at_its_chosen_rate_is_said_and_a_trial_of_it_scores_nothing():
    made = SimpleNamespace(rows=[{"diverged": True}], model=None)
    with pytest.raises(ArithmeticError, match="the arm diverged"):
        training.converged(made, "the arm")
    assert training.tried(None, made) == [{"score": 0.0, "diverged": True}]


def test_pictures_and_rates_that_allow_no_training_are_refused():
    with pytest.raises(ValueError, match="6 pixels"):
        depths.refuse(settings(depth=8, facts={"shape": [1, 6, 6]}))
    with pytest.raises(ValueError, match="depth=9"):
        depths.refuse(settings(depth=9, facts=FACTS))
    with pytest.raises(ValueError, match=r"rates=\[0.1, 0\]"):
        training.refuse_rates(settings(rates=[0.1, 0]))


# --- the learning curve


@pytest.mark.parametrize(
    ("share", "regime", "steps"), [(1.0, "steps", 12), (0.5, "steps", 12), (0.5, "epochs", 4), (0.1, "epochs", 2)]
)
def test_a_sample_takes_the_steps_or_the_epochs_of_the_whole(share, regime, steps):
    s = running(epochs=4)  # 60 pictures make three batches; six make none, and are shown 24 times in batches of 16
    count, made = curve.trained(s, share, regime, 0.01, 0)
    assert count == round(60 * share) and made.rows[-1]["step"] == steps


def curve_rows():
    """Errors that fall as the power −1/2 of the pictures at equal steps; at equal epochs worse; a gap that shrinks."""
    rows = []
    for seed in SEEDS:
        for share in (0.01, 0.1, 0.25, 0.5, 1.0):
            row = {"share": share, "seed": seed, "pictures": int(10_000 * share), "rate": 0.1, "time_s": share}
            error = (0.9 + 0.01 * seed) * (10_000 * share / 100) ** -0.5
            for regime, more in (("steps", 0.0), ("epochs", 0.05)):
                if share < 1 or regime == "steps":
                    steps = 100 if regime == "steps" else int(100 * share)
                    accuracy = 1 - error - more
                    rows.append(row | {"regime": regime, "steps": steps, "accuracy": accuracy, "train_accuracy": 0.95})
    return rows


def test_a_tenth_is_compared_with_all_and_a_power_law_foretells_the_largest():
    found = curve.estimates(curve_rows(), settings(facts=FACTS))
    tenth = sum((0.9 + 0.01 * n) * (1000 / 100) ** -0.5 for n in SEEDS) / 3
    whole = sum((0.9 + 0.01 * n) * (10_000 / 100) ** -0.5 for n in SEEDS) / 3
    assert found["gain_equal_steps"].mean == pytest.approx(whole - tenth)
    assert found["gain_equal_epochs"].mean == pytest.approx(whole - tenth - 0.05)
    assert found["gap_saved_equal_steps"].mean == pytest.approx(whole - tenth), "a larger gap is a negative saving"
    assert found["exponent"].mean == pytest.approx(0.5) and found["law_off_at_whole"].mean == pytest.approx(0, abs=1e-9)
    assert found["whole_over_chance"].mean == pytest.approx(1 - whole - 0.1)
    assert found["steps_ratio_epochs"].mean == pytest.approx(0.1) and found["steps_ratio_steps"].mean == pytest.approx(
        1
    )


def test_the_largest_sizes_are_kept_from_the_fit():
    rows = curve_rows()
    for row in rows:
        if row["share"] >= 0.5:
            row["accuracy"] = 0.5
    found = curve.estimates(rows, settings(facts=FACTS))
    assert found["exponent"].mean == pytest.approx(0.5)
    foretold = sum((0.9 + 0.01 * n) * 0.1 for n in SEEDS) / 3
    assert found["law_off_at_whole"].mean == pytest.approx(foretold - 0.5), "foretold minus measured"


def test_the_whole_set_is_run_once_and_every_arm_at_its_own_rate():
    s = settings(depth=8, shares=[1.0, 0.1, 0.3, 0.6], facts=FACTS, rate_of={})
    arms = curve.arms(s)
    assert len(arms) == 7 and arms[-1] == {"share": 1.0, "regime": "steps"}
    s.rate_of = {training.key_of(arm, curve.NAMES): 0.01 * n for n, arm in enumerate(arms)}
    assert [run["rate"] for run in curve.runs(s)[:: len(SEEDS)]] == [0.01 * n for n in range(7)]


@pytest.mark.parametrize(
    "shares", [[0.1, 1.0], [0.2, 0.3, 0.5, 1.0], [0.1, 0.3, 0.5, 0.9], [0.0, 0.1, 0.5, 1.0], [0.001, 0.1, 0.5, 1.0]]
)
def test_shares_that_the_rules_cannot_be_judged_by_are_refused(shares):
    with pytest.raises(ValueError, match="shares="):
        curve.arms(settings(depth=8, shares=shares, facts=FACTS))


# --- which sample


def test_hardness_is_the_length_of_the_error_vector():
    found = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    assert selection.el2n(found, torch.tensor([0, 0, 0])).tolist() == pytest.approx([0, math.sqrt(0.5), math.sqrt(2)])


def test_forgetting_counts_from_right_to_wrong_and_what_was_never_right_counts_most():
    right, wrong = [0.9, 0.1], [0.1, 0.9]
    looks = [[right, right, wrong, wrong], [right, wrong, wrong, right], [right, right, wrong, wrong]]
    found = selection.forgettings([torch.tensor(one) for one in looks], torch.zeros(4, dtype=torch.int64))
    assert found.tolist() == [0, 1, 4, 1]


def test_k_centre_covers_what_chance_leaves_out_and_herding_keeps_the_mean():
    generator = torch.Generator().manual_seed(0)
    seen = torch.cat([torch.randn(95, 2, generator=generator), 20 + torch.randn(5, 2, generator=generator)])
    chosen = selection.centres(seen, 4)
    assert (chosen >= 95).any() and len(chosen.unique()) == 4
    far = torch.cdist(seen, seen[chosen]).amin(1).max()
    assert far < torch.cdist(seen, seen[:4]).amin(1).max()
    herd = selection.herded(seen, 20)
    assert len(herd.unique()) == 20
    assert (seen[herd].mean(0) - seen.mean(0)).norm() < 0.5 < (seen[:20].mean(0) - seen.mean(0)).norm()


def test_strata_take_evenly_after_a_cut_of_the_hardest_and_always_so_many():
    generator = torch.Generator().manual_seed(0)
    score = torch.cat([torch.linspace(0, 0.02, 900), torch.linspace(0.02, 1, 100)])
    kept = selection.strata(score, 100, 0.05, generator)
    assert len(kept.unique()) == 100 and score[kept].max() < score.sort().values[950]
    assert (kept < 900).sum() < 60, "at random it would be about ninety-five"
    for count in (1, 49, 51, 949):
        assert len(selection.strata(score, count, 0.05, generator).unique()) == count


@pytest.mark.parametrize("way", selection.CHOSEN)
def test_every_way_keeps_so_many_different_pictures_and_by_place_each_class_has_its_share(way):
    generator = torch.Generator().manual_seed(0)
    given = torch.arange(200) % 4
    found = [torch.randn(200, 4, generator=generator).softmax(1) for _ in range(3)]
    seen = torch.randn(200, 5, generator=generator)
    kept = selection.choose(way, 0.3, found, seen, given, seed=0)
    assert len(kept) == 60 == len(kept.unique())
    if way in (selection.HERDED, selection.TYPICAL, selection.ATYPICAL):
        assert torch.bincount(given[kept]).tolist() == [15] * 4


def test_easy_and_hard_typical_and_not_are_opposites():
    generator = torch.Generator().manual_seed(1)
    given = torch.arange(100) % 2
    found, seen = [torch.randn(100, 2, generator=generator).softmax(1)], torch.randn(100, 3, generator=generator)
    for low, high, value in (
        (selection.EASY, selection.HARD, selection.el2n(found[0], given)),
        (selection.TYPICAL, selection.ATYPICAL, selection.typicality(seen, given)),
    ):
        kept = {way: selection.choose(way, 0.5, found, seen, given, 0) for way in (low, high)}
        assert not set(kept[low].tolist()) & set(kept[high].tolist())
        assert value[kept[low]].mean() < value[kept[high]].mean()


def test_typicality_is_the_distance_from_the_mean_of_its_own_class():
    seen = torch.tensor([[0.0], [2.0], [10.0], [10.0]])
    assert selection.typicality(seen, torch.tensor([0, 0, 1, 1])).tolist() == [1, 1, 0, 0]


def test_classes_get_their_share_to_the_last_picture():
    given = torch.tensor([0] * 50 + [1] * 30 + [2] * 21)
    kept = selection.by_class(given, 10, lambda own, k: torch.arange(k))
    assert torch.bincount(given[kept]).tolist() == [5, 3, 2]


def test_the_time_of_choosing_is_taken_from_the_training_of_what_was_chosen(monkeypatch):
    s = running(selection_epochs=6, score_epochs=2)
    s.rate_of = {}
    assert selection.looking_epochs(s) == pytest.approx(2 + 2 / 3 + 1 / 3)
    asked = []

    def fitted_to(s, kept, epochs, rate, seed):
        asked.append((len(kept), epochs))
        return SimpleNamespace(model=None, rows=[{"step": 1, "time_s": 1.0}])

    monkeypatch.setattr(
        selection, "looked", lambda s, rate, seed: ([torch.full((60, 3), 1 / 3)] * 2, torch.zeros(60, 2))
    )
    monkeypatch.setattr(selection, "fitted_to", fitted_to)
    monkeypatch.setattr(selection, "judged", lambda *a: {"accuracy": 0.5})
    rows = selection.select(s, 0.5, 0.1, 0.1, 0)
    epochs = {row["way"]: spent for row, (_, spent) in zip(rows, asked, strict=True)}
    assert epochs[selection.RANDOM] == epochs[selection.STRATIFIED] == 6
    assert all(epochs[way] == pytest.approx(3) for way in (*selection.CHOSEN, selection.SHORT))
    assert {count for count, _ in asked} == {30}


def test_fitting_takes_the_steps_of_so_many_epochs_of_the_whole():
    s = running()
    made = selection.fitted_to(s, torch.arange(20), 2.5, 0.01, 0)  # 150 pictures in two rounds of 75
    assert made.rows[-1]["step"] == 2 * (75 // 16)


def selection_rows():
    """Accuracies of every way: an own number each; the best on validation pictures is not the best on test pictures."""
    rows, values = [], {}
    for share in (0.1, 0.6):
        for place, way in enumerate((*selection.WAYS, selection.SHORT)):
            values[way, share] = 0.3 + 0.01 * place + 0.1 * share
            val = 0.9 if way == selection.HERDED else 0.5
            rows += [
                {"share": share, "way": way, "seed": n, "accuracy": values[way, share] + 0.02 * n, "val_accuracy": val}
                for n in SEEDS
            ]
    rows += [
        {"share": 1.0, "way": selection.ALL, "seed": n, "accuracy": 0.5 + 0.02 * n, "val_accuracy": 0.5} for n in SEEDS
    ]
    return rows, values


def test_ways_are_compared_at_their_own_share_with_random_of_equal_time_and_of_equal_steps():
    rows, values = selection_rows()
    found = selection.estimates(rows[::-1], settings())
    assert found["hard_mild"].mean == pytest.approx(values["hard", 0.6] - values["random", 0.6])
    assert found["hard_heavy_choice"].mean == pytest.approx(values["hard", 0.1] - values[selection.SHORT, 0.1])
    assert found["time_heavy"].mean == pytest.approx(values[selection.SHORT, 0.1] - values["random", 0.1])
    assert found["strata_over_hard_heavy"].mean == pytest.approx(values[selection.COVERED, 0.1] - values["hard", 0.1])
    assert found["gain_of_best_subset"].mean == pytest.approx(values[selection.HERDED, 0.6] - 0.5), (
        "chosen on validation"
    )
    assert selection.best_way(rows, 0.6) == selection.HERDED


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kept": [0.1]}, "kept="),
        ({"kept": [0.6, 0.5]}, "kept="),
        ({"kept": [0.6, 1.0]}, "kept="),
        ({"kept": [0.005, 0.6], "shares": [0.005, 0.1, 0.6, 1.0]}, "less than one of each class"),
        ({"score_epochs": 0}, "score_epochs=0"),
        ({"selection_epochs": 3, "score_epochs": 2}, "selection_epochs=3"),
    ],
)
def test_settings_that_allow_no_selection_are_refused(changes, words):
    values = {"kept": [0.1, 0.6], "shares": [0.1, 0.3, 0.6, 1.0], "selection_epochs": 6, "score_epochs": 2, "depth": 8}
    s = settings(facts=FACTS, rate_of={f"{share} | steps": 0.1 for share in (0.1, 0.6, 1.0)}, **(values | changes))
    with pytest.raises(ValueError, match=words):
        selection.runs(s)


# --- skewed labels


def test_classes_fall_geometrically_to_the_ratio_and_keep_one_picture_at_least():
    assert skew.class_counts(500, 50, 10)[0] == 500 and skew.class_counts(500, 50, 10)[-1] == 10
    steps_ = [a / b for a, b in zip(skew.class_counts(5000, 50, 5), skew.class_counts(5000, 50, 5)[1:], strict=False)]
    assert steps_ == pytest.approx([50 ** (1 / 4)] * 4, rel=0.01)
    assert skew.class_counts(10, 50, 3)[-1] == 1


def test_a_skewed_sample_and_its_balanced_twin_are_equally_large_and_the_seed_draws_the_rare():
    given = torch.arange(1000) % 10
    rare = set()
    for seed in range(8):
        one, even, rarest = skew.skewed(given, 10, 20, seed)
        counts = torch.bincount(given[one], minlength=10)
        assert len(one) == len(one.unique()) == len(even) == len(even.unique())
        assert counts.max() == 100 and counts.min() == counts[rarest] == 5
        fair = torch.bincount(given[even], minlength=10)
        assert fair.max() - fair.min() <= 1
        rare.add(rarest)
    assert len(rare) > 3


def test_under_sampling_cuts_to_the_rarest_and_over_sampling_repeats_to_the_most_frequent():
    given = torch.tensor([0] * 6 + [1] * 3 + [2] * 2)
    cut = skew.rebalanced(given, 3, "under-sampling")
    assert torch.bincount(given[cut]).tolist() == [2, 2, 2] and len(cut.unique()) == 6
    repeated = skew.rebalanced(given, 3, "over-sampling")
    assert torch.bincount(given[repeated]).tolist() == [6, 6, 6] and len(repeated.unique()) == 11
    for arm in ("nothing", "class weights", skew.ADJUSTED, skew.FAIR):
        assert torch.equal(skew.rebalanced(given, 3, arm), torch.arange(11))


def test_weights_are_pytorchs_and_the_adjustment_is_left_out_when_judged():
    logits, given, counts = torch.randn(12, 3), torch.arange(12) % 3, torch.tensor([8.0, 3.0, 1.0])
    plain = F.cross_entropy(logits, given)
    for task, wanted in (
        (skew.weighted(counts), F.cross_entropy(logits, given, 12 / (3 * counts))),
        (skew.adjusted(counts), F.cross_entropy(logits + (counts / 12).log(), given)),
    ):
        assert torch.allclose(task(Says(logits).train(), logits, given, None)["loss"], wanted)
        assert torch.allclose(task(Says(logits).eval(), logits, given, None)["loss"], plain)


def test_balanced_batches_hold_equally_many_of_each_class_and_reach_every_picture():
    s = running()
    given = torch.tensor([0] * 40 + [1] * 15 + [2] * 5)
    task = skew.BalancedBatches(
        s, s.pictures.train.images, given[torch.randperm(60, generator=torch.Generator().manual_seed(3))]
    )
    generator = torch.Generator().manual_seed(0)
    drawn = [task.drawn(15, generator) for _ in range(200)]
    for one in drawn:
        assert torch.bincount(task.labels[one], minlength=3).tolist() == [5, 5, 5]
    assert len(torch.cat(drawn).unique()) == 60
    few = torch.stack([torch.bincount(task.labels[task.drawn(2, generator)], minlength=3) for _ in range(600)]).sum(0)
    assert few.min() > 300, "where classes are more than places, all come equally often"


def test_balanced_batches_train_on_their_own_pictures_as_a_network_gets_them_and_judge_what_is_shown(monkeypatch):
    s = running()
    task = skew.BalancedBatches(s, s.pictures.train.images, s.pictures.train.labels)
    monkeypatch.setattr(skew, "changed", lambda s, images, generator: images)
    seen = []

    class Looks(nn.Module):
        def forward(self, images):
            seen.append(images)
            return torch.zeros(len(images), 3, requires_grad=True)

    shown = torch.zeros(6, 3, 8, 8)
    task(Looks().train(), shown, torch.zeros(6, dtype=torch.int64), torch.Generator().manual_seed(0))
    pixels = ((s.pictures.train.images / 255 - 0.5) / 0.25).flatten(1)
    off = torch.cdist(seen[0].flatten(1), pixels, compute_mode="donot_use_mm_for_euclid_dist")  # exact for equal ones
    assert off.amin(1).max() < 1e-3
    task(Looks().eval(), shown, torch.zeros(6, dtype=torch.int64), None)
    assert torch.equal(seen[1], shown)


@pytest.mark.parametrize("arm", skew.ARMS)
def test_every_arm_takes_the_steps_of_the_whole_training_set(arm):
    s = running(skew_epochs=2)
    made, rarest, row = skew.trained(s, arm, 5, 0.01, 0)
    assert made.rows[-1]["step"] == 2 * (60 // 16) and rarest in range(3)
    sizes = {skew.UNDER: 12, skew.FAIR: 33}  # 20, 9 and 4 pictures a class
    assert row["pictures"] == sizes.get(arm, 33) and row["fewest"] == (11 if arm == skew.FAIR else 4)


def skew_rows():
    rows, values = [], {}
    for ratio in (5, 50):
        for place, arm in enumerate(skew.ARMS):
            values[arm, ratio] = 0.3 + 0.01 * place**2 + 0.001 * ratio
            for n in SEEDS:
                row = {"arm": arm, "ratio": ratio, "seed": n, "balanced_accuracy": values[arm, ratio] + 0.1 * n}
                rows.append(row | {"rarest_recall": 0.1 * place, "calibration_error": 0.02 * place, "accuracy": 0.0})
    return rows, values


def test_remedies_are_compared_at_their_own_ratio_by_balanced_accuracy():
    rows, values = skew_rows()
    found = skew.estimates(rows[::-1], settings(facts=FACTS))
    for ratio in (5, 50):
        of = lambda arm: values[arm, ratio]  # noqa: B023, E731
        assert found[f"loss_at_{ratio}"].mean == pytest.approx(of(skew.FAIR) - of("nothing"))
        assert found[f"undersampling_gain_at_{ratio}"].mean == pytest.approx(of(skew.UNDER) - of("nothing"))
        name = f"undersampling_over_logit_adjustment_at_{ratio}"
        assert found[name].mean == pytest.approx(of(skew.UNDER) - of(skew.ADJUSTED))
        assert found[f"logit_adjustment_rarest_gain_at_{ratio}"].mean == pytest.approx(0.5)
        assert skew.most_for_the_rarest(found, ratio) == skew.ADJUSTED
        assert found[f"calibration_change_at_{ratio}"].mean == pytest.approx(0.02)
    assert found["fair_over_chance"].mean == pytest.approx(values[skew.FAIR, 50] + 0.1 - 0.1)


@pytest.mark.parametrize(
    ("ratios", "words"), [([5], "among them"), ([1, 5, 50], "above 1"), ([5, 50, 200], "about 100 pictures")]
)
def test_ratios_that_cannot_be_judged_are_refused(ratios, words):
    with pytest.raises(ValueError, match=words):
        skew.arms(settings(depth=8, ratios=ratios, facts=FACTS))


# --- wrong labels


def test_wrong_labels_are_of_the_part_asked_for_and_of_no_other_pictures():
    s = running(noise_part=0.5)
    images, given, wrong = labels.noised(s, "evenly", 0.4, 0)
    assert len(images) == 30 and wrong.sum() == 12
    assert torch.equal(given != s.pictures.train.labels[:30], wrong)
    assert not torch.equal(labels.noised(s, "evenly", 0.4, 1)[1], given), "another seed draws others"


def test_each_remedy_changes_what_it_says(monkeypatch):
    s, seen = running(noise_part=1.0, noise_epochs=6), {}
    suspects = torch.arange(60) < 20

    def taught(s, dataset, config, seed, task=None):
        seen["now"] = (len(dataset.train.images.flatten(1).unique(dim=0)), config, task, len(dataset.train))
        return None

    monkeypatch.setattr(labels, "taught", taught)
    monkeypatch.setattr(labels, "held_out", lambda *a: None)
    monkeypatch.setattr(noise, "confident_learning", lambda *a: suspects)
    for arm in labels.ARMS:
        _, wrong, gone, epochs = labels.trained(s, arm, "evenly", 0.4, 0.1, 0)
        kept, config, task, length = seen["now"]
        assert length == 60, "equally many steps an epoch"
        assert kept == {labels.ORACLE: 36, labels.DROPPED: 40}.get(arm, 60)
        assert torch.equal(gone, {labels.ORACLE: wrong, labels.DROPPED: suspects}.get(arm, torch.zeros_like(wrong)))
        assert config.epochs == (2 if arm == labels.SHORTER else 6)
        assert config.label_smoothing == (0.1 if arm == labels.SMOOTHED else 0)
        assert task is (labels.robust if arm == labels.ROBUST else None)
        assert epochs == {labels.SHORTER: 2, labels.DROPPED: 6 + 12}.get(arm, 6), "three folds of two thirds"


def test_suspects_are_found_by_networks_that_did_not_see_them(monkeypatch):
    s, trained_on = running(noise_part=1.0, noise_epochs=1), []
    s.pictures.train.images[:, 0, 0, 0] = torch.arange(60, dtype=torch.uint8)

    def taught(s, dataset, config, seed):
        trained_on.append(set(dataset.train.images[:, 0, 0, 0].tolist()))
        return SimpleNamespace(rows=[{"diverged": False}], model=None)

    def said(s, model, images):
        assert not set(images[:, 0, 0, 0].tolist()) & trained_on[-1]
        return torch.full((len(images), 3), 1 / 3)

    monkeypatch.setattr(labels, "taught", taught)
    monkeypatch.setattr(labels, "probabilities", said)
    found = labels.held_out(s, s.pictures.train.images, s.pictures.train.labels, 0.1, 0)
    assert found.shape == (60, 3) and [len(one) for one in trained_on] == [40] * 3


def noise_rows():
    rows, values = [], {}
    s = settings(depth=8, batch_size=8, noise_part=1.0, noise_shares=[0.1, 0.4, 0.6], facts=FACTS)
    for place, cell in enumerate(labels.arms(s)):
        key = cell["arm"], cell["noise_kind"], cell["share"]
        values[key] = 0.2 + 0.001 * place**2
        row = cell | {"precision": 0.5, "recall": 0.25, "train_error": 0.1, "epochs_in_all": 6, "dropped": 0}
        rows += [row | {"seed": n, "accuracy": values[key] + 0.1 * n, "rate": 0.1} for n in SEEDS]
    return rows, values


def test_losses_are_against_right_labels_and_gains_against_no_remedy_at_the_same_noise():
    rows, values = noise_rows()
    found = labels.estimates(rows[::-1], settings(facts=FACTS))
    right = values["nothing", "evenly", 0.0]
    assert found["loss_at_10_percent"].mean == pytest.approx(right - values["nothing", "evenly", 0.1])
    assert found["loss_at_40_percent"].mean == pytest.approx(right - values["nothing", "evenly", 0.4])
    assert found["loss_by_class_at_40_percent"].mean == pytest.approx(right - values["nothing", "by class", 0.4])
    for arm, name in labels.SHORT.items():
        assert found[f"{name}_gain"].mean == pytest.approx(
            values[arm, "evenly", 0.4] - values["nothing", "evenly", 0.4]
        )
        by_class = values[arm, "by class", 0.4] - values["nothing", "by class", 0.4]
        assert found[f"{name}_gain_by_class"].mean == pytest.approx(by_class)
    none = values[labels.DROPPED, "evenly", 0.0] - right
    assert found["suspects_gain_without_noise"].mean == pytest.approx(none)
    assert "oracle_gain_without_noise" not in found, "there it drops nothing"
    assert found["suspects_precision"].mean == 0.5 and found["suspects_recall"].mean == 0.25
    assert found["right_over_chance"].mean == pytest.approx(right + 0.1 - 0.1)


def test_by_class_no_share_from_one_half_on_and_what_drops_trains_at_the_rate_of_the_oracle():
    s = settings(depth=8, batch_size=8, noise_part=1.0, noise_shares=[0.1, 0.4, 0.6], facts=FACTS)
    arms = labels.arms(s)
    assert {a["share"] for a in arms if a["noise_kind"] == "by class"} == {0.1, 0.4}
    assert len({tuple(a.items()) for a in arms}) == len(arms)
    s.rate_of = {arm["arm"]: 0.01 * n for n, arm in enumerate(labels.rate_arms(s))}
    rate = {run["arm"]: run["rate"] for run in labels.runs(s)}
    assert rate[labels.DROPPED] == rate[labels.ORACLE] and set(rate) == set(labels.ARMS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"noise_shares": [0.1]}, "noise_shares="),
        ({"noise_shares": [0.1, 0.4, 1.0]}, "noise_shares="),
        ({"noise_part": 0.0}, "noise_part=0"),
        ({"noise_part": 0.01}, "fill a batch of 8"),
    ],
)
def test_noise_that_cannot_be_judged_is_refused(changes, words):
    values = {"depth": 8, "batch_size": 8, "noise_part": 1.0, "noise_shares": [0.1, 0.4]} | changes
    with pytest.raises(ValueError, match=words):
        labels.arms(settings(facts=FACTS, **values))


# --- what the page says


def test_the_front_names_the_rival_and_practice_has_a_line_for_every_case():
    found = {f"imbalance/{name}": one for name, one in skew.estimates(skew_rows()[0], settings(facts=FACTS)).items()}
    found |= {f"label_noise/{n}": one for n, one in labels.estimates(noise_rows()[0], settings(facts=FACTS)).items()}
    found |= {f"learning_curve/{n}": one for n, one in curve.estimates(curve_rows(), settings(facts=FACTS)).items()}
    found |= {f"selection/{n}": one for n, one in selection.estimates(selection_rows()[0], settings()).items()}
    seen = resolution.estimates(resolution_rows(), settings(chance_error=0.9))
    found |= {f"resolution/{n}": one for n, one in seen.items()}
    assert "loses" in downsampling.answer(found) and "worse" in downsampling.answer(found)
    assert "does not show" in downsampling.answers(found)
    table = downsampling.practice(found).strip().splitlines()
    assert len(table) > 8 and all(line.count("|") == 4 for line in table)
    assert all("n=3" in line for line in table[2:])


# --- resolution


def resolution_rows():
    level = {arm: 0.5 - 0.05 * place for place, arm in enumerate(resolution.ARMS)}
    return [{"arm": arm, "seed": seed, "accuracy": at + 0.01 * seed} for arm, at in level.items() for seed in SEEDS]


def test_a_resized_network_sees_means_or_skipped_pixels_at_a_share_of_the_side():
    seen = []
    inside = nn.Module()
    inside.forward = lambda images: seen.append(images) or images
    stripes = torch.tensor([0.0, 1.0]).repeat(4).expand(1, 1, 8, 8)
    for share, skips in ((1.0, False), (0.5, False), (0.5, True)):
        resolution.Resized(inside, share, skips)(stripes)
    whole, averaged, skipped = seen
    assert torch.equal(whole, stripes) and averaged.shape == skipped.shape == (1, 1, 4, 4)
    assert torch.allclose(averaged[..., 1:-1], torch.tensor(0.5))  # grey, as the eye would have it
    assert torch.equal(skipped, torch.zeros(1, 1, 4, 4))  # the alias: one of the two stripes alone


def test_a_growing_training_sees_half_the_side_for_half_of_its_steps_and_is_judged_whole():
    s = running(resolution_epochs=5)
    sides = []

    class Watched(resolution.Resized):
        def forward(self, images):
            if self.training:
                sides.append(self.share)
            return super().forward(images)

    task, model = resolution.Growing(6), Watched(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), 1.0)
    model.inside = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 3))
    for _ in range(6):
        task(model.train(), torch.rand(4, 1, 8, 8), torch.zeros(4).long(), None)
        task(model.eval(), torch.rand(4, 1, 8, 8), torch.zeros(4).long(), None)
    assert sides == [0.5] * 3 + [1.0] * 3
    made = resolution.trained(s, resolution.GROWING, 0.05, 0)
    assert made.model.share == 1.0 and made.rows[-1]["epoch"] == 8 == resolution.epochs_of(s, resolution.GROWING)


def test_equal_work_buys_epochs_by_pixels():
    s = running(resolution_epochs=9)
    for arm in resolution.ARMS:
        spent = resolution.epochs_of(s, arm) * resolution.work(arm)
        if arm.endswith("equal work") or arm == resolution.WHOLE:
            assert spent == pytest.approx(9, rel=0.05)
        else:
            assert spent < 0.6 * 9 and resolution.epochs_of(s, arm) == 9


def test_resolutions_are_compared_by_seed_and_each_gain_names_its_arms():
    level = {row["arm"]: row["accuracy"] for row in resolution_rows() if row["seed"] == 0}
    e = resolution.estimates(resolution_rows(), settings(chance_error=0.9))
    for name, (a, b) in resolution.GAINS.items():
        assert e[name].mean == pytest.approx(level[a] - level[b]) and e[name].n == 3
    assert e["averaged_over_skipped"].mean > 0 > e["half_gain"].mean
    assert e["least_over_chance"].mean == pytest.approx(min(level.values()) + 0.01 - 0.1)
