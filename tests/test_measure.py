"""Measuring without a notebook: by one process or several, with the same rows."""

import os
import re
import subprocess
import sys

import pytest

from resnet_lib import records
from resnet_lib.experiments.residual import GRADIENTS
from tests.conftest import ROOT
from tools import measure


def run(folder, *arguments):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "RESNET_LIB_CACHE": str(folder / "cache"),
    }
    given = measure.as_settings({"seeds": 4, "device": "cpu", "records_to": str(folder / "out")} | GRADIENTS.tiny)
    command = [sys.executable, "-m", "tools.measure", "residual", "--only", "gradients", *given, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def rows_of(folder):
    (record,) = records.published(folder=folder / "out")
    times = re.compile(r"(^|_)s$")
    return [{name: value for name, value in row.items() if not times.search(name)} for row in record.rows]


def test_two_processes_give_the_rows_of_one_and_leave_no_process_behind(tmp_path):
    import psutil

    alone, together = tmp_path / "alone", tmp_path / "together"
    for folder, jobs in ((alone, "1"), (together, "2")):
        folder.mkdir()
        done = run(folder, "--jobs", jobs)
        assert done.returncode == 0, done.stderr
        assert "residual/gradients:" in done.stdout
    assert rows_of(alone) == rows_of(together)
    left = [p for p in psutil.process_iter(["cmdline"]) if str(together) in " ".join(p.info["cmdline"] or [])]
    assert left == []


def test_a_process_that_only_helps_writes_no_record_and_keeps_its_runs(tmp_path):
    done = run(tmp_path, "--no-records", "--set", "resume=true")
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "out").rglob("*.json")) and list((tmp_path / "cache" / "runs").glob("*.json"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["residual", "--jobs", "0"], "--jobs 0 must be at least 1"),
        (["residual", "--only", "nothing"], "no experiment 'nothing'; there are: unit, gradients"),
        (["nowhere"], "no experiments of chapter 'nowhere'; there are those of augmentation, batch_norm"),
        (["residual", "--set", "seeds=0"], "parameter seeds=0 must be above 0"),
        (["residual", "--set", "tuning_epochs=0"], "parameter tuning_epochs=0 must be above 0"),
        (["residual", "--set", "init_depths=[]"], "must hold at least one value"),
        (["residual", "--profile", "ful"], "profile 'ful' has no file for chapter 'residual'"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_measured(capsys, arguments, message):
    assert measure.main(arguments) == 2
    assert message in capsys.readouterr().err
