"""A campaign measures in order, within its minutes; a failure costs one experiment, a killed call nothing."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace

import pytest
import torch

from resnet_lib import devices, paths, records, stats, steps
from resnet_lib.experiments.residual import UNIT
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions
from tests.conftest import ROOT
from tools import campaign, measure, seeds

SLEEP = 0.2  # seconds of a run
MADE = []
note = MADE.append  # a list that a run reads would be part of its key


def slow(s, seed: int) -> list[dict]:
    note(seed)
    time.sleep(SLEEP)
    return [{"value": 1.0 + seed}]


def broken(s, seed: int) -> list[dict]:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")


def estimates(rows, s):
    return {"mean": stats.interval([row["value"] for row in rows])}


SLOW = Experiment("slow", slow, lambda s: conditions(seed=s.seeds), estimates)
BROKEN = Experiment("broken", broken, lambda s: conditions(seed=s.seeds), estimates)
LAST = replace(SLOW, name="last")


@pytest.fixture
def three(monkeypatch, tmp_path):
    """A chapter of three experiments, the second of which fails."""
    MADE.clear()
    monkeypatch.setenv("RESNET_LIB_CACHE", str(tmp_path / "usual"))
    monkeypatch.setattr(measure, "experiments_of", lambda chapter: (SLOW, BROKEN, LAST))
    monkeypatch.setattr(campaign, "FIRST", ())
    monkeypatch.setattr(campaign, "THEN", ("residual",))
    monkeypatch.setattr(campaign, "RESERVED_S", 0)
    return lambda seconds, *more: campaign.main(
        ["--device", "cpu", "--profile", "smoke", "--minutes", str(seconds / 60)]
        + ["--archive", str(tmp_path / "made.tar.xz"), *more]
    )


def summary_of(path):
    with tarfile.open(path) as packed:
        return json.loads(packed.extractfile("summary.json").read())


def test_every_experiment_has_one_place_in_the_order():
    pairs = campaign.order()
    chapters = [path.parent.name for path in (ROOT / "resnet_lib" / "experiments").glob("*/__init__.py")]
    every = {(chapter, one.name) for chapter in chapters for one in measure.experiments_of(chapter)}
    assert len(pairs) == len(set(pairs)) and set(pairs) == every
    assert pairs[0] == ("tensor_cores", "throughput")


def test_a_failure_costs_one_experiment_and_the_summary_tells_it(three, tmp_path, capsys):
    assert three(60, "--set", "seeds=3") == 1
    told = summary_of(tmp_path / "made.tar.xz")
    assert list(told["done"]) == ["residual/slow", "residual/last"] and told["left"] == {}
    assert told["done"]["residual/slow"]["rows"] == 3
    assert "CUDA out of memory" in told["failed"]["residual/broken"]["error"][-1]
    printed = capsys.readouterr().out
    assert "failed  residual/broken: torch.OutOfMemoryError: CUDA out of memory" in printed
    with tarfile.open(tmp_path / "made.tar.xz") as packed:
        packed.extractall(tmp_path / "out", filter="data")
    found = records.published(folder=tmp_path / "out" / "records")
    assert {record.experiment: record.seeds for record in found} == {"slow": [0, 1, 2], "last": [0, 1, 2]}
    assert not list(tmp_path.glob("*.work"))


def test_the_time_ends_between_runs_and_the_next_call_makes_only_what_is_missing(three, tmp_path, capsys):
    started = time.monotonic()
    assert three(2.5, "--only", "residual/slow", "--set", "seeds=40") == 0
    assert time.monotonic() - started < 6
    told = summary_of(tmp_path / "made.tar.xz")
    made = told["left"]["residual/slow"]["runs"]
    assert told["done"] == {} and 0 < made < 40 and told["left"]["residual/slow"]["tiny_run_s"] >= SLEEP
    assert f"left    residual/slow: {made} runs made; a tiny run takes" in capsys.readouterr().out
    tiny, first = 2, len(MADE)
    assert three(60, "--only", "residual/slow", "--set", "seeds=40") == 0
    assert len(MADE) - first <= 40 - (first - tiny - 1), "one run may have been cut off; no other is made twice"
    assert summary_of(tmp_path / "made.tar.xz")["done"]["residual/slow"]["rows"] == 40


KILLED = """
import sys
from tests import test_campaign as t
from tools import campaign, measure
measure.experiments_of = lambda chapter: (t.SLOW, t.BROKEN, t.LAST)
campaign.FIRST, campaign.THEN = (), ("residual",)
sys.exit(campaign.main(sys.argv[1:]))
"""


def test_a_killed_call_loses_nothing(tmp_path):
    archive = tmp_path / "made.tar.xz"
    given = ["--device", "cpu", "--profile", "smoke", "--archive", str(archive), "--only", "residual/slow"]
    command = [sys.executable, "-c", KILLED, *given, "--set", "seeds=30"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL)
    runs, limit = tmp_path / "made.tar.xz.work" / "runs", time.monotonic() + 60
    while time.monotonic() < limit and len(list(runs.glob("*.json"))) < 5:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not archive.exists()
    kept = {path.name: path.stat().st_mtime_ns for path in runs.glob("*.json")}
    assert len(kept) >= 5
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "out", filter="data")
    again = {path.name: path.stat().st_mtime_ns // 10**9 for path in (tmp_path / "out" / "runs").glob("*.json")}
    assert len(again) == 30 and all(again[name] == when // 10**9 for name, when in kept.items())


def test_decoded_pictures_outlive_a_campaign_and_serve_the_next(monkeypatch, tmp_path):
    usual, folder = tmp_path / "usual", tmp_path / "a.work"
    monkeypatch.setenv("RESNET_LIB_CACHE", str(usual))
    folder.mkdir()
    with campaign.cache_in(folder):
        assert paths.cache_folder() == folder
        for name in ("pictures-1", "pictures-2.77.partial", "runs"):
            (folder / name).mkdir()
    assert paths.cache_folder() == usual and [path.name for path in usual.iterdir()] == ["pictures-1"]
    (usual / "runs").mkdir()
    again = tmp_path / "b.work"
    again.mkdir()
    with campaign.cache_in(again):
        assert [path.name for path in again.iterdir()] == ["pictures-1"] and (again / "pictures-1").is_dir()
    campaign.shutil.rmtree(again)
    assert (usual / "pictures-1").is_dir(), "what was lent is not the campaign's to remove"


def test_an_archive_too_big_leaves_out_the_finished_runs_and_says_so(tmp_path, monkeypatch):
    folder = tmp_path / "work"
    (folder / "runs").mkdir(parents=True)
    (folder / "runs" / "a.json").write_bytes(os.urandom(50_000))
    summary = {"done": {}, "failed": {}, "left": {}}
    campaign.pack(tmp_path / "a.tar.xz", folder, summary)
    assert "note" not in summary_of(tmp_path / "a.tar.xz")
    monkeypatch.setattr(campaign, "MOST_BYTES", 20_000)
    campaign.pack(tmp_path / "a.tar.xz", folder, summary)
    assert "were left out" in summary_of(tmp_path / "a.tar.xz")["note"]
    assert (tmp_path / "a.tar.xz").stat().st_size < 20_000


def test_records_are_collected_where_their_code_is_this_code(tmp_path, monkeypatch):
    archive, folder = tmp_path / "made.tar.xz", tmp_path / "work"
    monkeypatch.setenv("RESNET_LIB_CACHE", str(tmp_path / "cache"))
    known, _ = measure.parameters_of("residual")
    values = {"seeds": 2, "device": "cpu", "records_to": str(folder / "records")} | UNIT.tiny
    measure.measure("residual", ["unit"], known, values)
    monkeypatch.setattr(records, "uncommitted", lambda: [])
    (record,) = records.published(folder=folder / "records")
    records.save(replace(record, made=[m | {"commit": None} for m in record.made]), folder / "records")
    records.save(replace(record, experiment="older", code=record.code | {"train.fit": "0"}), folder / "records")
    campaign.pack(archive, folder, {"done": {}, "failed": {}, "left": {}})
    lines = campaign.collect(archive, tmp_path / "kept")
    assert [line.split(":")[0].split(".")[0] for line in lines] == ["left out residual/older", "kept residual/unit"]
    (kept,) = records.published(folder=tmp_path / "kept")
    assert kept.rows == record.rows and kept.made[0]["commit"] == records.commit()
    monkeypatch.setattr(records, "uncommitted", lambda: ["resnet_lib/train.py"])
    with pytest.raises(ValueError, match="commit resnet_lib/train.py first"):
        campaign.collect(archive, tmp_path / "kept")


def test_tiny_runs_are_many_enough_or_long_enough(monkeypatch):
    monkeypatch.setattr(measure, "experiments_of", lambda chapter: (SLOW,))
    many = replace(SLOW, conditions=lambda s: conditions(seed=range(50)))
    monkeypatch.setattr(campaign, "TRIED_S", 2 * SLEEP)
    seconds, runs = campaign.tiny_seconds("residual", many, "cpu")
    assert 1 <= runs < 50 and seconds >= runs * SLEEP
    monkeypatch.setattr(campaign, "TRIED_S", 600)
    assert campaign.tiny_seconds("residual", SLOW, "cpu")[1] == 2


def test_on_a_gpu_the_number_of_processes_is_measured_once_and_kept(monkeypatch):
    """The comparison is real, of tiny trainings on the CPU; only the GPU's name is made up."""
    given = []

    def compare(device):
        given.append(device)
        return real("cpu", 2, seeds.TINY)

    real = seeds.compare
    monkeypatch.setattr(seeds, "compare", compare)
    monkeypatch.setattr(devices, "choose", lambda name: torch.device(name))
    monkeypatch.setattr(devices, "describe", lambda device: {"name": "a GPU"})
    summary, far = {"done": {}, "failed": {}, "left": {}}, time.monotonic() + 600
    assert campaign.best_jobs(summary, "cpu", far) == 1 and given == []
    assert campaign.best_jobs(summary, "cuda", time.monotonic() + 5) == 1 and given == [], "no time for it"
    jobs = campaign.best_jobs(summary, "cuda", far)
    assert jobs in (1, 2) and summary["ways"]["costs"]["in turn"] == 2
    again = json.loads(json.dumps(summary))
    assert campaign.best_jobs(again, "cuda", far) == jobs and given == ["cuda"]
    assert next(campaign.report(summary)).startswith("seeds   2 seeds of a ResNet-8 at batch 4 cost")
    monkeypatch.setattr(campaign, "WAYS_S", 0.5)  # on another GPU, where it takes too long
    monkeypatch.setattr(devices, "describe", lambda device: {"name": "another GPU"})
    assert campaign.best_jobs(summary, "cuda", far) == 1 and "OutOfTime" in summary["ways"]["text"]


def test_how_steps_were_taken_is_told(monkeypatch):
    choice = steps.Choice(True, "a step takes 4 ms, replayed 1 ms")
    monkeypatch.setattr(steps, "CHOICES", {("cuda", "ResNet(\n  (conv1)", "", "sgd", "(128, 3, 32, 32)"): choice})
    summary = {"done": {}, "failed": {}, "left": {}}
    campaign.note_steps(summary)
    campaign.note_steps(summary)
    told = "steps   ResNet, batch (128, 3, 32, 32): captured: a step takes 4 ms, replayed 1 ms"
    assert list(campaign.report(summary)) == [told]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--minutes", "0"], "--minutes 0.0 must be above 0, and --jobs 0 not below 0"),
        (["--only", "residual/nothing"], "no experiment residual/nothing; there are tensor_cores/throughput"),
        (["--set", "seeds"], "--set seeds: write NAME=VALUE"),
        (["--set", "sedes=3"], "has a parameter 'sedes'"),
        (["--profile", "ful"], "profile 'ful' has no file for chapter"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_measured(tmp_path, capsys, given, message):
    assert campaign.main([*given, "--archive", str(tmp_path / "a.tar.xz")]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_file_that_is_no_archive_is_named_and_left_alone(tmp_path, capsys):
    path = tmp_path / "a.tar.xz"
    path.write_bytes(b"mine")
    assert campaign.main(["--archive", str(path), "--profile", "smoke"]) == 2
    assert "is no whole archive of a campaign" in capsys.readouterr().err and path.read_bytes() == b"mine"
