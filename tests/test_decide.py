"""Minutes go to the cheapest open main tests first, at planned numbers of seeds; what seeds cannot decide is named."""

import time
from dataclasses import replace

import pytest

from resnet_lib import claims, records, verdicts
from resnet_lib.stats import Estimate
from tests.test_records import RECORD
from tools import decide, measure


def test(name, role="main", bound=1.0):
    return claims.Test(f"{name}/gain", role, "a gain", f"for {name}", "greater", bound, "s", 0.95, "2026-11-01")


test.__test__ = False


def record(name, low, high, wall_s, seeds=3, profile="cpu"):
    gain = Estimate((low + high) / 2, low, high, seeds, 0.95, 1.0, "t", "s").as_dict()
    rows = [{"seed": n} for n in range(seeds)]
    return replace(
        RECORD, chapter="made", experiment=name, profile=profile, rows=rows, estimates={"gain": gain}, wall_s=wall_s
    )


@pytest.fixture
def published(monkeypatch):
    found = [
        record("dear", 0.5, 2.5, wall_s=300),  # mean 0.5 above the bound, half-width 1: 12 seeds
        record("cheap", 0.5, 2.5, wall_s=30),
        record("hopeless", 0.05, 1.95 + 1e-6, wall_s=1),
        record("decided", 2.0, 3.0, wall_s=1),
        record("limited", 0.5, 2.5, wall_s=1),
        record("strong", 0.5, 2.5, wall_s=1, profile="full"),
    ]
    tests = [test(r.experiment, "limit" if r.experiment == "limited" else "main") for r in found]
    claim = claims.Claim("it-gains", "S", "It gains.", "effect", "made", "any", tuple(tests))
    monkeypatch.setattr(records, "published", lambda chapter=None: found)
    monkeypatch.setattr(verdicts, "of_chapter", lambda chapter: [claim])
    monkeypatch.setattr(verdicts, "stale_reasons", lambda record: [])
    return found


def test_open_main_tests_of_a_profile_come_the_cheapest_first_and_those_without_hope_last(published):
    found = decide.opened("cpu")
    assert [one.measure for one in found] == ["cheap/gain", "dear/gain", "hopeless/gain"]
    assert [one.look for one in found] == [12, 12, None]
    assert found[0].seconds == pytest.approx(30 / 3 * 9) and found[1].seconds == pytest.approx(900)
    assert "from 3 to 12 seeds, about 2 min" in decide.told(found[0])
    assert "no planned number of seeds decides it here (n=3)" in decide.told(found[2])


def test_a_claim_that_has_failed_already_needs_no_minutes(published, monkeypatch):
    published.append(record("failed", -3.0, -2.0, wall_s=1))
    (claim,) = verdicts.of_chapter("made")
    whole = replace(claim, needs="all", tests=(*claim.tests, test("failed")))
    monkeypatch.setattr(verdicts, "of_chapter", lambda chapter: [whole])
    assert decide.opened("cpu") == []


def test_runs_of_other_code_are_counted_as_still_to_be_made(published, monkeypatch):
    monkeypatch.setattr(verdicts, "stale_reasons", lambda record: ["train.fit has changed"])
    assert decide.opened("cpu")[0].seconds == pytest.approx(30 / 3 * 12)


def test_minutes_are_spent_in_that_order_and_end_between_runs(published, monkeypatch):
    made, clock = [], {"now": 0.0}
    monkeypatch.setattr(time, "monotonic", lambda: clock["now"])
    monkeypatch.setattr(measure, "parameters_of", lambda chapter, profile, settings: ({}, {"seeds": 3}))

    def run(chapter, names, known, values, jobs, before_run):
        for _ in range(2):
            before_run()
            clock["now"] += 40
        made.append((chapter, *names, values["seeds"], values["resume"]))

    monkeypatch.setattr(measure, "measure", run)
    lines = decide.decide(decide.opened("cpu"), "cpu", [], until=100)
    assert made == [("made", "cheap", 12, True)]
    assert lines == [
        "made/cheap: measured with 12 seeds",
        "made/dear: the minutes are spent; its finished runs are kept",
    ]
    made.clear()
    assert decide.decide(decide.opened("cpu"), "cpu", [], until=1e9)[-1] == "made/dear: measured with 12 seeds"
    assert [one[1] for one in made] == ["cheap", "dear"]


def test_without_minutes_nothing_is_measured_and_a_wrong_number_is_refused(published, monkeypatch, capsys):
    monkeypatch.setattr(measure, "measure", lambda *a, **k: pytest.fail("measured"))
    assert decide.main([]) == 0 and "cheap/gain" in capsys.readouterr().out
    assert decide.main(["--minutes", "-1"]) == 2 and "--minutes -1.0 must be at least 0" in capsys.readouterr().err
