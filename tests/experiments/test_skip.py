"""What decides the skip chapter's verdicts, on rows and tensors made by hand."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from resnet_lib import data, train, unet
from resnet_lib.experiments import skip
from resnet_lib.experiments.skip import (
    capacity,
    gan,
    gradients,
    joins,
    networks,
    pix2pix,
    playing,
    reconstruction,
    sizes,
)
from tests.experiments.conftest import settings

SEEDS = (0, 1, 2)


def drawn(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def each(column, without, with_skips, **common):
    """A row a seed for either kind, the seeds of one in the opposite order, so that only pairing by seed is right."""
    kinds = {"without": list(enumerate(without)), "with skips": list(enumerate(with_skips))[::-1]}
    return [common | {"kind": kind, "seed": n, column: v} for kind, values in kinds.items() for n, v in values]


# ---------------------------------------------------------------- joins


class TwoSizes(nn.Module):
    """x goes down and up again: one skip from x itself, one sum on the way that began at another size."""

    def forward(self, x):
        half = nn.functional.max_pool2d(x, 2)
        small = half + half.relu()
        wide = nn.functional.interpolate(small, scale_factor=2.0)
        return torch.relu(torch.cat([wide, x], 1))


def test_a_join_is_told_by_its_kind_its_origin_and_what_follows():
    found = joins.joins_in(TwoSizes())
    assert found == [
        {"kind": "add", "other_size": False, "direct": False, "nonlinear": False},
        {"kind": "concatenate", "other_size": False, "direct": False, "nonlinear": True},
    ]


class Downsampling(nn.Module):
    """Both operands are smaller than where they come from, and one is broadcast."""

    def forward(self, x):
        a, b = nn.functional.avg_pool2d(x, 2), nn.functional.max_pool2d(x, 2)
        return (a + b) + nn.functional.adaptive_avg_pool2d(x, 1)


def test_an_origin_of_another_size_and_operands_of_different_sizes_are_two_questions():
    first, second = joins.joins_in(Downsampling())
    assert first["other_size"] and not first["direct"]
    assert second["other_size"] and second["direct"]


class NoJoin(nn.Module):
    def forward(self, x):
        return torch.cat([x * torch.relu(x)], 2) + 1


def test_one_input_or_a_product_is_no_join():
    assert joins.joins_in(NoJoin()) == []


def test_a_u_net_has_one_concatenation_a_level_between_maps_of_one_size():
    with torch.device("meta"):
        found = joins.joins_in(unet.UNet(unet.UNetConfig((4, 8, 16))))
    assert [r["kind"] for r in found] == ["concatenate"] * 2
    assert not any(r["other_size"] or r["direct"] or r["nonlinear"] for r in found)


def test_joins_count_networks_not_joins_of_another_size_and_the_share_of_all_joins():
    row = {"kind": "add", "other_size": False, "direct": False, "nonlinear": False}
    rows = [row | {"network": "A", "other_size": True}] * 3 + [row | {"network": "B", "direct": True}]
    rows += [row | {"network": "C", "nonlinear": True, "direct": True}]
    found = joins.estimates(rows, settings())
    assert found["networks_of_different_sizes"].mean == 1
    assert found["direct"].mean == 2
    assert found["nonlinearity_share"].mean == pytest.approx(0.2)
    assert joins.by_network(rows)[0] == {
        "network": "A", "joins": 3, "kinds": "add", "other_size": 3, "direct": 0, "nonlinear": 0,
    }  # fmt: skip


def test_a_pyramids_backbone_counts_once():
    row = {"kind": "add", "other_size": True, "direct": False, "nonlinear": True}
    backbone = [row] * 3
    own = [row | {"other_size": False, "nonlinear": False}] * 2
    rows = [r | {"network": joins.BACKBONE} for r in backbone]
    rows += [r | {"network": joins.PYRAMID} for r in backbone + own]
    found = joins.estimates(rows, settings())
    assert found["networks_of_different_sizes"].mean == 1
    assert found["nonlinearity_share"].mean == pytest.approx(3 / 5)


# ---------------------------------------------------------------- sizes


def test_every_way_to_halve_does_what_it_is_called():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    made = {how: sizes.Halve(how, 0)(x)[0, 0].tolist() for how in sizes.FREE}
    assert made["every second pixel"] == [[0, 2], [8, 10]]
    assert made["average"] == [[2.5, 4.5], [10.5, 12.5]]
    assert made["largest"] == [[5, 7], [13, 15]]
    assert made["crop"] == [[5, 6], [9, 10]]
    assert made["no shortcut"] == [[0, 0], [0, 0]]


def test_new_channels_are_zeros_behind_the_old_ones_and_odd_sides_round_up():
    made = sizes.Halve("largest", 2)(torch.ones(1, 1, 5, 7))
    assert made.shape == (1, 3, 3, 4)
    assert (made[:, 0] == 1).all() and (made[:, 1:] == 0).all()


def test_only_the_halving_units_change_their_shortcut_and_only_projections_have_parameters():
    s = settings(size_depth=8)
    for how in (*sizes.FREE, *sizes.PROJECTED):
        units = sizes.with_shortcut(s, how).units()
        halving = [unit for unit in units if unit.stride == 2]
        assert len(halving) == 2
        for unit in halving:
            assert (sum(p.numel() for p in unit.downsample.parameters()) > 0) == (how in sizes.PROJECTED)
            if how in sizes.FREE:
                assert unit.downsample.how == how
            if how == "average, project":
                assert unit.downsample[0].how == "average" and unit.downsample[1].stride == (1, 1)


def test_a_way_gains_what_its_error_is_below_that_without_a_shortcut_by_seed():
    rows = [{"how": sizes.FREE[0], "seed": n, "val_error": v, "train_error": 0} for n, v in enumerate((0.5, 0.6, 0.9))]
    lower = {how: 0.01 * k for k, how in enumerate((*sizes.FREE[1:], *sizes.PROJECTED), 1)}
    for how, by in lower.items():
        rows += [rows[n] | {"how": how, "val_error": rows[n]["val_error"] - by} for n in (2, 0, 1)]
    found = sizes.estimates(rows, settings(size_depth=8))
    assert {name: round(e.mean, 6) for name, e in found.items()} == {
        "crop_gain": 0.01,
        "every_second_pixel_gain": 0.02,
        "average_gain": 0.03,
        "largest_gain": 0.04,
        "project_gain": 0.05,
        "average_project_gain": 0.06,
    }
    assert all(e.sd == pytest.approx(0, abs=1e-9) for e in found.values()), "partners are of one seed"


# ---------------------------------------------------------------- gradients


def gradient_rows():
    rows = []
    for shift, arm in enumerate(gradients.ARMS):
        for n in SEEDS:
            for kind, spread in (("without", 5 + n + shift), ("with skips", 2 + n)):
                common = {"arm": arm, "kind": kind, "seed": n}
                rows.append(common | {"what": "spread", "convolutions": 8, "spread": spread})
                rows.append(common | {"what": "spread", "convolutions": 2, "spread": 99 * (kind == "without")})
                rows.append(common | {"what": "norm", "convolutions": 8, "unit": 1, "decades": 50})
                amid = {"what": "norm", "convolutions": 8, "unit": 20}  # two levels of 8, and half of the bottleneck's
                rows.append(common | amid | {"decades": (2 if kind == "without" else 1 - shift) + n})
            for convolutions, value in ((8, 0.5 - shift), (2, 77)):
                path = {"what": "paths", "convolutions": convolutions, "skips_over_bottleneck": value}
                rows.append({"arm": arm, "kind": "with skips", "seed": n} | path)
    return rows


def test_each_arm_has_its_spread_its_gain_what_is_left_and_the_path_that_leads_at_the_most_convolutions():
    found = gradients.estimates(gradient_rows(), settings(widths=[4, 8, 16], init_convolutions=[2, 8]))
    for shift, name in enumerate(("default", "plain", "batch_norm")):
        assert found[f"{name}_gain"].mean == 3 + shift
        assert found[f"{name}_spread"].mean == 6 + shift and found[f"{name}_remaining"].mean == 3
        assert found[f"{name}_skips_over_bottleneck"].mean == 0.5 - shift
        assert found[f"{name}_bottleneck_change"].mean == -1 - shift


def test_pytorchs_default_weights_stand_in_the_convolutions_of_units_alone():
    with train.seeded(0):
        he = unet.UNet(unet.UNetConfig((16, 32), norm="none", convolutions=2))
        kept = [p.detach().clone() for m in (*he.up, he.head) for p in m.parameters()]
        default = gradients.with_defaults(he)
    for unit in default.units():
        fan_in = unit[0].weight[0].numel()
        assert unit[0].weight.var().item() == pytest.approx(1 / (3 * fan_in), rel=0.2)
    assert all(
        torch.equal(a, b) for a, b in zip(kept, [p for m in (*he.up, he.head) for p in m.parameters()], strict=True)
    )


def test_theory_divides_the_squared_gradient_by_six_at_each_unit_under_default_weights():
    he, default = (gradients.predicted_decades([8, 16], WIDE, 2, False, gain=g) for g in (2.0, 1 / 3))
    passed = [len(he) - 1 - k for k in range(len(he))]  # units between this one and the last
    assert [a - b for a, b in zip(he, default, strict=True)] == pytest.approx([n * math.log10(6) / 2 for n in passed])


WIDE = 1 << 30  # maps without a border to speak of


def test_theory_ends_at_the_last_unit_and_has_one_value_a_unit():
    for norm in ("none", "batch"):
        found = gradients.predicted_decades([8, 16, 32], 16, 3, True, norm)
        assert len(found) == 5 * 3 and found[-1] == 0


@pytest.mark.parametrize("norm", ("none", "batch"))
def test_every_cut_join_gives_the_bottleneck_a_root_of_two_more_gradient(norm):
    for levels in (1, 2, 3):
        widths, middle = [16] * (levels + 1), levels * 2
        cut, kept = (gradients.predicted_decades(widths, WIDE, 2, k, norm)[middle] for k in (False, True))
        assert cut - kept == pytest.approx(levels * math.log10(2) / 2, abs=1e-6)


def test_equal_widths_without_borders_give_a_cut_network_a_level_gradient():
    """Worked by hand: nothing narrows and no tap is lost, so each factor is 1; the repeated map doubles every level."""
    found = gradients.predicted_decades([16, 16], WIDE, 2, False)
    assert found == pytest.approx([math.log10(2) / 2] * 4 + [0, 0], abs=1e-6)
    kept = gradients.predicted_decades([16, 16], WIDE, 2, True)
    assert kept == pytest.approx([math.log10(2) / 2] * 2 + [0] * 4, abs=1e-6)


def test_with_batch_norm_each_unit_passes_on_its_factor_and_each_side_of_a_join_half():
    """By hand, one convolution a level: f/2 comes by the skip and f²/2 by the bottleneck, which itself gets f/2."""
    f = 1 / (1 - 1 / math.pi)
    found = gradients.predicted_decades([16, 32], 8, 1, True, "batch")
    assert found == pytest.approx([math.log10(f / 2 + f * f / 2) / 2, math.log10(f / 2) / 2, 0])


def tiny_unet(**changes):
    torch.manual_seed(0)
    return unet.UNet(unet.UNetConfig((4, 8), in_channels=1, out_channels=1, norm="none", **changes)).double()


def test_the_two_paths_of_a_gradient_are_split_at_the_bottleneck():
    model, x = tiny_unet(), drawn(2, 1, 8, 8).double()
    loss = lambda: (model(x) - x).square().mean()  # noqa: E731
    weight = model.units()[0][0].weight
    whole = torch.autograd.grad(loss(), weight)[0]
    hook = model.bottleneck.register_forward_hook(lambda module, x, y: y.detach())
    skips = torch.autograd.grad(loss(), weight)[0]
    hook.remove()
    expected = math.log10(skips.norm() / (whole - skips).norm())
    assert networks.through_skips(model, loss) == pytest.approx(expected)
    before = model(x)
    networks.through_skips(model, loss)
    assert torch.equal(model(x), before), "and the network is as it was"


def test_a_louder_bottleneck_passes_more_of_the_gradient():
    model, x = tiny_unet(), drawn(2, 1, 8, 8).double()
    loss = lambda: model(x).sum()  # noqa: E731
    quiet = networks.through_skips(model, loss)
    with torch.no_grad():
        model.up[0].weight.mul_(1000)
    assert networks.through_skips(model, loss) < quiet


# ---------------------------------------------------------------- reconstruction


def test_psnr_is_minus_twenty_log_of_an_error_that_is_the_same_everywhere():
    clean = drawn(3, 2, 8, 8)
    assert reconstruction.psnr(clean + 0.1, clean).tolist() == pytest.approx([20, 20, 20], abs=1e-3)
    assert networks.psnr(clean, clean).tolist() == [100, 100, 100], "capped, so that a mean stays finite"
    assert networks.psnr(clean + torch.tensor([0.1, 0.01, 1.0]).view(3, 1, 1, 1), clean).tolist() == pytest.approx(
        [20, 40, 0], abs=1e-2
    ), "one value a picture"


def test_ssim_of_one_window_is_its_definition():
    a, b = drawn(1, 1, 11, 11).double(), drawn(1, 1, 11, 11, seed=1).double()
    bell = torch.exp(-(torch.arange(11.0).double() - 5).square() / 4.5)
    weight = torch.outer(bell, bell) / bell.sum() ** 2
    mean = lambda x: (weight * x[0, 0]).sum()  # noqa: E731
    m, n = mean(a), mean(b)
    var_a, var_b, cov = mean((a - m) ** 2), mean((b - n) ** 2), mean((a - m) * (b - n))
    by_hand = (2 * m * n + 1e-4) * (2 * cov + 9e-4) / ((m**2 + n**2 + 1e-4) * (var_a + var_b + 9e-4))
    assert reconstruction.ssim(a, b).item() == pytest.approx(by_hand.item(), abs=1e-9)


def test_ssim_is_one_of_itself_falls_with_noise_and_takes_small_pictures():
    clean = drawn(2, 3, 16, 16)
    little, much = (clean + size * torch.randn(clean.shape) for size in (0.05, 0.5))
    assert reconstruction.ssim(clean, clean).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert (reconstruction.ssim(little, clean) > reconstruction.ssim(much, clean)).all()
    assert reconstruction.ssim(clean[..., :8, :8], clean[..., :8, :8]).shape == (2,)


def test_a_wave_lies_in_the_band_of_its_cycles_and_no_energy_is_lost():
    for cycles in (0, 3, 8):
        wave = torch.cos(2 * math.pi * cycles * torch.arange(16) / 16).expand(1, 1, 16, 16)
        for picture in (wave, wave.transpose(2, 3)):
            energy = reconstruction.band_energy(picture)
            assert len(energy) == 9 and energy.argmax().item() == cycles
            assert energy[cycles].item() == pytest.approx(energy.sum().item())
    noise = drawn(4, 3, 16, 16)
    assert reconstruction.band_energy(noise).sum().item() == pytest.approx(
        noise.double().square().sum().item() * 16**2, rel=1e-6
    )


def generator():
    return torch.Generator().manual_seed(0)


def test_denoising_adds_half_a_deviation_of_noise_and_wants_the_picture():
    clean = torch.zeros(64, 3, 16, 16)
    seen, wanted = reconstruction.damage("denoise", clean, generator())
    assert torch.equal(wanted, clean)
    assert seen.std().item() == pytest.approx(0.5, rel=0.05) and abs(seen.mean().item()) < 0.01


def test_mirroring_sees_the_same_noise_and_wants_left_and_right_exchanged():
    clean = drawn(4, 3, 6, 8)
    seen, wanted = reconstruction.damage("mirror", clean, generator())
    assert torch.equal(seen, reconstruction.damage("denoise", clean, generator())[0])
    assert torch.equal(wanted[..., 0], clean[..., -1]) and not torch.equal(wanted, clean)


def test_inpainting_hides_a_square_of_half_the_side_in_all_channels_at_places_that_differ():
    clean = drawn(32, 3, 8, 12) + 1
    seen, wanted = reconstruction.damage("inpaint", clean, generator())
    assert torch.equal(wanted, clean)
    hidden = seen == 0
    assert (hidden.sum((1, 2, 3)) == 3 * 4 * 6).all()
    assert (hidden.all(1) == hidden.any(1)).all(), "the same hole in every channel"
    assert torch.equal(seen[~hidden], clean[~hidden]), "and nothing beside it"
    rows, columns = hidden[:, 0].any(2).sum(1), hidden[:, 0].any(1).sum(1)
    assert (rows == 4).all() and (columns == 6).all(), "a rectangle"
    assert len({tuple(one.flatten().tolist()) for one in hidden[:, 0]}) > 1


def test_colourising_sees_the_mean_of_the_channels_and_wants_them_all():
    clean = drawn(2, 3, 4, 4)
    seen, wanted = reconstruction.damage("colourise", clean, generator())
    assert torch.equal(wanted, clean) and seen.shape == clean.shape
    assert torch.allclose(seen[:, 0], clean.mean(1)) and torch.equal(seen[:, 0], seen[:, 2])


def test_a_silenced_bottleneck_says_nothing_for_one_pass_only():
    model, x = tiny_unet(skips=()).eval(), drawn(2, 1, 8, 8).double()
    with torch.no_grad():
        before, quiet = model(x), reconstruction.silenced(model, x)
        other = reconstruction.silenced(model, 5 * x)
        assert torch.allclose(quiet, other), "without skips all that is left are biases"
        assert not torch.allclose(before, quiet) and torch.equal(model(x), before)


def test_arms_cut_all_keep_one_and_keep_all():
    arms = reconstruction.arms(settings(widths=[4, 8, 16], facts={"shape": [3, 16, 16]}))
    assert arms == {
        "no skip": {"skips": ()},
        "only 16×16": {"skips": (0,)},
        "only 8×8": {"skips": (1,)},
        "all skips": {"skips": None},
    }
    sizes_of = [
        sum(p.numel() for p in unet.UNet(replace(unet.UNetConfig((4, 8, 16)), **change)).parameters())
        for change in arms.values()
    ]
    assert len(set(sizes_of)) == 1, "at equal parameters"


def split_of(images):
    return data.Split(images, torch.zeros(len(images), dtype=torch.long))


def pictures_of(images):
    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)
    split = split_of(images)
    return data.Dataset("made up", split, split, split, ("a", "b"), "0", mean, std, "")


class Same(nn.Module):
    """Returns what it sees, or what it sees mirrored; its bottleneck is in the way of all of it."""

    def __init__(self, mirrored=False):
        super().__init__()
        self.bottleneck, self.unused = nn.Identity(), nn.Parameter(torch.zeros(()))
        self.mirrored = mirrored

    def forward(self, x):
        x = self.bottleneck(x)
        return x.flip(3) if self.mirrored else x


def judged(model, task, pixels=None):
    pixels = (drawn(8, 3, 8, 8) * 255).byte() if pixels is None else pixels
    pictures = pictures_of(pixels)
    s = SimpleNamespace(pictures=pictures)
    return reconstruction.judge(s, model, task, pictures.test, train.TrainConfig(device="cpu"))


def test_a_network_that_returns_what_it_sees_is_as_good_as_what_it_sees_and_worse_silenced():
    score, *bands = judged(Same(), "denoise")
    assert score["psnr"] == pytest.approx(score["psnr_seen"]) and score["psnr"] > score["psnr_silenced"]
    assert [b["band"] for b in bands] == [0, 1, 2, 3, 4]
    assert judged(Same(mirrored=True), "mirror")[0]["psnr"] == pytest.approx(score["psnr"], abs=0.5)
    assert judged(Same(), "mirror")[0]["psnr"] < score["psnr"] - 3


def test_detail_is_the_share_of_energy_above_half_the_frequencies_that_is_right():
    fine = torch.zeros(8, 3, 8, 8, dtype=torch.uint8)
    fine[..., ::2] = 200  # stripes of four cycles, and a mean
    perfect = judged(Same(), "colourise", fine)
    assert perfect[0]["detail"] == pytest.approx(1, abs=1e-6) and perfect[5]["error_share"] < 1e-6

    class Grey(Same):
        def forward(self, x):
            return self.bottleneck(x).mean((2, 3), keepdim=True).expand(-1, -1, *x.shape[2:])

    blurred = judged(Grey(), "colourise", fine)
    assert blurred[0]["detail"] == pytest.approx(0, abs=1e-3), "the mean is right and all detail missing"
    assert blurred[1]["error_share"] < 1e-3 and blurred[5]["error_share"] == pytest.approx(1, abs=1e-3)


def score_rows():
    """Two aligned tasks and the mirror; gains of all skips 2 and 4 (mean 3) against 0.5; added 1 and 2 (mean 1.5)."""
    tasks = {"denoise": (2, 1, 0.2), "inpaint": (4, 2, 0.4), "mirror": (0.5, 50, 0.1)}
    rows = []
    for task, (gain, added, detail) in tasks.items():
        for n in SEEDS:
            common = {"what": "score", "task": task, "seed": n, "parameters": 1, "psnr_seen": 20}
            arms = {"no skip": 0, "only 8×8": 90, "all skips": gain, "added, no skip": 0, "added, all skips": added}
            for arm, more in arms.items():
                fine = detail if arm == "all skips" else 0
                row = common | {"arm": arm, "psnr": 10 + n + more, "ssim": fine / 2, "detail": fine}
                row["psnr_silenced"] = row["psnr"] - {"no skip": 6, "all skips": 1 + n}.get(arm, 70)
                if arm == "all skips":
                    row["skips_over_bottleneck"] = gain
                rows.append(row)
    return rows[::-1]


def test_skips_gain_all_minus_none_as_the_mean_of_the_aligned_tasks():
    found = reconstruction.estimates(score_rows(), settings())
    assert found["psnr_gain"].mean == pytest.approx(3) and found["psnr_gain"].n == 3
    assert found["psnr_gain"].sd == pytest.approx(0), "partners are of one seed"
    assert found["detail_gain"].mean == pytest.approx(0.3) and found["ssim_gain"].mean == pytest.approx(0.15)
    assert found["added_psnr_gain"].mean == pytest.approx(1.5)


def test_each_task_and_the_control_have_gains_of_their_own():
    found = reconstruction.estimates(score_rows(), settings())
    own = {name.removesuffix("_psnr_gain"): e.mean for name, e in found.items() if name.endswith("_psnr_gain")}
    assert own == pytest.approx({"denoise": 2, "inpaint": 4, "mirror": 0.5, "added": 1.5})
    assert found["mirror_detail_gain"].mean == pytest.approx(0.1)


def test_the_control_is_called_less_only_where_its_interval_lies_below():
    rows, s = score_rows(), settings()
    e = reconstruction.estimates(rows, s)
    assert "clearly less: " in reconstruction.finding(rows, s, e)
    e["mirror_detail_gain"] = replace(e["mirror_detail_gain"], high=0.9)
    assert "not clearly less" in reconstruction.finding(rows, s, e)


def test_the_gain_in_the_upper_half_of_the_frequencies_is_without_minus_with_over_aligned_tasks():
    rows = []
    for task, share in (("denoise", 0.3), ("inpaint", 0.5), ("mirror", 0.99)):
        for arm, wrong in (("no skip", 0.9), ("all skips", share), ("only 8×8", 7.0)):
            for n in SEEDS:
                common = {"what": "band", "task": task, "arm": arm, "seed": n}
                rows += [common | {"band": k, "error_share": 40.0} for k in (0, 1, 2)]
                rows += [common | {"band": k, "error_share": wrong + (k - 3.5) / 5} for k in (3, 4)]
    cell = {"task": "inpaint", "arm": "all skips", "seed": 1}
    own = [r for r in reconstruction.upper_bands(rows) if cell.items() <= r.items()]
    assert len(own) == 1 and own[0]["wrong"] == pytest.approx(0.5)
    found = reconstruction.spectrum_estimates(rows, settings())["high_band_gain"]
    assert found.mean == pytest.approx(0.5) and found.n == 3


def test_a_silenced_bottleneck_costs_its_own_arm_over_the_aligned_tasks():
    rows = score_rows()
    for r in rows:
        if r["task"] == "mirror":
            r["psnr_silenced"] = -1000
    found = reconstruction.silenced_estimates(rows, settings())
    assert found["lost_without_skips"].mean == pytest.approx(6)
    assert found["lost_with_skips"].mean == pytest.approx(2)
    assert found["trained_skips_over_bottleneck"].mean == pytest.approx(3)


class OnlyFinest(Same):
    """Keeps what repeats every second pixel and loses the wave of four pixels."""

    def forward(self, x):
        return (self.bottleneck(x) + x.roll(2, 3)) / 2


def test_a_coarser_wave_that_is_lost_is_no_lost_detail():
    place = torch.arange(8)
    line = 128 + 50 * torch.cos(math.pi * place) + 50 * torch.cos(math.pi / 2 * place)
    score, *bands = judged(OnlyFinest(), "colourise", line.round().byte().expand(8, 3, 8, 8).contiguous())
    assert score["detail"] == pytest.approx(1, abs=1e-3)
    assert bands[2]["error_share"] == pytest.approx(1, abs=1e-3), "two cycles are lost"


@pytest.mark.parametrize(
    ("tasks", "shape", "words"),
    [
        (["blur"], [3, 8, 8], "blur"),
        (["mirror"], [3, 8, 8], "at least one"),
        (["denoise", "colourise"], [1, 8, 8], "grey already"),
    ],
)
def test_tasks_that_cannot_be_measured_are_refused_at_once(tasks, shape, words):
    s = settings(tasks=tasks, widths=[4, 8], facts={"shape": shape})
    with pytest.raises(ValueError, match=words):
        reconstruction.RECONSTRUCTION.conditions(s)


# ---------------------------------------------------------------- capacity

CAPACITY = {"widths": [4, 8], "capacity_widths": [4, 8], "capacity_rates": [0.01, 0.1], "batch_size": 8}


def rate_rows(without, with_skips):
    sides = {"without": without, "with skips": with_skips}
    return [
        {"kind": kind, "rate": rate, "seed": capacity.CHOOSING_SEED, "accuracy": v, "diverged": False}
        for kind, values in sides.items()
        for rate, v in zip((0.01, 0.1), values, strict=True)
    ]


def test_each_kind_takes_the_rate_at_which_it_learns_most_on_the_seed_of_its_own():
    rows = rate_rows((0.5, 0.6), (0.9, 0.2))
    rows += [r | {"seed": 0, "accuracy": 1 - r["accuracy"]} for r in rows]
    assert capacity.choose(rows, settings(**CAPACITY)) == {"chosen": {"without": 0.1, "with skips": 0.01}}
    found = capacity.CAPACITY_RATES.estimates(rows, settings(**CAPACITY))
    assert {name: e.mean for name, e in found.items()} == {"rate_without": 0.1, "rate_with_skips": 0.01}


def test_memorising_gains_with_minus_without_skips_and_never_counts_the_seed_that_chose():
    rows = rate_rows((0.0, 0.0), (1.0, 1.0)) + each("accuracy", (0.2, 0.4, 0.6), (0.3, 0.5, 0.7), rate=0.01)
    found = capacity.estimates(rows, settings(**CAPACITY))["memorisation_gain"]
    assert found.mean == pytest.approx(0.1) and found.n == 3 and found.sd == pytest.approx(0)


def parameters(**changes):
    return sum(p.numel() for p in unet.UNet(unet.UNetConfig((4, 8), **changes)).parameters())


def test_concatenation_adds_the_inputs_of_one_convolution_a_level_and_addition_adds_nothing():
    """By hand: with widths 4 and 8 the one decoder convolution takes 8 channels in place of 4: 4·4·9 weights more."""
    found = capacity.estimates(
        rate_rows((0, 0), (0, 0)) + each("accuracy", (0, 0, 0), (0, 0, 0), rate=0.01), settings(**CAPACITY)
    )
    narrow = parameters(skips=(), cut="narrow")
    assert found["parameters_added_by_concatenation"].mean == pytest.approx(4 * 4 * 9 / narrow)
    assert found["flops_added_by_concatenation"].mean > 0
    assert found["parameters_added_by_addition"].mean == found["flops_added_by_addition"].mean == 0


@pytest.mark.parametrize("count", [7, 101])
def test_pictures_to_memorise_must_fill_a_batch_and_exist(count):
    with pytest.raises(ValueError, match="capacity_pictures"):
        capacity.CAPACITY_RATES.conditions(settings(capacity_pictures=count, **CAPACITY))


def test_the_seed_that_chose_is_measured_beside_the_seeds_that_count_at_the_chosen_rates():
    chosen = {"without": 0.1, "with skips": 0.01}
    runs = capacity.CAPACITY.conditions(settings(capacity_pictures=50, chosen=chosen, seeds=[0, 1], **CAPACITY))
    of_seeds = [r for r in runs if r["seed"] != capacity.CHOOSING_SEED]
    assert len(runs) == 4 + 4 and {(r["kind"], r["rate"]) for r in of_seeds} == set(chosen.items())


# ---------------------------------------------------------------- pix2pix and GAN


def test_the_frechet_distance_is_zero_to_itself_and_right_for_shifts_and_spreads():
    a = torch.randn(4000, 8, generator=generator(), dtype=torch.float64)
    assert playing.frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert playing.frechet(a, a + 1) == pytest.approx(8)
    wider = a * torch.tensor([3.0] + [1.0] * 7, dtype=torch.float64)
    assert playing.frechet(a, wider) == pytest.approx(
        (3 - 1) ** 2 * a[:, 0].var().item() + (3 - 1) ** 2 * a[:, 0].mean().item() ** 2, rel=0.05
    )
    assert playing.frechet(wider, a) == pytest.approx(playing.frechet(a, wider))


def test_variety_is_the_share_of_real_variance_and_zero_for_one_picture():
    a = torch.randn(100, 8, generator=generator(), dtype=torch.float64)
    assert playing.variety(a / 2, a) == pytest.approx(0.25) and playing.variety(a * 2, a) == pytest.approx(4)
    assert playing.variety(a[:1].expand(100, 8), a) == 0


def watched(monkeypatch, made_features, real_features, guesses):
    """made_scores with a judge that says what we give it: first of the real pictures, then of the made ones."""
    answers = iter([(real_features, None), (made_features, guesses)])
    monkeypatch.setattr(playing, "whole", lambda s, split: (None, None))
    monkeypatch.setattr(playing, "seen_by_judge", lambda s, images: next(answers))
    s = SimpleNamespace(pictures=SimpleNamespace(test=None), facts={"classes": 4})
    return playing.made_scores(s, torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 2, 3]))


def test_a_run_collapses_below_a_fifth_of_the_real_variety_not_above(monkeypatch):
    real = torch.randn(500, 3, generator=generator(), dtype=torch.float64)
    guesses = torch.tensor([0, 1, 1, 1])
    below = watched(monkeypatch, real * 0.19**0.5, real, guesses)
    assert below["collapsed"] and below["variety"] == pytest.approx(0.19)
    above = watched(monkeypatch, real * 0.21**0.5, real, guesses)
    assert not above["collapsed"]
    assert above["accuracy"] == 0.5 and above["classes_seen"] == 0.5


def test_a_share_saved_is_without_minus_with_over_without_by_seed():
    rows = each("l1", (1.0, 2.0, 4.0), (0.9, 1.6, 2.8))
    found = playing.relative_gain(rows, "l1")
    assert found.mean == pytest.approx(1 - (0.9 * 0.8 * 0.7) ** (1 / 3)) and found.unit == "relative" and found.n == 3
    assert playing.relative_gain(each("l1", (1, 1, 1), (2, 2, 2)), "l1").mean == -1


def test_a_patch_discriminators_answers_are_costed_by_cross_entropy():
    zero, sure = torch.zeros(2, 1, 3, 3), torch.full((2, 1, 3, 3), 20.0)
    assert playing.said(zero, 1.0).item() == pytest.approx(math.log(2))
    assert playing.said(sure, 1.0).item() < 1e-6 and playing.said(sure, 0.0).item() == pytest.approx(20)
    assert playing.PatchDiscriminator(2)(torch.zeros(1, 2, 16, 16)).shape == (1, 1, 6, 6)


class Scale(nn.Module):
    def __init__(self, by=0.0):
        super().__init__()
        self.by = nn.Parameter(torch.tensor(by))

    def forward(self, x):
        return x * self.by


def step(maker, critic, weight_l1, images=None):
    images = torch.ones(2, 1, 4, 4) if images is None else images
    s = SimpleNamespace(number_format="fp32", device=torch.device("cpu"))
    adam = {one: torch.optim.SGD(one.parameters(), 0.1) for one in (maker, critic) if one}
    losses = playing.play_step(s, maker, critic, adam, images, images, lambda picture: picture, weight_l1)
    return losses.tolist()


def test_without_a_discriminator_the_generators_loss_is_the_weighted_l1_alone():
    maker = Scale()
    assert step(maker, None, 100.0) == [0.0, 100.0]
    assert maker.by.item() > 0, "and it learns"


def test_each_player_steps_towards_its_own_goal():
    maker, critic = Scale(0.5), Scale(1.0)
    discriminator, generator_loss = step(maker, critic, 0.0)
    bce = lambda logit, real: math.log1p(math.exp(-logit if real else logit))  # noqa: E731
    assert discriminator == pytest.approx((bce(1.0, True) + bce(0.5, False)) / 2, rel=1e-5)
    assert generator_loss == pytest.approx(bce(0.5 * critic.by.item(), True), rel=1e-5), "after the critic's step"
    assert maker.by.item() > 0.5, "it wants to be called real"


def test_edges_are_where_brightness_changes_and_grey_is_the_mean_of_the_channels():
    images = torch.zeros(1, 3, 8, 8)
    images[..., 4:] = 1
    edges = pix2pix.paired_input(images, "edges")
    assert edges.shape == (1, 1, 8, 8) and edges[..., 3:5].all() and edges.sum() == 16
    colours = drawn(2, 3, 4, 4)
    assert torch.equal(pix2pix.paired_input(colours, "grey"), colours.mean(1, keepdim=True))


def pix_rows():
    rows = []
    for loss, l1 in (("L1 + GAN", (0.9, 1.6, 2.8)), ("L1", (0.5, 1.0, 2.0))):
        for name, without, with_skips in (("l1", (1, 2, 4), l1),):
            rows += each(name, without, with_skips, what="score", loss=loss)
    for r in rows:
        with_skips, gan_too = r["kind"] == "with skips", r["loss"] == "L1 + GAN"
        r |= {"frechet": 7.5 if with_skips and gan_too else 10.0, "collapsed": False}
        r |= {"accuracy": (0.6 if gan_too else 0.0) if with_skips else 0.2}
    return rows + [{"what": "loss", "loss": "L1", "kind": "without", "seed": 0, "epoch": 1}]


def test_pix2pix_is_judged_with_its_discriminator_and_the_control_without():
    found = pix2pix.estimates(pix_rows(), settings())
    assert {name: round(e.mean, 6) for name, e in found.items()} == {
        "l1_gain": round(1 - (0.9 * 0.8 * 0.7) ** (1 / 3), 6),
        "l1_gain_without_gan": 0.5,
        "frechet_gain": 0.25,
        "accuracy_gain": 0.4,
    }


@pytest.mark.parametrize(("pair", "colours", "words"), [("lines", 3, "lines"), ("grey", 1, "grey already")])
def test_a_pair_that_does_not_exist_is_refused_at_once(pair, colours, words):
    s = settings(pair=pair, widths=[4, 8], judge_depth=8, facts={"shape": [colours, 8, 8]})
    with pytest.raises(ValueError, match=words):
        pix2pix.PIX2PIX.conditions(s)


def test_a_gans_gain_is_of_its_scores_and_not_of_the_nulls():
    rows = each("frechet", (4, 8, 10), (3, 6, 7.5), what="score")
    rows += [{"what": "null", "kind": kind, "frechet": 99} for kind in gan.NULLS]
    found = gan.estimates(rows, settings())
    assert list(found) == ["frechet_gain"] and found["frechet_gain"].mean == pytest.approx(0.25)


def test_output_skips_average_the_doubled_maps_and_add_no_parameter():
    torch.manual_seed(0)
    twin, skipping = (gan.SkipGenerator(k, 4, 3, 16).eval() for k in (False, True))
    skipping.load_state_dict(twin.state_dict())
    noise, maps = torch.randn(2, gan.NOISE), []
    hooks = [one.register_forward_hook(lambda m, x, y: maps.append(y)) for one in twin.levels]
    finest = twin(noise)
    assert [m.shape[-1] for m in maps] == [4, 8, 16] and finest.shape == (2, 3, 16, 16)
    assert torch.allclose(finest, twin.head(maps[-1]))
    doubled = [m.repeat_interleave(16 // m.shape[-1], 2).repeat_interleave(16 // m.shape[-1], 3) for m in maps]
    assert torch.allclose(skipping(noise), twin.head(sum(doubled) / 3), atol=1e-6)
    assert len(hooks) == 3


def test_a_generator_starts_small_whatever_the_side():
    assert [side >> gan.doublings_to(side) for side in (8, 16, 32)] == [2, 4, 4]


def test_the_nulls_are_measured_once_and_the_runs_for_every_seed():
    s = settings(widths=[4, 8], judge_depth=8, seeds=[0, 1])
    runs = gan.GAN.conditions(s)
    assert [r["kind"] for r in runs if "seed" not in r] == list(gan.NULLS) and len(runs) == 2 * 2 + 2


def test_what_the_chapter_measures_is_named_once():
    names = [experiment.name for experiment in skip.EXPERIMENTS]
    assert len(set(names)) == len(names) and {"joins", "sizes", "gradients", "reconstruction", "capacity"} <= set(names)


# ---------------------------------------------------------------- which arm a run trains


class Stop(Exception):
    pass


def test_with_skips_keeps_them_all_and_without_cuts_them_all():
    kept = {kind: unet.UNetConfig((4, 8, 16), skips=networks.skips_of(kind)).kept for kind in networks.KINDS}
    assert kept == {"without": (), "with skips": (0, 1)}


def memorising(monkeypatch, kind, seed=0):
    """The network and the data that `memorised` trains, and what it returns where a quarter is wrong."""
    seen = {}

    def fit(make, pictures, config, **options):
        seen.update(model=make(), pictures=pictures)
        return SimpleNamespace(rows=[{"diverged": False, "val_error": 0.25, "train_error": 0.9}])

    monkeypatch.setattr(capacity.train, "fit", fit)
    s = settings(capacity_pictures=50, capacity_epochs=1, number_format="fp32", **CAPACITY)
    s.pictures, s.device = pictures_of(torch.zeros(60, 3, 8, 8, dtype=torch.uint8)), torch.device("cpu")
    return seen, capacity.memorised(s, kind, 0.01, seed)


def test_memorising_trains_on_random_labels_of_its_seed_and_is_judged_on_the_same_pictures(monkeypatch):
    seen, rows = memorising(monkeypatch, "without")
    assert rows == [{"accuracy": 0.75, "diverged": False}]
    pictures = seen["pictures"]
    assert pictures.val is pictures.train and len(pictures.train.images) == 50
    assert len(pictures.train.labels.unique()) > 5, "the true labels are all 0"
    again, other = (memorising(monkeypatch, "without", seed)[0]["pictures"].train.labels for seed in (0, 1))
    assert torch.equal(again, pictures.train.labels) and not torch.equal(again, other)


def test_memorising_with_skips_is_a_u_net_with_skips(monkeypatch):
    kept = {kind: memorising(monkeypatch, kind)[0]["model"][0].config.kept for kind in networks.KINDS}
    assert kept == {"without": (), "with skips": (0,)}


def players(monkeypatch, module, run, **values):
    """The generator and the discriminator that a run would play with, and the weight of its L1 loss."""
    seen = []

    def play(s, maker, critic, epochs, rate, seed, given, weight_l1):
        seen.append((maker, critic, weight_l1))
        raise Stop

    monkeypatch.setattr(module, "play", play)
    s = settings(widths=[4, 8], **values)
    s.device = torch.device("cpu")
    with pytest.raises(Stop):
        run(s)
    return seen[0]


def test_pix2pix_plays_with_the_skips_and_the_discriminator_that_its_condition_names(monkeypatch):
    options = {"pair": "edges", "pair_epochs": 1, "pair_rate": 0.1}
    for kind, kept in {"without": (), "with skips": (0,)}.items():
        for loss, plays in {"L1 + GAN": True, "L1": False}.items():
            run = lambda s, kind=kind, loss=loss: pix2pix.pix2pix(s, kind, loss, 1)  # noqa: E731
            maker, critic, weight_l1 = players(monkeypatch, pix2pix, run, **options)
            assert maker.config.kept == kept and (critic is not None) == plays and weight_l1 == 100


def test_a_gan_plays_with_the_output_skips_that_its_condition_names_and_without_l1(monkeypatch):
    for kind, with_skips in {"without": False, "with skips": True}.items():
        run = lambda s, kind=kind: gan.gan(s, kind, 1)  # noqa: E731
        maker, critic, weight_l1 = players(monkeypatch, gan, run, gan_epochs=1, gan_rate=0.1)
        assert maker.with_skips == with_skips and critic is not None and weight_l1 == 0


def test_one_null_is_real_pictures_and_the_other_one_of_them_repeated(monkeypatch):
    pictures, shown = pictures_of((drawn(6, 3, 8, 8) * 255).byte()), {}
    monkeypatch.setattr(gan, "whole", lambda s, split: (split.images.float(), split.labels))
    for kind in gan.NULLS:
        monkeypatch.setattr(gan, "made_scores", lambda s, made, kind=kind: shown.update({kind: made}) or {})
        assert gan.gan(SimpleNamespace(pictures=pictures), kind) == [{"what": "null"}]
    real, one = (shown[kind] for kind in gan.NULLS)
    assert torch.equal(real, pictures.train.images.float())
    assert len(one) == 6 and all(torch.equal(picture, real[0]) for picture in one)


# ---------------------------------------------------------------- worked by hand


def test_the_share_of_joins_into_a_non_linearity_is_not_that_of_different_sizes():
    row = {"network": "A", "kind": "add", "other_size": False, "direct": False, "nonlinear": False}
    rows = [row | {"nonlinear": True}, row | {"nonlinear": True}, row | {"nonlinear": True}, row | {"direct": True}]
    assert joins.estimates(rows, settings())["nonlinearity_share"].mean == 0.75


@pytest.mark.parametrize("norm", ("none", "batch"))
def test_theory_of_three_units_is_its_recursion_by_hand(norm):
    """Widths 8 and 16 on 16 pixels: f a unit's factor on 16 and on 8 pixels, `h` half of a concatenation."""
    if norm == "none":  # the taps that meet a pixel; the bottleneck widens 8 channels to 16
        fine, coarse, h, widens = (1 - 2 / 48) ** 2, (1 - 2 / 24) ** 2, 1.0, 0.5
    else:  # sizes cancel
        fine = coarse = 1 / (1 - 1 / math.pi)
        h, widens = 0.5, 1.0
    kept = [h * fine * (1 + coarse * widens), h * fine, 1]  # the skip's share and what comes up from the bottleneck
    cut = [2 * h * fine * coarse * widens, 2 * h * fine, 1]  # both shares to the bottleneck, none to the skip
    for with_skips, squares in ((True, kept), (False, cut)):
        found = gradients.predicted_decades([8, 16], 16, 1, with_skips, norm)
        assert found == pytest.approx([math.log10(g) / 2 for g in squares])


class WithoutWave(Same):
    """Returns what it sees but for the waves of so many cycles across."""

    def __init__(self, cycles):
        super().__init__()
        self.cycles = cycles

    def forward(self, x):
        waves = torch.fft.fft(self.bottleneck(x))
        waves[..., [self.cycles, -self.cycles]] = 0
        return torch.fft.ifft(waves).real


def test_detail_begins_above_half_of_the_frequencies():
    place = 2 * math.pi * torch.arange(8) / 8
    waves = (128 + 40 * torch.cos(2 * place) + 40 * torch.cos(3 * place)).round().byte().expand(4, 3, 8, 8)
    without = {cycles: judged(WithoutWave(cycles), "colourise", waves)[0]["detail"] for cycles in (2, 3)}
    assert without[2] == pytest.approx(1, abs=0.01), "two cycles of four are no detail"
    assert without[3] == pytest.approx(0, abs=0.01), "three are"
