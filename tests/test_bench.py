import os
import time
from itertools import islice

import pytest
import torch

from benchmarks import (
    Table,
    Target,
    __main__,
    augmentation,
    batch_norm,
    data_pipeline,
    faster,
    import_time,
    inference,
    many_pictures,
    training_step,
)
from resnet_lib import train
from resnet_lib.bench import Spread, bursts, cache_bytes, compare, free_bytes, measure, ratio, rotate, spread, timed


class Clock:
    """A clock that only calls move on: `slow` says how much slower the machine is at each moment."""

    def __init__(self, slow=lambda now: 1.0):
        self.now, self.slow, self.order = 0.0, slow, []

    def __call__(self):
        return self.now

    def call(self, name, seconds):
        def work():
            self.order.append(name)
            self.now += seconds * self.slow(self.now)

        return work


def quietly():
    pass


def test_spread_is_the_middle_and_the_extremes():
    assert spread([5.0, 1.0, 2.0]) == Spread(median=2.0, min=1.0, max=5.0, n=3)


def test_variants_take_turns_and_none_follows_itself():
    clock = Clock()
    calls = {name: clock.call(name, 1) for name in "abc"}
    compare(calls, rounds=4, warmup=0, synchronise=quietly, clock=clock)
    assert "".join(clock.order) == "abcbcacababc"


def test_warm_up_comes_first_and_is_not_timed():
    clock = Clock(slow=lambda now: 100 if now < 150 else 1)  # the first two calls are slow
    taken = measure(clock.call("a", 1), repeats=3, warmup=2, synchronise=quietly, clock=clock)
    assert taken == Spread(1, 1, 1, 3)


def test_times_are_per_call():
    clock = Clock()
    rows = compare({"a": clock.call("a", 0.25)}, rounds=2, warmup=0, number=8, synchronise=quietly, clock=clock)
    assert rows[0]["time_s"] == 0.25 and len(clock.order) == 16


def test_ratio_is_formed_round_by_round_so_a_slow_spell_cancels():
    spell = Clock(slow=lambda now: 10 if 12 <= now < 60 else 1)  # the third round of five, and only that
    calls = {"old": spell.call("old", 4), "new": spell.call("new", 2)}
    old, new = compare(calls, rounds=5, warmup=0, synchronise=quietly, clock=spell)
    assert old["max_s"] == 40 and new["max_s"] == 20
    assert (new["ratio"], new["ratio_min"], new["ratio_max"]) == (2, 2, 2)
    assert (old["ratio"], old["ratio_min"], old["ratio_max"]) == (1, 1, 1)


def test_ratio_above_one_is_faster_than_the_reference():
    assert ratio([1.0, 2.0, 1.0], [2.0, 2.0, 3.0]) == Spread(2.0, 1.0, 3.0, 3)
    with pytest.raises(ValueError):
        ratio([1.0], [1.0, 2.0])  # rounds that do not pair


def test_the_named_reference_is_the_one_that_ratios_refer_to():
    clock = Clock()
    calls = {"a": clock.call("a", 1), "b": clock.call("b", 4)}
    rows = compare(calls, reference="b", rounds=1, warmup=0, synchronise=quietly, clock=clock)
    assert [row["ratio"] for row in rows] == [4, 1]


def test_the_device_is_waited_for_before_each_reading_of_the_clock():
    """A queueing device returns at once; only waiting makes the work's time pass."""
    clock, queued = Clock(), []

    def wait():
        while queued:
            clock.now += queued.pop()

    rows = compare({"a": lambda: queued.append(3.0)}, rounds=2, warmup=1, synchronise=wait, clock=clock)
    assert rows[0]["times_s"] == [3, 3]  # and what the warm-up queued is in neither


def test_a_real_wait_is_measured():
    taken = measure(lambda: time.sleep(0.01), repeats=3, warmup=0)
    assert 0.01 <= taken.min <= taken.median <= taken.max


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"rounds": 0}, "rounds=0"),
        ({"warmup": -1}, "warmup=-1"),
        ({"number": 0}, "number=0"),
        ({"rounds": 2.5}, "rounds=2.5"),
        ({"reference": "c"}, "reference='c'.*'a', 'b'"),
        ({"clock": lambda: 0.0}, "raise number"),
    ],
)
def test_bad_settings_are_named(settings, names):
    with pytest.raises(ValueError, match=names):
        compare({"a": quietly, "b": quietly}, **settings)


def test_nothing_to_time_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        compare({})


def test_a_target_is_judged_by_the_median_and_shows_the_range():
    target = Target("new against old", Spread(1.2, 0.9, 1.4, 5), 1.0)
    assert target.reached and "[0.9 … 1.4] of 5" in str(target) and "rounds on both sides" in str(target)
    assert not Target("slow", Spread(0.9, 0.8, 0.95, 5), 1.0).reached
    assert Target("import", Spread(0.05, 0.04, 0.2, 5), 0.1, " s", at_most=True).reached
    assert not Target("import", Spread(0.15, 0.04, 0.2, 5), 0.1, " s", at_most=True).reached


def test_a_table_shows_rates_and_ratios():
    clock = Clock()
    calls = {"old": clock.call("old", 2), "new": clock.call("new", 1)}
    rows = compare(calls, rounds=3, warmup=0, synchronise=quietly, clock=clock)
    text = str(Table("A title", rows, [faster(rows, "new", "old", 3.0)], reference="old", work=100))
    assert text.startswith("A title\n") and "× old" in text
    assert any(line.split()[:2] == ["new", "100"] and "2.00" in line for line in text.splitlines())
    assert text.endswith("FAIL")


# --- the benchmarks themselves


@pytest.mark.parametrize("network", ["ResNet-20", "ResNet-18, CIFAR stem"])
def test_the_peers_are_the_same_network(network):
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with train.seeded(0), torch.no_grad():
        logits = {name: model.eval()(images) for name, model in training_step.networks(network).items()}
    for name in ("torchvision", "timm"):
        torch.testing.assert_close(logits[name], logits["resnet_lib"], rtol=1e-4, atol=1e-4)


def test_the_timed_step_is_the_step_of_fit():
    config = train.TrainConfig(epochs=1, batch_size=8, schedule="constant", learning_rate=0.05, device="cpu")
    dataset = data_pipeline.random_dataset(8)  # one batch an epoch
    with train.seeded(0):
        ours = training_step.networks("ResNet-20")["resnet_lib"]
    fitted = train.fit(ours, dataset, config, progress=False).model.state_dict()
    with train.seeded(0):
        ours = training_step.networks("ResNet-20")["resnet_lib"]
    images, labels = next(train.Batches(dataset, dataset.train, config, torch.device("cpu")).training(0, 0))
    training_step.library_step(ours, images, labels, config)()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, fitted[name]), name


def test_every_variant_of_the_training_step_learns_its_batch():
    for name, step in training_step.variants("ResNet-20", 8, torch.device("cpu")).items():
        losses = [loss["loss"] if isinstance(loss, dict) else loss for loss in (step() for _ in range(6))]
        assert losses[-1].item() < losses[0].item(), name


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_every_pipeline_gives_the_same_kind_of_batches():
    dataset = data_pipeline.random_dataset(40)
    for name, stream in data_pipeline.streams(dataset, 16, torch.device("cpu")).items():
        batches = list(stream())
        assert len(batches) == 2, name  # full ones only
        images = torch.cat([images for images, _ in batches])
        assert images.shape == (32, 3, 32, 32) and images.dtype == torch.float32, name
        assert abs(images.mean()) < 0.3 and 0.8 < images.std() < 1.2, name  # normalised; a shift brings zeros in
        assert batches[0][1].shape == (16,) and batches[0][1].dtype == torch.int64, name


def copies_of_one_picture(count):
    dataset = data_pipeline.random_dataset(count)
    dataset.train.images[:] = dataset.train.images[0].clone()
    return dataset


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_every_variant_of_crop_and_flip_has_the_same_windows_but_one_draws_once_for_a_batch():
    dataset = copies_of_one_picture(240)
    for name, stream in augmentation.streams(dataset, 80, False, torch.device("cpu")).items():
        counts = augmentation.distinct(stream, dataset)  # of 162 windows; a result that is none of them raises
        expected = 162 * (1 - (161 / 162) ** 80)  # 63 of 80 independent even draws
        assert len(counts) == 3, name
        assert counts == [1, 1, 1] if name == augmentation.ONCE else all(abs(n - expected) < 14 for n in counts), name


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_every_variant_of_cutout_makes_one_hole():
    dataset = copies_of_one_picture(64)
    black = -dataset.mean / dataset.std
    for name, stream in augmentation.streams(dataset, 64, True, torch.device("cpu")).items():
        (batch,) = stream()
        share = (batch - black[:, None, None]).abs().amax(1).lt(1e-4).float().mean((1, 2))
        assert batch.shape == (64, 3, 32, 32) and batch.dtype == torch.float32, name
        assert share.min() > 6 * 6 / 32**2, name  # ours may lie across the border, the others' never do
        assert name == augmentation.OURS or share.min() >= 12 * 12 / 32**2, name


def test_the_peers_of_the_geometry_turn_and_shift_as_far():
    batch = torch.zeros(4000, 1, 21, 21)
    batch[:, :, 10, 14] = 1  # a dot four pixels right of the centre
    places = torch.arange(21) - 10.0
    for name, pair in augmentation.geometry(batch).items():
        means, spreads = [], []
        for call in pair:
            with train.seeded(0):
                moved = call()[:, 0]
            centres = torch.stack([moved.sum(1) @ places, moved.sum(2) @ places]) / moved.sum((1, 2))
            means.append(centres.mean(1))
            spreads.append(centres.std(1))
        torch.testing.assert_close(*means, rtol=0, atol=0.1, msg=lambda text, name=name: f"{name}: {text}")
        torch.testing.assert_close(*spreads, rtol=0.05, atol=0.05, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_augmentation_gives_two_pipelines_and_four_maps_with_their_targets():
    tables = list(augmentation.run(rounds=1, quick=True))
    assert [len(table.targets) for table in tables] == [3, 3, 1, 1, 1, 1]
    assert "shows 1 window" in tables[0].title


def test_the_training_step_gives_a_table_for_each_network():
    tables = list(islice(training_step.run(rounds=1, quick=True), 1))
    assert len(tables[0].rows) == 5 and {"ratio", "time_s"} <= tables[0].rows[0].keys()
    assert training_step.EQUAL in str(tables[0])


@pytest.mark.filterwarnings("default")  # exporters of other packages warn as they please
def test_inference_gives_a_table_with_a_target_for_speed_and_one_for_parity():
    (table,) = islice(inference.run(rounds=1, quick=True), 1)
    names = [row["name"] for row in table.rows]
    assert names[0] == "eager float32" and inference.PEER in names and "ONNX Runtime, 8 bits" in names
    assert len(table.targets) == 2 and "not measured: " in str(table)
    assert all(f"{name}: logits off by" in table.title for name in names)


def test_a_way_with_other_logits_is_not_timed():
    expected = torch.tensor([[1.0, 9.0], [4.0, 3.9]])
    assert "off by 0e+00, the same class first for 100%" in inference.agreement("same", expected, expected)
    near = torch.tensor([[1.0, 9.0], [3.9, 4.0]])  # the second picture's classes change places
    assert "the same class first for 50%" in inference.agreement("near", near, expected)
    for wrong in (expected * 1.2, expected * float("nan")):
        with pytest.raises(ValueError, match="wrong gives other logits"):
            inference.agreement("wrong", wrong, expected)


def test_batch_norm_is_timed_unfolded_folded_and_left_out_and_folding_keeps_the_answers():
    (table,) = islice(batch_norm.run(rounds=1, quick=True), 1)
    assert [row["name"] for row in table.rows] == ["unfolded", "folded", "without any norm"]
    assert [target.text for target in table.targets] == ["folded against unfolded", "folded against without any norm"]
    assert "folded: logits off by" in table.title and "without any norm: logits" not in table.title


def test_importing_the_library_is_measured_in_a_fresh_process():
    assert 0 < import_time.import_s() < 10


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's count of a process's own memory")
def test_many_pictures_are_loaded_and_trained_on_and_their_memory_is_counted():
    held = "kept = bytearray(200 << 20); loaded = time.perf_counter(); time.sleep(0.3)"
    idle, full = (many_pictures.memory(work) for work in (many_pictures.IDLE, held))
    assert 190 < (full["own"] - idle["own"]) / 1024 < 250 and full["all"] >= full["own"]
    (table,) = many_pictures.run(quick=True)
    assert len(table.targets) == 3 and all(target.reached for target in table.targets) and "3,000 JPEGs" in table.title


def test_an_unknown_benchmark_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["training_steps"])
    assert "training_steps" in (message := capsys.readouterr().err) and "data_pipeline" in message


def test_the_command_prints_tables_and_judges_nothing_when_quick(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(import_time, "import_s", lambda: 9.0)  # far beyond its target
    monkeypatch.chdir(tmp_path)
    assert __main__.main(["import_time", "--quick", "--rounds", "2"]) == 0
    assert "FAIL" not in capsys.readouterr().out
    assert __main__.main(["import_time", "--rounds", "2"]) == 1
    out = capsys.readouterr().out
    assert "FAIL" in out and torch.__version__.split("+")[0] in out
    assert not list(tmp_path.iterdir())  # it writes nothing


def test_timed_makes_each_timing_long_enough_for_the_clock():
    calls = []
    taken = timed(lambda: calls.append(time.sleep(0.001)), torch.device("cpu"), seconds=0.05, repeats=5, warmup=1)
    assert taken.n == 5 and 0.001 <= taken.min <= taken.median <= taken.max
    assert 2 + 5 * 2 <= len(calls) <= 2 + 5 * 10  # warm-up, one to calibrate, then up to ten a timing
    with pytest.raises(ValueError, match="seconds=0"):
        timed(quietly, torch.device("cpu"), seconds=0)


def test_rotated_calls_take_turns():
    seen = []
    call = rotate([lambda name=name: seen.append(name) for name in "abc"])
    for _ in range(7):
        call()
    assert "".join(seen) == "abcabca"


def test_sizes_of_cache_and_free_memory_are_plausible():
    assert 2**16 < cache_bytes(torch.device("cpu")) < 2**34
    assert 2**27 < free_bytes(torch.device("cpu")) < 2**50


def test_bursts_time_single_calls_in_turn_and_leave_out_the_first_of_each_turn():
    made, now = [], iter(range(1000))
    calls = {name: (lambda name=name: made.append(name)) for name in "ab"}
    rows = bursts(calls, 2, 2, synchronise=lambda: None, clock=lambda: float(next(now)))
    assert "".join(made) == "aaabbb" + "bbbaaa", "each round begins with the next one"
    assert [(row["name"], row["round"]) for row in rows] == [("a", 0), ("b", 0), ("b", 1), ("a", 1)]
    assert all(row["calls_s"] == [1.0, 1.0] for row in rows)
    for bad in (({}, 1, 1), (calls, 0, 1), (calls, 1, 0)):
        with pytest.raises(ValueError, match="must all be at least 1"):
            bursts(*bad)
