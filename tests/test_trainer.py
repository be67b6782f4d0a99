"""A reader's own training, in one process and in several by the same command."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from resnet_lib import data, parallel, resnets, train, trainer

ROOT = Path(__file__).resolve().parents[1]
needs_processes = pytest.mark.skipif(bool(parallel.why_not()), reason=parallel.why_not() or "they can be started")


def twins(count=48, times=1):
    """Random pictures of three classes, each as often as asked for, side by side."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % 3
    whole = data.load("digits", progress=False)
    part = data.Split(images.repeat_interleave(times, 0), labels.repeat_interleave(times))
    return replace(whole, train=part)


def job(settings, tensors):
    """Train as one of several; the weights, and what was thrown in the way."""
    config = train.TrainConfig(epochs=2, batch_size=32, precision="fp32", device="cpu")  # channels last, as always
    made = trainer.fitted(twins(times=2), config, 8, 2, False, 0)
    return [{"weights": [p.flatten().tolist() for p in made.model.parameters()]}]


@needs_processes
def test_two_processes_that_see_the_same_pictures_train_what_one_trains_on_half_the_batch():
    one = trainer.fitted(
        twins(), train.TrainConfig(epochs=2, batch_size=16, precision="fp32", device="cpu"), 8, 2, False, 0
    )
    alone = [p.flatten().tolist() for p in one.model.parameters()]
    for row in parallel.launch(job, {}, 2):
        for mine, theirs in zip(row["weights"], alone, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)


def test_a_set_is_divided_without_overlap_into_equal_parts():
    whole = twins(count=11).train
    parts = [trainer.divided(whole, rank, 3) for rank in range(3)]
    assert [len(part) for part in parts] == [3, 3, 3]
    assert torch.equal(parts[1].images, whole.images[[1, 4, 7]]) and torch.equal(
        parts[2].labels, whole.labels[[2, 5, 8]]
    )


@needs_processes
def test_the_same_command_trains_alone_and_under_torchrun_and_weights_load_safely(tmp_path):
    (tmp_path / "best.yml").write_text("# found\nlearning_rate: 0.1\nepochs: 2\nbatch_size: 32\n", "utf-8")
    given = ["-m", "resnet_lib.trainer", "--dataset", "digits", "--config", "best.yml", "--train-size", "128"]
    given += ["--width", "2", "--device", "cpu"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for start, folder, count in (([sys.executable], "one", 1), (torchrun, "two", 2)):
        command = [*start, *given, "--folder", folder]
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.count("test error") == 1 and f"by {count} process" in ran.stdout
        report = json.loads((tmp_path / folder / "report.json").read_text("utf-8"))
        assert report["processes"] == count and 0 <= report["test_error"] <= 1 and len(report["rows"]) == 2
        assert report["rows"][-1]["step"] == 2 * 128 // 32
        weights = torch.load(tmp_path / folder / "weights.pt", weights_only=True)
        resnets.resnet_cifar(8, widths=(2, 4, 8), in_channels=1, num_classes=10).load_state_dict(weights)
        assert not list((tmp_path / folder).glob(".*"))


@pytest.mark.parametrize(
    ("text", "words"),
    [("learning_rates: 0.1", "'learning_rates' is no setting; settings are epochs"), ("- 3", "it holds no settings"),
     ("learning_rate: -1", "learning_rate=-1")],
)  # fmt: skip
def test_settings_that_are_none_are_refused_by_name(tmp_path, capsys, text, words):
    (tmp_path / "bad.yml").write_text(text, "utf-8")
    assert (
        trainer.main(["--dataset", "digits", "--config", str(tmp_path / "bad.yml"), "--folder", str(tmp_path / "x")])
        == 2
    )
    assert words in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_a_file_that_is_missing_is_named(tmp_path, capsys):
    assert trainer.main(["--dataset", "digits", "--config", str(tmp_path / "none.yml")]) == 2
    assert "none.yml" in capsys.readouterr().err
