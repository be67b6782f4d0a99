"""Augmentation as pure functions of a whole batch, on the device the batch is on: one independent draw per image."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

# How much an image is changed: a tensor (N,) gives each image's amount, from a pair (low, high) it is drawn evenly,
# and a number a stands for the pair (−a, a), unless a docstring says otherwise.
Amount = float | tuple[float, float] | Tensor


def random_crop(images: Tensor, padding: int = 4, generator: torch.Generator | None = None) -> Tensor:
    """Shift each image by −padding … +padding pixels in both directions; zeros come in at the border.

    Args:    images: (N, C, H, W), uint8 or of a float type, 1 or 3 channels. generator: on the images' device.
    Returns: (N, C, H, W) in channels-last memory format.
    Raises:  ValueError where the padding is negative or as large as the image, or images are none.
    """
    return _gather(images, padding, 0.0, generator)


def random_flip(images: Tensor, probability: float = 0.5, generator: torch.Generator | None = None) -> Tensor:
    """Mirror each image left to right with the given probability. Shapes and memory format as `random_crop`."""
    return _gather(images, 0, probability, generator)


def random_crop_flip(
    images: Tensor, padding: int = 4, probability: float = 0.5, generator: torch.Generator | None = None
) -> Tensor:
    """`random_crop` and `random_flip` in one pass over the pixels."""
    return _gather(images, padding, probability, generator)


def _gather(images: Tensor, padding: int, probability: float, generator: torch.Generator | None) -> Tensor:
    """Images cropped and flipped, in memory of their own, so that a caller may change them."""
    count, channels, height, width = _check(images)
    if not 0 <= padding < min(height, width):
        raise ValueError(f"padding={padding} must be at least 0 and smaller than the image ({height}×{width})")
    if not 0 <= probability <= 1:
        raise ValueError(f"probability={probability} must lie between 0 and 1")
    device, pixels = images.device, images.permute(0, 2, 3, 1)
    if probability:
        mirrored = torch.rand(count, generator=generator, device=device) < probability
    if padding:
        pixels = F.pad(pixels, (0, 0, padding, padding, padding, padding)).contiguous()
        top, left = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator, device=device)
        # A window's row is contiguous in the channels-last batch: gathering whole rows beats gathering pixels.
        tall, wide = pixels.shape[1:3]
        first = torch.arange(count, device=device)[:, None] * tall + top + torch.arange(height, device=device)
        first = first * wide + left  # (N, height): where each row begins, counted in pixels
        rows = pixels.as_strided((count * tall * wide - width + 1, width * channels), (channels, 1))
        pixels = rows.index_select(0, first.flatten()).view(count, height, width, channels)
    else:
        pixels = pixels.clone(memory_format=torch.contiguous_format)
    if probability and device.type == "cpu":
        which = mirrored.nonzero()[:, 0]
        turned = pixels.index_select(0, which).flip(2)
        _put_(pixels.flatten(1), which, turned.flatten(1))
    elif probability:  # to ask a GPU how many are mirrored would be to wait for it
        pixels = torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(2), pixels)
    return pixels.permute(0, 3, 1, 2)


def _put_(target: Tensor, which: Tensor, rows: Tensor) -> None:
    """target[which] = rows of two contiguous matrices; rows that meet in one place must be equal."""
    if target[0].nbytes % 8 == 0:  # eight bytes at a time: PyTorch copies elements, however short they are
        target, rows = target.view(torch.int64), rows.view(torch.int64)
    target.index_copy_(0, which, rows)


def random_crop_flip_cutout(
    images: Tensor, padding: int = 4, probability: float = 0.5, size: int = 8, generator: Generator | None = None
) -> Tensor:
    """`random_crop_flip`, then `cutout` unless size is 0: what the two give, with a copy less."""
    images = _gather(images, padding, probability, generator)
    return _cut_(images, size, 0.0, generator) if size else images


def alternating_flip(images: Tensor, mirrored_first: Tensor, epoch: int) -> Tensor:
    """Mirror some images in even epochs and the others in odd ones, so that two epochs show both sides of each.

    Args:    mirrored_first: (N,) bool, whether epoch 0 mirrors an image; drawn once, before training, for every image
             (`torch.rand(count, generator=generator) < 0.5`), then indexed as the images are. epoch: from 0.
    Raises:  ValueError where the mask is not one bool for each image, or the epoch is negative.
    Source:  Jordan 2024, arXiv:2404.00498, §3.6. Departs: the caller draws the coins; there they hash image numbers.
    """
    _check(images)
    if mirrored_first.dtype != torch.bool or mirrored_first.shape != images.shape[:1]:
        found = f"{mirrored_first.dtype} of shape {tuple(mirrored_first.shape)}"
        raise ValueError(f"mirrored_first is {found}; it must be one bool for each of {len(images)} images")
    if epoch < 0:
        raise ValueError(f"epoch={epoch} must be at least 0")
    mirrored = mirrored_first.to(images.device) ^ bool(epoch % 2)
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)


# --- geometry: a map of the plane is a matrix, so that any number of them cost one resampling


def resample(images: Tensor, matrices: Tensor, mode: str = "bilinear", fill: float = 0.0) -> Tensor:
    """Show at p what was at A p + b, with a matrix (A | b) for each image.

    Args:    images: (N, C, H, W), uint8 or float of any range. matrices: (N, 2, 3); p = (x, y) in pixels from the
             picture's centre, x to the right, y down. mode: "bilinear" or "nearest".
             fill: the value around the picture, in the images' own units; a border pixel blends into it.
    Returns: (N, C, H, W), the images' dtype; uint8 is rounded.
    Raises:  ValueError naming the matrices' shape or the mode.
    Source:  Jaderberg et al. 2015, arXiv:1506.02025, §3.2-3.3, by `torch.nn.functional.grid_sample`.
    """
    count, _, height, width = _check(images)
    if matrices.shape != (count, 2, 3):
        raise ValueError(f"matrices of shape {tuple(matrices.shape)} must be ({count}, 2, 3), one for each image")
    if mode not in ("bilinear", "nearest"):
        raise ValueError(f"mode={mode!r} must be 'bilinear' or 'nearest'")
    x, y = (torch.arange(1 - side, side, 2, device=images.device) / 2 for side in (width, height))
    matrices = matrices.to(images.device, torch.float32) * x.new_tensor([[2 / width], [2 / height]])
    columns = matrices[:, :, :1] * x  # (N, 2, W): what a column adds to the place of its pixels
    rows = matrices[:, :, 1:2] * y + matrices[:, :, 2:]
    places = (rows[:, :, :, None] + columns[:, :, None]).permute(0, 2, 3, 1)  # where F.affine_grid multiplies matrices
    pixels = images.float()
    moved = F.grid_sample(pixels - fill if fill else pixels, places, mode, align_corners=False)
    return _as(images, moved + fill if fill else moved)


def affine(
    images: Tensor,
    *,
    degrees: Amount = 0.0,
    x: Amount = 0.0,
    y: Amount = 0.0,
    factor: Amount = 0.0,
    shear_x: Amount = 0.0,
    shear_y: Amount = 0.0,
    mode: str = "bilinear",
    fill: float = 0.0,
    generator: Generator | None = None,
) -> Tensor:
    """Slant, scale, turn and shift each image, in this order, about its centre; everything in one `resample`.

    Args:    degrees: counter-clockwise. x, y: pixels to the right and down. factor: size after by size before,
             0.01 … 100; a number a stands for 1 − a … 1 + a. shear_x, shear_y: degrees in −80 … 80, signs as in
             torchvision. The rest as in `resample`.
    Returns: (N, C, H, W), the images' dtype.
    Raises:  ValueError naming an amount out of its range.
    """
    _check(images)
    turn = _draw(images, "degrees", degrees, generator)
    x, y = _draw(images, "x", x, generator), _draw(images, "y", y, generator)
    size = _draw(images, "factor", factor, generator, 1.0, 0.01, 100.0)
    slant_x = _draw(images, "shear_x", shear_x, generator, 0.0, -80.0, 80.0)
    slant_y = _draw(images, "shear_y", shear_y, generator, 0.0, -80.0, 80.0)
    turn, slant_x, slant_y = torch.stack([turn, slant_x, slant_y]).deg2rad()
    slant_x, slant_y = slant_x.tan(), slant_y.tan()
    cos, sin = turn.cos() / size, turn.sin() / size
    c, d = sin + slant_y * cos, cos - slant_y * sin  # the way back: each factor's inverse, in the opposite order
    a, b = slant_x * c + cos, slant_x * d - sin
    matrices = torch.stack([a, b, -a * x - b * y, c, d, -c * x - d * y], 1).view(-1, 2, 3)
    return resample(images, matrices, mode, fill)


def translate(
    images: Tensor,
    x: Amount = 4.0,
    y: Amount = 4.0,
    mode: str = "bilinear",
    fill: float = 0.0,
    generator: Generator | None = None,
) -> Tensor:
    """Shift by x pixels to the right and y down, fractions too; the rest as `affine`, without its angles to compute."""
    _check(images)
    shifts = torch.stack([_draw(images, "x", x, generator), _draw(images, "y", y, generator)], 1)
    matrices = torch.eye(2, 3, device=images.device).repeat(len(images), 1, 1)
    matrices[:, :, 2] -= shifts
    return resample(images, matrices, mode, fill)


def rotate(images: Tensor, degrees: Amount = 15.0, **settings) -> Tensor:
    """Turn counter-clockwise about the centre; settings and the rest as `affine`."""
    return affine(images, degrees=degrees, **settings)


def scale(images: Tensor, factor: Amount = 0.2, **settings) -> Tensor:
    """Enlarge or shrink what is seen, about the centre; settings and the rest as `affine`."""
    return affine(images, factor=factor, **settings)


def shear(images: Tensor, x: Amount = 15.0, y: Amount = 0.0, **settings) -> Tensor:
    """Slant columns by x and rows by y degrees about the centre; settings and the rest as `affine`."""
    return affine(images, shear_x=x, shear_y=y, **settings)


# --- photometry: uint8 in 0 … 255, float in 0 … 1, clipped to that range and rounded once at the end


def jitter(
    images: Tensor,
    brightness: Amount = 0.0,
    contrast: Amount = 0.0,
    saturation: Amount = 0.0,
    hue: Amount = 0.0,
    sharpness: Amount = 0.0,
    generator: Generator | None = None,
) -> Tensor:
    """Change colours: f · image + (1 − f) · another one: black, its mean grey, its greys, a smooth one; then the hue.

    Args:    images: (N, C, H, W), uint8, or float in 0 … 1. brightness, contrast, saturation, sharpness: factors
             f ≥ 0; a number a stands for 1 − a … 1 + a. hue: a turn in shares of the colour circle, −0.5 … 0.5.
    Returns: (N, C, H, W), the images' dtype. Saturation and hue leave pictures of one channel as they are.
    Raises:  ValueError naming an amount, or the floats' range where it is not 0 … 1.
    Source:  torchvision.transforms.v2.ColorJitter and adjust_sharpness. Departs: the changes come in a fixed order
             (brightness, contrast, saturation, sharpness, hue), there in a drawn one; there uint8 greys and smooth
             pictures are cut to whole levels before the blend.
    """
    top, pixels = _photo(images)
    blends = {
        "brightness": (brightness, torch.zeros_like),
        "contrast": (contrast, lambda p: _grey(p).mean((1, 2, 3), keepdim=True)),
        "saturation": (saturation, _grey),
        "sharpness": (sharpness, _smooth),
    }
    for name, (amount, other) in blends.items():
        if isinstance(amount, Tensor | tuple) or amount:
            f = _draw(images, name, amount, generator, 1.0, 0.0).view(-1, 1, 1, 1)
            pixels = torch.lerp(other(pixels), pixels, f).clamp_(0, top)
    if isinstance(hue, Tensor | tuple) or hue:
        pixels = _turn_hue(pixels, _draw(images, "hue", hue, generator, 0.0, -0.5, 0.5).view(-1, 1, 1))
    return _as(images, pixels)


def _grey(pixels: Tensor) -> Tensor:
    """Luma (N, 1, H, W) after ITU-R BT.601."""
    weights = [0.299, 0.587, 0.114] if pixels.shape[1] == 3 else [1.0]
    return (pixels * pixels.new_tensor(weights).view(-1, 1, 1)).sum(1, keepdim=True)


def _smooth(pixels: Tensor) -> Tensor:
    """Pillow's ImageFilter.SMOOTH, which leaves the outermost pixels alone."""
    weights = pixels.new_tensor([[1, 1, 1], [1, 5, 1], [1, 1, 1]]).view(1, 1, 3, 3) / 13
    smooth = pixels.clone()
    smooth[..., 1:-1, 1:-1] = F.conv2d(pixels.flatten(0, 1)[:, None], weights).view_as(smooth[..., 1:-1, 1:-1])
    return smooth


def _turn_hue(pixels: Tensor, share: Tensor) -> Tensor:
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = pixels.unbind(1)
    value = pixels.amax(1)
    chroma = value - pixels.amin(1)
    some = torch.where(chroma > 0, chroma, 1)
    sixths = torch.where(value == green, 2 + (blue - red) / some, 4 + (red - green) / some)
    sixths = torch.where(value == red, (green - blue) / some, sixths) + 6 * share
    far = (sixths[:, None] + pixels.new_tensor([5, 3, 1]).view(3, 1, 1)) % 6
    return value[:, None] - chroma[:, None] * torch.minimum(far, 4 - far).clamp_(0, 1)


def noise(images: Tensor, deviation: Amount = (0.0, 0.1), generator: Generator | None = None) -> Tensor:
    """Add normal noise, each value's its own; deviation: at least 0, in shares of the range. The rest as `jitter`."""
    top, pixels = _photo(images)
    deviation = _draw(images, "deviation", deviation, generator, None, 0.0).view(-1, 1, 1, 1)
    drawn = torch.randn(images.shape, generator=generator, device=images.device)
    return _as(images, torch.addcmul(pixels, drawn, top * deviation).clamp_(0, top))


def blur(images: Tensor, sigma: Amount = (0.1, 2.0), size: int = 7, generator: Generator | None = None) -> Tensor:
    """Convolve with a normal density, sigma in pixels, cut to size × size; the picture is mirrored at its borders.

    Raises:  ValueError where the size is even or reaches over the picture, or sigma is negative.
    Source:  torchvision.transforms.v2.GaussianBlur, whose range of sigma it takes.
    """
    count, _, height, width = _check(images)
    radius = size // 2
    if size < 1 or size % 2 == 0 or radius >= min(height, width):
        raise ValueError(f"size={size} must be odd and less than twice the image's sides ({height}×{width})")
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    sigma = _draw(images, "sigma", sigma, generator, None, 0.0).clamp_min(1e-3)[:, None]
    weights = (-0.5 * (offsets / sigma) ** 2).softmax(1)  # (N, size)

    def band(side: int) -> Tensor:  # the convolution along one axis as a matrix, (N, 1, side, side)
        source = (torch.arange(side, device=images.device)[:, None] + offsets).abs()
        source = side - 1 - (side - 1 - source).abs()
        spread = weights[:, None].expand(-1, side, -1)
        return weights.new_zeros(count, side, side).scatter_add_(2, source.expand_as(spread), spread)[:, None]

    return _as(images, band(height) @ images.float() @ band(width).mT)


# --- boxes and pairs


def cutout(images: Tensor, size: int = 8, fill: float = 0.0, generator: Generator | None = None) -> Tensor:
    """Put `fill` (in the images' own units) on a square, size × size pixels, centred on any pixel, cut at the border.

    Returns: as `random_crop`.
    Raises:  ValueError where the square is larger than the image.
    Source:  DeVries & Taylor 2017, arXiv:1708.04552, §3.2; their squares of 16 pixels suit CIFAR-10, 8 CIFAR-100.
    """
    _check(images)
    return _cut_(images.clone(memory_format=torch.channels_last), size, fill, generator)


def _cut_(images: Tensor, size: int, fill: float, generator: Generator | None) -> Tensor:
    """`cutout` in place, of images contiguous in channels-last memory format."""
    count, channels, height, width = images.shape
    if not 1 <= size <= min(height, width):
        raise ValueError(f"size={size} must be at least 1 and no larger than the image ({height}×{width})")
    device, before = images.device, size // 2
    down, right = (torch.randint(side, (count,), generator=generator, device=device) for side in (height, width))
    # Each image's row through its hole is a window on one long row with one hole.
    long = images.new_ones(3 * width, channels)
    long[width : width + size] = 0
    windows = long.view(-1).unfold(0, width * channels, channels)
    kept = windows.index_select(0, width + before - right)[:, None]
    # A hole that reaches over the border names the border's row again, which it holds too, for the centre is inside.
    which = (down[:, None] + torch.arange(-before, size - before, device=device)).clamp_(0, height - 1)
    which = (which + torch.arange(0, count * height, height, device=device)[:, None]).flatten()
    rows = images.permute(0, 2, 3, 1).view(count * height, width * channels)
    cut = rows.index_select(0, which).view(count, size, -1).mul_(kept)
    if fill:
        cut += images.new_tensor(fill) * (1 - kept)
    _put_(rows, which, cut.flatten(0, 1))
    return images


def _around_boxes(images: Tensor, sides: list[int] | list[Tensor], generator: Generator | None) -> Tensor:
    """0 in a box and 1 around it, (N, C, H, W), the images' dtype; sides: height and width, of all or of each (N, 1)"""
    _, channels, height, width = images.shape
    around = []
    for side, length in zip((height, width), sides, strict=True):
        centre = torch.randint(side, (len(images), 1), generator=generator, device=images.device)
        place = torch.arange(side, device=images.device) - (centre - length // 2)
        around.append(((place < 0) | (place >= length)).to(images.dtype))
    # On bytes, channels last, maximum and product are vectorised; torch.where is several times slower.
    kept = torch.maximum(around[0][:, :, None], around[1].repeat_interleave(channels, 1)[:, None])
    return kept.unflatten(2, (width, channels)).permute(0, 3, 1, 2)


def mixup(
    images: Tensor, labels: Tensor, alpha: float = 0.2, classes: int | None = None, generator: Generator | None = None
) -> tuple[Tensor, Tensor]:
    """λ · image + (1 − λ) · another image of the batch, and their labels likewise; λ from Beta(alpha, alpha).

    Args:    images: (N, C, H, W), N ≥ 2. labels: (N, K) shares, or (N,) class numbers and `classes`, which is K.
    Returns: images in their dtype, labels (N, K) float32.
    Raises:  ValueError naming N, alpha or the labels' shape.
    Source:  Zhang et al. 2018, arXiv:1710.09412, eq. 1. Departs: λ is drawn for each image, there in practice for a
             batch, and no image meets itself.
    """
    shares, other, kept = _pairs(images, labels, alpha, classes, generator)
    mixed = torch.lerp(images[other].float(), images.float(), kept.view(-1, 1, 1, 1))
    return _as(images, mixed), torch.lerp(shares[other], shares, kept[:, None])


def cutmix(
    images: Tensor, labels: Tensor, alpha: float = 1.0, classes: int | None = None, generator: Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Replace a box of each image by another image's, and mix the labels by area. Otherwise as `mixup`.

    Source:  Yun et al. 2019, arXiv:1905.04899, eq. 1-2: the box has √(1 − λ) of both sides; what the border leaves of
             it counts for the labels. Departs: as `mixup`.
    """
    shares, other, kept = _pairs(images, labels, alpha, classes, generator)
    sides = [(side * (1 - kept[:, None]).sqrt()).long() for side in images.shape[2:]]
    around = _around_boxes(images, sides, generator)
    kept = around.float().mean((1, 2, 3))
    return images * around + images[other] * (1 - around), torch.lerp(shares[other], shares, kept[:, None])


def _pairs(images, labels, alpha, classes, generator) -> tuple[Tensor, Tensor, Tensor]:
    """Labels as shares (N, K), the number of another image for each (N,), and λ (N,)."""
    _check(images)
    count, device = len(images), images.device
    if count < 2:
        raise ValueError(f"a batch of {count} has no two images to mix; at least 2 are needed")
    if not alpha > 0:
        raise ValueError(f"alpha={alpha} must be above 0")
    if labels.ndim == 1 and classes is not None:
        labels = F.one_hot(labels, classes)
    if labels.ndim != 2 or len(labels) != count:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} with classes={classes} must be shares ({count}, K), "
            f"or class numbers ({count},) and classes=K"
        )
    order = torch.randperm(count, generator=generator, device=device)
    other = torch.empty_like(order).scatter_(0, order, order.roll(1))  # one cycle through all: nobody meets itself
    # A symmetric beta variable from two even ones, by Student's t: Devroye 1996, "Random variate generation in one
    # line of code"; torch's own sampler takes no generator.
    u, v = torch.rand(2, count, generator=generator, device=device)
    cos = (2 * torch.pi * v).cos()
    t_squared = ((1 - u) ** (-1 / alpha) - 1) * cos**2
    return labels.float(), other, 0.5 + 0.5 * cos.sign() / (1 + 1 / t_squared).sqrt()


# --- policies: which change an image gets is drawn as well


def _posterize(images: Tensor, bits_lost: Tensor) -> Tensor:
    _, pixels = _photo(images)
    levels = 2 ** (8 - bits_lost.round()).view(-1, 1, 1, 1)
    step = (256 if images.dtype == torch.uint8 else 1) / levels
    return _as(images, (pixels / step).floor_().minimum(levels - 1) * step)


def _solarize(images: Tensor, share: Tensor) -> Tensor:
    top, pixels = _photo(images)
    return _as(images, torch.where(pixels >= top * (1 - share.view(-1, 1, 1, 1)), top - pixels, pixels))


def _histogram(name: str, images: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional

    return getattr(functional, name)(images)  # these two treat each image on its own, and leave nothing to draw


@dataclass(frozen=True)
class Operation:
    """A change of images by severity: 0 is none (or next to none), 1 the most."""

    change: Callable[[Tensor, Tensor, Generator | None], Tensor]  # of images and an amount for each, (N,)
    most: float = 0.0  # the amount at severity 1, RandAugment's where it has the operation
    widest: float = 0.0  # TrivialAugment's, where that is another
    signed: bool = False  # whether a coin turns the amount's sign

    def __call__(
        self, images: Tensor, severity: Amount, generator: Generator | None = None, *, wide: bool = False
    ) -> Tensor:
        """Images, changed. severity: in 0 … 1; a number is every image's. wide: by TrivialAugment's amounts."""
        _check(images)
        most = self.widest if wide and self.widest else self.most
        amount = most * _draw(images, "severity", severity, generator, None, 0.0, 1.0)
        if self.signed:
            amount *= 1 - 2 * torch.randint(2, amount.shape, generator=generator, device=images.device)
        return self.change(images, amount, generator)


OPERATIONS = {
    "identity": Operation(lambda i, a, g: i),
    "shear_x": Operation(lambda i, a, g: shear(i, a.atan().rad2deg(), 0.0, mode="nearest"), 0.3, 0.99, True),
    "shear_y": Operation(lambda i, a, g: shear(i, 0.0, a.atan().rad2deg(), mode="nearest"), 0.3, 0.99, True),
    "translate_x": Operation(lambda i, a, g: translate(i, i.shape[3] * a, 0.0, mode="nearest"), 150 / 331, 1.0, True),
    "translate_y": Operation(lambda i, a, g: translate(i, 0.0, i.shape[2] * a, mode="nearest"), 150 / 331, 1.0, True),
    "rotate": Operation(lambda i, a, g: rotate(i, a, mode="nearest"), 30.0, 135.0, True),
    "brightness": Operation(lambda i, a, g: jitter(i, brightness=1 + a), 0.9, 0.99, True),
    "contrast": Operation(lambda i, a, g: jitter(i, contrast=1 + a), 0.9, 0.99, True),
    "saturation": Operation(lambda i, a, g: jitter(i, saturation=1 + a), 0.9, 0.99, True),
    "sharpness": Operation(lambda i, a, g: jitter(i, sharpness=1 + a), 0.9, 0.99, True),
    "posterize": Operation(lambda i, a, g: _posterize(i, a), 4.0, 6.0),
    "solarize": Operation(lambda i, a, g: _solarize(i, a), 1.0),
    "autocontrast": Operation(lambda i, a, g: _histogram("autocontrast", i)),  # in full at any severity
    "equalize": Operation(lambda i, a, g: _histogram("equalize", i)),  # likewise
    "noise": Operation(noise, 0.25),
    "blur": Operation(lambda i, a, g: blur(i, a), 2.0),
}
POLICY = tuple(OPERATIONS)[:14]  # TrivialAugment's


def trivial_augment(images: Tensor, names: tuple[str, ...] = POLICY, generator: Generator | None = None) -> Tensor:
    """Change each image by one operation, drawn from `names`, at a severity of its own, even in 0 … 1.

    Args:    images: (N, C, H, W), uint8, or float in 0 … 1.
    Returns: (N, C, H, W), the images' dtype.
    Raises:  ValueError naming an unknown operation, or the floats' range where it is not 0 … 1.
    Source:  Müller & Hutter 2021, arXiv:2103.10158, §3, the wide ranges, as in torchvision.transforms.v2.
             Departs: slants keep the picture's centre, there its corner; shifts reach the picture's side, which on
             CIFAR is the paper's 32 pixels; the severity is not one of 31 steps.
    """
    _white(images)  # some operations take floats of any range: refuse now, not in the batch that draws another
    if not names or not set(names) <= set(OPERATIONS):
        raise ValueError(f"names={names} must be some of {', '.join(OPERATIONS)}")
    severity = _draw(images, "severity", (0.0, 1.0), generator, None, 0.0, 1.0)
    drawn = torch.randint(len(names), severity.shape, generator=generator, device=images.device)
    groups = drawn.argsort(stable=True).split(drawn.bincount(minlength=len(names)).tolist())
    changed = images.clone()
    for name, chosen in zip(names, groups, strict=True):
        if len(chosen) and name != "identity":
            changed[chosen] = OPERATIONS[name](images[chosen], severity[chosen], generator, wide=True)
    return changed


# --- what all share


def _check(images: Tensor) -> torch.Size:
    """The shape of a batch of images; anything else is refused."""
    if not isinstance(images, Tensor):
        raise ValueError(f"images is of type {type(images).__name__}; it must be a tensor (N, C, H, W)")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"images of shape {tuple(images.shape)} must be (N, C, H, W), none 0, with 1 or 3 channels")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images of {images.dtype} must be uint8 or of a float type")
    return images.shape


def _white(images: Tensor) -> float:
    """The value of white; floats of another range than 0 … 1 are refused."""
    _check(images)
    if images.dtype == torch.uint8:
        return 255.0
    low, high = (value.item() for value in images.aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"images hold {low:g} … {high:g}; colours of floats need 0 … 1, so normalise after this")
    return 1.0


def _photo(images: Tensor) -> tuple[float, Tensor]:
    """The value of white, and the images as float32."""
    return _white(images), images.float()


def _as(images: Tensor, pixels: Tensor) -> Tensor:
    """Pixels in the images' dtype."""
    return pixels.round_().clamp_(0, 255).to(torch.uint8) if images.dtype == torch.uint8 else pixels.to(images.dtype)


def _draw(
    images: Tensor,
    name: str,
    amount: Amount,
    generator: Generator | None,
    middle: float | None = 0.0,
    least: float = -torch.inf,
    most: float = torch.inf,
) -> Tensor:
    """An amount for each image, (N,) float32; a number is the reach about the middle or, without one, the amount."""
    if isinstance(amount, Tensor):
        if amount.shape != images.shape[:1]:
            raise ValueError(f"{name} of shape {tuple(amount.shape)} must be ({len(images)},), one for each image")
        low, high = (value.item() for value in amount.aminmax())
    elif isinstance(amount, tuple | list):
        low, high = amount
    else:
        low, high = (amount, amount) if middle is None else (middle - amount, middle + amount)
    if not least <= low <= high <= most:
        raise ValueError(f"{name}={amount} means {low:g} … {high:g}; it must rise, within {least:g} … {most:g}")
    if isinstance(amount, Tensor):
        return amount.to(images.device, torch.float32)
    if low == high:
        return torch.full(images.shape[:1], float(low), device=images.device)
    return torch.empty(len(images), device=images.device).uniform_(low, high, generator=generator)
