"""Instruments leave the network as it was, and equal what can be worked out without them."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from torch import nn

from resnet_lib import probes
from resnet_lib.resnets import ResNet, ResNetConfig


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ResNet(ResNetConfig((2, 1), (4, 8), in_channels=1))


IMAGES, LABELS = draw(6, 1, 8, 8), torch.arange(6)


def loss_of(model):
    return lambda: F.cross_entropy(model(IMAGES), LABELS)


def everything(model):
    """What a probe must not change."""
    state = [(name, value.clone()) for name, value in model.state_dict().items()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    forwards = ["forward" in vars(module) for module in model.modules()]
    return state, hooks, forwards, [module.training for module in model.modules()]


PROBES = {
    "gradient_norms": lambda model: probes.gradient_norms(model, model.units(), loss_of(model)),
    "input_gradients": lambda model: probes.input_gradients(model, IMAGES),
    "features": lambda model: probes.features(model, model.units(), [(IMAGES, LABELS)]),
    "loss_slice": lambda model: probes.loss_slice(model, loss_of(model), [-1, 0, 1]),
}


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
def test_a_probe_leaves_the_model_as_it_was(model, probe, mode):
    getattr(model, mode)()
    before = everything(model)
    probe(model)
    after = everything(model)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in zip(before[0], after[0], strict=True))
    assert before[1:] == after[1:]


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES)
def test_a_probe_that_fails_leaves_the_model_as_it_was(model, probe):
    def broken(images):
        raise ArithmeticError

    model.fc.forward = broken
    before = everything(model)
    with pytest.raises(ArithmeticError):
        probe(model)
    after = everything(model)
    assert all(torch.equal(x, y) for (_, x), (_, y) in zip(before[0], after[0], strict=True))
    assert before[1:] == after[1:]


def test_gradient_norms_equal_autograd_by_hand(model):
    model.eval()
    rows = probes.gradient_norms(model, model.units(), loss_of(model))
    x = model.relu(model.bn1(model.conv1(IMAGES)))
    units, values = model.units(), []
    for unit in units:
        x = unit(x)
        values.append(x)
    loss = F.cross_entropy(model.fc(x.mean((2, 3))), LABELS)
    for row, unit, value in zip(rows, units, values, strict=True):
        gradient, *weights = torch.autograd.grad(loss, [value, *unit.parameters()], retain_graph=True)
        per_image = gradient.flatten(1).norm(dim=1) * 6
        assert row["activation_gradient"] == pytest.approx(per_image.square().mean().sqrt().item(), rel=1e-4)
        assert row["weight_gradient"] == pytest.approx(sum(w.square().sum() for w in weights).sqrt().item(), rel=1e-4)
    assert [row["unit"] for row in rows] == [1, 2, 3]
    assert all(p.grad is None for p in model.parameters())


def test_activation_gradients_do_not_depend_on_the_batch_size(model):
    model.eval()
    doubled = lambda: F.cross_entropy(model(IMAGES.repeat(2, 1, 1, 1)), LABELS.repeat(2))  # noqa: E731
    once, twice = (probes.gradient_norms(model, model.units(), loss) for loss in (loss_of(model), doubled))
    for a, b in zip(once, twice, strict=True):
        assert a["activation_gradient"] == pytest.approx(b["activation_gradient"], rel=1e-4)


def test_input_gradients_are_those_of_a_fixed_direction(model):
    model.eval()
    found = probes.input_gradients(model, IMAGES)
    assert found.shape == (6, 64) and torch.equal(found, probes.input_gradients(model, IMAGES))
    assert not IMAGES.requires_grad and all(p.grad is None for p in model.parameters())
    step, direction = draw(6, 1, 8, 8, seed=1), draw(10).double()
    model.double()
    ahead, behind = ((model(IMAGES.double() + e * step) @ direction).sum() for e in (1e-6, -1e-6))
    slope = (ahead - behind) / 2e-6
    assert slope.item() == pytest.approx((found.double() * step.flatten(1)).sum().item(), rel=1e-3)


def test_outputs_come_in_order_and_only_inside_the_block(model):
    with probes.outputs(model.units()) as kept:
        model(IMAGES)
    model(IMAGES)
    assert [tuple(t.shape) for t in kept] == [(6, 4, 8, 8), (6, 4, 8, 8), (6, 8, 4, 4)]


def test_features_are_pooled_outputs_of_all_batches(model):
    model.eval()
    found = probes.features(model, model.units(), [(IMAGES[:4], None), (IMAGES[4:], None)])
    assert [tuple(t.shape) for t in found] == [(6, 256), (6, 256), (6, 128)]  # never more areas than pixels
    found = probes.features(model, model.units(), [(IMAGES[:4], None), (IMAGES[4:], None)], numbers=64)
    assert [tuple(t.shape) for t in found] == [(6, 64), (6, 64), (6, 64)]  # as many numbers for 4 channels as for 8
    with probes.outputs(model.units()) as kept, torch.no_grad():
        model(IMAGES)
    assert torch.allclose(found[0], F.avg_pool2d(kept[0], 2).flatten(1), atol=1e-6)
    oblong = probes.features(model, model.units(), [(draw(2, 1, 4, 12), None)], numbers=64)
    assert [tuple(t.shape) for t in oblong] == [(2, 64), (2, 64), (2, 64)]


@pytest.mark.parametrize("width", [5, 60], ids=["more rows than columns", "more columns than rows"])
def test_ridge_equals_sklearns(width):
    x, y, new = draw(40, width), draw(40, 3, seed=1), draw(7, width, seed=2)
    x[:, 0] = x[:, 0] * 100 + 50
    x[:, 1] = 2.0  # a feature that never changes
    new[:, 1] = 2.0
    mean, std = x.double().mean(0), x.double().std(0).clamp_min(1e-6)
    theirs = Ridge(alpha=0.01 * 40).fit((x.double() - mean) / std, y.double()).predict((new.double() - mean) / std)
    assert torch.allclose(probes.ridge(x, y, new, strength=0.01), torch.from_numpy(theirs), atol=1e-8)


def test_ridge_chooses_its_penalty_on_held_out_pairs():
    x, y = draw(60, 40), draw(60, 3, seed=1)  # nothing to learn: the strongest penalty is best
    assert torch.equal(probes.ridge(x, y, x), probes.ridge(x, y, x, strength=max(probes.STRENGTHS)))
    y = x @ draw(40, 3, seed=2)
    assert torch.equal(probes.ridge(x, y, x), probes.ridge(x, y, x, strength=min(probes.STRENGTHS)))


def test_a_linear_probe_finds_what_is_linear_and_not_what_is_absent():
    x, other = draw(400, 6), draw(400, 6, seed=1)
    labels = (x @ draw(6, 3, seed=2)).argmax(1)
    assert probes.probe_accuracy(x[:300], labels[:300], x[300:], labels[300:], 3) > 0.8
    assert probes.probe_accuracy(other[:300], labels[:300], other[300:], labels[300:], 3) < 0.6


def test_explained_variance_is_one_for_a_linear_map_and_not_above_zero_for_noise():
    x, noise = draw(300, 6), draw(300, 4, seed=1)
    y = x @ draw(6, 4, seed=2) + 3
    assert probes.explained_variance(x[:200], y[:200], x[200:], y[200:]) > 0.999
    assert probes.explained_variance(x[:200], noise[:200], x[200:], noise[200:]) < 0.05


def test_cka_is_one_with_itself_and_blind_to_rotation_scale_and_shift():
    x, y = draw(50, 6), draw(50, 4, seed=1)
    rotation = torch.linalg.qr(draw(6, 6, seed=2))[0]
    assert probes.cka(x, x) == pytest.approx(1)
    assert probes.cka(x, 3 * x @ rotation + 7) == pytest.approx(1, abs=1e-5)
    assert probes.cka(x, y) == pytest.approx(probes.cka(y, 0.5 * x @ rotation), abs=1e-5)
    assert 0 <= probes.cka(x, y) < 0.5
    mixed = [probes.cka(x, (1 - share) * x + share * draw(50, 6, seed=3)) for share in (0, 0.3, 0.6, 1)]
    assert mixed == sorted(mixed, reverse=True)


def test_a_loss_slice_passes_through_the_loss_and_is_scaled_filter_by_filter(model):
    model.eval()
    with torch.no_grad():
        here = loss_of(model)().item()
    rows = probes.loss_slice(model, loss_of(model), [-0.5, 0, 0.5])
    assert [row["distance"] for row in rows] == [-0.5, 0, 0.5]
    assert rows[1]["loss"] == here and rows[0]["loss"] != here
    assert rows == probes.loss_slice(model, loss_of(model), [-0.5, 0, 0.5])
    assert rows != probes.loss_slice(model, loss_of(model), [-0.5, 0, 0.5], seed=1)
    lengths, start = [], model.conv1.weight.detach().clone()

    def measure():
        lengths.append((model.conv1.weight - start).flatten(1).norm(dim=1))
        return torch.tensor(0.0)

    probes.loss_slice(model, measure, [0.5])
    assert torch.allclose(lengths[0], 0.5 * start.flatten(1).norm(dim=1))


def test_removed_skips_units_and_restores_them(model):
    model.eval()
    whole, second = model(IMAGES), model.units()[1]
    with probes.removed(second):
        without = model(IMAGES)
        x = model.units()[0](model.relu(model.bn1(model.conv1(IMAGES))))
        assert torch.equal(without, model.fc(model.units()[2](x).mean((2, 3))))
    assert torch.equal(model(IMAGES), whole) and not torch.equal(whole, without)
    with pytest.raises(KeyError), probes.removed(second, second):
        raise KeyError
    assert torch.equal(model(IMAGES), whole)


def test_outputs_of_any_module_can_be_watched():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    with probes.outputs([model[0]], keep_gradient=True) as kept:
        model(draw(2, 3)).sum().backward()
    assert kept[0].grad.shape == (2, 3)
