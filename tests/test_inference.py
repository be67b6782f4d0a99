"""Ways to run a trained network: each gives the plain network's answers, whatever batch it is asked."""

import sys

import pytest
import torch
from torch import nn

from resnet_lib import inference, resnets, train

pytestmark = pytest.mark.filterwarnings("default")  # exporters of other packages warn as they please


@pytest.fixture(scope="module")
def model():
    """A small network whose norms have statistics and scales of their own."""
    with train.seeded(0):
        model = resnets.resnet_cifar(8)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
        for _ in range(3):
            model.train()(torch.randn(32, 3, 16, 16) * 2 + 1)
    return model.eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 + 1


@pytest.fixture(scope="module")
def found(model, images):
    return inference.variants(model, images, images, compiled=False)


def off(way, model, images):
    with torch.no_grad():
        expected = model(images)
    return ((way(images) - expected).norm() / expected.norm()).item()


def test_folding_leaves_no_norm_and_the_same_logits_and_its_source_alone(model, images):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fused = inference.folded(model, images)
    assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]
    assert off(torch.no_grad()(fused), model, images) < 1e-5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Reused(nn.Module):
    """Convolutions and norms that are used as `how` says."""

    def __init__(self, how):
        super().__init__()
        self.how, self.conv, self.last = how, nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.norm, self.other = nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=how != "no statistics")

    def forward(self, x):
        match self.how:
            case "convolution twice":
                return self.conv(self.norm(self.conv(x)))
            case "pair twice":
                return self.norm(self.conv(self.norm(self.conv(x))))
            case "two norms":
                return self.norm(self.conv(x)) + self.other(self.conv(x))
            case "two users":
                x = self.conv(x)
                return self.norm(x) + x
            case "norm twice":
                return self.norm(self.last(self.norm(self.conv(x))))
            case "no statistics":
                return self.other(self.conv(x))
        return self.norm(self.conv(x)) + self.other(self.last(x))


@pytest.mark.parametrize(
    ("how", "left"),
    [
        ("convolution twice", 1),
        ("pair twice", 1),
        ("two norms", 2),
        ("two users", 1),
        ("norm twice", 1),
        ("no statistics", 1),
        ("each once", 0),
    ],
)
def test_a_norm_stays_where_folding_it_would_be_wrong(how, left, images):
    with train.seeded(0):
        model = Reused(how)
        for _ in range(5):
            model.train()(torch.randn(16, 3, 16, 16) * 3 + 2)
    fused = inference.folded(model, images)
    assert len([m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]) == left
    assert model.training, "the user's network stays as it was"
    assert off(torch.no_grad()(fused), model.eval(), images) < 1e-5


def test_a_network_that_cannot_be_traced_or_does_not_prove_itself_is_refused(images, monkeypatch):
    class Asking(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(ValueError, match="Asking cannot be traced, so nothing is folded"):
        inference.folded(Asking(nn.Conv2d(3, 3, 1)), images)
    wrong = torch.nn.utils.fusion.fuse_conv_bn_eval
    monkeypatch.setattr(
        torch.nn.utils.fusion, "fuse_conv_bn_eval", lambda conv, norm: wrong(conv, nn.BatchNorm2d(3).eval())
    )
    model = Reused("each once")
    model(torch.randn(16, 3, 16, 16) * 3 + 2)
    with pytest.raises(ValueError, match="Reused folded gives other outputs: a relative error of"):
        inference.folded(model, images)


def test_a_way_with_other_outputs_is_left_out_and_a_note_says_so(model, images, monkeypatch):
    real = inference.export

    def negated(model, example):
        class Wrong:
            def module(self):
                inner = real(model, example).module()
                return lambda x: -inner(x)

        return Wrong()

    monkeypatch.setattr(inference, "export", negated)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    ways, notes = inference.variants(model, images, images, compiled=False)
    assert "folded, torch.export" not in ways and "folded" in ways
    assert any("folded, torch.export was left out: its outputs are off by 2" in note for note in notes)


def test_making_variants_or_a_file_leaves_a_network_in_training_mode(images, tmp_path):
    model = resnets.resnet_cifar(8)
    inference.variants(model, images, images, compiled=False)
    inference.export_onnx(model, images, tmp_path / "network.onnx")
    assert all(module.training for module in model.modules())


def test_every_way_gives_the_plain_networks_logits_within_its_format(found, model, images):
    ways, notes = found
    assert next(iter(ways)) == inference.REFERENCE and "compiled" in notes[0]
    wanted = {name: 0.1 if "8 bits" in name else 0.03 if "float16" in name else 1e-5 for name in ways}
    measured = {name: off(way, model, images) for name, way in ways.items()}
    assert all(measured[name] <= wanted[name] for name in ways), measured
    assert any("8 bits" in name for name in ways) and any("bfloat16" in name for name in ways)
    assert measured["onnxruntime, 8 bits"] > 1e-4, "eight bits round"


def test_every_way_returns_float32_without_a_gradient(found, images):
    for name, way in found[0].items():
        logits = way(images)
        assert logits.dtype == torch.float32 and logits.shape == (8, 10) and not logits.requires_grad, name


def test_an_exported_network_takes_any_batch(found, model, images):
    for name in ("onnxruntime", "folded, torch.export"):
        for count in (1, 3, 8):
            assert off(found[0][name], model, images[:count]) < 1e-5


def test_the_plain_network_is_not_changed(found, model, images):
    assert not model.training
    assert next(model.parameters()).dtype == torch.float32
    assert off(found[0][inference.REFERENCE], model, images) == 0


def test_without_onnxruntime_the_rest_is_there_and_a_note_says_so(model, images, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    ways, notes = inference.variants(model, images, images, compiled=False)
    assert not [name for name in ways if "onnx" in name]
    assert any("onnxruntime was left out" in note and "install" in note for note in notes)


def test_a_network_that_does_not_compile_is_left_out_and_a_note_says_so(model, images, monkeypatch):
    def fails(images):
        raise RuntimeError("no compiler found\nin any of these places")

    monkeypatch.setattr(torch, "compile", lambda model, **options: fails)
    ways, notes = inference.variants(model, images, images)
    assert not [name for name in ways if "compiled" in name]
    assert any("does not compile here (no compiler found)" in note for note in notes)
