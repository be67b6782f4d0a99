"""A search shared by processes: killed, resumed, nothing lost or counted twice; judged once on unseen pictures."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
import yaml

from resnet_lib import data, train, tune
from resnet_lib.parameters import declared_in
from tests.conftest import ROOT

optuna = pytest.importorskip("optuna")
SMALL = tune.Search(epochs=2, batch_size=64, width=4, device="cpu", names=("learning_rate", "momentum"))
WORKER = """
import os, sys, time
from resnet_lib import data, tune
tune.HEARTBEAT_S = 1
def slow(trial):
    trial.set_user_attr("process", os.getpid())
    x = trial.suggest_float("learning_rate", 1e-3, 1.0, log=True)
    time.sleep(float(sys.argv[3]))
    return x
search = tune.Search(names=("learning_rate",), sampler="random")
study = tune.open_study(data.load("digits"), search, sys.argv[1])
tune.run(study, slow, minutes=10, trials=int(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", train_size=256)


@pytest.fixture
def storage(tmp_path):
    return f"sqlite:///{tmp_path / 'study.db'}"


def worker(storage, trials, seconds):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen([sys.executable, "-c", WORKER, storage, str(trials), str(seconds)], env=environment)


def trials_in(storage):
    try:
        (name,) = optuna.get_all_study_names(storage)
        return optuna.load_study(study_name=name, storage=storage).get_trials()
    except (ValueError, KeyError):
        return []


def in_state(trials, *names):
    return [trial for trial in trials if trial.state.name in names]


def test_a_killed_search_goes_on_where_it_was_and_makes_the_lost_trial_again(storage):
    first = worker(storage, 50, 0.5)
    while len(in_state(trials_in(storage), "COMPLETE")) < 2 or not in_state(trials_in(storage), "RUNNING"):
        assert first.poll() is None
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    before = trials_in(storage)
    (lost,) = in_state(before, "RUNNING")
    assert worker(storage, len(in_state(before, "COMPLETE")) + 2, 2).wait() == 0
    after = trials_in(storage)
    done = in_state(after, "COMPLETE")
    assert [t.value for t in done[: len(in_state(before, "COMPLETE"))]] == [
        t.value for t in in_state(before, "COMPLETE")
    ]
    assert len(done) == len(in_state(before, "COMPLETE")) + 2, "neither lost nor counted twice"
    assert after[lost.number].state.name == "FAIL"
    again = [t for t in after if t.number > lost.number and t.params == lost.params]
    assert len(again) == 1 and again[0].state.name in ("COMPLETE", "WAITING")


def test_two_processes_share_a_study_and_make_exactly_its_trials(storage):
    tune.open_study(data.load("digits"), tune.Search(names=("learning_rate",), sampler="random"), storage)
    both = [worker(storage, 12, 0.4) for _ in range(2)]
    assert [one.wait() for one in both] == [0, 0]
    done = in_state(trials_in(storage), "COMPLETE")
    assert len(done) == 12 and len({t.user_attrs["process"] for t in done}) == 2
    assert len({t.params["learning_rate"] for t in done}) == 12, "no two processes propose the same"


def test_a_search_stops_at_its_minutes_and_adds_nothing_when_it_is_called_again(digits, storage):
    study = tune.open_study(digits, SMALL, storage, seed=0)

    def slow(trial):
        time.sleep(0.05)
        return tune.suggested(trial, SMALL.names)["learning_rate"]

    tune.run(study, slow, minutes=0.2 / 60)
    count, last = len(tune.counted(study)), tune.counted(study)[-1].duration.total_seconds() / 60
    assert tune.spent_min(study) - last < 0.2 / 60 <= tune.spent_min(study), "over its minutes by less than a trial"
    tune.run(study, slow, minutes=0.2 / 60)
    assert len(tune.counted(study)) == count


def test_another_data_set_or_search_is_another_study_and_another_sampler_is_not(digits, storage):
    name = lambda pictures, search: tune.open_study(pictures, search, storage).study_name  # noqa: E731
    first = name(digits, SMALL)
    assert first == name(digits, replace(SMALL, sampler="random", device="auto"))
    assert first != name(digits, replace(SMALL, epochs=3)) and first != name(data.load("digits"), SMALL)


def test_a_watched_training_reports_what_fit_returns_and_can_be_stopped(digits):
    told = []
    config = SMALL.config(learning_rate=0.1)
    fit = tune.fitted(digits, replace(SMALL, epochs=3), replace(config, epochs=3), 0, lambda *seen: told.append(seen))
    assert [epoch for epoch, _ in told] == [1, 2]
    assert [error for _, error in told] == pytest.approx([row["val_error"] for row in fit.rows[:2]])
    plain = tune.fitted(digits, SMALL, config, 0)
    watched = tune.fitted(digits, SMALL, config, 0, lambda *seen: None)
    assert torch.equal(plain.model.fc.weight, watched.model.fc.weight), "watching changes nothing"

    def stop(epoch, error):
        raise optuna.TrialPruned

    with pytest.raises(optuna.TrialPruned):
        tune.fitted(digits, SMALL, config, 0, stop)


def test_a_training_that_fails_counts_as_guessing(digits, monkeypatch):
    monkeypatch.setitem(tune.SPACE, "learning_rate", (1e9, 1e10))
    study = optuna.create_study(sampler=tune.sampler("random", 0))
    study.optimize(tune.objective(digits, replace(SMALL, pruned=False)), n_trials=1)
    assert study.best_value == pytest.approx(0.9)


@pytest.mark.parametrize("name", [n for n in tune.SAMPLERS if n != "cmaes"])
def test_a_sampler_repeats_itself_from_a_seed_and_stays_within_the_space(name):
    def proposals(seed):
        study = optuna.create_study(sampler=tune.sampler(name, seed))
        study.optimize(lambda trial: tune.suggested(trial, ("learning_rate", "momentum"))["learning_rate"], n_trials=8)
        return [trial.params for trial in study.trials]

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    assert proposals(3) == proposals(3) != proposals(4)
    low, high = tune.SPACE["learning_rate"]
    assert all(low <= p["learning_rate"] <= high and 0.0099 < p["one_minus_momentum"] < 0.51 for p in proposals(3))


def test_the_command_writes_settings_that_training_and_a_chapter_take_and_judges_once(tmp_path, capsys, monkeypatch):
    small = ["--epochs", "1", "--batch-size", "64", "--width", "4", "--train-size", "256", "--device", "cpu"]
    call = ["--dataset", "digits", "--trials", "5", "--folder", str(tmp_path), "--seed", "0", *small]
    assert tune.main(call) == 0
    said = capsys.readouterr().out
    assert "5 trials" in said and "test error" in said and "importance: " in said
    settings = yaml.safe_load((tmp_path / "best.yml").read_text("utf-8"))
    assert train.TrainConfig(**settings).epochs == 1
    result = json.loads((tmp_path / "result.json").read_text("utf-8"))
    assert result["settings"] == settings and len(result["best"]) == len(tune.FINAL_SEEDS)
    assert tune.SEARCH_SEED not in tune.FINAL_SEEDS
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")
    assert set(settings) <= set(declared_in(ROOT / "chapters" / "tuning.ipynb"))

    def never(*arguments, **options):
        raise AssertionError("the test pictures were judged a second time")

    monkeypatch.setattr(tune, "fitted", never)
    assert tune.main(call) == 0
    assert json.loads((tmp_path / "result.json").read_text("utf-8"))["best"] == result["best"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--dataset", "nowhere.zip"], "'nowhere.zip' is no existing path"),
        (["--dataset", "digits", "--minutes", "0"], "minutes=0.0 must be above 0"),
        (["--dataset", "digits", "--trials", "-1"], "trials=-1 at least 0"),
        (["--dataset", "digits", "--sampler", "magic"], "sampler='magic' is not one of"),
        (["--dataset", "digits", "--depth", "9"], "depth=9 fits no CIFAR ResNet"),
        (["--dataset", "digits", "--epochs", "0"], "epochs=0 must be a whole number"),
        (["--dataset", "digits", "--storage", "nonsense"], "storage='nonsense' cannot be opened"),
    ],
)
def test_bad_input_is_answered_with_the_rule(given, words, tmp_path, capsys):
    assert tune.main([*given, "--folder", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(ValueError, match="must hold at least one of learning_rate"):
        tune.Search(names=("depth",))
    with pytest.raises(ValueError, match="width=0"):
        tune.Search(width=0)
