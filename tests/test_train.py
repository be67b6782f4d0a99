"""The same seed trains the same network, whole, interrupted or killed; bad input and bad losses are named."""

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnet_lib import augment, data, resnets, train
from tests.conftest import room_for

CONFIG = train.TrainConfig(epochs=4, batch_size=64, precision="fp32", device="cpu")


def crop_flip(images, generator):
    return augment.random_crop_flip(images, 1, 0.5, generator)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", train_size=200)


def network():
    return resnets.ResNet(resnets.ResNetConfig((1, 1), (4, 8), in_channels=1))


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def fit(digits, config=CONFIG, make=network, **options):
    return train.fit(make, digits, config, progress=False, **({"augmentation": crop_flip} | options))


def weights(model):
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


def numbers(rows):
    return [{name: value for name, value in row.items() if name != "time_s"} for row in rows]


def hooked(hook, make=network):
    """The network of `make`, which calls `hook` before each forward pass of training."""

    def made():
        model = make()
        model.register_forward_pre_hook(lambda model, given: hook() if model.training else None)
        return model

    return made


def stopping(at_step, make=network):
    """A network whose training is interrupted at one step."""
    seen = []

    def hook():
        seen.append(1)
        if len(seen) > at_step:
            raise KeyboardInterrupt

    return hooked(hook, make)


def test_the_same_seed_is_bit_identical_and_another_differs(digits):
    first, again, other = (fit(digits, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(weights(first.model), weights(again.model))
    assert numbers(first.rows) == numbers(again.rows)
    assert not torch.equal(weights(first.model), weights(other.model))


def test_numpy_seeds_are_the_same_seeds(digits):
    numpy = pytest.importorskip("numpy")
    config = replace(CONFIG, epochs=numpy.int64(1), batch_size=numpy.int32(64))
    ours, theirs = fit(digits, config, seed=3), fit(digits, config, seed=numpy.array([3])[0])
    assert numbers(ours.rows) == numbers(theirs.rows)


def test_global_random_state_is_left_alone(digits):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    fit(digits, replace(CONFIG, epochs=1))
    assert torch.equal(torch.get_rng_state(), before)


VARIANTS = {
    "sgd": {},
    "adamw": {"optimizer": "adamw", "learning_rate": 1e-3},
    "ema": {"ema_decay": 0.9},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_an_interrupted_run_resumes_bit_identically(digits, tmp_path, changes):
    config = replace(CONFIG, **changes)
    whole = fit(digits, config)
    with pytest.raises(KeyboardInterrupt):
        fit(digits, config, stopping(7), checkpoint=tmp_path / "run.pt")  # 3 steps an epoch: inside the third
    resumed = fit(digits, config, checkpoint=tmp_path / "run.pt")
    assert torch.equal(weights(whole.model), weights(resumed.model))
    assert numbers(whole.rows) == numbers(resumed.rows)
    assert numbers(fit(digits, config, checkpoint=tmp_path / "run.pt").rows) == numbers(
        whole.rows
    )  # nothing left to do


def test_dropout_resumes_bit_identically(digits, tmp_path):
    make = lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))  # noqa: E731
    whole = fit(digits, make=make)
    with pytest.raises(KeyboardInterrupt):
        fit(digits, make=stopping(7, make), checkpoint=tmp_path / "run.pt")
    assert torch.equal(weights(whole.model), weights(fit(digits, make=make, checkpoint=tmp_path / "run.pt").model))


KILLED = """
import sys, time, torch
from dataclasses import replace
from resnet_lib import data
from tests.test_train import CONFIG, fit, hooked
torch.set_num_threads(1)
config = replace(CONFIG, epochs=40)
fit(data.load("digits", train_size=200), config, hooked(lambda: time.sleep(0.02)), checkpoint=sys.argv[1] + "/run.pt")
"""


def test_a_killed_process_resumes_bit_identically(digits, tmp_path):
    config = replace(CONFIG, epochs=40)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path], env=environment)
    file, deadline = tmp_path / "run.pt", time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if file.exists() and len(torch.load(file, weights_only=True)["rows"]) > 3:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = len(torch.load(file, weights_only=True)["rows"])
    assert 3 < done < config.epochs
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        resumed, whole = fit(digits, config, checkpoint=tmp_path / "run.pt"), fit(digits, config)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(weights(whole.model), weights(resumed.model))
    assert not [path for path in tmp_path.iterdir() if path.name != "run.pt" and path.suffix != ".tmp"]


def weighted(factor):
    def task(model, images, labels, generator):
        return {"loss": factor * F.cross_entropy(model(images), labels)}

    return task


def scaled(model, images, labels, generator, factor=1.0):
    return {"loss": factor * F.cross_entropy(model(images), labels)}


class Scaled:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, model, images, labels, generator):
        return {"loss": self.factor * F.cross_entropy(model(images), labels)}


PAIRS = {  # two tasks that differ in what they were made with alone
    "a function made by a function": (weighted(1.0), weighted(2.0)),
    "a partial": (partial(scaled, factor=1.0), partial(scaled, factor=2.0)),
    "a default argument": (partial(scaled), partial(scaled, factor=2.0)),
    "a callable object": (Scaled(1.0), Scaled(2.0)),
    "a lambda": (
        lambda model, images, labels, generator: {"loss": F.cross_entropy(model(images), labels)},
        lambda model, images, labels, generator: {"loss": 2 * F.cross_entropy(model(images), labels)},
    ),
    "the book's own": (train.classification(0.1), train.classification(0.2)),
}


@pytest.mark.parametrize("tasks", PAIRS.values(), ids=PAIRS)
def test_a_checkpoint_of_another_task_is_refused(digits, tmp_path, tasks):
    config, file = replace(CONFIG, epochs=1), tmp_path / "run.pt"
    fit(digits, config, task=tasks[0], checkpoint=file)
    with pytest.raises(ValueError, match=r"run\.pt was written by a run with another config"):
        fit(digits, config, task=tasks[1], checkpoint=file)
    fit(digits, config, task=tasks[0], checkpoint=file)  # its own is taken


def test_a_checkpoint_of_another_recipe_is_refused(digits, tmp_path):
    config, file = replace(CONFIG, epochs=1), tmp_path / "run.pt"
    fit(digits, config, checkpoint=file)
    plain = lambda: resnets.ResNet(replace(network().config, residual=False))  # noqa: E731
    other_init = lambda: resnets.ResNet(replace(network().config, init="pytorch"))  # noqa: E731
    trained = fit(digits, config).model
    images, labels = digits.train.images, digits.train.labels
    for changed in (
        {"config": replace(config, learning_rate=0.05)},
        {"make": plain},  # the same weights and shapes, another network
        {"make": other_init},
        {"make": trained},  # the same network from another start
        {"digits": data.load("digits", train_size=200, seed=1)},
        {"digits": replace(digits, train=data.Split(images, labels.flip(0)))},  # under the same fingerprint
        {"digits": replace(digits, train=data.Split(images.flip(3), labels))},
        {"augmentation": None},
        {"seed": 1},
    ):
        with pytest.raises(ValueError, match=r"run\.pt was written by a run with another config"):
            fit(**({"digits": digits, "config": config} | changed), checkpoint=file)


def test_a_damaged_checkpoint_is_named(digits, tmp_path):
    config = replace(CONFIG, epochs=1)
    fit(digits, config, checkpoint=tmp_path / "run.pt")
    whole = (tmp_path / "run.pt").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"rubbish", b""):
        (tmp_path / "run.pt").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"run\.pt is no whole checkpoint"):
            fit(digits, config, checkpoint=tmp_path / "run.pt")


def test_a_checkpoint_folder_that_cannot_be_written_is_named_before_training(digits, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="checkpoint .*file/sub cannot be written"):
        fit(digits, make=stopping(0), checkpoint=tmp_path / "file" / "sub")


def test_a_full_disk_is_named_and_leaves_nothing_half_written(digits, tmp_path):
    with room_for(4000), pytest.raises(OSError, match="run.pt cannot be written"):
        fit(digits, checkpoint=tmp_path / "run.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_keeps_the_last_whole_checkpoint(digits, tmp_path):
    whole = fit(digits)
    with pytest.raises(KeyboardInterrupt):
        fit(digits, make=stopping(7), checkpoint=tmp_path / "run.pt")
    with room_for(4000), pytest.raises(OSError, match="run.pt cannot be written"):
        fit(digits, checkpoint=tmp_path / "run.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]
    assert torch.equal(weights(whole.model), weights(fit(digits, checkpoint=tmp_path / "run.pt").model))


@pytest.mark.parametrize("schedule", train.SCHEDULES)
def test_learning_rate_at_the_start_the_end_of_warm_up_and_the_end(schedule):
    config = replace(CONFIG, schedule=schedule, learning_rate=0.4, warmup=0.2)
    rates = [train.lr_at(step, 100, config) for step in range(100)]
    if schedule == "constant":
        assert set(rates) == {0.4}
        return
    assert rates[0] == pytest.approx(0.4 / 20)
    assert rates[19] == rates[20] == 0.4  # the last of warm-up and the first of the schedule
    assert rates[:20] == sorted(rates[:20]) and rates[20:] == sorted(rates[20:], reverse=True)
    last = {"one_cycle": 0.4 / 80, "cosine": 0.2 * (1 + math.cos(math.pi * 79 / 80)), "step": 0.004}
    assert rates[-1] == pytest.approx(last[schedule])
    assert train.lr_at(0, 100, replace(config, warmup=0)) == 0.4
    if schedule == "step":
        assert [rates[59], rates[60], rates[79], rates[80]] == pytest.approx([0.4, 0.04, 0.04, 0.004])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_spares_biases_and_norms(optimizer):
    model = network()
    made = train.make_optimizer(model, replace(CONFIG, optimizer=optimizer, weight_decay=0.01))
    decay = {id(p): group["weight_decay"] for group in made.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        spared = "bn" in name or "downsample.1" in name or name.endswith("bias")
        assert decay[id(parameter)] == (0 if spared else 0.01), name


def test_sgd_is_nesterov_and_frozen_weights_stay(digits):
    assert train.make_optimizer(network(), CONFIG).param_groups[0]["nesterov"]
    assert not train.make_optimizer(network(), replace(CONFIG, momentum=0)).param_groups[0]["nesterov"]
    model = network()
    model.conv1.weight.requires_grad_(False)
    before = model.conv1.weight.clone()
    fit(digits, replace(CONFIG, epochs=1), make=model)
    assert torch.equal(model.conv1.weight, before)


def test_clipping_bounds_the_step_by_rate_times_norm(digits):
    config = replace(CONFIG, epochs=1, batch_size=200, momentum=0, weight_decay=0, schedule="constant")
    with train.seeded(0):
        start = weights(linear())
    moved = {}
    for clip in (0.0, 0.01, 1e6):
        model = fit(digits, replace(config, clip_norm=clip), linear).model
        moved[clip] = (weights(model) - start).norm()
    assert moved[0.01] == pytest.approx(0.1 * 0.01, rel=1e-3)
    assert moved[0.0] == moved[1e6] > 0.01


def test_label_smoothing_only_while_training(digits):
    task, model = train.classification(0.1), linear()
    images, labels = digits.train.images.float() / 255, digits.train.labels
    loss = lambda: task(model, images, labels, None)["loss"]  # noqa: E731
    logits = model(images)
    assert torch.equal(loss(), F.cross_entropy(logits, labels, label_smoothing=0.1))
    model.eval()
    assert torch.equal(loss(), F.cross_entropy(logits, labels))


def test_one_batch_can_be_overfitted(digits):
    few = replace(digits, train=data.Split(digits.train.images[:32], digits.train.labels[:32]))
    config = replace(CONFIG, epochs=100, batch_size=32)
    last = fit(few, config, lambda: resnets.ResNet(replace(network().config, widths=(8, 16))), augmentation=None).rows[
        -1
    ]
    assert last["train_error"] == 0 and last["train_loss"] < 0.05


def test_ema_returns_the_average_and_judges_by_it(digits):
    config = replace(CONFIG, ema_decay=0.9)
    model = network()
    fitted = fit(digits, config, make=model)
    averaged = fitted.model
    assert not torch.equal(weights(averaged), weights(model))
    measured = train.evaluate(averaged, digits, digits.val, config)
    assert fitted.rows[-1]["val_loss"] == pytest.approx(measured["loss"])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_with_float32_weights(digits, precision):
    config = replace(CONFIG, precision=precision, epochs=2, learning_rate=0.02)
    half, full = (fit(digits, replace(config, precision=p)) for p in (precision, "fp32"))
    assert all(p.dtype == torch.float32 for p in half.model.parameters())
    assert half.rows[-1]["train_loss"] == pytest.approx(full.rows[-1]["train_loss"], rel=0.02)
    assert half.rows[-1]["train_loss"] != full.rows[-1]["train_loss"]


def test_channels_last_changes_the_layout_and_not_the_result(digits):
    runs = [fit(digits, replace(CONFIG, channels_last=on, epochs=2)).model for on in (True, False)]
    assert runs[0].conv1.weight.shape == runs[1].conv1.weight.shape
    assert (weights(runs[0]) - weights(runs[1])).abs().max() < 1e-4


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
def test_compiled_training_equals_eager(digits, monkeypatch):
    # the graph is captured and differentiated for real; only the C++ compiler, 10 s and not ours, is left out
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    config = replace(CONFIG, epochs=2)
    eager, compiled = (fit(digits, replace(config, compile=on)) for on in (False, True))
    assert (weights(eager.model) - weights(compiled.model)).abs().max() < 1e-4
    assert eager.model.state_dict().keys() == compiled.model.state_dict().keys()


def explode(at_step, value=float("inf")):
    inner, seen = train.classification(), []

    def task(model, images, labels, generator):
        seen.extend([1] * model.training)
        measured = inner(model, images, labels, generator)
        return measured | {"loss": measured["loss"] * (value if len(seen) > at_step else 1.0)}

    return task


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_loss_that_is_no_number_stops_with_step_rate_and_advice(digits, value):
    with pytest.raises(train.Diverged, match=f"became {value} at step 4 with learning rate .*try a third") as caught:
        fit(digits, task=explode(4, value))
    assert caught.value.step == 4
    assert caught.value.learning_rate == train.lr_at(4, 12, CONFIG)


def test_a_divergence_can_be_recorded_and_ends_the_training(digits):
    rows = fit(digits, task=explode(4), on_divergence="record").rows
    assert [(row["epoch"], row["diverged"]) for row in rows] == [(1, False), (2, True)]
    assert rows[1]["step"] == 4 and rows[1]["time_s"] > 0


def only_in_evaluation(model, images, labels, generator):
    measured = train.classification()(model, images, labels, generator)
    return measured | {"loss": measured["loss"] * (1.0 if model.training else math.nan)}


def test_a_loss_that_is_no_number_in_evaluation_alone_is_a_divergence_too(digits):
    with pytest.raises(train.Diverged, match="the validation loss became nan at step 2 with"):
        fit(digits, task=only_in_evaluation)
    rows = fit(digits, task=only_in_evaluation, on_divergence="record").rows
    assert [row["diverged"] for row in rows] == [True] and "val_loss" not in rows[0]


def test_weights_destroyed_by_the_very_last_step_are_a_divergence(digits):
    def task(model, images, labels, generator):
        measured = train.classification()(model, images, labels, generator)
        seen.extend([1] * model.training)
        return measured | {"loss": measured["loss"] * (1e38 if len(seen) == 12 and model.training else 1.0)}

    seen = []
    rows = fit(digits, replace(CONFIG, schedule="constant"), linear, task=task, on_divergence="record").rows
    assert [row["diverged"] for row in rows] == [False, False, False, True] and rows[-1]["step"] == 11


def test_float16_that_skips_every_step_is_a_divergence_and_a_good_start_may_skip_some(digits):
    huge = partial(scaled, factor=1e30)  # a gradient that no scale brings into float16
    config = replace(CONFIG, precision="fp16")
    with pytest.raises(train.Diverged, match="overflowed float16 in every step, so none was taken, at step 11"):
        fit(digits, config, task=huge)
    assert not fit(digits, config, task=partial(scaled, factor=64.0)).rows[-1]["diverged"]


def test_a_rate_far_too_high_diverges(digits):
    with pytest.raises(train.Diverged):
        fit(digits, replace(CONFIG, learning_rate=1e30, warmup=0), linear)


def test_evaluate_equals_a_plain_loop_and_keeps_each_modules_mode(digits):
    model = fit(digits, replace(CONFIG, epochs=1)).model
    model.bn1.eval()  # a norm frozen on purpose
    modes = [module.training for module in model.modules()]
    measured = train.evaluate(model, digits, digits.test, CONFIG)
    assert modes == [module.training for module in model.modules()]
    model.eval()
    images = (digits.test.images.float() / 255 - digits.mean.view(-1, 1, 1)) / digits.std.view(-1, 1, 1)
    losses, wrong = [], 0
    with torch.no_grad():
        for image, label in zip(images, digits.test.labels, strict=True):
            logits = model(image[None])[0]
            losses.append(F.cross_entropy(logits, label).item())
            wrong += int(logits.argmax() != label)
    assert measured["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert measured["error"] == pytest.approx(wrong / len(losses))


def batches(digits, split, **changes):
    return train.Batches(digits, split, replace(CONFIG, **changes), torch.device("cpu"))


def test_batches_normalise_to_mean_zero_and_spread_one(digits):
    images = torch.cat([images for images, _ in batches(digits, digits.train).in_order(64)])
    assert images.dtype == torch.float32
    assert images.mean().abs() < 1e-5 and abs(images.std(correction=0) - 1) < 1e-5


def test_a_black_channel_stays_finite(digits):
    split = data.Split(torch.zeros_like(digits.train.images), digits.train.labels)
    black = replace(digits, mean=torch.zeros(1), std=torch.zeros(1), train=split)
    assert all((images == 0).all() for images, _ in batches(black, black.train).in_order(64))


def test_an_epoch_takes_each_image_at_most_once_and_drops_only_the_remainder(digits):
    numbered = torch.arange(200, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    split = data.Split(numbered, torch.arange(200))
    epochs = []
    for epoch in range(2):
        pairs = list(batches(digits, split).training(0, epoch))
        taken = torch.cat([labels for _, labels in pairs])
        assert len(pairs) == 3 and len(taken.unique()) == len(taken) == 3 * 64
        for images, labels in pairs:  # each image keeps its label
            pixels = images[:, 0, 0, 0] * digits.std + digits.mean
            assert torch.equal((pixels * 255).round().long(), labels)
        epochs.append(taken)
    assert not torch.equal(*epochs)
    assert torch.equal(epochs[1], torch.cat([labels for _, labels in batches(digits, split).training(0, 1)]))
    assert not torch.equal(epochs[0], torch.cat([labels for _, labels in batches(digits, split).training(1, 0)]))


def test_batches_lay_out_as_asked(digits):
    pictures = data.Split(digits.train.images.expand(-1, 3, -1, -1), digits.train.labels)
    colour = replace(digits, train=pictures, mean=digits.mean.expand(3), std=digits.std.expand(3))
    for on, layout in ((True, torch.channels_last), (False, torch.contiguous_format)):
        images, _ = next(batches(colour, colour.train, channels_last=on).training(0, 0))
        assert images.is_contiguous(memory_format=layout)


def test_batches_leave_the_data_alone(digits):
    before = digits.train.images.clone()
    list(batches(digits, digits.train).in_order(50))
    assert torch.equal(digits.train.images, before)
    scaled = data.Split(digits.train.images.float(), digits.train.labels)
    with pytest.raises(ValueError, match="images of digits are torch.float32; they must be uint8"):
        batches(digits, scaled)


def test_neighbouring_numbers_give_unrelated_streams():
    seeds = {train.stream(a, b) for a in range(20) for b in range(20)}
    assert len(seeds) == 400 and all(0 <= seed < 2**63 for seed in seeds)


def test_a_single_network_is_trained_in_place_on_one_seed_only(digits):
    model = network()
    before = weights(model).clone()
    fitted = fit(digits, replace(CONFIG, epochs=1), make=model)
    assert fitted.model is model and not torch.equal(weights(model), before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: fit(d, seed=[0]), r"seed=\[0\] must be a whole number; several seeds are several calls"),
        (lambda d: fit(d, make=lambda: network().double()), "the network's weights are torch.float64; they must be"),
        (lambda d: fit(d, on_divergence="ignore"), "on_divergence='ignore' is not one of 'raise', 'record'"),
        (lambda d: fit(d, replace(CONFIG, batch_size=201)), "batch_size=201 is larger than the 200 training images"),
        (lambda d: replace(CONFIG, optimizer="adam"), "optimizer='adam' is not one of 'sgd', 'adamw'"),
        (lambda d: replace(CONFIG, schedule="linear"), "schedule='linear' is not one of 'one_cycle'"),
        (lambda d: replace(CONFIG, precision="fp8"), "precision='fp8' is not one of 'auto'"),
        (lambda d: replace(CONFIG, epochs=0), "epochs=0 must be a whole number of at least 1"),
        (lambda d: replace(CONFIG, batch_size=1.5), "batch_size=1.5 must be a whole number"),
        (lambda d: replace(CONFIG, label_smoothing=1), "label_smoothing=1 must be at least 0 and below 1"),
        (lambda d: replace(CONFIG, weight_decay=-1e-4), "weight_decay=-0.0001 must be at least 0"),
        (lambda d: replace(CONFIG, clip_norm=math.nan), "clip_norm=nan must be at least 0 and finite"),
        (lambda d: replace(CONFIG, learning_rate=0), "learning_rate=0 must be positive and finite"),
        (lambda d: replace(CONFIG, learning_rate=math.nan), "learning_rate=nan must be positive"),
        (lambda d: fit(d, replace(CONFIG, device="tpu")), "device='tpu'"),
    ],
)
def test_bad_input_is_named(digits, call, message):
    with pytest.raises(ValueError, match=message):
        call(digits)


def test_a_gpu_asked_for_where_there_is_none_is_named(digits):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match=r"device='cuda': this machine has 0 CUDA GPU\(s\); use 'auto' or 'cpu'"):
        fit(digits, replace(CONFIG, device="cuda"))


def first_step_skipped(fused):
    """A weight after a step that the scaler skips and one that it lets pass, by SGD with momentum."""
    weight = torch.nn.Parameter(torch.ones(1000))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, nesterov=True, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale(torch.zeros(()))  # which makes its state
    for gradient in (math.inf, 1.0):
        weight.grad = torch.full_like(weight, gradient * scaler.get_scale())
        scaler.step(optimizer)
        scaler.update()
    return weight.detach()


def test_sgd_is_fused_but_where_a_scaler_may_skip_its_first_step():
    assert torch.allclose(first_step_skipped(fused=False), torch.full((1000,), 0.81))
    for precision, fused in (("fp32", True), ("bf16", True), ("fp16", False)):
        made = train.make_optimizer(network(), replace(CONFIG, precision=precision))
        assert made.param_groups[0]["fused"] is fused
        adam = train.make_optimizer(network(), replace(CONFIG, precision=precision, optimizer="adamw"))
        assert adam.param_groups[0]["fused"] is True
