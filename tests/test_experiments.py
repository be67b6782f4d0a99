"""Every experiment of every chapter: runs at a tiny size, tells and draws what it found, agrees with its records."""

import math

import pytest

from resnet_lib import claims, freshness, plots, records, stats
from resnet_lib.parameters import declared_in
from resnet_lib.study import estimates_of, settings_of
from tests.conftest import ROOT
from tools import measure

CHAPTERS = sorted(path.parent.name for path in (ROOT / "resnet_lib" / "experiments").glob("*/__init__.py"))
EXPERIMENTS = [(chapter, one) for chapter in CHAPTERS for one in measure.experiments_of(chapter)]
NAMED = pytest.mark.parametrize(("chapter", "experiment"), EXPERIMENTS, ids=[f"{c}/{e.name}" for c, e in EXPERIMENTS])
TIMES = {"run_s", "time_s", "times_s", "min_s", "max_s"}


def tiny(chapter):
    """The smallest settings of a whole chapter; two experiments must not want different ones."""
    values = {"seeds": 2, "device": "cpu", "profile": "tiny"}
    for experiment in measure.experiments_of(chapter):
        for name, value in experiment.tiny.items():
            assert values.setdefault(name, value) == value, f"{experiment.name} wants another tiny {name}"
    return values


@pytest.fixture(scope="module")
def studies():
    """One study a chapter, so that runs which experiments share are made once."""
    opened = {}

    def of(chapter):
        if chapter not in opened:
            known = declared_in(ROOT / "chapters" / f"{chapter}.ipynb")
            opened[chapter] = measure.open_study(chapter, known, tiny(chapter))
        return opened[chapter]

    return of


@NAMED
def test_an_experiment_runs_tells_and_draws_at_its_tiny_size(chapter, experiment, studies):
    study = studies(chapter)
    rows = study.measure(experiment)
    record = study.made[experiment.name]
    assert rows and record.code and all(math.isfinite(e["mean"]) for e in record.estimates.values())
    told(experiment, record)


def told(experiment, record):
    """Every word and figure that a page shows of a record."""
    s = settings_of(experiment, record)
    if experiment.finding:
        from resnet_lib.stats import Estimate

        words = experiment.finding(record.rows, s, {k: Estimate(**e) for k, e in record.estimates.items()})
        assert words.endswith((".", ".)")) and "nan" not in words
    if experiment.figure:
        with plots.captured() as pictures:
            caption = experiment.figure(record.rows, s)
        assert pictures and caption.endswith((".", ".)")) and "nan" not in caption
    if experiment.table:
        assert "<td" in experiment.table(record.rows, s).html


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_measures_or_excuses_what_its_claims_ask_for_and_nothing_twice(chapter, studies):
    study = studies(chapter)
    for experiment in study.experiments:
        if experiment.name not in study.made:
            study.measure(experiment)
    found = list(study.made.values())
    measured = set(claims.evidence(found))
    wanted = {t.measure for c in claims.load().values() if c.chapter == chapter for t in c.tests}
    excused = {note.partition(": ")[0] for record in found for note in record.notes}  # "experiment/estimate: why not"
    assert wanted <= measured | excused, f"claims.yml asks for what {chapter} neither measures nor excuses"
    assert not measured & excused, "what was measured needs no excuse"
    for record in found:
        assert freshness.changed(record.code) == [], "a record just made is fresh"
        assert not [name for name in record.code if name.startswith("notebook.")], "all of it is the library's"
    names = [experiment.name for experiment in study.experiments]
    assert len(set(names)) == len(names)


@NAMED
def test_published_rows_give_the_published_estimates_words_and_figures_with_nothing_of_this_run(chapter, experiment):
    for record in records.published(chapter, experiment.name):
        found = estimates_of(experiment, record)
        assert set(found) == set(record.estimates)
        for name, estimate in found.items():
            for part in ("mean", "low", "high"):
                published = record.estimates[name][part]
                assert math.isclose(getattr(estimate, part), published, rel_tol=1e-6, abs_tol=1e-9), (name, part)
            assert estimate.n == record.estimates[name]["n"] and estimate.unit == record.estimates[name]["unit"]
        told(experiment, record)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_published_record_belongs_to_an_experiment(chapter):
    names = {experiment.name for experiment in measure.experiments_of(chapter)}
    assert {record.experiment for record in records.published(chapter)} <= names


# Experiments that changed and whose record is still to be made; until then a page speaks of its own small run.
STILL_TO_MEASURE = {
    "batch_norm": [
        f"statistics/{name}"
        for name in ("short_run_difference", "long_run_difference", "short_accuracy_change", "accuracy_change")
    ],
    "families": [
        *("parameters/concatenation_gain", "speed/promised_densenet121", "groups/speedup_equal_width_16"),
        *(f"speed/{mode}_speedup_densenet121" for mode in ("train", "infer")),
        *(f"speed/train_{arm}" for arm in ("grouped", "dense", "added")),
    ],
}


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_what_a_chapter_says_of_its_records_can_be_said(chapter):
    import importlib

    words = importlib.import_module(f"resnet_lib.experiments.{chapter}")
    found = claims.evidence(records.published(chapter))
    found |= {measure: stats.exact(0.0) for measure in STILL_TO_MEASURE.get(chapter, ())}
    for say in (words.answer, words.answers, words.practice):
        text = say(found)
        assert "nan" not in text and len(text) > 100
        assert len([line for line in text.splitlines() if line.strip()]) >= 2
