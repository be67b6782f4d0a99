"""The U-Net: equal parameters whatever is cut, skips that carry what they should, clear refusals."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnet_lib import probes, train
from resnet_lib.unet import UNet, UNetConfig

WIDTHS = (4, 8, 16)


def make(**changes):
    with train.seeded(0):
        return UNet(UNetConfig(WIDTHS, **changes)).double().eval()


def parameters(**changes):
    return sum(p.numel() for p in make(**changes).parameters())


@pytest.mark.parametrize("join", ["concatenate", "add"])
@pytest.mark.parametrize("skips", [(), (0,), (1,), (0, 1)])
def test_cutting_a_skip_changes_no_parameter(join, skips):
    assert parameters(join=join, skips=skips) == parameters(join=join)


def test_cutting_a_skip_changes_no_flops():
    from torch.utils.flop_counter import FlopCounterMode

    def flops(**changes):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            make(**changes)(torch.zeros(1, 3, 8, 8, dtype=torch.float64))
        return counter.get_total_flops()

    assert flops(skips=()) == flops() > 0
    assert flops(skips=(), join="add") == flops(join="add") > 0


def test_a_narrow_cut_saves_the_weights_of_the_missing_maps():
    saved = [parameters() - parameters(skips=kept, cut="narrow") for kept in ((1,), (0,), ())]
    assert saved == [9 * 4 * 4, 9 * 8 * 8, 9 * 4 * 4 + 9 * 8 * 8]
    assert parameters(skips=(), cut="narrow") == parameters(join="add")


def test_parameters_are_those_of_its_convolutions():
    convolutions = [(3, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16), (16, 8), (8, 8), (8, 4), (4, 4)]
    expected = sum(9 * i * o + 2 * o for i, o in convolutions)  # each with scale and shift of its norm
    expected += 4 * 16 * 8 + 8 + 4 * 8 * 4 + 4 + 4 * 3 + 3  # up-convolutions and head
    assert parameters() == expected


@pytest.mark.parametrize("join", ["concatenate", "add"])
def test_a_skip_carries_detail_past_the_bottleneck_only_where_it_is_kept(join):
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for kept in ((), (1,), (0,), None):
        model = make(skips=kept, join=join)
        model.bottleneck.register_forward_hook(lambda module, x, y: y * 0)
        first, second = model(images)
        assert torch.allclose(first, second) == (kept == ()), "past a silent bottleneck, only skips tell pictures apart"


def test_without_skips_the_decoder_sees_its_own_map_twice():
    x, skip = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    assert torch.equal(make(skips=()).join(x, skip, 0), torch.cat([x, x], 1))
    assert torch.equal(make(skips=(0,)).join(x, skip, 0), torch.cat([x, skip], 1))
    assert torch.equal(make(skips=(), cut="narrow").join(x, skip, 0), x)
    assert torch.equal(make(join="add").join(x, skip, 0), x + skip)
    assert torch.equal(make(join="add", skips=()).join(x, skip, 0), x)


def test_it_is_the_composition_of_its_parts():
    model, x = make(), torch.randn(2, 3, 8, 12, dtype=torch.float64)
    fine = model.encoder[0](x)
    middle = model.encoder[1](F.max_pool2d(fine, 2))
    low = model.bottleneck(F.max_pool2d(middle, 2))
    middle = model.decoder[1](torch.cat([model.up[1](low), middle], 1))
    fine = model.decoder[0](torch.cat([model.up[0](middle), fine], 1))
    assert torch.allclose(model(x), model.head(fine))


def test_units_are_listed_in_the_order_they_run():
    for convolutions in (1, 3):
        model = make(convolutions=convolutions)
        units = model.units()
        with probes.outputs(units) as outputs:
            model(torch.zeros(1, 3, 8, 8, dtype=torch.float64))
        places = [(4, 8)] * convolutions + [(8, 4)] * convolutions + [(16, 2)] * convolutions
        places += [(8, 4)] * convolutions + [(4, 8)] * convolutions
        assert [(out.shape[1], out.shape[2]) for out in outputs] == places
        assert [unit[0].out_channels for unit in units] == [channels for channels, _ in places]


def test_a_convolution_has_a_bias_only_where_no_norm_follows():
    for norm, has_bias in (("batch", False), ("none", True)):
        model = make(norm=norm)
        found = {unit[0].bias is not None for unit in model.units()}
        assert found == {has_bias}
        assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == (norm == "batch")


def test_up_convolutions_and_head_keep_the_size_of_the_signal():
    with train.seeded(0):
        model = UNet(UNetConfig((64, 256), norm="none"))
        x = torch.randn(8, 256, 16, 16)
        assert model.up[0](x).std().item() == pytest.approx(1, abs=0.1)
        assert model.head(torch.randn(8, 64, 16, 16)).std().item() == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize(
    ("sides", "words"),
    [
        ((30, 32), "30×32 pixels.*2 times.*multiples of 4.*28×32 or 32×32"),
        ((8, 3), "8×3 pixels.*8×4"),
        ((9, 9), "8×8 or 12×12"),
    ],
)
def test_a_picture_that_does_not_divide_is_refused(sides, words):
    with pytest.raises(ValueError, match=words):
        UNet(UNetConfig(WIDTHS))(torch.zeros(1, 3, *sides))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"widths": (8,)}, "at least two resolutions"),
        ({"widths": (8, 0)}, r"widths\[1\]=0"),
        ({"skips": (2,)}, "no level 2; 0 … 1"),
        ({"skips": (-1,)}, "no level -1"),
        ({"join": "sum"}, "'concatenate', 'add'"),
        ({"cut": "none"}, "'repeat', 'narrow'"),
        ({"norm": "layer"}, "'batch', 'none'"),
        ({"convolutions": 0}, "convolutions=0"),
        ({"out_channels": 1.5}, "out_channels=1.5"),
    ],
)
def test_nonsense_is_refused_at_construction(changes, words):
    with pytest.raises(ValueError, match=words):
        UNetConfig(**{"widths": WIDTHS} | changes)


def test_it_traces_exports_and_trains():
    model = make().train()
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    assert torch.allclose(torch.fx.symbolic_trace(model.eval())(x), model(x))
    exported = torch.export.export(model, (x,)).module()
    assert torch.allclose(exported(x), model(x))
    model.train()(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
