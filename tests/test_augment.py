"""Crops are true windows of the padded picture, flips are mirrors, and both are drawn evenly and repeatably."""

import pytest
import torch
import torch.nn.functional as F

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
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(pictures(2, 1, 4, 6, torch.uint8))
