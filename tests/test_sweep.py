"""A sweep adds its conditions to every row, and a resumed or shared run is not run again."""

import json
import os
import subprocess
import sys
import time

import pytest

from resnet_lib import sweep
from resnet_lib.paths import cache_folder
from tests.conftest import ROOT

CALLS = []


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNET_LIB_CACHE", str(tmp_path))
    CALLS.clear()


def run(function, runs, **options):
    return sweep.run(function, runs, **({"recipe": {}, "progress": False} | options))


def measured(depth, seed):
    CALLS.append((depth, seed))
    return [{"error": depth / 3 + seed, "epoch": epoch, "shape": (depth, seed)} for epoch in (1, 2)]


RUNS = sweep.conditions(depth=[8, 20], seed=range(2))


def test_conditions_are_every_combination_last_axis_fastest():
    assert [{"depth": d, "seed": s} for d in (8, 20) for s in (0, 1)] == RUNS
    assert sweep.conditions() == [{}]


def test_rows_come_by_condition_and_carry_it_and_their_time():
    rows = run(measured, RUNS)
    assert [[(r["depth"], r["seed"], r["epoch"]) for r in one] for one in rows] == [
        [(d, s, e) for e in (1, 2)] for d in (8, 20) for s in (0, 1)
    ]
    assert all(r["run_s"] >= 0 for one in rows for r in one)
    assert CALLS == [(8, 0), (8, 1), (20, 0), (20, 1)]


def test_without_resume_everything_runs_and_nothing_is_kept():
    run(measured, RUNS)
    run(measured, RUNS)
    assert len(CALLS) == 8 and not cache_folder().joinpath("runs").exists()


def test_resume_skips_finished_runs_and_gives_the_same_rows_to_the_last_figure():
    first = run(measured, RUNS[:3], recipe={"epochs": 2}, resume=True)
    rows = run(measured, RUNS, recipe={"epochs": 2}, resume=True)
    assert len(CALLS) == 4 and rows[:3] == first
    assert rows[0][0]["error"] == 2.66667 and rows[0][0]["shape"] == [8, 0], "as a record stores them"
    run(measured, RUNS, recipe={"epochs": 3}, resume=True)
    assert len(CALLS) == 8


def test_a_run_that_two_sweeps_share_is_run_once():
    finished = {}
    first = run(measured, RUNS[:2], recipe={"epochs": 2}, finished=finished)
    rows = run(measured, RUNS, recipe={"epochs": 2}, finished=finished)
    assert CALLS == [(8, 0), (8, 1), (20, 0), (20, 1)] and rows[:2] == first
    run(measured, RUNS[:1], recipe={"epochs": 3}, finished=finished)
    assert len(CALLS) == 5, "with another recipe it is another run"


def test_an_interrupted_sweep_keeps_what_was_finished():
    def stopping(depth, seed):
        if seed == 1 and len(CALLS) == 1:
            raise KeyboardInterrupt
        return measured(depth, seed)

    with pytest.raises(KeyboardInterrupt):
        run(stopping, RUNS, resume=True)
    CALLS.append("again")
    run(stopping, RUNS, resume=True)
    assert CALLS == [(8, 0), "again", (8, 1), (20, 0), (20, 1)]


def test_kept_runs_are_whole_json_files():
    run(measured, RUNS, resume=True)
    files = list((cache_folder() / "runs").iterdir())
    assert len(files) == 4 and all(json.loads(file.read_text()) for file in files)


SHARED = """
import sys, time
from resnet_lib import sweep
def slow(n):
    time.sleep(0.1)
    with open(sys.argv[1], "a") as file:
        print(n, file=file)
    return [{"value": 2 * n}]
rows = sweep.run(slow, sweep.conditions(n=range(12)), recipe={}, resume=True, progress=False)
print([row["value"] for (row,) in rows])
"""


def start_shared(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RESNET_LIB_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", SHARED, str(tmp_path / "made")]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_processes_share_runs_each_is_made_once_and_all_return_all_rows(tmp_path):
    processes = [start_shared(tmp_path) for _ in range(3)]
    printed = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert printed == [str([2 * n for n in range(12)])] * 3
    made = (tmp_path / "made").read_text().split()
    assert sorted(map(int, made)) == list(range(12))
    assert not list((tmp_path / "cache" / "runs").glob("*.claim"))


def test_what_a_killed_process_was_making_is_made_by_another(tmp_path):
    killed = start_shared(tmp_path)
    limit = time.monotonic() + 60
    while time.monotonic() < limit and not list((tmp_path / "cache").glob("runs/*.claim")):
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    assert start_shared(tmp_path).communicate(timeout=60)[0].strip() == str([2 * n for n in range(12)])
    assert not list((tmp_path / "cache" / "runs").glob("*.claim"))


def test_a_damaged_run_is_named_and_made_again(tmp_path):
    first = run(measured, [{"depth": 8, "seed": 0}], resume=True)
    (path,) = (tmp_path / "runs").glob("*.json")
    path.write_text(path.read_text()[:20])
    with pytest.warns(UserWarning, match=f"{path.name} is damaged, so this run is made again"):
        again = run(measured, [{"depth": 8, "seed": 0}], resume=True)
    assert [row["error"] for (row, _) in again] == [row["error"] for (row, _) in first]
    assert json.loads(path.read_text()) == again[0] and len(CALLS) == 2
