"""Several seeds at once are what each is alone, and the way that is best is the one measured to be."""

from dataclasses import replace

import pytest
import torch

from resnet_lib import train
from tests.test_steps import Rerun, always, graphs  # noqa: F401
from tests.test_train import CONFIG, crop_flip, digits, network, weights  # noqa: F401
from tools import seeds

FEW = replace(CONFIG, epochs=2, learning_rate=0.05)
CHANGES = {
    "sgd": {},
    "adamw": {"optimizer": "adamw", "learning_rate": 3e-3},
    "smooth": {"label_smoothing": 0.1, "channels_last": False},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_stacked_seeds_equal_separate_trainings(digits, changes):  # noqa: F811
    config = replace(FEW, **changes)
    stacked = seeds.fit_stacked(network, digits, config, [3, 0, 4], crop_flip)
    assert [fitted.rows[0]["seed"] for fitted in stacked] == [3, 0, 4]
    for fitted, seed in zip(stacked, (3, 0, 4), strict=True):
        alone = train.fit(network, digits, config, seed=seed, augmentation=crop_flip, progress=False)
        own = weights(alone.model)
        with train.seeded(seed):
            moved = (own - weights(network())).norm()
        assert (weights(fitted.model) - own).norm() < 1e-3 * moved
        assert fitted.rows[-1].keys() == alone.rows[-1].keys()
        for ours, theirs in zip(fitted.rows, alone.rows, strict=True):
            for name in set(ours) - {"time_s"}:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-3), name


def test_a_stack_is_replayed_from_a_graph_as_one_network_is(digits, graphs):  # noqa: F811
    always(graphs)
    config = replace(FEW, epochs=6)
    stacked = seeds.fit_stacked(network, digits, config, [0, 1], crop_flip)
    assert stacked[0].steps.startswith("captured") and Rerun.log.count("replay") > 5
    graphs.undo()
    for fitted, seed in zip(stacked, (0, 1), strict=True):
        alone = train.fit(network, digits, config, seed=seed, augmentation=crop_flip, progress=False)
        assert fitted.rows[-1]["train_loss"] == pytest.approx(alone.rows[-1]["train_loss"], rel=0.01)


def test_a_seed_that_diverges_ends_and_leaves_the_others_alone(digits):  # noqa: F811
    starts = []

    def make():
        model = network()
        starts.append(model)
        if len(starts) == 2:
            with torch.no_grad():
                model.fc.weight.mul_(float("inf"))
        return model

    first, second = seeds.fit_stacked(make, digits, FEW, [0, 1])
    assert [row["diverged"] for row in second.rows] == [True]
    alone = train.fit(network, digits, FEW, seed=0, progress=False)
    assert [row["train_loss"] for row in first.rows] == pytest.approx([r["train_loss"] for r in alone.rows], rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_norm": 1.0}, "clip_norm=1.0: a stack of seeds has none"),
        ({"ema_decay": 0.9}, "ema_decay=0.9: a stack of seeds has none"),
        ({"precision": "fp16"}, "one loss scaler can't serve several seeds"),
    ],
)
def test_options_that_would_mix_the_seeds_are_refused(digits, changes, message):  # noqa: F811
    with pytest.raises(ValueError, match=message):
        seeds.fit_stacked(network, digits, replace(FEW, **changes), [0, 1])


def test_the_ways_are_measured_and_leave_no_process_behind():
    import psutil

    found = seeds.compare("cpu", 2, seeds.TINY)
    assert set(found["costs"]) == {"in turn", "2 processes", "a stack"} and found["costs"]["in turn"] == 2
    assert found["failed"] == {} and found["jobs"] in (1, 2) and found["one_s"] > 0
    assert "2 seeds of a ResNet-8 at batch 4 cost, in times of one: in turn 2.0, 2 processes" in found["text"]
    left = [p for p in psutil.process_iter(["cmdline"]) if "--worker" in (p.info["cmdline"] or [])]
    assert left == []


def test_a_way_that_fails_is_told_by_its_reason():
    with pytest.raises(RuntimeError, match="ValueError: depth=9 fits no CIFAR ResNet"):
        seeds.compare("cpu", 2, seeds.TINY | {"depth": 9})
