"""The networks are the published ones: torchvision's weights load, the counts hold, nonsense is refused."""

from dataclasses import replace

import pytest
import torch
import torchvision
from torch import nn

from resnet_lib import resnets
from resnet_lib.blocks import BLOCKS
from resnet_lib.resnets import ResNet, ResNetConfig, resnet_cifar

IMAGENET = {  # name → parameters in millions, as published
    "resnet18": 11.69,
    "resnet34": 21.80,
    "resnet50": 25.56,
    "resnet101": 44.55,
    "resnet152": 60.19,
    "wide_resnet50_2": 68.88,
    "resnext50_32x4d": 25.03,
    "resnext101_32x8d": 88.79,
}
TINY = ResNetConfig((1, 1), (4, 8))


def filled(model, generator):
    """A network from the meta device with weights under which a signal comes through, in evaluation mode."""
    model = model.to_empty(device="cpu").eval()
    for key, value in model.state_dict().items():
        if value.ndim > 1:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif value.dtype.is_floating_point:
            value.uniform_(0.2, 0.5, generator=generator) if "weight" in key or "var" in key else value.zero_()
        else:
            value.zero_()
    return model


@pytest.mark.parametrize("name", IMAGENET)
def test_torchvisions_weights_load_and_give_the_same_logits(name):
    with torch.device("meta"):  # no draw of weights that are replaced at once
        theirs, ours = getattr(torchvision.models, name)(), getattr(resnets, f"{name}_imagenet")()
    generator = torch.Generator().manual_seed(0)
    theirs, ours = filled(theirs, generator), ours.to_empty(device="cpu").eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert round(resnets.count_parameters(ours) / 1e6, 2) == IMAGENET[name]
    images = torch.randn(1, 3, 64, 64, generator=generator)
    with torch.no_grad():
        expected, found = theirs(images), ours(images)
    assert expected.std() > 1e-3  # a signal came through
    assert (expected - found).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("depth", "millions", "digits"),
    [(20, 0.27, 2), (32, 0.46, 2), (44, 0.66, 2), (56, 0.85, 2), (110, 1.7, 1), (1202, 19.4, 1)],
)
def test_cifar_networks_have_the_published_sizes(depth, millions, digits):
    with torch.device("meta"):
        model = resnet_cifar(depth)
    assert round(resnets.count_parameters(model) / 1e6, digits) == millions
    assert model.config.depth == depth == sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules())


@pytest.mark.parametrize("depth", [8, 14, 20])
def test_a_plain_twin_has_the_same_parameters_with_shortcut_a(depth):
    torch.manual_seed(0)
    ours = resnet_cifar(depth)
    torch.manual_seed(0)
    twin = resnet_cifar(depth, residual=False)
    assert ours.state_dict().keys() == twin.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), twin.state_dict().values(), strict=True))
    images = torch.randn(2, 3, 8, 8)
    assert not torch.allclose(ours(images), twin(images))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("stem", resnets.STEMS)
def test_any_block_and_stem_take_any_size_of_image(block, stem):
    model = ResNet(replace(TINY, block=block, stem=stem, shortcut="B", num_classes=7)).eval()
    for height, width in ((32, 32), (33, 40)):
        images = torch.randn(2, 3, height, width)
        scale = 8 if stem == "imagenet" else 2
        assert model(images).shape == (2, 7)
        expected = (2, 8 * BLOCKS[block].expansion, -(-height // scale), -(-width // scale))
        assert model.features(images).shape == expected


@pytest.mark.parametrize("norm", resnets.NORMS)
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("block", BLOCKS)
def test_every_parameter_gets_a_gradient(block, residual, norm):
    torch.manual_seed(0)
    model = ResNet(replace(TINY, block=block, residual=residual, norm=norm, shortcut="B"))
    model(torch.randn(4, 3, 8, 8)).square().sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("block", [name for name in BLOCKS if name != "preactivation"])
def test_zero_initialisation_leaves_only_the_shortcuts(block):
    model = ResNet(replace(TINY, block=block, shortcut="B", zero_init_last_norm=True)).eval()
    x = model.relu(model.bn1(model.conv1(torch.randn(2, 3, 8, 8))))
    for unit in model.units():
        expected = unit.downsample(x)
        expected = expected.relu() if unit.activate_sum else expected
        x = unit(x)
        assert torch.equal(x, expected)


def test_preactivated_networks_end_in_the_norm_and_activation_their_units_begin_with():
    model = ResNet(replace(TINY, block="preactivation", shortcut="B")).eval()
    assert isinstance(model.bn1, nn.Identity) and isinstance(model.final[0], nn.BatchNorm2d)
    assert (model.features(torch.randn(2, 3, 8, 8)) >= 0).all()
    survey = ResNet(replace(TINY, block="survey_preactivation", shortcut="B"))
    assert isinstance(survey.final[0], nn.Identity)  # its units end in a norm already


def test_named_networks_take_changes():
    with torch.device("meta"):
        assert resnets.resnet18_cifar().fc.out_features == 10
        assert resnets.resnet18_cifar().conv1.kernel_size == (3, 3)
        assert resnets.resnet50_imagenet(num_classes=5).fc.out_features == 5
        assert resnets.resnet20_cifar(shortcut="B").config == replace(resnets.cifar_config(20), shortcut="B")
        assert resnet_cifar(29, block="bottleneck", shortcut="B").config.depth == 29


def test_units_come_from_first_to_last():
    with torch.device("meta"):
        widths = [unit.out_channels for unit in resnet_cifar(20).units()]
    assert widths == [16] * 3 + [32] * 3 + [64] * 3


@pytest.mark.parametrize(
    ("depth", "block", "message"),
    [
        (21, "basic", r"depth=21 fits no CIFAR ResNet of 'basic' units: it must be 6n \+ 2 .*nearest: 20 or 26"),
        (18, "basic", "nearest: 14 or 20"),
        (2, "basic", "nearest: 8$"),
        (-4, "basic", "nearest: 8$"),
        (21, "bottleneck", r"must be 9n \+ 2 .*nearest: 20 or 29"),
        (20, "fancy", "block='fancy' is not one of 'basic', 'bottleneck'"),
    ],
)
def test_a_depth_that_fits_no_resnet_is_refused(depth, block, message):
    with pytest.raises(ValueError, match=message):
        resnet_cifar(depth, block=block)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stem": "mnist"}, "stem='mnist' is not one of 'imagenet', 'cifar'"),
        ({"block": "dense"}, "block='dense' is not one of 'basic'"),
        ({"shortcut": "D"}, "shortcut='D' is not one of 'A', 'B', 'C'"),
        ({"norm": "layer"}, "norm='layer' is not one of 'batch', 'none'"),
        ({"init": "xavier"}, "init='xavier' is not one of 'he', 'pytorch'"),
        ({"blocks": (1,)}, r"blocks=\(1,\) and widths=\(4, 8\) must name the same stages"),
        ({"blocks": (), "widths": ()}, "at least one"),
        ({"blocks": (1, 0)}, r"blocks\[1\]=0 must be a whole number of at least 1"),
        ({"widths": (4, 8.0)}, r"widths\[1\]=8.0 must be a whole number"),
        ({"num_classes": 0}, "num_classes=0 must be"),
        ({"in_channels": -1}, "in_channels=-1 must be"),
        ({"width_per_group": 0}, "width_per_group=0 must be"),
        ({"zero_init_last_norm": True, "norm": "none"}, "zero_init_last_norm=True needs norm='batch'"),
        ({"zero_init_last_norm": True, "residual": False}, "zero_init_last_norm=True needs residual=True"),
        ({"zero_init_last_norm": True, "block": "preactivation"}, "does not fit block='preactivation'"),
    ],
)
def test_a_config_that_is_nonsense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)
