"""Each function does to each image what torchvision does, by amounts drawn as promised, evenly and repeatably."""

import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as peers

from resnet_lib import augment


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count, channels, height, width, dtype):
    """Every pixel of a picture differs from every other and from the border's zero."""
    size = channels * height * width
    numbers = torch.arange(1, size + 1).view(1, channels, height, width).expand(count, -1, -1, -1)
    return numbers.to(dtype).clone()


def windows(image, padding):
    """{(top, left, flipped): window} of one picture, by plain slicing."""
    _, height, width = image.shape
    found = {}
    for flipped in (False, True):
        padded = F.pad(image.flip(-1) if flipped else image, (padding,) * 4)
        for top in range(2 * padding + 1):
            for left in range(2 * padding + 1):
                found[top, left, flipped] = padded[:, top : top + height, left : left + width]
    return found


SHAPES = {"grey": (1, 5, 5), "colour": (3, 5, 5), "oblong": (3, 4, 7)}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_each_output_is_a_shifted_window_with_zeros_perhaps_mirrored(shape, dtype):
    images = pictures(60, *shape, dtype)
    before, allowed, seen = images.clone(), windows(images[0], 2), set()
    for out in augment.random_crop_flip(images, 2, 0.5, generator()):
        places = [place for place, window in allowed.items() if torch.equal(out, window)]
        assert len(places) == 1 and out.dtype == dtype
        seen.add(places[0])
    assert len(seen) > 30 and {flipped for *_, flipped in seen} == {False, True}
    assert torch.equal(images, before)


def test_a_crop_never_mirrors_and_a_flip_never_shifts():
    images = pictures(50, 3, 6, 6, torch.uint8)
    plain = [window for (*_, flipped), window in windows(images[0], 1).items() if not flipped]
    assert all(any(torch.equal(out, w) for w in plain) for out in augment.random_crop(images, 1, generator()))
    for out in augment.random_flip(images, 0.5, generator()):
        assert torch.equal(out, images[0]) or torch.equal(out, images[0].flip(-1))


def test_every_shift_is_equally_likely():
    count, sides = 27_000, 3
    images = pictures(count, 1, 4, 4, torch.uint8)
    outs = augment.random_crop(images, 1, generator())
    allowed = [w for (*_, flipped), w in windows(images[0], 1).items() if not flipped]
    drawn = torch.stack([(outs == window).flatten(1).all(1).sum() for window in allowed]).double()
    assert drawn.sum() == count
    expected = count / sides**2
    chi_square = ((drawn - expected) ** 2 / expected).sum()
    assert chi_square < 26.1  # the 0.1 % bound for 8 degrees of freedom


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_the_flip_rate_is_within_a_binomial_bound(probability):
    count = 20_000
    images = pictures(count, 1, 2, 2, torch.uint8)
    flipped = (augment.random_flip(images, probability, generator()) != images).flatten(1).any(1).sum().item()
    assert abs(flipped - count * probability) < 4 * (count * probability * (1 - probability)) ** 0.5


def test_flipping_twice_is_the_identity():
    images = pictures(20, 3, 5, 6, torch.float32)
    once = augment.random_flip(images, 0.5, generator())
    assert not torch.equal(once, images)
    assert torch.equal(augment.random_flip(once, 0.5, generator()), images)
    assert torch.equal(augment.random_flip(images, 1.0), images.flip(-1))
    assert torch.equal(augment.random_flip(images, 0.0), images)


def test_the_same_generator_draws_the_same_and_another_differs():
    images = pictures(40, 3, 6, 6, torch.uint8)
    first, again, other = (augment.random_crop_flip(images, 2, 0.5, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_generator_of_its_own_leaves_the_global_one_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    augment.random_crop_flip(pictures(4, 3, 6, 6, torch.uint8), 2, 0.5, generator())
    assert torch.equal(torch.get_rng_state(), before)


def test_images_of_a_batch_are_drawn_one_by_one():
    images = pictures(200, 1, 6, 6, torch.uint8)
    assert len(augment.random_crop(images, 2, generator()).unique(dim=0)) == 25


def test_memory_format_does_not_matter_and_the_result_is_channels_last():
    images = pictures(8, 3, 6, 6, torch.uint8)
    outs = [
        augment.random_crop_flip(images.contiguous(memory_format=layout), 2, 0.5, generator())
        for layout in (torch.contiguous_format, torch.channels_last)
    ]
    assert torch.equal(*outs)
    assert all(out.is_contiguous(memory_format=torch.channels_last) for out in outs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda images: augment.random_crop(images, -1), r"padding=-1 must be at least 0 and smaller .*\(4×6\)"),
        (lambda images: augment.random_crop(images, 4), "padding=4 must be"),
        (lambda images: augment.random_flip(images, 1.5), "probability=1.5 must lie between 0 and 1"),
        (lambda images: augment.random_crop_flip(images, 1, -0.1), "probability=-0.1 must lie"),
        (lambda images: augment.random_crop(images[0]), r"images of shape \(1, 4, 6\) must be \(N, C, H, W\)"),
        (lambda images: augment.random_flip(images.long()), "images of torch.int64 must be uint8 or of a float type"),
        (lambda images: augment.random_crop_flip(images.tolist()), "images is of type list; it must be a tensor"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(pictures(2, 1, 4, 6, torch.uint8))


# --- against torchvision, image by image, with the same amounts


SIZES = {"digits": (1, 8, 8), "colour": (3, 32, 32), "oblong": (3, 20, 28)}
on_each = pytest.mark.parametrize("shape", SIZES.values(), ids=SIZES)
in_both = pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)


def noise(shape, dtype=torch.uint8, count=16):
    images = torch.randint(0, 256, (count, *shape), generator=generator(7), dtype=torch.uint8)
    return images if dtype == torch.uint8 else images / 255


def amounts(low, high, count=16, seed=3):
    return torch.empty(count).uniform_(low, high, generator=generator(seed))


def levels_apart(ours, theirs):
    """The largest difference in grey levels, for each image."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    one = 1 if ours.dtype == torch.uint8 else 1 / 255
    return ((ours.double() - theirs.double()).abs() / one).flatten(1).amax(1)


def each(function, images, *columns):
    """torchvision's function on one image after the other, with its own row of parameters."""
    return torch.stack([function(image, *row) for image, *row in zip(images, *columns, strict=True)])


@in_both
@on_each
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_geometry_is_torchvisions(mode, shape, dtype):
    images, interpolation = noise(shape, dtype), v2.InterpolationMode(mode)
    degrees, x, y, factor = amounts(-180, 180), amounts(-6, 6), amounts(-6, 6, seed=4), amounts(0.5, 2)
    slant_x, slant_y = amounts(-40, 40), amounts(-40, 40, seed=4)

    def peer(image, degrees=0.0, x=0.0, y=0.0, factor=1.0, slant_x=0.0, slant_y=0.0):
        numbers = [float(number) for number in (degrees, x, y, factor, slant_x, slant_y)]
        turn, x, y, factor, *slants = numbers
        return peers.affine(image, -turn, [x, y], factor, slants, interpolation)  # there a turn is clockwise

    nothing, same = torch.zeros(16), torch.ones(16)
    pairs = {
        "rotate": (augment.rotate(images, degrees, mode=mode), (degrees,)),
        "translate": (augment.translate(images, x, y, mode=mode), (nothing, x, y)),
        "scale": (augment.scale(images, factor, mode=mode), (nothing, nothing, nothing, factor)),
        "shear": (
            augment.shear(images, slant_x, slant_y, mode=mode),
            (nothing, nothing, nothing, same, slant_x, slant_y),
        ),
        "affine": (
            augment.affine(
                images, degrees=degrees, x=x, y=y, factor=factor, shear_x=slant_x, shear_y=slant_y, mode=mode
            ),
            (degrees, x, y, factor, slant_x, slant_y),
        ),
    }
    for name, (ours, columns) in pairs.items():
        assert levels_apart(ours, each(peer, images, *columns)).max() <= 1, name
        assert not torch.equal(ours, images), name
    own = each(lambda image, angle: peers.rotate(image, angle.item(), interpolation), images, degrees)
    assert levels_apart(augment.rotate(images, degrees, mode=mode), own).max() <= 1  # here counter-clockwise


@in_both
def test_what_comes_in_from_outside_is_the_fill(dtype):
    """Away from the border: there torchvision weights the picture twice by what of it is seen."""
    images, degrees = noise((3, 20, 28), dtype), amounts(-180, 180)
    grey = 100 if dtype == torch.uint8 else 100 / 255
    for mode in ("nearest", "bilinear"):
        ours = augment.rotate(images, degrees, mode=mode, fill=grey)
        theirs = each(
            lambda i, a, m=mode: peers.rotate(i, a.item(), v2.InterpolationMode(m), fill=grey), images, degrees
        )
        seen = augment.rotate(torch.ones_like(images, dtype=torch.float32), degrees, mode=mode)
        border = (seen > 1e-4) & (seen < 1 - 1e-4)
        assert border.float().mean() < 0.1 and (seen < 1e-4).float().mean() > 0.1
        assert levels_apart(ours.masked_fill(border, 0), theirs.masked_fill(border, 0)).max() <= 1
    flat = torch.full((1, 1, 8, 8), 0.7)
    assert torch.allclose(augment.rotate(flat, 30.0, fill=0.7), flat)  # at the border picture and fill add up to one


PHOTOMETRIC = {
    "brightness": (lambda images, a: augment.jitter(images, brightness=a), peers.adjust_brightness, (0, 2)),
    "contrast": (lambda images, a: augment.jitter(images, contrast=a), peers.adjust_contrast, (0, 2)),
    "saturation": (lambda images, a: augment.jitter(images, saturation=a), peers.adjust_saturation, (0, 2)),
    "sharpness": (lambda images, a: augment.jitter(images, sharpness=a), peers.adjust_sharpness, (0, 2)),
    "hue": (lambda images, a: augment.jitter(images, hue=a), peers.adjust_hue, (-0.5, 0.5)),
    "blur": (
        lambda images, a: augment.blur(images, a, 7),
        lambda image, a: peers.gaussian_blur(image, [7, 7], [a, a]),
        (0.1, 3),
    ),
}


@in_both
@on_each
@pytest.mark.parametrize("name", PHOTOMETRIC)
def test_photometry_is_torchvisions(name, shape, dtype):
    ours, peer, (low, high) = PHOTOMETRIC[name]
    images, amount = noise(shape, dtype), amounts(low, high)
    apart = levels_apart(ours(images, amount), each(lambda i, a: peer(i, a.item()), images, amount))
    if dtype == torch.uint8:
        exact = each(lambda i, a: peer(i, a.item()), images / 255, amount)
        assert levels_apart(ours(images, amount) / 255, exact).max() <= 0.6  # rounded once
        if name in ("contrast", "saturation", "sharpness"):  # there what is blended in is cut to whole levels first
            apart = apart - (1 - amount).abs().ceil()
    assert apart.max() <= 1


@in_both
@on_each
def test_operations_of_the_policies_are_torchvisions(shape, dtype):
    images, white = noise(shape, dtype), 255 if dtype == torch.uint8 else 1.0
    severity, operations = amounts(0, 1), augment.OPERATIONS
    shares = {
        "posterize": lambda image, s: peers.posterize(image, 8 - round(4 * s.item())),
        "solarize": lambda image, s: peers.solarize(image, white * (1 - s.item())),
        "autocontrast": lambda image, s: peers.autocontrast(image),
        "equalize": lambda image, s: peers.equalize(image),
    }
    for name, peer in shares.items():
        assert levels_apart(operations[name](images, severity), each(peer, images, severity)).max() <= 1, name
    angles = 30 * severity
    both = [each(lambda i, a, s=s: peers.rotate(i, s * a.item()), images, angles) for s in (1, -1)]
    apart = torch.stack([levels_apart(operations["rotate"](images, severity, generator()), peer) for peer in both])
    assert apart.amin(0).max() <= 1 and len(set(apart.argmin(0).tolist())) == 2  # both signs


# --- what holds for every function


LABELS = torch.arange(16) % 4
EVERY = {
    "random_crop": augment.random_crop,
    "random_flip": augment.random_flip,
    "random_crop_flip": augment.random_crop_flip,
    "random_crop_flip_cutout": lambda i, generator=None: augment.random_crop_flip_cutout(i, 2, 0.5, 3, generator),
    "translate": augment.translate,
    "rotate": augment.rotate,
    "scale": augment.scale,
    "shear": augment.shear,
    "affine": lambda i, generator=None: augment.affine(i, degrees=9, x=(0, 3), factor=0.3, generator=generator),
    "jitter": lambda i, generator=None: augment.jitter(i, 0.4, 0.4, 0.4, 0.1, 0.4, generator),
    "noise": augment.noise,
    "blur": augment.blur,
    "cutout": lambda i, generator=None: augment.cutout(i, 3, generator=generator),
    "mixup": lambda i, generator=None: augment.mixup(i, LABELS, 0.4, 4, generator)[0],
    "cutmix": lambda i, generator=None: augment.cutmix(i, LABELS, 1.0, 4, generator)[0],
    "trivial_augment": augment.trivial_augment,
}
every = pytest.mark.parametrize("function", EVERY.values(), ids=EVERY)


@every
@in_both
@on_each
def test_every_function_keeps_shape_type_and_range_and_its_input_and_obeys_its_generator(function, shape, dtype):
    images = noise(shape, dtype)
    before, state = images.clone(), torch.get_rng_state()
    first, again, other = (function(images, generator=generator(seed)) for seed in (0, 0, 1))
    assert first.shape == images.shape and first.dtype == dtype
    assert first.min() >= 0 and first.max() <= (255 if dtype == torch.uint8 else 1)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(images, before) and torch.equal(torch.get_rng_state(), state)
    last = function(images.contiguous(memory_format=torch.channels_last), generator=generator())
    assert levels_apart(last, first).max() <= (1 if dtype == torch.uint8 else 1e-3)


@every
def test_every_function_draws_for_each_image_on_its_own(function):
    images = noise((3, 16, 16), count=1).expand(16, -1, -1, -1).clone()
    if function in (EVERY["mixup"], EVERY["cutmix"]):  # these mix what differs
        images = noise((3, 16, 16))
    assert len(function(images, generator=generator()).unique(dim=0)) > (1 if function is augment.random_flip else 8)


@every
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_function_works_on_a_gpu(function):
    images = noise((3, 32, 32)).cuda()
    first, again = (function(images, generator=torch.Generator("cuda").manual_seed(0)) for _ in range(2))
    assert first.is_cuda and torch.equal(first, again) and not torch.equal(first, images)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_with_given_amounts_a_gpu_does_what_the_cpu_does():
    images, degrees, factors = noise((3, 32, 32)), amounts(-90, 90), amounts(0, 2)
    for call in (
        lambda i: augment.rotate(i, degrees),
        lambda i: augment.jitter(i, factors, factors, factors, factors / 4, factors),
        lambda i: augment.blur(i, factors),
    ):
        assert levels_apart(call(images.cuda()).cpu(), call(images)).max() <= 1


def test_half_precision_stays_half():
    images = noise((3, 8, 8), torch.float32).bfloat16()
    for name, function in EVERY.items():
        assert function(images, generator=generator()).dtype == torch.bfloat16, name
    for name, operation in augment.OPERATIONS.items():
        assert operation(images, 0.5, generator()).dtype == torch.bfloat16, name


def test_functions_compose():
    images, source = noise((3, 16, 16)), generator()
    images = augment.cutout(augment.rotate(augment.random_crop_flip(images, 2, 0.5, source), generator=source), 4)
    mixed, shares = augment.mixup(augment.trivial_augment(images, generator=source), LABELS, 1.0, 4, source)
    again, shares = augment.cutmix(mixed, shares, generator=source)
    assert again.shape == images.shape and again.dtype == torch.uint8
    torch.testing.assert_close(shares.sum(1), torch.ones(16))


# --- what is drawn


def uniform(values, low, high):
    return scipy.stats.kstest(values, scipy.stats.uniform(low, high - low).cdf).pvalue > 0.001


def test_amounts_are_drawn_evenly_and_independently():
    images = torch.full((4000, 1, 1, 1), 0.5)
    bright = augment.jitter(images, brightness=0.4, generator=generator()).flatten() / 0.5
    assert uniform(bright, 0.6, 1.4)
    assert abs(torch.corrcoef(torch.stack([bright[:-1], bright[1:]]))[0, 1]) < 4 / 4000**0.5
    assert uniform(augment.jitter(images, (0.2, 0.9), generator=generator()).flatten() / 0.5, 0.2, 0.9)
    fixed = augment.jitter(images, (0.3, 0.3), generator=generator()).flatten()
    assert torch.allclose(fixed, torch.tensor(0.15))


def test_shifts_are_drawn_evenly_in_both_directions_at_once():
    dot = torch.zeros(4000, 1, 9, 9)
    dot[:, :, 4, 4] = 1
    moved = augment.translate(dot, 3.0, (-1.0, 2.0), generator=generator())[:, 0]
    places = torch.arange(9) - 4.0
    x, y = (moved.sum(1) * places).sum(1), (moved.sum(2) * places).sum(1)  # bilinear: the centre of mass moves exactly
    assert uniform(x, -3, 3) and uniform(y, -1, 2)
    assert abs(torch.corrcoef(torch.stack([x, y]))[0, 1]) < 4 / 4000**0.5


def test_several_changes_are_one_resampling_and_a_turn_back_restores():
    images = noise((3, 32, 32), torch.float32)
    smooth = augment.blur(images, 2.0)
    once = augment.affine(smooth, degrees=20, factor=(1.2, 1.2), generator=generator())
    degrees = torch.empty(16).uniform_(-20, 20, generator=generator())
    twice = augment.scale(augment.rotate(smooth, degrees), (1.2, 1.2))
    middle = (..., slice(8, 24), slice(8, 24))
    assert (once[middle] - twice[middle]).abs().max() < 0.05 and not torch.equal(once, twice)
    assert torch.equal(augment.rotate(images, torch.full((16,), 90.0), mode="nearest"), images.rot90(1, (2, 3)))
    assert torch.equal(augment.affine(images), augment.translate(images, 0.0, 0.0))
    assert torch.allclose(augment.affine(images), images, atol=1e-4)
    assert torch.equal(augment.translate(images, (2, 2), (-1, -1), mode="nearest")[..., :-1, 2:], images[..., 1:, :-2])


def test_the_noise_is_normal_of_the_deviation_asked_for():
    images = torch.full((50, 1, 20, 20), 0.5)
    added = augment.noise(images, 0.05, generator()) - 0.5
    assert scipy.stats.kstest((added / 0.05).flatten(), "norm").pvalue > 0.001
    deviations = augment.noise(images, (0.01, 0.1), generator()).flatten(1).std(1)
    assert uniform(deviations, 0.01, 0.1)
    levels = augment.noise(torch.full((50, 1, 20, 20), 128, dtype=torch.uint8), 0.05, generator()).float()
    assert abs(levels.std() - 0.05 * 255) < 0.3


def test_cutout_is_one_square_centred_on_any_pixel():
    images = torch.ones(8000, 1, 6, 9)
    hole = augment.cutout(images, 4, generator=generator())[:, 0] == 0
    rows, columns = hole.any(2), hole.any(1)
    assert torch.equal(hole, rows[:, :, None] & columns[:, None])
    drawn = {}
    for side, found in ((6, rows), (9, columns)):
        allowed = [[c - 2 <= place < c + 2 for place in range(side)] for c in range(side)]
        drawn[side] = (found[:, None] == torch.tensor(allowed)).all(2)  # which centre it was
        assert drawn[side].sum(1).eq(1).all()
        assert scipy.stats.chisquare(drawn[side].sum(0)).pvalue > 0.001
    table = drawn[6].T.double() @ drawn[9].double()
    assert scipy.stats.chi2_contingency(table).pvalue > 0.001  # the two directions are independent
    filled = augment.cutout(noise((3, 8, 8)), 8, 7.0, generator())
    assert (filled == 7).flatten(1).float().mean(1).min() > 0.2


@in_both
@on_each
@pytest.mark.parametrize(
    ("padding", "probability", "size"), [(4, 0.5, 3), (0, 0.5, 5), (3, 0.0, 0), (2, 1.0, 8), (0, 0.0, 0)]
)
def test_the_fused_function_gives_what_its_parts_give(padding, probability, size, shape, dtype):
    images, source = noise(shape, dtype), generator()
    parts = augment.random_crop_flip(images, padding, probability, source)
    parts = augment.cutout(parts, size, generator=source) if size else parts
    for layout in (torch.contiguous_format, torch.channels_last):
        laid = images.contiguous(memory_format=layout)
        fused = augment.random_crop_flip_cutout(laid, padding, probability, size, generator())
        assert torch.equal(fused, parts) and fused.is_contiguous(memory_format=torch.channels_last)


def plainly_cropped(images, padding, probability, size, source):
    """Image by image, by slices; drawn in this order: mirrored, tops, lefts, then the holes' rows and columns."""
    count, _, height, width = images.shape
    mirrored = (torch.rand(count, generator=source) if probability else torch.ones(count)) < probability
    shifts = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=source) if padding else torch.zeros(2, count, 1)
    holes = [torch.randint(side, (count,), generator=source) for side in (height, width)] if size else []
    outs = []
    for index, image in enumerate(F.pad(images, (padding,) * 4)):
        top, left = shifts[:, index, 0].int().tolist()
        image = image[:, top : top + height, left : left + width]
        image = image.flip(2) if mirrored[index] else image.clone()
        if size:
            down, right = (centre[index].item() - size // 2 for centre in holes)
            image[:, max(down, 0) : max(down + size, 0), max(right, 0) : max(right + size, 0)] = 0
        outs.append(image)
    return torch.stack(outs)


@in_both
@on_each
@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("probability", [0.0, 0.03, 0.5, 1.0])
def test_crop_flip_and_cutout_draw_in_an_order_that_records_rely_on(probability, padding, shape, dtype):
    for count, size in ((1, 4), (20, 0), (20, 1), (20, 8)):  # of one image, or at 0.03, often none is mirrored
        images = noise(shape, dtype)[:1].expand(count, -1, -1, -1)
        made = augment.random_crop_flip_cutout(images, padding, probability, size, generator())
        assert torch.equal(made, plainly_cropped(images, padding, probability, size, generator()))


def test_what_is_returned_is_nobody_elses_memory():
    images = noise((3, 8, 8)).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    for out in (augment.random_crop_flip(images, 0, 0.0), augment.random_flip(images, 1.0), augment.cutout(images, 2)):
        out.fill_(0)
        assert torch.equal(images, before) and out.is_contiguous(memory_format=torch.channels_last)


def test_affine_keeps_to_its_formula_bit_by_bit_as_records_rely_on():
    images, source = noise((3, 20, 28), torch.float32), generator()
    count, _, height, width = images.shape
    amounts = {"degrees": 15.0, "x": 4.0, "y": 3.0, "factor": 0.2, "shear_x": 10.0, "shear_y": 5.0}
    drawn = [
        torch.empty(count).uniform_(m - a, m + a, generator=source)
        for m, a in zip((0, 0, 0, 1, 0, 0), amounts.values(), strict=True)
    ]
    turn, x, y, size, slant_x, slant_y = drawn
    turn, slant_x, slant_y = turn.deg2rad(), slant_x.deg2rad().tan(), slant_y.deg2rad().tan()
    cos, sin = turn.cos() / size, turn.sin() / size
    c, d = sin + slant_y * cos, cos - slant_y * sin
    a, b = slant_x * c + cos, slant_x * d - sin
    matrices = torch.stack([a, b, -a * x - b * y, c, d, -c * x - d * y], 1).view(-1, 2, 3)
    assert torch.equal(augment.affine(images, **amounts, generator=generator()), plainly_resampled(images, matrices))
    shifts = torch.eye(2, 3).repeat(count, 1, 1)
    source = generator()
    shifts[:, :, 2] = -torch.stack([torch.empty(count).uniform_(-4, 4, generator=source) for _ in "xy"], 1)
    assert torch.equal(augment.translate(images, generator=generator()), plainly_resampled(images, shifts))
    assert torch.equal(augment.affine(images, x=4.0, y=4.0, generator=generator()), plainly_resampled(images, shifts))


def plainly_resampled(images, matrices):
    height, width = images.shape[2:]
    x, y = (torch.arange(side) - (side - 1) / 2 for side in (width, height))
    matrices = matrices * (2 / torch.tensor([[float(width)], [height]]))
    across = matrices[:, :, 1:2] * y + matrices[:, :, 2:]
    places = (across[:, :, :, None] + (matrices[:, :, :1] * x)[:, :, None]).permute(0, 2, 3, 1)
    return F.grid_sample(images, places, align_corners=False)


def test_alternating_flip_shows_each_side_once_in_two_epochs():
    images = pictures(1000, 3, 4, 5, torch.uint8)
    first = torch.rand(1000, generator=generator()) < 0.5
    epochs = [(augment.alternating_flip(images, first, epoch) != images).flatten(1).any(1) for epoch in range(4)]
    assert torch.equal(epochs[0], first) and torch.equal(epochs[1], ~first) and torch.equal(epochs[2], first)
    assert torch.equal(augment.alternating_flip(images, first, 3)[~first], images[~first].flip(3))


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 3.0])
def test_mixing_weights_have_the_beta_distribution(alpha):
    count, places = 20_000, torch.linspace(0.001, 0.999, 50)
    ones = torch.eye(2).repeat(count // 2, 1)
    images = ones[:, :1, None, None].clone()
    mixed, shares = augment.mixup(images, ones, alpha, generator=generator())
    torch.testing.assert_close(mixed.flatten(), shares[:, 0])  # an image that is its own label
    met = shares.amax(1) < 1
    kept = torch.where(images.flatten() > 0, shares[:, 0], 1 - shares[:, 0])[met]
    below = (kept[:, None] <= places).double().mean(0)
    law = torch.from_numpy(scipy.stats.beta(alpha, alpha).cdf(places.numpy()))
    if alpha >= 0.4:  # below, float32 holds a part of the law at its very ends, where a partner cannot be told
        assert (below - law).abs().max() < 2.2 / len(kept) ** 0.5
    again = augment._pairs(images, ones, alpha, None, generator())[2]
    assert ((again[:, None] <= places).double().mean(0) - law).abs().max() < 2.2 / count**0.5


def test_a_partner_is_another_image_and_each_is_one():
    images = noise((1, 2, 2), count=500)
    partners = augment._pairs(images, torch.zeros(500, 2), 1.0, None, generator())[1]
    assert not (partners == torch.arange(500)).any() and len(partners.unique()) == 500
    pairs = [augment._pairs(images[:4], torch.zeros(4, 2), 1.0, None, generator(s))[1][0].item() for s in range(600)]
    assert scipy.stats.chisquare([pairs.count(other) for other in (1, 2, 3)]).pvalue > 0.001


def test_cutmix_pastes_one_box_of_one_other_image_and_counts_its_area():
    images = (torch.arange(64) + 1).view(64, 1, 1, 1).expand(-1, 3, 10, 14).to(torch.uint8).contiguous()
    mixed, shares = augment.cutmix(images, torch.arange(64), 1.0, 64, generator())
    cut = 0
    for number, (image, label) in enumerate(zip(mixed, shares, strict=True)):
        box = (image != number + 1)[0]
        assert torch.equal(box, box.any(1)[:, None] & box.any(0)) and (image == image[:1]).all()
        assert label[number].item() == pytest.approx(1 - box.float().mean().item(), abs=1e-6)
        if box.any():
            (other,) = image[:, box].unique().tolist()
            assert label[other - 1].item() == pytest.approx(box.float().mean().item(), abs=1e-6)
            cut += 1
    assert cut > 50


def test_labels_may_be_numbers_or_shares():
    images = noise((1, 4, 4), torch.float32)
    by_number = augment.mixup(images, LABELS, 1.0, 4, generator())
    by_share = augment.mixup(images, torch.eye(4)[LABELS], 1.0, generator=generator())
    assert all(torch.equal(a, b) for a, b in zip(by_number, by_share, strict=True))
    assert by_number[1].dtype == torch.float32


def test_policies_draw_every_operation_equally_often(monkeypatch):
    counts = {}

    def counted(name):
        def change(images, severity, generator, *, wide):
            counts.setdefault(name, []).append((len(images), severity, wide))
            return images

        return change

    monkeypatch.setattr(augment, "OPERATIONS", {name: counted(name) for name in augment.OPERATIONS})
    images = noise((1, 2, 2), count=7000)
    augment.trivial_augment(images, generator=generator())
    drawn = [sum(number for number, *_ in rows) for rows in counts.values()]
    assert len(drawn) == 13  # the identity is left out
    assert scipy.stats.chisquare([*drawn, 7000 - sum(drawn)]).pvalue > 0.001
    severities = torch.cat([severity for rows in counts.values() for _, severity, _ in rows])
    assert uniform(severities, 0, 1) and all(wide for rows in counts.values() for *_, wide in rows)


@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_an_operation_grows_with_its_severity(name):
    images = augment.blur(noise((3, 16, 16)), 1.5)
    apart = [
        (augment.OPERATIONS[name](images, severity, generator()).float() - images.float()).abs().mean().item()
        for severity in (0.0, 0.3, 1.0)
    ]
    if name in ("autocontrast", "equalize"):
        assert apart[0] == apart[1] == apart[2] > 1
    elif name == "identity":
        assert apart == [0, 0, 0]
    else:
        assert apart[0] == 0 and 0 <= apart[1] < apart[2] and apart[2] > 0.5
        wide = augment.OPERATIONS[name](images, 1.0, generator(), wide=True)
        assert (wide.float() - images.float()).abs().mean() >= apart[2]  # TrivialAugment's ranges are no narrower


NUMBERS = torch.zeros(2, 1, 4, 6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: augment.rotate(NUMBERS[0]), r"images of shape \(1, 4, 6\) must be \(N, C, H, W\)"),
        (lambda: augment.cutout(torch.zeros(2, 5, 4, 6)), "with 1 or 3 channels"),
        (lambda: augment.blur(NUMBERS.long()), "images of torch.int64 must be uint8 or of a float type"),
        (lambda: augment.jitter([[1]]), "images is of type list; it must be a tensor"),
        (lambda: augment.jitter(NUMBERS - 1), "images hold -1 … -1; colours of floats need 0 … 1"),
        (lambda: augment.noise(NUMBERS * torch.nan), "images hold nan"),
        (lambda: augment.cutout(NUMBERS, 5), r"size=5 must be at least 1 and no larger than the image \(4×6\)"),
        (lambda: augment.random_crop_flip_cutout(NUMBERS, 4), r"padding=4 must be at least 0 and smaller .*\(4×6\)"),
        (lambda: augment.random_crop_flip_cutout(NUMBERS, 1, 1.5), "probability=1.5 must lie between 0 and 1"),
        (lambda: augment.random_crop_flip_cutout(NUMBERS, 1, 0.5, 5), "size=5 must be at least 1 and no larger"),
        (lambda: augment.blur(NUMBERS, size=4), r"size=4 must be odd"),
        (lambda: augment.blur(NUMBERS, size=9), r"size=9 must be odd and less than twice the image's sides \(4×6\)"),
        (lambda: augment.blur(NUMBERS, -1.0), "sigma=-1.0 means -1 … -1"),
        (lambda: augment.jitter(NUMBERS, brightness=1.5), "brightness=1.5 means -0.5 … 2.5; it must rise, within 0 …"),
        (lambda: augment.jitter(NUMBERS, hue=0.6), "hue=0.6 means -0.6 … 0.6"),
        (lambda: augment.rotate(NUMBERS, (9, 3)), r"degrees=\(9, 3\) means 9 … 3; it must rise"),
        (lambda: augment.rotate(NUMBERS, torch.nan), "degrees=nan"),
        (lambda: augment.rotate(NUMBERS, torch.zeros(3)), r"degrees of shape \(3,\) must be \(2,\)"),
        (lambda: augment.scale(NUMBERS, 1.0), "factor=1.0 means 0 … 2; it must rise, within 0.01 … 100"),
        (lambda: augment.shear(NUMBERS, 90.0), "shear_x=90.0 means -90 … 90"),
        (lambda: augment.rotate(NUMBERS, mode="cubic"), "mode='cubic' must be 'bilinear' or 'nearest'"),
        (lambda: augment.resample(NUMBERS, torch.eye(3)), r"\(3, 3\) must be \(2, 2, 3\)"),
        (lambda: augment.mixup(NUMBERS[:1], torch.zeros(1, 2)), "a batch of 1 has no two images to mix"),
        (lambda: augment.cutmix(NUMBERS[:1], torch.zeros(1, 2)), "a batch of 1 has no two images to mix"),
        (lambda: augment.mixup(NUMBERS, torch.zeros(2, 2), 0.0), "alpha=0.0 must be above 0"),
        (lambda: augment.mixup(NUMBERS, torch.zeros(2).long()), r"labels of shape \(2,\) with classes=None must be"),
        (lambda: augment.cutmix(NUMBERS, torch.zeros(3, 2)), r"labels of shape \(3, 2\)"),
        (
            lambda: augment.trivial_augment(3 * torch.randn(2, 3, 4, 4), ("identity",)),
            "images hold .*normalise after this",
        ),
        (lambda: augment.trivial_augment(NUMBERS, ("warp",)), r"names=\('warp',\) must be some of identity, shear_x"),
        (lambda: augment.alternating_flip(NUMBERS, torch.zeros(2), 0), "mirrored_first is torch.float32"),
        (lambda: augment.alternating_flip(NUMBERS, torch.zeros(2).bool(), -1), "epoch=-1 must be at least 0"),
    ],
)
def test_bad_input_of_the_others_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
