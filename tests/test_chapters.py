"""The chapters as measurements: they run without Jupyter, record what the claims ask for, and fit their profiles."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_lib import claims, records
from tools import readme
from tools.chapters import ROOT, check, declared, read, read_profile, toc_chapters

TINY = {
    "augmentation": {
        "seeds": 2, "train_size": 128, "width": 4, "epochs": 1, "severities": [1.0], "longer": [2],
        "input_rates": [0.1], "input_epochs": 1, "cost_depths": [8], "cost_rounds": 2,
    },
    "batch_norm": {
        "seeds": 2, "spread_seeds": 2, "train_size": 256, "layers": 3, "width": 8, "rates": [0.03, 0.1], "epochs": 1,
        "batch_sizes": [2], "batch_pictures": 64, "batch_rates": [0.1], "long_epochs": 1, "rounds": 3,
    },
    "residual": {
        "seeds": 2, "init_depths": [8], "depths": [8, 14], "epochs": 1, "tuning_depth": 8, "tuning_rates": [0.1, 0.3],
        "tuning_epochs": 1, "shortcut_depth": 8, "shortcut_epochs": 1, "task_units": 1, "task_epochs": 1,
    },
    "resnet": {
        "seeds": 2, "train_size": 256, "form_epochs": 1, "depths": [8, 56, 110, 116], "depth_epochs": 1,
        "cost_depths": [8, 14], "width_depths": [8, 14], "trick_depth": 8, "trick_epochs": 1, "probe_epochs": 1,
        "inference_side": 32, "inference_batches": [1], "inference_epochs": 1,
    },
    "skip": {
        "seeds": 2, "widths": [4, 8], "size_depth": 8, "size_epochs": 1, "init_convolutions": [1], "task_epochs": 1,
        "tasks": ["inpaint", "mirror"], "capacity_widths": [4, 8], "capacity_pictures": 64, "capacity_epochs": 1,
        "capacity_rates": [1e-2], "judge_depth": 8, "judge_epochs": 1, "pair_epochs": 1, "gan_epochs": 1,
    },
    "tensor_cores": {
        "seeds": 2, "train_size": 128, "seconds": 0.005, "product_sides": [128, 256], "aligned_sides": [63, 64],
        "conv_shape": [1, 7], "layer_shape": [2, 32], "batches": [1, 4], "accuracy_seeds": 2, "accuracy_epochs": 1,
    },
}  # fmt: skip
MEASURING = [path for path in toc_chapters() if "records_to" in declared(read(path))]
NO_JUPYTER = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("matplotlib", "IPython", "ipykernel", "papermill", "nbformat", "nbclient", "rich"):
            raise ImportError(f"{name} is not on this machine")
sys.meta_path.insert(0, Missing())
from tools.script import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("chapter", MEASURING, ids=lambda path: path.stem)
def test_a_chapter_measures_without_jupyter_or_matplotlib_and_records_what_its_claims_need(chapter, tmp_path):
    parameters = TINY[chapter.stem] | {"records_to": str(tmp_path / "records"), "profile": "tiny", "device": "cpu"}
    given = [text for name, value in parameters.items() for text in ("-p", name, str(value))]
    done = subprocess.run(
        [sys.executable, "-c", NO_JUPYTER, str(chapter), "--only-measurements", *given],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = records.published(chapter.stem, folder=tmp_path / "records")
    measured = set(claims.evidence(found))
    wanted = {t.measure for c in claims.load().values() if c.chapter == chapter.stem for t in c.tests}
    excused = {note.partition(": ")[0] for record in found for note in record.notes}  # "experiment/estimate: why not"
    assert wanted <= measured | excused, f"claims.yml asks for what {chapter.stem} neither records nor excuses"
    assert not measured & excused, "what was measured needs no excuse"
    functions = records.notebook_functions(chapter)
    for record in found:
        assert records.stale(record, functions) == [], "a record just made is not stale"
        assert record.seeds == [0, 1] and record.data["name"] == "digits" and record.environment["packages"]["torch"]


@pytest.mark.parametrize("path", sorted((ROOT / "profiles").glob("*/*.yml")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_profile_sets_declared_parameters_of_their_type(path):
    chapters = {chapter.stem: chapter for chapter in toc_chapters()}
    values = read_profile(path)
    check(values, declared(read(chapters[path.stem])), path.stem)
    assert values["profile"] == path.parent.name, "a record is filed under its profile's own name"
    assert values["seeds"] >= 3


@pytest.mark.parametrize("path", sorted((ROOT / "records").glob("*/*.json")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_published_record_is_whole_small_and_has_its_provenance(path):
    record = records.load(path)
    assert path.name == f"{record.experiment}.{record.profile}.json" and path.parent.name == record.chapter
    assert path.stat().st_size < 1_000_000
    assert record.rows and record.estimates and record.data["fingerprint"] and len(record.seeds) >= 3
    assert record.environment["device"]["name"] and record.environment["packages"]["torch"]
    assert str(Path.home()) not in path.read_text() and str(ROOT) not in path.read_text()


def test_the_readme_shows_the_published_verdicts():
    text = (ROOT / "README.md").read_text("utf-8")
    assert readme.with_verdicts(text) == text, "run: python -m tools.readme"


def test_every_chapter_that_tests_a_claim_in_claims_yml_and_exists_is_in_the_book():
    planned = {claim.chapter for claim in claims.load().values()}
    there = {path.stem for path in (ROOT / "chapters").glob("*.ipynb")}
    assert planned & there <= {path.stem for path in toc_chapters()}
