"""A study measures what is missing, records it, lets records grow, and shows the strongest evidence first."""

from dataclasses import replace

import pytest
import torch

from resnet_lib import paths, plots, records, stats, study
from resnet_lib.study import Experiment, Study
from resnet_lib.sweep import conditions

CALLS = []
note = CALLS.append  # a list that a run reads would be part of its code


def measured(s, kind, seed):
    note((kind, seed))
    value = s.height * (2.0 if kind == "tall" else 1.0) + seed / 3
    return [{"what": "size", "value": value}, {"what": "colour", "shade": seed}]


def estimates(rows, s):
    return {"gain": stats.paired_rows(rows, "value", "kind", "tall", "short", unit="error")}


def draw(rows, s):
    with plots.figure() as (_, ax):
        ax.plot([row["value"] for row in rows])
    return f"From {s.height}."


SIZE = Experiment(
    "size",
    run=measured,
    conditions=lambda s: conditions(kind=["tall", "short"], seed=s.seeds),
    estimates=estimates,
    settings=("height",),
    finding=lambda rows, s, e: f"It gains {e['gain']}.",
    figure=draw,
    alt="a line",
    kept=("size",),
)
COLOUR = replace(SIZE, name="colour", estimates=lambda rows, s: {}, finding=None, figure=None, kept=("colour",))


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNET_LIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(study.BOOK_PAGE, raising=False)
    CALLS.clear()


def open_study(experiments=(SIZE, COLOUR), chapter="made_up", **changes):
    values = {
        "dataset": "digits", "mirror": "", "image_size": 0, "train_size": 0, "val_fraction": 0.1, "seeds": 2,
        "device": "cpu", "profile": "smoke", "records_to": "", "resume": False, "height": 3.0, "test_size": 50,
    }  # fmt: skip
    values |= changes
    return Study.open(chapter, values | {"__annotations__": dict.fromkeys(values, "object")}, experiments)


def test_rows_estimates_and_their_recipe_go_into_one_record(tmp_path):
    made = open_study(records_to=str(tmp_path / "out"))
    rows = made.measure(SIZE)
    (record,) = records.published(folder=tmp_path / "out")
    assert record == made.made["size"] and record.rows == rows and len(rows) == 4
    assert record.settings == {"height": 3.0} and record.seeds == [0, 1] and record.data["test"] == 50
    assert record.estimates["gain"]["mean"] == pytest.approx(3.0)
    assert set(record.code) == {"notebook.measured"}
    assert record.made[0]["packages"]["torch"] and record.wall_s >= 0


def test_two_experiments_that_share_a_run_make_it_once_and_keep_their_own_rows():
    made = open_study()
    assert {row["what"] for row in made.measure(SIZE)} == {"size"}
    assert {row["what"] for row in made.measure(COLOUR)} == {"colour"}
    assert len(CALLS) == 4


def test_a_record_grows_by_the_seeds_it_lacks_and_says_where_each_row_was_made(tmp_path, monkeypatch):
    folder = str(tmp_path / "out")
    before = open_study(records_to=folder).measure(SIZE)
    monkeypatch.setattr(study.devices, "describe", lambda device: {"device": "cuda", "name": "a GPU"})
    rows = open_study(records_to=folder, seeds=3).measure(SIZE)
    assert CALLS[4:] == [("tall", 2), ("short", 2)]
    (record,) = records.published(folder=folder)
    assert record.seeds == [0, 1, 2] and [m["device"]["name"] for m in record.made][1:] == ["a GPU"]
    assert [row for row in rows if not row.get("made")] == before
    assert {row["seed"] for row in rows if row.get("made") == 1} == {2}
    assert record.wall_s >= 0 and record.estimates["gain"]["n"] == 3


def test_times_do_not_grow_on_another_device(tmp_path, monkeypatch):
    folder, timed = str(tmp_path / "out"), replace(SIZE, timed=True)
    open_study([timed], records_to=folder).measure(timed)
    monkeypatch.setattr(study.devices, "describe", lambda device: {"device": "cuda", "name": "a GPU"})
    open_study([timed], records_to=folder, seeds=3).measure(timed)
    assert len(CALLS) == 4 + 6 and len(records.published(folder=folder)) == 2


@pytest.mark.parametrize("change", [{"height": 4.0}, {"test_size": 40}, {"profile": "own"}, {"val_fraction": 0.2}])
def test_a_record_of_other_settings_data_or_profile_does_not_grow(tmp_path, change):
    folder = str(tmp_path / "out")
    open_study(records_to=folder).measure(SIZE)
    open_study(records_to=folder, **change).measure(SIZE)
    assert len(CALLS) == 8


def test_a_record_of_other_code_does_not_grow(tmp_path):
    folder = str(tmp_path / "out")
    open_study(records_to=folder).measure(SIZE)
    other = replace(SIZE, run=lambda s, kind, seed: measured(s, kind, seed))
    open_study([other], records_to=folder).measure(other)
    assert len(CALLS) == 8


def test_what_an_earlier_experiment_chooses_decides_conditions_and_is_a_setting_of_the_record():
    tallest = lambda rows, s: {"best": stats.best_setting(rows, "value", "kind", highest=True)}  # noqa: E731
    both = lambda s: conditions(kind=["short", s.best], seed=s.seeds)  # noqa: E731
    chosen = replace(SIZE, name="chosen", needs=SIZE, choose=tallest, conditions=both)
    made = open_study([chosen])
    made.measure(chosen)
    assert made.made["chosen"].settings == {"height": 3.0, "best": "tall"} and "size" in made.made
    assert len(CALLS) == 4, "the runs are those by which was chosen"

    peeking = replace(chosen, run=lambda s, kind, seed: [{"what": "size", "value": 1.0, "best": s.best}])
    with pytest.raises(AttributeError, match=r"chosen reads s\.best, which it does not declare"):
        open_study([peeking]).measure(peeking)


def test_counts_are_read_by_conditions_and_are_no_part_of_what_a_record_is(tmp_path):
    folder = str(tmp_path / "out")
    counted = replace(
        SIZE,
        settings=("height",),
        counts=("many",),
        conditions=lambda s: conditions(kind=["tall", "short"], seed=range(s.many)),
    )
    open_study([counted], records_to=folder, many=2).measure(counted)
    open_study([counted], records_to=folder, many=4).measure(counted)
    (record,) = records.published(folder=folder)
    assert len(CALLS) == 8 and record.settings == {"height": 3.0} and record.seeds == [0, 1, 2, 3]


def test_a_setting_that_is_not_declared_is_refused_by_name():
    undeclared = replace(SIZE, settings=())
    with pytest.raises(AttributeError, match=r"size reads s\.height, which it does not declare; its settings are none"):
        open_study([undeclared]).measure(undeclared)
    peeking = replace(SIZE, estimates=lambda rows, s: {"n": stats.exact(len(s.pictures.train))})
    with pytest.raises(AttributeError, match=r"only a run may read s\.pictures"):
        open_study([peeking]).measure(peeking)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": 1}, "seeds=1: an interval needs at least 2"),
        ({"test_size": -1}, "test_size=-1 must lie between 0"),
        ({"test_size": 10_000}, "test_size=10000 must lie between 0, which takes all, and 359"),
        ({"train_size": 10_000}, "train_size=10000 is more than"),
    ],
)
def test_what_could_not_be_measured_is_refused_at_once(changes, words):
    with pytest.raises(ValueError, match=words):
        open_study(**changes)


def test_an_experiments_own_conditions_and_parameters_are_checked_when_the_study_opens():
    def refuse(s):
        raise ValueError(f"height={s.height}: too tall")

    with pytest.raises(ValueError, match=r"height=3\.0: too tall"):
        open_study([replace(SIZE, conditions=refuse)])
    with pytest.raises(ValueError, match="experiment 'size' declares width: no parameter of made_up"):
        open_study([replace(SIZE, settings=("width",))])


def test_records_are_not_published_from_files_that_no_commit_holds(monkeypatch):
    monkeypatch.setattr(records, "uncommitted", lambda: ["resnet_lib/train.py"])
    with pytest.raises(ValueError, match=r"commit resnet_lib/train\.py first"):
        open_study(records_to=str(paths.project_root() / "records"))


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A record of `size` on CIFAR-10 that came with the book."""
    made = open_study()
    made.measure(SIZE)
    data = {**made.made["size"].data, "name": "cifar10"}
    GPU = {"device": {"device": "cuda", "name": "a GPU"}, "packages": {"torch": "2.11"}, "date": "2026-11-27"}
    record = replace(made.made["size"], profile="full", data=data, made=[GPU], chapter="made_up")
    found = records.published
    monkeypatch.setattr(
        records, "published", lambda *a, **k: found(*a, **k) if "folder" in k or len(a) > 2 else [record]
    )
    return record


def shown(made, capsys):
    made.measure(SIZE)
    capsys.readouterr()
    made.show(SIZE)
    return capsys.readouterr().out


def test_a_reader_who_runs_a_chapter_sees_their_own_run_first_and_the_published_one_folded(published, capsys):
    out = shown(open_study(), capsys)
    assert out.index("digits") < out.index("[The published run: cifar10, full, n=2]") < out.index("a GPU; torch 2.11")
    assert out.count("**Finding.** It gains 300") == 2 and "Figure: From 3.0." in out and "`measured`" in out


def test_a_page_of_the_book_shows_the_strongest_record_first_and_its_own_run_folded(published, capsys, monkeypatch):
    monkeypatch.setenv(study.BOOK_PAGE, "1")
    out = shown(open_study(), capsys)
    assert out.index("a GPU; torch 2.11") < out.index("[This page's own run: digits, smoke, n=2]")


def test_what_stands_beside_the_main_questions_shows_its_finding_and_folds_the_rest(capsys):
    made = open_study(chapter="nothing_yet")
    made.measure(SIZE)
    capsys.readouterr()
    made.show(SIZE, folded=True)
    out = capsys.readouterr().out
    assert out.index("**Finding.**") < out.index("[Figure and numbers]") < out.index("  Figure: From 3.0.")


def test_a_page_says_where_nothing_is_published_yet(capsys, monkeypatch):
    monkeypatch.setenv(study.BOOK_PAGE, "1")
    assert "Not published yet" in shown(open_study(chapter="nothing_yet"), capsys)


def test_the_front_speaks_of_published_records_and_names_what_they_lack(published, capsys):
    made = open_study()
    made.front(lambda e: f"It gains {e['size/gain']}.", SIZE)
    assert "It gains 300" in capsys.readouterr().out
    made.front(lambda e: f"It costs {e['size/cost']}.", SIZE)
    assert "do not hold 'size/cost' yet" in capsys.readouterr().out


def test_a_second_figure_stands_on_the_first_screen_if_its_experiment_is_published(published, capsys):
    made = open_study()
    second = replace(SIZE, figure=lambda rows, s: draw(rows, s) + " Again.")
    made.front(lambda e: "Yes.", SIZE, second=second)
    assert "Again." in (out := capsys.readouterr().out) and out.count("Figure: ") == 2
    made.front(lambda e: "Yes.", SIZE, second=replace(second, name="colour"))
    assert capsys.readouterr().out.count("Figure: ") == 1


def test_a_chapter_ends_only_when_every_experiment_was_measured_and_every_claim_judged():
    made = open_study(chapter="residual")
    with pytest.raises(AssertionError, match="not measured: size, colour"):
        made.close()
    made.measure(SIZE)
    made.measure(COLOUR)
    with pytest.raises(AssertionError, match="not judged: res-gradient"):
        made.close()


def test_a_figure_without_words_for_those_who_cannot_see_it_is_refused():
    with pytest.raises(ValueError, match="no alt text"):
        replace(SIZE, alt="")
    with pytest.raises(ValueError, match="needs and choose go together"):
        replace(SIZE, needs=COLOUR)


def test_a_run_gets_the_pictures_and_the_device(capsys):
    def seen(s, kind, seed):
        assert isinstance(s.device, torch.device) and len(s.pictures.test) == 50 == s.facts["test"]
        return [{"what": "size", "value": 1.0}]

    peeking = replace(SIZE, run=seen)
    open_study([peeking]).measure(peeking)


def test_a_record_says_how_many_seeds_or_rounds_are_behind_it_and_exact_where_neither_is():
    made = open_study([SIZE])
    made.measure(SIZE)
    record = replace(made.made["size"], rows=[{"round": 0}, {"round": 1}])
    assert study._runs(record) == "2 rounds"
    assert study._runs(replace(record, rows=[{"times_s": [1.0, 2.0, 3.0]}])) == "3 rounds"
    assert study._runs(replace(record, rows=[{"seed": 0}, {"seed": 1}])) == "n=2"
    assert study._runs(replace(record, rows=[{"value": 1}])) == "exact"


def test_a_note_names_a_measure_by_its_condition_or_in_words():
    assert study._in_words("tensor_cores", "precision/tf32_change: no GPU") == "not measured for TF32: no GPU"
    assert study._in_words("tensor_cores", "ladder/speedup_tf32: no GPU") == "speedup tf32: no GPU"


def test_each_seed_has_training_pictures_of_its_own_and_the_record_says_so(tmp_path):
    seen = {}

    def looking(s, kind, seed):
        seen.setdefault(seed, s.pictures)
        assert seen[seed].fingerprint == s.pictures.fingerprint, "both kinds of a seed see the same"
        return [{"what": "size", "value": 1.0}]

    study = open_study([replace(SIZE, run=looking)], seeds=3, records_to=str(tmp_path), dataset="digits")
    study.measure(study.experiments[0])
    assert len({pictures.fingerprint for pictures in seen.values()}) == 3
    assert seen[0].fingerprint == study.pictures.fingerprint
    assert {len(pictures.test) for pictures in seen.values()} == {50}
    (record,) = records.published(folder=tmp_path)
    assert record.data["splits"] == "by seed" and record.data["fingerprint"] == study.pictures.fingerprint


def test_runs_without_a_seed_know_no_splits(tmp_path):
    exact = replace(SIZE, conditions=lambda s: [{"kind": "tall", "seed": 0}], estimates=lambda rows, s: {})
    bare = replace(exact, conditions=lambda s: [{"kind": "tall"}], run=lambda s, kind: [{"what": "size", "value": 1.0}])
    study = open_study([bare], records_to=str(tmp_path))
    study.measure(bare)
    assert "splits" not in records.published(folder=tmp_path)[0].data


def test_a_cache_that_cannot_be_written_is_named_before_the_first_run(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("RESNET_LIB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OSError, match="nothing can be written there .*file/cache"):
        open_study(resume=True)
    assert CALLS == [] and open_study(resume=False).measure(SIZE)
