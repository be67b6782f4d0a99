"""A step replayed from a graph is the step: its batch, its rate, its random numbers; what is not is taken eagerly."""

import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from resnet_lib import data, steps, train
from tests.test_train import CONFIG, crop_flip, network, numbers, weights

LONG = replace(CONFIG, epochs=8)  # 24 steps, of which the last 15 are replayed


class Rerun:
    """Stands for CUDA graphs where there are none: a replay calls again what was captured, from the same memory."""

    log: list[str] = []
    eager_s = replayed_s = 0.0  # that a step takes at least

    def __init__(self, device):
        self.generator = torch.default_generator

    def aside(self, call):
        self.log.append("aside")
        return call()

    def capture(self, call, generator):
        self.log.append("capture")
        memory = []

        def replay():
            self.log.append("replay")
            time.sleep(self.replayed_s)
            measured = call()
            memory[:] = memory or [{name: value.clone() for name, value in measured.items()}]
            for name, value in memory[0].items():  # a graph writes to the same place each time
                value.copy_(measured[name])
            return memory[0]

        return replay


@pytest.fixture
def graphs(monkeypatch):
    """Training on the CPU that takes `Rerun` for CUDA graphs, of steps that are slow unless replayed."""
    real = steps.why_eager
    monkeypatch.setattr(
        steps, "why_eager", lambda task, model, config, device: real(task, model, config, torch.device("cuda"))
    )
    monkeypatch.setattr(steps, "CudaGraphs", Rerun)
    monkeypatch.setattr(steps, "CHOICES", {})
    monkeypatch.setattr(Rerun, "log", [])
    return monkeypatch


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", train_size=200)


def fit(digits, config=LONG, make=network, **options):
    return train.fit(make, digits, config, progress=False, **({"augmentation": crop_flip} | options))


def always(monkeypatch, pays=True):
    """Let replays pay, or not, whatever the clock says."""
    monkeypatch.setattr(steps, "GAIN", 0.0 if pays else 1e9)


def dropping():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10)
    )


VARIANTS = {
    "sgd": ({}, network),
    "adamw": ({"optimizer": "adamw", "learning_rate": 1e-2}, network),
    "clipped": ({"clip_norm": 0.1}, network),
    "bf16": ({"precision": "bf16"}, network),
    "dropout": ({}, dropping),
}


@pytest.mark.parametrize(("changes", "make"), VARIANTS.values(), ids=VARIANTS)
def test_replayed_training_equals_eager_training(digits, graphs, changes, make):
    config = replace(LONG, **changes)
    always(graphs)
    replayed = fit(digits, config, make)
    assert replayed.steps.startswith("captured: a step takes ")
    assert Rerun.log == ["aside"] * steps.WARMUP + ["capture"] + ["replay"] * (24 - steps.WARMUP - steps.TIMED)
    graphs.undo()
    eager = fit(digits, config, make)
    assert eager.steps == "eager: there are no CUDA graphs on cpu"
    apart = (weights(replayed.model) - weights(eager.model)).norm() / weights(eager.model).norm()
    assert apart < 1e-4  # the rate is a float32 number in a graph, and a double in an eager step
    for ours, theirs in zip(replayed.rows, eager.rows, strict=True):
        assert ours["learning_rate"] == theirs["learning_rate"] and ours["step"] == theirs["step"]
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-3)


def test_where_replays_are_no_quicker_steps_stay_eager_bit_identically(digits, graphs):
    always(graphs, pays=False)
    first = fit(digits)
    assert first.steps.startswith("eager: a step takes ") and Rerun.log.count("replay") == 1 + steps.TIMED
    Rerun.log.clear()
    again = fit(digits)  # what was found for the shape holds
    assert again.steps == first.steps and Rerun.log == []
    graphs.undo()
    assert torch.equal(weights(again.model), weights(fit(digits).model))


def test_the_clock_decides_and_each_shape_is_measured_once(digits, graphs):
    take = torch.optim.SGD.step

    def slow(self, *given, **named):
        time.sleep(0 if "capture" in Rerun.log else 0.05)
        return take(self, *given, **named)

    graphs.setattr(torch.optim.SGD, "step", slow)
    assert fit(digits).steps.startswith("captured: a step takes ")
    assert len(steps.CHOICES) == 1
    Rerun.log.clear()
    fit(digits, seed=1)
    assert Rerun.log.count("replay") == 24 - steps.WARMUP and Rerun.log.count("capture") == 1, "nothing is timed again"
    fit(digits, replace(LONG, batch_size=32))
    assert len(steps.CHOICES) == 2


def test_a_capture_that_fails_is_told_and_training_goes_on_as_ever(digits, graphs):
    def failing(self, call, generator):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    graphs.setattr(Rerun, "capture", failing)
    fitted = fit(digits)
    assert fitted.steps == "eager: RuntimeError: operation not permitted when stream is capturing"
    graphs.undo()
    eager = fit(digits)
    assert torch.equal(weights(fitted.model), weights(eager.model)) and numbers(fitted.rows) == numbers(eager.rows)


def test_a_replay_that_fails_is_told_and_its_step_taken_again(digits, graphs):
    def capture(self, call, generator):
        def replay():
            call()
            raise RuntimeError("illegal")

        return replay

    graphs.setattr(Rerun, "capture", capture)
    fitted = fit(digits, make=dropping)
    assert fitted.steps == "eager: RuntimeError: illegal"
    graphs.undo()
    assert torch.equal(weights(fitted.model), weights(fit(digits, make=dropping).model))


def forgets(what):
    """A capture that holds on to what it saw first: the batch or the rate."""

    def capture(self, call, generator):
        stepper, seen = call.__self__, {}

        def replay():
            held = seen.setdefault(what, torch.zeros_like(getattr(stepper, what)))
            own, _ = getattr(stepper, what), setattr(stepper, what, held)
            measured = call()
            setattr(stepper, what, own)
            return measured

        return replay

    return capture


@pytest.mark.parametrize("what", ["images", "labels", "rate"])
def test_a_replay_that_forgets_its_batch_or_its_rate_is_found_out(digits, graphs, what):
    graphs.setattr(Rerun, "capture", forgets(what))
    fitted = fit(digits, make=dropping)
    assert fitted.steps.startswith("eager: a replay is not the step: apart by ")
    graphs.undo()
    assert torch.equal(weights(fitted.model), weights(fit(digits, make=dropping).model))


def test_a_replay_without_the_running_averages_is_found_out(digits, graphs):
    def capture(self, call, generator):
        model = call.__self__.model

        def replay():
            before = [value.clone() for value in model.buffers()]
            measured = call()
            for value, old in zip(model.buffers(), before, strict=True):
                value.copy_(old)
            return measured

        return replay

    graphs.setattr(Rerun, "capture", capture)
    assert "a replay is not the step" in fit(digits).steps


def undeclared(model, images, labels, generator):
    return train.classification()(model, images, labels, generator)


def hooked():
    model = network()
    model.register_forward_hook(lambda *given: None)
    return model


REASONS = {
    "float16": ({"precision": "fp16"}, {}, "the loss scaler of float16"),
    "average": ({"ema_decay": 0.9}, {}, "the average of the weights"),
    "undeclared": ({}, {"task": undeclared}, "the task is not declared steps.repeatable"),
    "hooks": ({}, {"make": hooked}, "a module has hooks"),
}


@pytest.mark.parametrize(("changes", "options", "why"), REASONS.values(), ids=REASONS)
def test_what_a_replay_cannot_repeat_is_not_captured(digits, graphs, changes, options, why):
    fitted = fit(digits, replace(LONG, epochs=1, **changes), **options)
    assert fitted.steps.startswith(f"eager: {why}") and Rerun.log == []


def test_a_training_too_short_to_time_says_so(digits, graphs):
    assert fit(digits, replace(CONFIG, epochs=1)).steps == ("eager: the training ended before a replay could be timed")


def test_recorded_losses_are_those_of_every_step_replayed_or_not(digits, graphs):
    always(graphs)
    replayed, eager = [], []
    fitted = fit(digits, task=train.recording(train.classification(), replayed))
    assert fitted.steps.startswith("captured") and len(replayed) == 24
    graphs.undo()
    fit(digits, task=train.recording(train.classification(), eager))
    assert torch.stack(replayed) == pytest.approx(torch.stack(eager), rel=1e-3)
    assert torch.stack(eager).view(8, 3).mean(1).tolist() == pytest.approx(
        [r["train_loss"] for r in fitted.rows], rel=1e-3
    )


def test_a_training_interrupted_while_replayed_resumes(digits, graphs, tmp_path):
    always(graphs)
    config = replace(LONG, optimizer="adamw", learning_rate=1e-2)
    whole, file = fit(digits, config), tmp_path / "run.pt"
    take, seen = train._check_finite, []

    def stop(*given):
        seen.append(1)
        if len(seen) == 20:
            raise KeyboardInterrupt
        take(*given)

    graphs.setattr(train, "_check_finite", stop)
    with pytest.raises(KeyboardInterrupt):
        fit(digits, config, checkpoint=file)
    graphs.setattr(train, "_check_finite", take)
    groups = torch.load(file, weights_only=True)["optimizer"]["param_groups"]
    assert all(isinstance(group["lr"], float) and not group["capturable"] for group in groups)
    resumed = fit(digits, config, checkpoint=file)
    off = (weights(resumed.model) - weights(whole.model)).norm() / weights(whole.model).norm()
    assert (
        off < 1e-3
    )  # other steps are replayed, so other roundings; AdamW makes them larger, by how much the CPU decides


def counting():
    model = dropping()
    model.register_buffer("count", torch.zeros(()))
    return model


@steps.repeatable
def exploding(model, images, labels, generator):
    measured = train.classification()(model, images, labels, generator)
    if model.training:
        model.count += 1
    return measured | {"loss": measured["loss"] * torch.where(model.count > 14, torch.inf, 1.0)}


def test_a_loss_that_is_no_number_is_found_among_replays(digits, graphs):
    always(graphs)
    rows = fit(digits, make=counting, task=exploding, on_divergence="record").rows
    assert Rerun.log.count("replay") > steps.TIMED
    assert [row["diverged"] for row in rows] == [False] * 4 + [True] and rows[-1]["step"] == 14


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need an NVIDIA GPU")
@pytest.mark.parametrize(("changes", "make"), VARIANTS.values(), ids=VARIANTS)
def test_on_a_gpu_captured_training_equals_eager_training(digits, monkeypatch, changes, make):
    config = replace(LONG, device="cuda", **changes)
    monkeypatch.setattr(steps, "CHOICES", {})
    monkeypatch.setattr(steps, "GAIN", 0.0)
    captured = fit(digits, config, make)
    assert captured.steps.startswith("captured")
    monkeypatch.setattr(steps, "why_eager", lambda *given: "for comparison")
    eager = fit(digits, config, make)
    apart = (weights(captured.model) - weights(eager.model)).norm() / weights(eager.model).norm()
    assert apart < (0.05 if config.precision == "bf16" else 1e-2)
