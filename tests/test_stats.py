import json
from math import sqrt

import numpy as np
import pytest
import scipy.stats

from resnet_lib import stats
from resnet_lib.stats import (
    Estimate,
    equivalent,
    exact,
    interval,
    paired,
    paired_rows,
    seeds_needed,
    shifted,
    summarise,
    widened,
)

A = [0.91, 0.93, 0.90, 0.95, 0.92]
B = [0.90, 0.90, 0.89, 0.93, 0.92]


@pytest.mark.parametrize("n", [3, 5])
def test_t_interval_covers_the_true_mean_as_often_as_it_says(n):
    samples = np.random.default_rng(0).normal(7, 2, (2000, n))
    covered = np.mean([e.low <= 7 <= e.high for e in map(interval, samples)])
    assert 0.93 < covered < 0.97


def test_bootstrap_covers_a_skewed_mean_better_than_nine_times_in_ten():
    samples = np.random.default_rng(0).exponential(1, (200, 40))
    intervals = [interval(sample, method="bootstrap") for sample in samples]
    assert 0.89 < np.mean([e.low <= 1 <= e.high for e in intervals]) < 0.99


def test_t_interval_equals_hand_computation():
    e = interval([1, 2, 3, 4, 5], confidence=0.9, unit="s")
    half = 2.131847 * sqrt(2.5) / sqrt(5)  # t table: 95th percentile, 4 degrees of freedom
    assert (e.mean, e.n, e.confidence, e.unit) == (3, 5, 0.9, "s")
    assert (e.low, e.high) == pytest.approx((3 - half, 3 + half), abs=1e-6)
    assert e.sd == pytest.approx(sqrt(2.5))


def test_bootstrap_repeats_with_its_seed():
    assert interval(A * 4, method="bootstrap", seed=1) == interval(A * 4, method="bootstrap", seed=1)
    assert interval(A * 4, method="bootstrap", seed=1) != interval(A * 4, method="bootstrap", seed=2)


@pytest.mark.parametrize("method", ["t", "bootstrap"])
@pytest.mark.parametrize("values", [[0.1, 0.1, 0.1], [1, 2], [1, 1, 1, 2]])
def test_interval_is_finite_and_holds_the_mean(values, method):
    e = interval(values, method=method)
    assert np.isfinite([e.low, e.high]).all() and e.low <= e.mean <= e.high


@pytest.mark.parametrize("method", ["t", "log-t"])
@pytest.mark.parametrize(("by", "sign"), [(0, 1), (-1, 1), (1, -1)])
def test_an_interval_at_another_confidence_is_the_one_of_the_values_themselves(method, by, sign):
    values = [2.1, 3.3, 1.7, 2.9]
    at = {level: shifted(interval(values, method=method, confidence=level), by, sign) for level in (0.95, 0.99)}
    found = widened(at[0.95], 0.99)
    assert (found.low, found.mean, found.high) == pytest.approx((at[0.99].low, at[0.99].mean, at[0.99].high))
    assert found.confidence == 0.99 and widened(exact(3.0), 0.99) == exact(3.0)
    skewed = interval(A * 4, method="bootstrap")
    assert widened(skewed, 0.99).low < skewed.low < skewed.high < widened(skewed, 0.99).high


def test_equal_values_give_no_width():
    e = interval([0.1] * 3)
    assert (e.low, e.mean, e.high, e.sd) == (0.1, 0.1, 0.1, 0)


def test_paired_equals_scipys_paired_t_test():
    ours, theirs = paired(A, B), scipy.stats.ttest_rel(A, B).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
    assert ours.mean == pytest.approx(np.mean(A) - np.mean(B))


def test_paired_rows_pairs_by_seed_and_not_by_position():
    rows = [{"net": "plain", "seed": s, "error": x} for s, x in enumerate(A)]
    rows += [{"net": "residual", "seed": s, "error": x} for s, x in reversed(list(enumerate(B)))]
    rows += [{"net": "other", "seed": 0, "error": 9}]
    assert paired_rows(rows, "error", "net", "plain", "residual", unit="error") == paired(A, B, unit="error")


def test_paired_rows_names_the_missing_and_the_doubled_partner():
    rows = [
        {"net": net, "seed": seed, "depth": depth, "error": seed + depth}
        for net in "ab"
        for seed in range(3)
        for depth in (8, 20)
    ]
    assert paired_rows(rows, "error", "net", "a", "b", pair=("seed", "depth")).n == 6
    with pytest.raises(ValueError, match="two rows with net='a' and seed=0"):
        paired_rows(rows, "error", "net", "a", "b")
    for gap, partner in ((0, "net='a' and seed=0, depth=8"), (-1, "net='b' and seed=2, depth=20")):
        fewer = [row for row in rows if row is not rows[gap]]
        with pytest.raises(ValueError, match=f"no row with {partner}"):
            paired_rows(fewer, "error", "net", "a", "b", pair=("seed", "depth"))
    with pytest.raises(ValueError, match="no row with net='c'; there are 'a', 'b'"):
        paired_rows(rows, "error", "net", "c", "a")


def test_equivalence_equals_hand_computation():
    differences, margin = [0.001, -0.002, 0.003, 0.000, 0.002], 0.005
    result = equivalent(differences, margin=margin)
    mean, error = 0.0008, sqrt(3.7e-6 / 5)  # sum of squared deviations 14.8e-6 over 4
    t = (margin - mean) / error  # the nearer bound is the upper one
    assert result["p_value"] == pytest.approx(scipy.stats.t.sf(t, 4))
    assert result["equivalent"] and result["estimate"].confidence == pytest.approx(0.9)
    assert equivalent(A, B, margin=0.1) == equivalent(np.subtract(A, B), margin=0.1)


def test_twice_and_half_are_equally_far_from_no_effect():
    up, down = interval([2, 2.5, 1.6], method="log-t", unit="times"), interval([0.5, 0.4, 0.625], method="log-t")
    assert up.mean == pytest.approx(2) == 1 / down.mean and up.n == 3 and up.unit == "times"
    assert up.low == pytest.approx(1 / down.high) and up.high == pytest.approx(1 / down.low)
    assert interval([2, 0.5], method="log-t").mean == pytest.approx(1)
    logs = interval(np.log([2, 2.5, 1.6]))
    assert up.high == pytest.approx(np.exp(logs.high))


def test_a_change_is_the_ratio_minus_one_and_a_saving_is_one_minus_the_ratio():
    rows = [
        {"seed": n, "kind": k, "value": v} for n, (a, b) in enumerate(((2, 1), (8, 2))) for k, v in (("a", a), ("b", b))
    ]
    ratio, change = (
        stats.paired_ratio(rows, "value", "kind", "a", "b"),
        stats.paired_change(rows, "value", "kind", "a", "b"),
    )
    assert ratio.mean == pytest.approx(8**0.5) and change.mean == pytest.approx(8**0.5 - 1)
    assert change.low == pytest.approx(ratio.low - 1) and change.unit == "relative"
    saved = stats.shifted(ratio, 1, -1)
    assert saved.mean == pytest.approx(1 - 8**0.5) and (saved.low, saved.high) == (1 - ratio.high, 1 - ratio.low)


def test_equivalence_agrees_with_its_interval():
    rng = np.random.default_rng(0)
    results = [equivalent(rng.normal(0.5, 1, 5), margin=1.5) for _ in range(300)]
    verdicts = [r["equivalent"] for r in results]
    inside = [r["estimate"].low > -1.5 and r["estimate"].high < 1.5 for r in results]
    assert verdicts == inside
    assert 0 < sum(inside) < 300


def test_no_spread_is_equivalent_only_inside_the_margin():
    assert equivalent([0.0, 0.0], margin=0.01)["equivalent"]
    assert not equivalent([0.02, 0.02], margin=0.01)["equivalent"]


@pytest.mark.parametrize(
    ("effect", "paired_arms", "known"),
    [
        (1.0, False, 17),
        (0.5, False, 64),
        (0.8, False, 26),
        (0.2, False, 394),  # Cohen 1988, table 2.4.1
        (1.0, True, 10),
        (0.5, True, 34),
    ],
)
def test_seeds_needed_reproduces_known_tables(effect, paired_arms, known):
    assert seeds_needed(1.0, effect, paired=paired_arms) == known
    assert seeds_needed(0.003, -0.003 * effect, paired=paired_arms) == known


def test_seeds_needed_gives_the_power_it_promises():
    n = seeds_needed(1.0, 2.0)
    a, b = np.random.default_rng(0).normal([[[0]], [[2]]], 1, (2, 4000, n))
    assert np.mean(scipy.stats.ttest_ind(a, b, axis=1).pvalue < 0.05) > 0.79
    assert np.mean(scipy.stats.ttest_ind(a[:, 1:], b[:, 1:], axis=1).pvalue < 0.05) < 0.81
    assert seeds_needed(0, 1) == seeds_needed(1, 1000) == 2


def test_summarise_keeps_first_seen_order():
    rows = [{"depth": d, "net": n, "error": d + s} for s in (0, 1, 2) for d in (20, 8) for n in "ba"]
    summary = summarise(rows, "error", by=("net", "depth"))
    assert [(row["net"], row["depth"]) for row in summary] == [("b", 20), ("a", 20), ("b", 8), ("a", 8)]
    e = interval([20, 21, 22])
    first = {"net": "b", "depth": 20, "mean": e.mean, "low": e.low, "high": e.high, "sd": e.sd, "n": 3}
    assert summary[0] == first
    narrower = summarise(rows, "error", by="net", confidence=0.9)
    assert narrower[0]["low"] > summarise(rows, "error", by="net")[0]["low"]
    with pytest.raises(ValueError, match="error of net='c': an interval needs at least 2 values, got 1"):
        summarise([*rows, {"net": "c", "error": 1}], "error", by=("net",))


def test_estimate_survives_json():
    for e in (interval(np.float32(A), unit="s"), paired(A, B), interval(A * 4, method="bootstrap"), exact(1)):
        assert Estimate(**json.loads(json.dumps(e.as_dict()))) == e


def test_estimate_reads_well():
    e = Estimate(12.3456, 10.9876, 13.7036, n=5, confidence=0.95, sd=1, method="t", unit="ms")
    assert str(e) == "12.3 [11.0, 13.7] ms (n=5)"
    assert f"{e:.0f}" == "12 [11, 14] ms (n=5)"
    assert str(exact(3, "units")) == "3 units (exact)"
    assert str(exact(2e-7)) == "2e-07 (exact)"
    assert str(Estimate(2.5e-9, 1e-9, 4e-9, 3, 0.95, 1e-9, "t")) == "2.5e-09 [1e-09, 4e-09] (n=3)"
    assert str(Estimate(12345.6, 11345.6, 13345.6, 3, 0.95, 9.0, "t")) == "12346 [11346, 13346] (n=3)"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interval([0.5]), "at least 2 values, got 1: run more seeds"),
        (lambda: interval([]), "at least 2 values, got 0"),
        (lambda: interval([1, float("nan")]), "value nan at position 1"),
        (lambda: exact(float("inf")), "value inf at position 0"),
        (lambda: interval([[1, 2], [3, 4]]), r"shape \(2, 2\)"),
        (lambda: interval([1, 2], confidence=95), "confidence is 95; it must be between 0 and 1"),
        (lambda: interval([1, 2], method="z"), "method is 'z'; allowed: 't', 'log-t', 'bootstrap'"),
        (lambda: interval([1, 0.0], method="log-t"), "a ratio of 0 has no logarithm"),
        (lambda: paired([1, 2, 3], [1, 2]), "3 values against 2"),
        (lambda: equivalent([1, 2], margin=0), "margin is 0"),
        (lambda: equivalent([1, 2], margin=1, confidence=0.4), "confidence is 0.4"),
        (lambda: seeds_needed(1, 0), "effect is 0"),
        (lambda: seeds_needed(-1, 1), "sd is -1"),
        (lambda: seeds_needed(1, 1, power=1), "power is 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_values_at_an_end_of_those_tried_are_counted():
    assert stats.at_an_end([0.1, 0.3, 0.3, 0.03], (rate for rate in (0.03, 0.3, 0.1))) == 3
    assert stats.at_an_end([0.1], [0.03, 0.1, 0.3]) == 0
