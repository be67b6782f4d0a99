"""What decides the inference chapter's verdicts, on rows made by hand."""

import os

import pytest
import torch

from resnet_lib import inference as ways
from resnet_lib import resnets, stats, train
from resnet_lib.experiments import inference
from resnet_lib.experiments.inference import accuracy, networks, speed, steps
from resnet_lib.experiments.shapes import cifar_flops
from resnet_lib.study import Settings
from tests.experiments.conftest import made_up_pictures, settings

SEEDS = (0, 1, 2)
EIGHT, FOLDED = "ONNX Runtime, 8 bits", "folded"


def clocked(name, batch, speeds, off=0.0, threads=1):
    """Rows of a way that is so many times as fast as one second an answer, round by round."""
    return [
        {"what": "time", "name": name, "batch": batch, "threads": threads, "round": k, "calls_s": [1 / v, 1 / v, 9 / v]}
        | {"off": off, "flops": 10**9}
        for k, v in enumerate(speeds)
    ]


def all_rounds(value):
    return [value] * ways.ROUNDS


def some(first, last):
    """A speed in the rounds that choose, another in those that judge."""
    return [first] * ways.CHOOSING_ROUNDS + [last] * (ways.ROUNDS - ways.CHOOSING_ROUNDS)


def known(**changes):
    kept = {FOLDED: 0.0, "channels-last": 0.0, EIGHT: -0.001, "OpenVINO, 8 bits": -0.001} | changes
    return settings(batches=[1], threads=[1], accuracy_change=kept)


def plain(batch=1, threads=1):
    rows = clocked(ways.REFERENCE, batch, all_rounds(1.0), threads=threads)
    return rows + clocked(speed.PEER, batch, some(9.0, 1.1), threads=threads)


def test_the_fastest_way_is_chosen_in_the_first_rounds_and_its_speed_taken_from_the_others():
    rows = plain() + clocked(FOLDED, 1, some(3.0, 2.0), 1e-6) + clocked(EIGHT, 1, some(1.0, 8.0), 0.1)
    found = speed.estimates(rows, known())
    assert found["best_speedup_batch_1"].mean == pytest.approx(2.0)
    assert found["torchvision_speedup_batch_1"].mean == pytest.approx(1.1)
    assert found["best_speedup_batch_1"].n == ways.ROUNDS - ways.CHOOSING_ROUNDS
    assert found["float32_difference"].mean == 1e-6, "what counts in 8 bits is not compared"


def test_neither_the_plain_network_nor_torchvisions_nor_another_batch_or_thread_is_the_fastest_way():
    rows = plain() + plain(32) + plain(1, 2)
    rows += clocked(FOLDED, 1, all_rounds(2.0)) + clocked("channels-last", 1, all_rounds(1.5))
    rows += clocked(FOLDED, 32, all_rounds(1.0)) + clocked("channels-last", 32, all_rounds(7.0))
    rows += clocked(FOLDED, 1, all_rounds(3.0), threads=2) + clocked("channels-last", 1, all_rounds(4.0), threads=2)
    s = known()
    assert [speed.best(rows, s, *at) for at in ((1, 1), (32, 1), (1, 2))] == [FOLDED, "channels-last", "channels-last"]
    both = settings(batches=[1], threads=[1, 2], accuracy_change=s.accuracy_change)
    found = speed.estimates(rows, both)
    assert found["best_speedup_batch_1"].mean == found["best_speedup_batch_1_threads_2"].mean == pytest.approx(4.0)
    assert found["best_speedup_batch_1_threads_1"].mean == pytest.approx(2.0)


def test_a_way_that_lost_accuracy_or_was_not_judged_is_not_chosen_however_fast():
    rows = plain() + clocked(FOLDED, 1, all_rounds(2.0)) + clocked(EIGHT, 1, all_rounds(8.0))
    rows += clocked("OpenVINO", 1, all_rounds(9.0))
    assert speed.best(rows, known(), 1, 1) == EIGHT, "OpenVINO's accuracy is not known"
    assert speed.best(rows, known(**{EIGHT: -0.006}), 1, 1) == FOLDED
    assert speed.best(rows, known(**{EIGHT: 0.006}), 1, 1) == FOLDED, "a gain is another network too"
    found = speed.estimates(rows, known())
    assert found["pytorch_speedup_batch_1"].mean == pytest.approx(2.0)
    assert found["best_speedup_batch_1"].mean == pytest.approx(8.0)


def test_a_tail_is_the_95th_percentile_over_the_median_of_single_answers():
    rows = plain() + clocked(EIGHT, 1, all_rounds(4.0))
    assert speed.estimates(rows, known())["tail_batch_1"].mean == pytest.approx(9.0)


def seen(what, name, accuracies, same=0.99):
    return [
        {"what": what, "name": name, "seed": n, "accuracy": a, "same": same, "lost": 0.01, "gained": 0.0}
        for n, a in enumerate(accuracies)
    ]


def test_the_worst_way_decides_and_checks_do_not():
    rows = seen("way", ways.REFERENCE, (0.5, 0.6, 0.7), 1.0) + seen("way", FOLDED, (0.5, 0.6, 0.7), 1.0)
    rows += seen("way", EIGHT, (0.49, 0.58, 0.7), 0.97) + seen("check", "ranges from noise", (0.1, 0.1, 0.1))
    rows += seen("way", "OpenVINO", (0.1,)) + [{"what": "missing", "name": "x", "why": "y", "seed": 0}]
    found = accuracy.estimates(rows, settings())
    assert found["worst_change"].mean == found["change_ONNX_Runtime_8_bits"].mean == pytest.approx(-0.01)
    assert found["worst_same"].mean == pytest.approx(0.97)
    assert found["change_ranges_from_noise"].mean == pytest.approx(-0.5)
    assert found["over_chance"].mean == pytest.approx(0.5)
    assert "change_OpenVINO" not in found, "a way that one seed alone has is not paired"
    assert found["change_folded"].mean == 0
    wide = rows + seen("way", "OpenVINO, 8 bits", (0.45, 0.65, 0.7), 0.9)
    assert accuracy.worst_of(wide) == "OpenVINO, 8 bits", "no mean loss, and the lowest end of an interval"
    assert speed.known_accuracy(rows, settings()) == {"accuracy_change": {FOLDED: 0.0, EIGHT: pytest.approx(-0.01)}}


def test_pictures_that_fill_the_last_batch_are_not_judged():
    pictures = made_up_pictures(classes=3)
    s = Settings("test", {}, seeds=[0], facts={}, pictures=pictures, device=torch.device("cpu"))
    size = len(pictures.test) - 3
    shown = accuracy.padded(s, train.TrainConfig(device="cpu", channels_last=False), size)
    assert [len(images) for images, _ in shown] == [size, size]
    labels = torch.cat([labels for _, labels in shown])
    assert (labels != ways.UNKNOWN).sum() == len(pictures.test)
    expected = iter([labels.clamp_min(0) for _, labels in shown])
    right = {ways.REFERENCE: lambda images: torch.nn.functional.one_hot(next(expected), 3).float()}
    assert ways.judged(right, shown)[0]["accuracy"] == 1


def stepped(values, batch=1):
    rows = clocked(ways.REFERENCE, batch, all_rounds(1.0))
    for recipe, value in values:
        rows += clocked(steps.name_of(recipe), batch, all_rounds(value))
    return rows


def test_a_step_is_measured_alone_and_as_what_is_lost_when_it_alone_is_left_out():
    fold, last = steps.STEPS[:2]
    rows = stepped([(steps.ALL["PyTorch"], 6.0), (fold.alone, 1.5), (fold.without, 5.0), (last.without, 2.0)])
    found = steps.estimates(rows, settings(batches=[1]))
    assert found["PyTorch_together_batch_1"].mean == pytest.approx(6.0)
    assert found["norms_folded_alone_batch_1"].mean == pytest.approx(1.5)
    assert found["norms_folded_at_the_end_batch_1"].mean == pytest.approx(1.2)
    assert found["channels_last_at_the_end_batch_1"].mean == pytest.approx(3.0)
    assert "channels_last_alone_batch_1" not in found, "what could not be made has no estimate"


def test_every_step_changes_one_thing_both_alone_and_at_the_end():
    def different(one, other):
        return [f for f in one.__dataclass_fields__ if getattr(one, f) != getattr(other, f)]

    for step in steps.STEPS:
        at_end, alone = different(steps.ALL[step.stack], step.without), different(step.alone, step.base)
        assert len(alone) == 1 and set(alone) <= set(at_end), step.name
        assert at_end == alone or step.name.startswith("OpenVINO"), "only there can no other runtime take parts"
    names = [steps.name_of(recipe) for recipe in steps.recipes().values()]
    assert names == list(steps.recipes()) and len(set(names)) == len(names)


@pytest.mark.parametrize("experiment", [inference.SPEED, inference.LADDER])
def test_more_threads_than_cores_are_refused(experiment):
    many = (os.cpu_count() or 1) + 1
    with pytest.raises(ValueError, match=rf"threads=\[{many}\]: this process may use"):
        experiment.conditions(settings(batches=[1], threads=[many], rounds=9))


def test_threads_are_as_before_even_after_a_failure():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), networks.on_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError
    assert torch.get_num_threads() == before


def test_a_depth_that_fits_no_network_is_refused():
    with pytest.raises(ValueError, match="depth=9 fits no CIFAR ResNet"):
        inference.ACCURACY.conditions(settings(depth=9))


def test_what_is_counted_in_shorter_numbers_is_told_apart_from_what_only_rounds():
    short = ("folded, channels-last, bfloat16", EIGHT, "folded, channels-last, float16, CUDA graph")
    assert all(speed.is_rounded(name) for name in short)
    assert not any(speed.is_rounded(name) for name in (ways.REFERENCE, FOLDED, speed.PEER, "OpenVINO"))


def test_a_network_that_has_lived_has_statistics_of_its_own_and_is_in_evaluation_mode():
    model = networks.lived_in(resnets.resnet_cifar(8), 8)
    assert not model.training and (model.bn1.running_mean != 0).any()


def test_the_work_of_a_picture_is_counted():
    assert networks.flops(resnets.resnet_cifar(8).eval(), torch.zeros(1, 3, 32, 32)) == cifar_flops(8)


def evidence(**changes):
    """Every measure that the chapter's words read, all zero but those given."""
    names = {"speed": ["best_speedup", "pytorch_speedup", "tail"]}
    of = {f"{e}/{name}_batch_{b}": stats.exact(1.0) for e, some in names.items() for name in some for b in (1, 32)}
    of |= {f"accuracy/{name}": stats.exact(0.0) for name in ("worst_change", "worst_same")}
    return of | {name.replace("__", "/", 1): value for name, value in changes.items()}


def test_the_answer_says_several_times_only_where_the_lower_ends_are_three_and_kept_only_within_half_a_point():
    fast = {f"speed__best_speedup_batch_{b}": stats.Estimate(4, 3.1, 5, 6, 0.95, 1, "log-t", "times") for b in (1, 32)}
    slow = stats.Estimate(4, 2.9, 5, 6, 0.95, 1, "log-t", "times")
    assert "run several times as fast" in inference.answer(evidence(**fast))
    assert "less than three times" in inference.answer(evidence(**fast | {"speed__best_speedup_batch_32": slow}))
    wide = stats.Estimate(0, -0.006, 0.004, 3, 0.95, 0.01, "t", "accuracy")
    assert "it names pictures as well as before" in inference.answer(evidence(**fast))
    assert "is not shown to name" in inference.answer(evidence(**fast, accuracy__worst_change=wide))


def test_what_a_machine_could_not_measure_is_said_so_in_words():
    assert "not measured here" in inference.answers(evidence()) and "not measured here" in inference.practice(
        evidence()
    )
    said = inference.practice(evidence(steps__additions_in_8_bits_at_the_end_batch_32=stats.exact(1.25, "times")))
    assert "1.25 times (exact) at batch 32" in said


@pytest.mark.parametrize("experiment", [inference.SPEED, inference.LADDER])
def test_too_few_rounds_to_choose_and_to_time_are_refused(experiment):
    with pytest.raises(ValueError, match="rounds=5 must be at least 6: 3 choose"):
        experiment.conditions(settings(batches=[1], threads=[1], rounds=5))
