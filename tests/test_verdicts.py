"""Verdicts as shown: each test with its outcome, stale records marked and why, nothing invented."""

from dataclasses import asdict, replace

import pytest

from resnet_lib import claims, ledger, paths, records, stats, verdicts
from resnet_lib.experiments import residual
from resnet_lib.freshness import code_of
from tests.conftest import ROOT

DEVICE = {"name": "A GPU", "device": "cuda"}
CODE = code_of(residual.DEGRADATION.run)
RULES = {t.measure: claims.rule_hash(t) for t in claims.load()["res-degradation"].tests}


def record(profile, plain, residual, **changes):
    """A record of the degradation experiment with two intervals, given as (low, high)."""
    spans = {"plain_change": plain, "residual_change": residual, "base_accuracy": (0.8, 0.9), "worst_arm": (0.3, 0.4)}
    estimates = {
        name: asdict(
            stats.Estimate((low + high) / 2, low, high, 3, 0.95, 0.01, "t", "share" if "base" in name else "error")
        )
        for name, (low, high) in spans.items()
    }
    made = [{"device": DEVICE, "packages": {"torch": "2.11"}, "date": "2026-11-27"}]
    whole = records.Record(
        "residual", "degradation", profile, {}, {"name": "digits", "fingerprint": "f"}, [], estimates, CODE, made, RULES
    )
    return replace(whole, **changes)


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Give the book other published records."""
    for module in (paths, records, claims, verdicts):
        monkeypatch.setattr(module, "project_root", lambda: tmp_path)
    (tmp_path / "claims.yml").write_text((ROOT / "claims.yml").read_text("utf-8"), "utf-8")
    for cached in (verdicts._claims, verdicts._profile):
        cached.cache_clear()

    def write(*found):
        for one in found:
            records.save(one, tmp_path / "records")

    yield write
    for cached in (verdicts._claims, verdicts._profile):
        cached.cache_clear()


def row(claim):
    return next(r for r in ledger.rows() if r["id"] == claim)


def test_without_records_every_claim_is_not_yet_tested(publish):
    rows = ledger.rows()
    assert [r["id"] for r in rows] == list(claims.load())
    assert {r["verdict"] for r in rows} == {"not yet tested"}
    assert not any(r["effects"] or r["hardware"] or r["stale"] for r in rows)


@pytest.mark.parametrize(
    ("plain", "residual", "word"),
    [
        ((0.1, 0.2), (-0.01, 0.01), "yes"),
        ((0.1, 0.2), (0.1, 0.2), "no"),
        ((-0.1, 0.0), (0.1, 0.2), "no"),
        ((0.0, 0.1), (-0.01, 0.01), "cannot tell"),
    ],
)
def test_the_ledger_shows_the_verdict_that_the_records_give_and_what_gave_it(publish, plain, residual, word):
    publish(record("cpu", plain, residual))
    found = row("res-degradation")
    assert found["verdict"] == word
    assert len(found["effects"]) == 4 and "points (n=3)" in found["effects"][0]
    assert found["hardware"] == ["A GPU; torch 2.11; digits; profile cpu"] and found["stale"] == []
    assert row("res-info")["verdict"] == "not yet tested"


def test_the_strongest_profile_counts_alone(publish):
    publish(record("cpu", (0.1, 0.2), (0.1, 0.2)), record("full", (0.1, 0.2), (-0.01, 0.01)))
    found = row("res-degradation")
    assert found["verdict"] == "yes" and found["hardware"] == ["A GPU; torch 2.11; digits; profile full"]


def test_a_record_of_other_code_is_stale_until_that_code_is_attested(publish):
    old = CODE | {"train.fit": "older"}
    publish(record("cpu", (0.1, 0.2), (-0.01, 0.01), code=old))
    assert row("res-degradation")["stale"] == ["train.fit has changed"]
    publish(record("cpu", (0.1, 0.2), (-0.01, 0.01), code=old, attested=[{"commit": "c", "code": CODE}]))
    assert row("res-degradation")["stale"] == []
    publish(record("cpu", (0.1, 0.2), (-0.01, 0.01), code={}))
    assert row("res-degradation")["stale"] == ["the code that made it is not here"]


def test_of_many_reasons_a_table_shows_two_and_counts_the_others(publish):
    old = CODE | {name: "older" for name in ("train.fit", "train.lr_at", "train._train", "train._start")}
    publish(record("cpu", (0.1, 0.2), (-0.01, 0.01), code=old))
    found = row("res-degradation")
    assert len(found["stale"]) == 4
    shown = ledger.table([found]).text
    assert "train._start has changed, train._train has changed, and 2 more" in shown and "train.lr_at" not in shown


def test_a_rule_changed_after_the_measurement_is_named(publish):
    publish(record("cpu", (0.1, 0.2), (-0.01, 0.01), rules=RULES | {"degradation/plain_change": "other"}))
    assert row("res-degradation")["stale"] == ["the rule of degradation/plain_change was changed after the measurement"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("depth_epochs: 8", None),
        ("depth_epochs: 80", "the profile cpu now has depth_epochs=80, the record 8"),
        ("image_size: 32", "the profile cpu now has image_size=32, the record's data 16"),
        ("train_size: 100", "the profile cpu now has train_size=100, the record's data 6400"),
        ("seeds: 9", None),  # more seeds are wanted: a record grows
    ],
)
def test_a_profile_changed_after_the_measurement_is_named(publish, tmp_path, line, reason):
    for folder in ("chapters", "profiles/cpu"):
        (tmp_path / folder).mkdir(parents=True)
    notebook = (ROOT / "chapters" / "residual.ipynb").read_text("utf-8")
    (tmp_path / "chapters" / "residual.ipynb").write_text(notebook, "utf-8")
    (tmp_path / "profiles" / "cpu" / "residual.yml").write_text(f"{line}\n", "utf-8")
    settings = {"depth_epochs": 8} if "epochs" in line else {}
    data = {"name": "cifar10", "fingerprint": "f", "train": 6400, "shape": [3, 16, 16]}
    publish(record("cpu", (0.1, 0.2), (-0.01, 0.01), settings=settings, data=data))
    assert row("res-degradation")["stale"] == ([reason] if reason else [])


def test_a_claims_block_says_what_was_needed_and_measured_and_how_it_came_out():
    claim = claims.load()["res-degradation"]
    shown = verdicts.block(claim, [record("cpu", (0.1, 0.2), (0.1, 0.2))])
    assert 'id="res-degradation"' in shown.html and "verdict-no" in shown.html and claim.published[:20] in shown.html
    assert "at least 2 points" in shown.text and "15.0 [10.0, 20.0] points (n=3)" in shown.text
    assert "NO: Plain networks" in shown.text and "Not in that residual networks do not." in shown.text
    assert "<strong>not so</strong>" in shown.html and "(control)" in shown.text
    assert "A GPU; torch 2.11; digits; profile cpu; 2026-11-27" in shown.text


def test_a_rule_younger_than_the_runs_that_it_judges_is_marked(publish):
    publish(record("cpu", (0.1, 0.2), (-0.01, 0.01)))
    assert not any("rule written" in effect for effect in row("res-degradation")["effects"])
    made = [{"device": DEVICE, "packages": {"torch": "2.11"}, "date": "2026-11-26"}]
    publish(record("cpu", (0.1, 0.2), (-0.01, 0.01), made=made))
    effects = row("res-degradation")["effects"]
    assert all("as claimed (rule written on 2026-11-27, after these runs)" in effect for effect in effects)


def test_a_strip_links_each_claim_to_its_block_and_says_why():
    shown = verdicts.strip("residual", [record("cpu", (0.1, 0.2), (0.1, 0.2))])
    chapter = [c for c in claims.load().values() if c.chapter == "residual"]
    assert all(f'href="#{claim.id}"' in shown.html for claim in chapter)
    assert "Not in that residual networks do not" in shown.html and shown.text.count("\n") == len(chapter) - 1


def test_records_whose_seeds_share_one_split_say_so(publish):
    rows = [{"seed": 0}, {"seed": 1}]
    publish(record("cpu", (0.1, 0.2), (-0.01, 0.01), rows=rows))
    assert "one split for all seeds" in row("res-degradation")["hardware"][0]
    data = {"name": "digits", "fingerprint": "f", "splits": "by seed"}
    publish(record("cpu", (0.1, 0.2), (-0.01, 0.01), rows=rows, data=data))
    assert "one split" not in row("res-degradation")["hardware"][0]


def test_a_record_from_uncommitted_files_says_so(publish):
    made = [{"device": DEVICE, "packages": {"torch": "2.11"}, "date": "2026-11-27", "dirty": True}]
    publish(record("cpu", (0.1, 0.2), (-0.01, 0.01), made=made))
    assert row("res-degradation")["hardware"] == ["A GPU; torch 2.11; digits; profile cpu; made from uncommitted files"]


def test_chance_is_counted_over_tests_that_an_interval_has_decided(publish):
    assert ledger.chance() == (0, 0)
    publish(record("cpu", (0.1, 0.2), (-0.01, 0.05)))  # the second lies on both sides of its bound
    decided, wrong = ledger.chance()
    assert decided == 3 and wrong == pytest.approx(3 * 0.025)
    exact = record("cpu", (0.1, 0.2), (-0.01, 0.01))
    exact.estimates["plain_change"] |= {"method": "exact"}
    publish(exact)
    assert ledger.chance()[0] == 3


def test_where_a_record_was_made_says_for_how_many_epochs(publish):
    data = {"name": "digits", "fingerprint": "f", "train": 100, "shape": [1, 8, 8]}
    publish(record("cpu", (0.1, 0.2), (-0.01, 0.01), data=data, settings={"depth_epochs": 8, "depth": 20}))
    assert "digits, 8×8, 100 to train on for 8 epochs; profile cpu" in row("res-degradation")["hardware"][0]


def test_an_estimate_in_another_unit_is_refused_not_compared(publish):
    wrong = record("cpu", (0.1, 0.2), (0.1, 0.2))
    wrong.estimates["plain_change"]["unit"] = "decades"
    publish(wrong)
    with pytest.raises(ValueError, match="the estimate is in 'decades', the rule in 'error'"):
        ledger.rows()
