"""Each unit is its formula, its plain twin is the same without the addition, and every parameter learns."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnet_lib import blocks
from resnet_lib.blocks import BLOCKS


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(name, *args, **options):
    """A unit in evaluation mode whose norms do something."""
    torch.manual_seed(0)
    unit = BLOCKS[name](*args, **options).eval()
    for seed, module in enumerate(unit.modules()):
        if isinstance(module, nn.BatchNorm2d):
            size = module.num_features
            module.weight.data, module.bias.data = draw(size, seed=seed) + 1, draw(size, seed=seed + 1)
            module.running_mean, module.running_var = draw(size, seed=seed + 2), draw(size, seed=seed + 3).square() + 1
    return unit


def norm(module, x):
    view = lambda v: v.view(-1, 1, 1)  # noqa: E731
    scaled = (x - view(module.running_mean)) / (view(module.running_var) + module.eps).sqrt()
    return scaled * view(module.weight) + view(module.bias)


def conv(module, x):
    stride, padding = module.stride[0], module.padding[0]
    return F.conv2d(x, module.weight, module.bias, stride, padding, groups=module.groups)


def relu(x, slope=0.0):
    return torch.where(x > 0, x, slope * x)


def formula(name, u, x, slope=0.0):
    """The branch, written out from the papers and the survey."""
    act = partial(relu, slope=slope)
    if name == "basic":  # BN(conv(relu(BN(conv(x)))))
        return norm(u.bn2, conv(u.conv2, act(norm(u.bn1, conv(u.conv1, x)))))
    if name == "bottleneck":
        inner = act(norm(u.bn2, conv(u.conv2, act(norm(u.bn1, conv(u.conv1, x))))))
        return norm(u.bn3, conv(u.conv3, inner))
    if name == "preactivation":  # conv(relu(BN(conv(relu(BN(x))))))
        return conv(u.conv2, act(norm(u.bn2, conv(u.conv1, act(norm(u.bn1, x))))))
    if name == "survey":  # BN(LeakyReLU(conv(BN(LeakyReLU(conv(x))))))
        return norm(u.bn2, act(conv(u.conv2, norm(u.bn1, act(conv(u.conv1, x))))))
    x = norm(u.bn2, act(conv(u.conv1, norm(u.bn1, act(x)))))  # BN(conv(BN(relu(conv(BN(relu(conv(BN(relu(x)))))))))
    return norm(u.bn4, conv(u.conv3, norm(u.bn3, act(conv(u.conv2, x)))))


@pytest.mark.parametrize("slope", [0.0, 0.1])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_unit_equals_its_formula(name, residual, slope):
    width = 2 if name == "bottleneck" else 8
    unit = make(name, 8, width, residual=residual, negative_slope=slope)
    x = draw(2, 8, 6, 6)
    kept = x.clone()
    total = formula(name, unit, x, slope) + (x if residual else 0)
    expected = relu(total, slope) if "preactivation" not in name else total
    assert torch.allclose(unit(x), expected, atol=1e-5)
    assert torch.allclose(unit.branch(x), formula(name, unit, x, slope), atol=1e-5)
    assert torch.equal(x, kept)  # no activation in place on the input


def test_the_last_layer_of_the_survey_formulas_is_the_norm_and_of_preactivation_the_convolution():
    for name, last in (("survey", "bn2"), ("survey_preactivation", "bn4"), ("basic", "bn2"), ("bottleneck", "bn3")):
        unit = make(name, 8, 8)
        assert unit.last_norm() is getattr(unit, last)
    assert make("preactivation", 8, 8).last_norm() is None


@pytest.mark.parametrize("kind", blocks.SHORTCUTS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", BLOCKS)
def test_every_unit_changes_shape_as_promised(name, stride, kind):
    unit = make(name, 4, 8, stride, shortcut=kind)
    assert unit(draw(2, 4, 7, 9)).shape == (2, 8 * unit.expansion, *((7, 9) if stride == 1 else (4, 5)))


@pytest.mark.parametrize("kind", blocks.SHORTCUTS)
@pytest.mark.parametrize("name", ["basic", "bottleneck", "survey", "survey_preactivation"])
def test_a_zero_initialised_branch_leaves_exactly_the_shortcut(name, kind):
    unit = make(name, 4, 8, 2, shortcut=kind)
    nn.init.zeros_(unit.last_norm().weight)
    nn.init.zeros_(unit.last_norm().bias)
    x = draw(2, 4, 6, 6)
    shortcut = unit.downsample(x)
    assert torch.equal(unit(x), shortcut.relu() if unit.activate_sum else shortcut)


def test_shortcut_a_takes_every_second_pixel_and_adds_channels_of_zeros():
    x = draw(2, 3, 5, 6)
    out = blocks.make_shortcut("A", 3, 7, 2, nn.BatchNorm2d)(x)
    assert torch.equal(out[:, :3], x[:, :, ::2, ::2]) and not out[:, 3:].any() and out.shape == (2, 7, 3, 3)


@pytest.mark.parametrize(("kind", "same", "different"), [("A", 0, 0), ("B", 0, 1), ("C", 1, 1)])
def test_shortcuts_project_where_they_should(kind, same, different):
    def projections(*args):
        shortcut = blocks.make_shortcut(kind, *args, nn.BatchNorm2d)
        return sum(isinstance(module, nn.Conv2d) for module in shortcut.modules())

    assert projections(4, 4, 1) == same
    assert projections(4, 8, 2) == projections(4, 8, 1) == projections(4, 4, 2) == different


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.Identity], ids=["batch norm", "no norm"])
@pytest.mark.parametrize("slope", [0.0, 0.1])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("name", BLOCKS)
def test_every_parameter_gets_a_gradient(name, residual, slope, norm):
    torch.manual_seed(0)
    unit = BLOCKS[name](4, 8, 2, norm=norm, residual=residual, negative_slope=slope, shortcut="B")
    (unit(draw(4, 4, 6, 6)) * draw(4, 8 * unit.expansion, 3, 3, seed=1)).sum().backward()
    silent = [n for n, p in unit.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


@pytest.mark.parametrize("name", BLOCKS)
def test_gradients_agree_with_finite_differences(name):
    unit = make(name, 2, 2, negative_slope=0.1).double()
    x = draw(1, 2, 3, 3).double().requires_grad_(True)
    assert torch.autograd.gradcheck(unit, (x,))


def test_a_convolution_has_a_bias_exactly_where_no_norm_follows():
    for name in BLOCKS:
        for norm, expected in ((nn.BatchNorm2d, False), (nn.Identity, True)):
            unit = BLOCKS[name](4, 8, 2, norm=norm, shortcut="B")
            convolutions = [module for module in unit.modules() if isinstance(module, nn.Conv2d)]
            assert {module.bias is not None for module in convolutions} == {expected}


def test_he_keeps_a_relu_signal_and_pytorchs_default_loses_it():
    layer = nn.Conv2d(64, 64, 3, padding=1)
    kept = layer.weight.clone()
    blocks.initialise(layer, "pytorch")
    assert torch.equal(layer.weight, kept)
    assert layer.weight.var().item() == pytest.approx(1 / (3 * 64 * 9), rel=0.05)
    blocks.initialise(layer, "he")
    assert layer.weight.var().item() == pytest.approx(2 / (64 * 9), rel=0.05)
    assert not layer.bias.any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make("basic", 4, 4, shortcut="D"), "shortcut='D' is not one of A, B, C"),
        (
            lambda: make("basic", 8, 4, shortcut="A"),
            "shortcut A can only add channels, not go from 8 to 4; use 'B' or 'C'",
        ),
        (lambda: make("basic", 4, 4, groups=2), "BasicBlock has no grouped form .*use block='bottleneck'"),
        (lambda: make("survey", 4, 4, width_per_group=4), "SurveyBlock has no grouped form"),
        (
            lambda: make("bottleneck", 4, 4, groups=2, width_per_group=4),
            "width_per_group=4 leaves no channel a group at",
        ),
        (lambda: blocks.initialise(nn.ReLU(), "xavier"), "init='xavier' is not one of 'he', 'pytorch'"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
