"""What two chapters ask of networks trained to several depths: how they are trained, looked into and chosen."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnet_lib import data, probes, resnets, train
from resnet_lib.experiments import depths
from resnet_lib.study import Settings
from tests.experiments.conftest import made_up_pictures as random_pictures

CPU = torch.device("cpu")


def made_up_pictures():
    return random_pictures(count=160)  # a batch of 128 and more


def while_measuring(pictures=None, **values):
    pictures = pictures or made_up_pictures()
    defaults = {"number_format": "fp32", "flips": False, "depth_epochs": 1, "rate_epochs": 1}
    return Settings("test", defaults | values, pictures=pictures, device=CPU, facts=pictures.about())


def test_each_network_takes_the_rate_with_the_lowest_training_loss_and_of_equals_the_gentler():
    losses = {("plain", 8): (1.0, 0.5, 2.0), ("residual", 8): (0.7, 0.7, 0.9), ("plain", 20): (3.0, 2.0, 1.0)}
    rows = [
        {"kind": kind, "depth": depth, "rate": rate, "loss": loss}
        for (kind, depth), of in losses.items()
        for rate, loss in zip((0.03, 0.1, 0.3), of, strict=True)
    ]
    assert depths.rates_of(rows[::-1]) == {"plain 8": 0.1, "residual 8": 0.03, "plain 20": 0.3}


def test_arms_train_at_the_chosen_rates_and_a_seed_of_its_own_chooses():
    s = SimpleNamespace(depths=[8, 14], looked_depth=8, depth_rates=[0.1, 0.3], seeds=[0, 1])
    s.rate_of = {"plain 8": 0.1, "plain 14": 0.3}
    assert [(r["depth"], r["rate"], r["seed"]) for r in depths.arms(s, ["plain"], [14])] == [(14, 0.3, 0), (14, 0.3, 1)]
    chooser = {r["seed"] for r in depths.rate_conditions(s, ["plain"])}
    assert not chooser & set(range(100))


def test_a_diverged_trial_is_never_chosen(monkeypatch):
    row = {"diverged": True, "step": 3}
    monkeypatch.setattr(train, "fit", lambda *a, **k: train.Fit([row], None))
    (found,) = depths.tried(while_measuring(), "plain", 8, 0.1, 0)
    assert found["diverged"] and found["loss"] > 1e6


def test_training_pictures_are_shifted_and_mirrored_only_where_asked():
    marked = torch.zeros(400, 1, 16, 16, dtype=torch.uint8)
    marked[:, 0, 8, 3] = 255
    columns = lambda s: set(depths.changed(s, marked, torch.Generator().manual_seed(0)).argmax(3).amax((1, 2)).tolist())  # noqa: E731
    assert columns(SimpleNamespace(flips=False)) == {1, 2, 3, 4, 5}
    assert columns(SimpleNamespace(flips=True)) == {1, 2, 3, 4, 5, 10, 11, 12, 13, 14}


def test_some_units_are_evenly_spread_with_the_first_and_the_last():
    assert depths.some(list("abc")) == {1: "a", 2: "b", 3: "c"}
    many = list(depths.some(list(range(54))))
    assert many == sorted(many) and len(many) == depths.LOOKED_AT and {1, 54} <= set(many)


def test_one_network_gives_its_end_what_its_units_tell_and_what_it_loses():
    s = while_measuring()
    rows = depths.trained(s, "residual", 14, 0.05, 0)
    kinds = [r["what"] for r in rows]
    assert {k: kinds.count(k) for k in ("curve", "end", "unit", "own", "pixels", "shuffled", "trained", "cover")} == {
        "curve": 1, "end": 1, "unit": 12, "own": 2, "pixels": 2, "shuffled": 2, "trained": 6, "cover": 1,
    }  # fmt: skip
    (end,) = (r for r in rows if r["what"] == "end")
    whole = next(r for r in rows if r["what"] == "removal" and not r["removed"])
    own = next(r for r in rows if r["what"] == "own" and r["state"] == "trained")
    assert whole["error"] == pytest.approx(end["val_error"]) == pytest.approx(1 - own["accuracy"])
    assert {r["removed"] for r in rows if r["what"] == "removal"} == {0, 1, 2, 4}


def test_probes_are_fitted_to_training_and_judged_on_validation_pictures_and_one_to_shuffled_labels(monkeypatch):
    asked = []

    def probe_accuracy(fit_on, labels, judge_on, judged_labels, classes):
        asked.append((fit_on.shape, labels, judge_on.shape, judged_labels, classes))
        return len(asked) / 10

    monkeypatch.setattr(probes, "probe_accuracy", probe_accuracy)
    s = while_measuring()
    rows = depths.information(s, resnets.resnet_cifar(8, num_classes=3), "random")
    places = [("unit", 1), ("unit", 2), ("unit", 3), ("own", 3), ("pixels", 0), ("shuffled", 3)]
    assert [(r["what"], r["unit"]) for r in rows] == places and {r["state"] for r in rows} == {"random"}
    assert [r["accuracy"] for r in rows if r["what"] != "own"] == [0.1, 0.2, 0.3, 0.4, 0.5]
    right, val = s.pictures.train.labels, s.pictures.val.labels
    assert all(torch.equal(a[1], right) for a in asked[:-1]) and all(torch.equal(a[3], val) for a in asked)
    assert asked[3][0] == (160, 3 * 8 * 8) and asked[3][2] == (80, 3 * 8 * 8)
    shuffled = asked[-1][1]
    assert not torch.equal(shuffled, right) and torch.equal(shuffled.sort().values, right.sort().values)


class Sees(nn.Module):
    """A network whose features are the averages of a picture's four quarters, so its map is known."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.fc.weight.data = torch.tensor([[1.0, 0.0, 0.0], [-9.0, 0.0, 0.0]])
        self.fc.bias.data = torch.tensor([0.5, 0.0])

    def features(self, images):
        return F.avg_pool2d(images, 4)

    def forward(self, images):
        return self.fc(self.features(images).mean((2, 3)))


def test_a_map_explains_the_logit_and_covering_a_cell_takes_away_what_that_cell_gave():
    pictures = made_up_pictures()
    images = torch.full_like(pictures.val.images, 128)
    images[:, 0, :4, 4:], images[:, 0, 4:, :4] = 255, 0  # of the first channel a bright quarter and a dark one
    pictures = replace(pictures, val=data.Split(images, pictures.val.labels))
    cover, *maps = depths.activation_maps(while_measuring(pictures), Sees(), 0)
    at = lambda level: (level / 255 - 0.5) / 0.25  # noqa: E731
    assert cover["off"] < 1e-5
    assert cover["highest"] == pytest.approx(at(255) / 4, abs=1e-4)
    assert cover["lowest"] == pytest.approx(at(0) / 4, abs=1e-4)
    assert len(maps) == 6 and maps[0]["guess"] == 0 and maps[1]["label"] == 1
    assert maps[0]["map"][0] == pytest.approx([at(128), at(255)], abs=1e-4)
    assert len(depths.activation_maps(while_measuring(pictures), Sees(), 1)) == 1, "maps are kept of one seed"


def test_what_was_learnt_is_compared_with_the_weights_that_training_began_with(monkeypatch):
    seen, started = [], []
    monkeypatch.setattr(depths, "information", lambda s, model, state: seen.append((state, model)) or [])
    real = train.fit

    def fit(make, *args, **options):
        with train.seeded(options["seed"]):
            started.append(make().conv1.weight.detach().clone())
        return real(make, *args, **options)

    monkeypatch.setattr(train, "fit", fit)
    depths.trained(while_measuring(), "residual", 8, 0.05, 3)
    (first, fresh), (second, trained) = seen
    assert (first, second) == ("random", "trained")
    assert torch.equal(fresh.conv1.weight, started[0]) and not torch.equal(trained.conv1.weight, started[0])
    assert (fresh.bn1.running_mean != 0).any(), "its running statistics are those of the pictures"
