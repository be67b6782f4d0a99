"""An attestation holds only where every published column of every row agrees, times aside."""

from dataclasses import replace

import pytest

from tests.test_records import RECORD
from tools import attest
from tools.chapters import ROOT

ROWS = [{"seed": n, "kind": k, "error": (n + 1) / 3, "time_s": 1.0, "run_s": 2.0} for n in (0, 1) for k in ("a", "b")]
PUBLISHED = replace(RECORD, experiment="effect", rows=ROWS, data=RECORD.data | {"splits": "by seed"})


def test_times_places_and_order_do_not_count_and_neither_do_columns_that_nobody_published():
    after = [row | {"time_s": 9.0, "run_s": 8.0, "made": 1, "more": 5} for row in reversed(ROWS)]
    assert attest.difference(PUBLISHED, {"effect": ROWS}, after) == ""


def test_rows_of_a_record_that_was_cut_in_two_are_found_in_the_old_one():
    both = [row | {"what": "effect"} for row in ROWS] + [{"what": "control", "seed": 0, "size": 1.0}]
    control = replace(PUBLISHED, experiment="control", rows=both[-1:])
    assert attest.difference(control, {"effect": both}, both[-1:]) == ""


def test_a_label_that_rows_got_later_is_no_difference_but_a_number_is():
    labelled = [row | {"stage": "learn"} for row in ROWS]
    record = replace(PUBLISHED, rows=labelled)
    assert attest.difference(record, {"effect": ROWS}, labelled) == ""
    numbered = [row | {"more": 0.5} for row in ROWS]
    assert "4 of 4 rows are new" in attest.difference(replace(PUBLISHED, rows=numbered), {"effect": ROWS}, numbered)


def test_where_all_seeds_shared_a_split_only_the_first_seeds_rows_are_compared():
    old = replace(PUBLISHED, data=RECORD.data)
    later = [row | {"error": row["error"] + 0.1 * row["seed"]} for row in ROWS]  # seed 1 now has pictures of its own
    assert attest.difference(old, {"effect": ROWS}, later) == ""
    assert "2 of 4 rows are new" in attest.difference(PUBLISHED, {"effect": ROWS}, later)
    changed = [row | {"error": 0.9} if row["seed"] == 0 else row for row in ROWS]
    assert "2 of 2 rows are new" in attest.difference(old, {"effect": ROWS}, changed)


def test_rows_of_kinds_that_nobody_published_are_not_compared():
    rows = [row | {"what": "score"} for row in ROWS]
    samples = [{"what": "sample", "picture": [1, 2]}]
    assert attest.difference(replace(PUBLISHED, rows=rows), {"effect": rows}, rows + samples) == ""


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ([row | {"error": -row["error"]} for row in ROWS], "4 of 4 rows are new and 4 gone"),
        ([row | {"error": row["error"] * 1.00001} for row in ROWS], "4 of 4 rows are new"),
        (ROWS[:3], "0 of 3 rows are new and 1 gone"),
        ([{k: v for k, v in row.items() if k != "kind"} for row in ROWS], "no column kind"),
        ([], "no column error, kind, seed"),
    ],
)
def test_every_other_difference_is_named(after, words):
    assert words in attest.difference(PUBLISHED, {"effect": ROWS}, after)


def test_only_what_a_checkout_declares_is_given_to_it():
    pairs = dict(attest.settings_at(ROOT, "residual", {"depths": [8, 14], "records_to": "out", "nothing": 1}))
    assert pairs == {"depths": "[8, 14]", "records_to": "out"}


def test_tiny_settings_are_those_of_all_experiments():
    from tools.measure import experiments_of

    found = attest.tiny(experiments_of("residual"))
    assert found["seeds"] == 2 and found["depths"] == [8, 14] and found["task_units"] == 1
