"""The relatives are the published ones: counts to the digit, others' weights load, nonsense is refused."""

from dataclasses import replace

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resnet_lib import families, resnets

# parameters, and multiply-adds in units of 10⁶ at the side that is published
PUBLISHED = {
    "resnext50_32x4d": (25_028_904, 4_230, 224),
    "resnext101_32x8d": (88_791_336, 16_414, 224),
    "densenet121": (7_978_856, 2_834, 224),
    "densenet169": (14_149_480, 3_360, 224),
    "inception_v4": (42_679_816, 12_254, 299),
    "inception_resnet_v2": (55_843_464, 13_156, 299),
}
SMALL = families.DenseNetConfig((2, 2), growth=4, first=8, stem="cifar", num_classes=5)


def make(name):
    return getattr(families, f"{name}_imagenet", None) or getattr(resnets, f"{name}_imagenet")


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_multiply_adds_are_the_published_ones(name):
    parameters, millions, side = PUBLISHED[name]
    with torch.device("meta"):
        model, image = make(name)().eval(), torch.empty(1, 3, side, side)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image)
    assert resnets.count_parameters(model) == parameters
    assert round(counter.get_total_flops() / 2e6) == millions


def theirs(name):
    if not name.startswith("inception"):
        return getattr(torchvision.models, name)
    timm = pytest.importorskip("timm")
    return {"inception_v4": timm.models.InceptionV4, "inception_resnet_v2": timm.models.InceptionResnetV2}[name]


@pytest.mark.parametrize("name", ["densenet121", "inception_v4", "inception_resnet_v2"])
def test_others_weights_in_their_order_give_the_same_logits(name):
    published = theirs(name)
    with torch.device("meta"):  # no draw of weights that are replaced at once
        other, ours = published(), make(name)()
    other, generator = other.to_empty(device="cpu").eval(), torch.Generator().manual_seed(0)
    for key, value in other.state_dict().items():
        if value.ndim > 1:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif value.dtype.is_floating_point and ("weight" in key or "var" in key):
            value.uniform_(0.8, 1.0, generator=generator)
        else:
            value.zero_()
    ours = ours.to_empty(device="cpu").eval()
    weights = zip(ours.state_dict(), other.state_dict().values(), strict=True)
    ours.load_state_dict(dict(weights), strict=True)
    images = torch.randn(1, 3, 96, 101, generator=generator)
    with torch.no_grad():
        expected, found = other(images), ours(images)
    assert expected.std() > 1e-3  # a signal came through
    assert (expected - found).abs().max() <= 1e-4 * expected.abs().max()


def test_a_dense_layer_keeps_what_it_was_given_and_adds_its_growth():
    layer, x = families.DenseLayer(8, 4, 16).eval(), torch.randn(2, 8, 5, 6)
    assert layer(x).shape == (2, 12, 5, 6) and torch.equal(layer(x)[:, :8], x)


def test_a_unit_that_adds_is_its_input_where_its_branches_give_nothing():
    unit, x = families.Added(6, 0.1, [(4, "1")], [(4, "1"), (8, "1x3")]), torch.rand(2, 6, 5, 5)
    nn.init.zeros_(unit.expand.weight), nn.init.zeros_(unit.expand.bias)
    assert torch.equal(unit(x), x)
    assert unit.branches(x).shape == (2, 12, 5, 5)


def test_a_small_densenet_takes_small_pictures_of_any_shape_and_learns_from_every_layer():
    model = families.DenseNet(SMALL)
    model(torch.randn(4, 3, 8, 12)).logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: families.densenet121_imagenet()(torch.zeros(1, 3, 28, 40)), "28×40 is too small: .* at least 29"),
        (lambda: families.inception_v4_imagenet()(torch.zeros(1, 3, 74, 90)), "74×90 is too small: .* at least 75"),
        (lambda: replace(SMALL, blocks=(2, 0)), r"blocks\[1\]=0 must be a whole number of at least 1"),
        (lambda: replace(SMALL, growth=0), "growth=0 must be a whole number of at least 1"),
        (lambda: replace(SMALL, compression=0.0), "compression=0.0 must be above 0 and at most 1"),
        (lambda: replace(SMALL, stem="small"), "stem='small' is not one of 'imagenet', 'cifar'"),
        (lambda: families.InceptionConfig((1, 2)), r"blocks=\(1, 2\) must say how many of A, B and C there are"),
        (lambda: families.InceptionConfig((1, 2, 3), stem="cifar"), "the stem 'imagenet' alone"),
    ],
)
def test_nonsense_is_refused_with_the_value_and_the_rule(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("name", "least"), [("densenet121", 29), ("inception_v4", 75), ("inception_resnet_v2", 75)])
def test_the_smallest_picture_that_is_taken_leaves_a_pixel(name, least):
    with torch.device("meta"):
        assert make(name)().eval()(torch.empty(1, 3, least, least)).shape == (1, 1000)
