"""A record's cheapest run made again: equal on one machine, near on another, and the outcome kept in the record."""

from dataclasses import replace

import pytest

from resnet_lib import paths, records, stats, verdicts
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions
from tests.test_study import open_study
from tools import measure, recheck

ROWS = [{"seed": 0, "error": 0.5, "time_s": 1.0, "run_s": 9.0}]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"time_s": 7.0, "run_s": 7.0}, ""),
        ({"error": 0.500001}, "error of row 0 was 0.5 and came out as 0.500001"),
        ({"kind": "other"}, ""),  # a label that rows got later
    ],
)
def test_on_the_same_machine_every_number_but_times_must_be_the_same(change, words):
    assert recheck.compare(ROWS, [ROWS[0] | change], None) == words


def test_a_row_more_or_less_is_no_agreement():
    assert recheck.compare(ROWS, ROWS * 2, None) == "1 rows were recorded, and 2 came out"


def test_on_another_machine_a_number_may_be_off_by_three_deviations_over_seeds():
    siblings = [[ROWS[0] | {"seed": n, "error": e}] for n, e in enumerate((0.5, 0.6, 0.4))]  # a deviation of 0.1
    near, far = ([ROWS[0] | {"error": e}] for e in (0.79, 0.81))
    assert recheck.compare(ROWS, near, siblings) == ""
    assert "more than 3 deviations (0.3)" in recheck.compare(ROWS, far, siblings)
    assert "2 seeds say nothing of its spread" in recheck.compare(ROWS, near, siblings[:2])
    assert "error of row 0" in recheck.compare(ROWS, [ROWS[0] | {"error": 1}], siblings), "a whole number is exact"


SHIFT = {"by": 0.0}


def drawn(s, kind, seed):
    return [{"what": "size", "value": s.height * (seed + 1) + (0.5 if kind == "tall" else 0.0) + SHIFT["by"]}]


DRAWN = Experiment(
    "drawn",
    run=drawn,
    conditions=lambda s: conditions(kind=["tall", "short"], seed=s.seeds),
    estimates=lambda rows, s: {"gain": stats.paired_rows(rows, "value", "kind", "tall", "short")},
    settings=("height",),
)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """One record of a made-up chapter, and the tools pointed at it."""
    monkeypatch.setenv("RESNET_LIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(SHIFT, "by", 0.0)
    study = open_study([DRAWN], records_to=str(tmp_path / "records"))
    study.measure(DRAWN)
    for module in (paths, records):
        monkeypatch.setattr(module, "project_root", lambda: tmp_path)
    monkeypatch.setattr(recheck, "ROOT", tmp_path)
    monkeypatch.setattr(measure, "experiments_of", lambda chapter: (DRAWN,))
    monkeypatch.setattr(measure, "parameters_of", lambda chapter, profile, settings: ({}, {}))
    monkeypatch.setattr(measure, "open_study", lambda chapter, known, values: open_study([DRAWN], **values))
    return lambda: records.published(folder=tmp_path / "records")[0]


def test_the_outcome_and_its_day_are_kept_in_the_record_and_told(published):
    assert verdicts.checked(published()) == "not yet made again"
    (row,) = recheck.check("made_up", [], until=float("inf"), log=lambda text: None)
    assert row["outcome"] == "agrees" and published().checked[0]["how"] == "to six digits"
    assert verdicts.checked(published()).startswith("agrees when made again (20")
    SHIFT["by"] = 0.25
    (row,) = recheck.check("made_up", [], until=float("inf"), log=lambda text: None)
    assert row["outcome"] == "disagrees" and "value of row 0 was" in row["why"]
    assert len(published().checked) == 2 and verdicts.checked(published()).startswith("disagrees")


def test_on_a_machine_with_another_instruction_set_the_spread_over_seeds_decides(published, tmp_path):
    record = published()
    device = record.device | {"instructions": ["avx2"]}
    rows = [row | {"value": row["value"] + 1e-4} for row in record.rows]
    other = replace(record, rows=rows, made=[record.made[0] | {"device": device}])
    (tmp_path / "records" / record.chapter / record.file_name).unlink()
    records.save(other, tmp_path / "records")
    (row,) = recheck.check("made_up", [], until=float("inf"), log=lambda text: None)
    assert row["outcome"] == "disagrees" and "2 seeds say nothing" in row["why"]


def test_what_cannot_be_checked_stays_due(published, monkeypatch):
    (row,) = recheck.check("made_up", [], until=0.0, log=lambda text: None)
    assert row["outcome"] == "due" and not published().checked
    monkeypatch.setattr(measure, "experiments_of", lambda chapter: (replace(DRAWN, timed=True),))
    (row,) = recheck.check("made_up", [], until=float("inf"), log=lambda text: None)
    assert row["outcome"] == "times"
