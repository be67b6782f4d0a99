"""Verdicts as shown: this run beside the published one, stale records marked, nothing invented."""

from dataclasses import asdict, replace

import pytest

from resnet_lib import claims, records, stats, verdicts
from tests.conftest import ROOT

DEVICE = {"name": "2 threads of a CPU"}
CODE = {"experiment": {"degradation": "no longer this"}, "library": {}}


def record(profile, plain, residual, code=CODE):
    """A record of the degradation experiment with two intervals, given as (low, high)."""
    estimates = {
        name: asdict(stats.Estimate((low + high) / 2, low, high, 3, 0.95, 0.01, "t", "error"))
        for name, (low, high) in {"plain_change": plain, "residual_change": residual}.items()
    }
    return records.Record(
        "residual", "degradation", profile, {}, {"name": "digits", "fingerprint": "f"}, [0, 1, 2], [], estimates,
        code, {"device": DEVICE},
    )  # fmt: skip


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Give the book other published records."""
    monkeypatch.setattr(records, "project_root", lambda: tmp_path)
    (tmp_path / "claims.yml").write_text((ROOT / "claims.yml").read_text("utf-8"), "utf-8")

    def write(*found):
        for one in found:
            records.save(one, tmp_path / "records")

    return write


def row(claim):
    return next(r for r in verdicts.ledger() if r["id"] == claim)


def test_without_records_every_claim_is_not_yet_tested(publish):
    rows = verdicts.ledger()
    assert [r["id"] for r in rows] == list(claims.load())
    assert {r["verdict"] for r in rows} == {"not yet tested"}
    assert not any(r["effects"] or r["hardware"] or r["stale"] for r in rows)


@pytest.mark.parametrize(
    ("plain", "residual", "word"),
    [
        ((0.1, 0.2), (-0.01, 0.01), "supported"),
        ((0.1, 0.2), (0.1, 0.2), "qualified"),
        ((-0.1, 0.0), (0.1, 0.2), "refuted"),
        ((0.0, 0.1), (-0.01, 0.01), "undecided"),
    ],
)
def test_the_ledger_shows_the_verdict_that_the_records_give_and_what_gave_it(publish, plain, residual, word):
    publish(record("cpu", plain, residual))
    found = row("res-degradation")
    assert found["verdict"] == word
    assert len(found["effects"]) == 2 and "(n=3)" in found["effects"][0]
    assert found["hardware"] == ["2 threads of a CPU; digits; profile cpu"]
    assert row("res-info")["verdict"] == "not yet tested"


def test_the_strongest_profile_counts_alone(publish):
    publish(record("cpu", (0.1, 0.2), (0.1, 0.2)), record("full", (0.1, 0.2), (-0.01, 0.01)))
    found = row("res-degradation")
    assert found["verdict"] == "supported" and found["hardware"] == ["2 threads of a CPU; digits; profile full"]


def test_a_record_of_other_code_is_marked_stale(publish, tmp_path):
    (tmp_path / "chapters").mkdir()
    source = (ROOT / "chapters" / "residual.ipynb").read_text("utf-8")
    (tmp_path / "chapters" / "residual.ipynb").write_text(source, "utf-8")
    publish(record("cpu", (0.1, 0.2), (-0.01, 0.01)))
    assert row("res-degradation")["stale"] == ["degradation() of the chapter has changed"]
    functions = records.notebook_functions(tmp_path / "chapters" / "residual.ipynb")
    now = {"experiment": {"degradation": functions["degradation"]}}
    publish(record("cpu", (0.1, 0.2), (-0.01, 0.01), now | {"library": {"train.fit": "older"}}))
    assert row("res-degradation")["stale"] == ["resnet_lib.train.fit has changed"]


def test_a_chapter_shows_its_own_run_beside_the_published_one(publish, capsys):
    publish(record("full", (0.1, 0.2), (0.1, 0.2)))
    verdicts.show("residual", [record("smoke", (0.1, 0.2), (-0.01, 0.01))])
    shown = capsys.readouterr().out
    assert shown.count('<a id="res-') == sum(c.chapter == "residual" for c in claims.load().values())
    block = shown.split('<a id="res-degradation"></a>')[1].split("<a id=")[0]
    assert "This run: **supported**. Published: **qualified** (2 threads of a CPU; digits; profile full)" in block
    assert "**stale**" not in block, "an installed library has no chapter to compare with"


def test_an_estimate_in_another_unit_is_refused_not_compared(publish):
    wrong = record("cpu", (0.1, 0.2), (0.1, 0.2))
    wrong.estimates["plain_change"]["unit"] = "decades"
    publish(replace(wrong))
    with pytest.raises(ValueError, match="the estimate is in 'decades', the rule in 'error'"):
        verdicts.ledger()
