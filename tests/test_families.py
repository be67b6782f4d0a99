"""The families are the published ones: counts to the digit, the logits of torchvision and timm, nonsense refused."""

from dataclasses import replace

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resnet_lib import families, resnets
from resnet_lib.families import DenseNetConfig, InceptionConfig
from tests.test_resnets import filled

PUBLISHED = {  # name → parameters, billions of multiply-adds, side of the pictures
    "densenet121": (7_978_856, 2.834, 224),
    "densenet169": (14_149_480, 3.360, 224),
    "inception_v4": (42_679_816, 12.254, 299),
    "inception_resnet_v2": (55_843_464, 13.156, 299),
}
SMALL = {
    "densenet": families.DenseNet(DenseNetConfig((2, 3), 4, 8, stem="cifar", num_classes=7)),
    "inception_v4": families.Inception(InceptionConfig("v4", (1, 1, 1), 0.05, "cifar", num_classes=7)),
    "inception_resnet_v2": families.Inception(InceptionConfig("resnet_v2", (1, 1, 1), 0.05, "cifar", num_classes=7)),
    "resnext": resnets.ResNet(families.resnext_config((1, 1), 16, 8, 4, num_classes=7)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones_to_the_digit_and_multiply_adds_too(name):
    parameters, billions, side = PUBLISHED[name]
    with torch.device("meta"):
        model, image = getattr(families, f"{name}_imagenet")().eval(), torch.empty(1, 3, side, side)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    assert resnets.count_parameters(model) == parameters
    assert round(counter.get_total_flops() / 2e9, 3) == billions


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_weights_of_others_give_the_same_logits(name):
    """DenseNet's load by name; Inception's by their order, which is that of the layers in both."""
    library = torchvision.models if hasattr(torchvision.models, name) else timm.models
    with torch.device("meta"):
        theirs, ours = getattr(library, name)(), getattr(families, f"{name}_imagenet")()
    generator = torch.Generator().manual_seed(0)
    theirs, ours = filled(theirs, generator), ours.to_empty(device="cpu").eval()
    found = theirs.state_dict()
    if name.startswith("inception"):
        own = ours.state_dict()
        assert [v.shape for v in found.values()] == [v.shape for v in own.values()]
        found = dict(zip(own, found.values(), strict=True))
    ours.load_state_dict(found, strict=True)
    images = torch.randn(2, 3, 107, 139, generator=generator)  # oblong, and every reduction keeps more than a pixel
    with torch.no_grad():
        expected, logits = theirs(images[:, :, :96, :128]), ours(images[:, :, :96, :128])
    assert (expected[0] - expected[1]).abs().max() > 1e-2 * expected.abs().max()  # the pictures came through
    assert (expected - logits).abs().max() <= 1e-4 * expected.abs().max()


def test_small_networks_of_the_papers_have_their_published_sizes():
    with torch.device("meta"):
        resnext = resnets.ResNet(families.resnext_config((3, 3, 3), 64, 512, 8))
        dense = families.DenseNet(DenseNetConfig((16, 16, 16), 12, 24, stem="cifar", num_classes=10))
    assert round(resnets.count_parameters(resnext) / 1e6, 1) == 34.4  # ResNeXt-29, 8×64d: Xie et al., table 6
    assert (
        round(resnets.count_parameters(dense) / 1e6, 1) == 0.8
    )  # DenseNet-BC, 100 layers, k = 12: Huang et al., table 2
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in dense.modules()) == 100


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("sides", [(32, 32), (9, 14), (1, 1)])
def test_small_picture_variants_take_any_size_and_every_parameter_gets_a_gradient(name, sides):
    model = SMALL[name].train()
    model.zero_grad(set_to_none=True)
    logits = model(torch.randn(4, 3, *sides))
    assert logits.shape == (4, 7)
    logits.square().sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    if sides == (32, 32):
        assert not [n for n, p in model.named_parameters() if not p.grad.any()]


def test_a_dense_block_passes_on_its_input_untouched_and_each_layer_appends_the_growth():
    block = families.DenseBlock(families.DenseLayer(6, 4, 16), families.DenseLayer(10, 4, 16))
    x = torch.randn(2, 6, 5, 5)
    out = block.eval()(x)
    assert out.shape == (2, 14, 5, 5) and torch.equal(out[:, :6], x)
    assert torch.equal(out[:, 10:], block[1](x, block[0](x)))


def test_the_plain_twin_of_an_inception_resnet_has_its_weights_and_lacks_its_additions():
    config = InceptionConfig("resnet_v2", (1, 1, 1), 0.05, "cifar", num_classes=7)
    ours, twin = families.Inception(config).eval(), families.Inception(replace(config, residual=False)).eval()
    twin.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(2, 3, 16, 16)
    assert not torch.allclose(ours(images), twin(images))
    unit = next(unit for unit in ours.units() if isinstance(unit, families.AddedPaths))
    nn.init.zeros_(unit.conv.weight), nn.init.zeros_(unit.conv.bias)
    x = torch.randn(2, unit.conv.out_channels, 4, 4)
    assert torch.equal(unit(x), x.relu())


@pytest.mark.parametrize("name", ["inception_v4", "inception_resnet_v2"])
def test_a_picture_smaller_than_the_stem_needs_is_refused_and_the_smallest_allowed_is_taken(name):
    with torch.device("meta"):
        model = getattr(families, f"{name}_imagenet")().eval()
        assert model(torch.empty(1, 3, 75, 75)).shape == (1, 1000)
        with pytest.raises(
            ValueError, match=r"74×80 pixels are too small .* at least 75; resize them, or use stem='cifar'"
        ):
            model(torch.empty(1, 3, 74, 80))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: families.resnext_config((1,), 16, 12, 5), "cardinality=5 must divide .* allowed: 1, 2, 3, 4, 6, 12"),
        (lambda: families.resnext_config((1,), 16, 0, 1), "inner=0 channels; allowed: none"),
        (lambda: families.resnext_config((1,), 192, 8, 4), "must be a multiple of width / 64 = 3"),
        (lambda: DenseNetConfig((6, 0)), r"blocks\[1\]=0 must be a whole number of at least 1"),
        (lambda: DenseNetConfig(()), r"len\(blocks\)=0 must be"),
        (lambda: DenseNetConfig((6,), growth=1.5), "growth=1.5 must be a whole number"),
        (lambda: DenseNetConfig((6,), stem="mnist"), "stem='mnist' is not one of 'imagenet', 'cifar'"),
        (lambda: DenseNetConfig((6,), compression=0.0), "compression=0.0 must be above 0 and at most 1"),
        (lambda: InceptionConfig("v3"), "kind='v3' is not one of 'v4', 'resnet_v2'"),
        (lambda: InceptionConfig(modules=(4, 7)), "must name three kinds"),
        (lambda: InceptionConfig(modules=(4, 7, 0)), r"modules\[2\]=0 must be"),
        (lambda: InceptionConfig(width=0.0), "width=0.0 must be above 0"),
        (lambda: InceptionConfig(residual=False), "residual=False fits kind='resnet_v2' only"),
    ],
)
def test_a_shape_that_is_nonsense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
