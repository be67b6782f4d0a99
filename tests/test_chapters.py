"""The chapters as a whole: measured on a bare machine, sized by profiles, backed by records that can be trusted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_lib import claims, records
from resnet_lib.parameters import declared_in
from tools import front, measure, readme
from tools.chapters import ROOT, check, read, read_profile, toc_chapters

NO_JUPYTER = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("matplotlib", "IPython", "ipykernel", "papermill", "nbformat", "nbclient", "rich"):
            raise ImportError(f"{name} is not on this machine")
sys.meta_path.insert(0, Missing())
"""
TINY = ["seeds=2", "device=cpu", "init_depths=[8]", "tuning_depth=8", "tuning_rates=[0.1,0.3]", "tuning_epochs=1"]


def bare(program, *arguments, cwd):
    """Run one of the tools where there is no Jupyter and no matplotlib."""
    code = f"{NO_JUPYTER}from tools.{program} import main\nsys.exit(main(sys.argv[1:]))"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_experiments_measure_without_jupyter_or_matplotlib_and_leave_their_records(tmp_path):
    given = [word for pair in (*TINY, f"records_to={tmp_path / 'out'}") for word in ("--set", pair)]
    done = bare("measure", "residual", "--only", "gradients", "tuning", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {record.experiment: record for record in records.published(folder=tmp_path / "out")}
    assert set(found) == {"gradients", "tuning"}
    for record in found.values():
        assert record.seeds == [0, 1] and record.data["name"] == "digits" and record.made[0]["packages"]["torch"]


def test_one_experiment_can_be_run_through_execute(tmp_path):
    done = bare("execute", "residual", "--only", "unit", "--set", f"records_to={tmp_path / 'out'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [record.experiment for record in records.published(folder=tmp_path / "out")] == ["unit"]


def test_a_chapter_runs_as_a_plain_script_where_nothing_can_be_drawn(tmp_path):
    small = {
        "depths": [8, 14],
        "looked_depth": 8,
        "depth_epochs": 1,
        "shortcut_depth": 8,
        "shortcut_epochs": 1,
        "task_units": 1,
        "task_epochs": 1,
    }
    pairs = [pair.split("=") for pair in TINY] + [(name, str(value)) for name, value in small.items()]
    given = [word for name, value in pairs for word in ("-p", name, value)]
    done = bare("script", ROOT / "chapters" / "residual.ipynb", "--only-measurements", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "**Finding.**" in done.stdout and "Figure:" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "no experiments of chapter 'nowhere'; there are those of"),
        (["residual", "--only", "tunning"], "no experiment 'tunning'; there are: unit, gradients"),
        (["residual", "--profile", "huge"], "profile 'huge' has no file for chapter 'residual'"),
        (["residual", "--set", "epoch=3"], "it has no parameter 'epoch'; its parameters: dataset (str)"),
        (["residual", "--set", "task_epochs=many"], "task_epochs='many' must be of type int"),
        (["residual", "--set", "seeds"], "--set seeds: write NAME=VALUE"),
    ],
)
def test_a_wrong_word_is_answered_with_what_there_is(arguments, words, capsys):
    try:
        code = measure.main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((ROOT / "profiles").glob("*/*.yml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_profile_sets_declared_parameters_of_their_type(path):
    chapters = {chapter.stem: chapter for chapter in toc_chapters()}
    values = read_profile(path)
    check(values, declared_in(read(chapters[path.stem])), path.stem)
    assert values["profile"] == path.parent.name, "a record is filed under its profile's own name"
    assert values["seeds"] >= 3


@pytest.mark.parametrize("path", sorted((ROOT / "records").glob("*/*.json")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_published_record_is_whole_small_and_has_its_provenance(path):
    record = records.load(path)
    assert path.name == record.file_name and path.parent.name == record.chapter
    assert path.stat().st_size < 1_000_000
    assert record.rows and record.estimates and record.data["fingerprint"] and record.data["classes"] >= 2
    assert len(record.seeds) != 2, "an interval needs three; one alone only chooses, none is exact"
    assert record.code or record.attested or record.made[0]["commit"]
    for made in record.made:
        assert made["device"]["name"] and made["packages"]["torch"] and made["date"]
    assert {row.get("made", 0) for row in record.rows} <= set(range(len(record.made)))
    assert records.as_stored(record.rows) == record.rows
    assert str(Path.home()) not in path.read_text() and str(ROOT) not in path.read_text()


def test_the_readme_and_its_picture_show_what_the_records_say():
    for path, text in readme.made().items():
        assert path.read_text("utf-8") == text, "run: python -m tools.readme"


def test_every_headline_on_the_front_is_what_its_numbers_say():
    evidence = {one.chapter: claims.evidence(records.published(one.chapter)) for one in front.FINDINGS}
    residual, skip = evidence["residual"], evidence["skip"]
    assert residual["gradients/default_init_gain"].low > 0 > residual["gradients/he_init_gain"].high
    assert skip["reconstruction/psnr_gain"].low > 0 > skip["reconstruction/mirror_psnr_gain"].low
    lost, regained = (
        evidence["batch_norm"][f"changed_pictures/{name}"] for name in ("lost_to_flatness", "own_gain_contrast_025")
    )
    assert lost.low > 0 and regained.low > lost.mean / 2
    assert (
        evidence["augmentation"]["time/gain_at_equal_time"].low > 0 > evidence["augmentation"]["time/longer_gain"].high
    )
    assert residual["degradation/plain_change"].low > residual["degradation/residual_change"].high


def test_every_chapter_that_tests_a_claim_in_claims_yml_and_exists_is_in_the_book():
    planned = {claim.chapter for claim in claims.load().values()}
    there = {path.stem for path in (ROOT / "chapters").glob("*.ipynb")}
    assert planned & there <= {path.stem for path in toc_chapters()}
