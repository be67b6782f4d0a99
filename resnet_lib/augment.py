"""Augmentation as pure functions of a whole batch, on the device the batch is on: one independent draw per image."""

import torch
import torch.nn.functional as F
from torch import Tensor


def random_crop(images: Tensor, padding: int = 4, generator: torch.Generator | None = None) -> Tensor:
    """Shift each image by −padding … +padding pixels in both directions; zeros come in at the border.

    Args:    images: (N, C, H, W), any dtype and memory format. generator: on the images' device.
    Returns: (N, C, H, W) in channels-last memory format.
    Raises:  ValueError where the padding is negative or as large as the image.
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
    count, channels, height, width = images.shape
    if not 0 <= padding < min(height, width):
        raise ValueError(f"padding={padding} must be at least 0 and smaller than the image ({height}×{width})")
    if not 0 <= probability <= 1:
        raise ValueError(f"probability={probability} must lie between 0 and 1")
    device = images.device
    rows = torch.arange(height, device=device).expand(count, -1)
    columns = torch.arange(width, device=device).expand(count, -1)
    if probability:
        flipped = torch.rand(count, 1, generator=generator, device=device) < probability
        columns = torch.where(flipped, width - 1 - columns, columns)
    if padding:
        images = F.pad(images, (padding,) * 4)
        top, left = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator, device=device)
        rows, columns = rows + top, columns + left
    # One gather of whole pixels from the batch laid out as a list of pixels: 1.5 times as fast on a CPU as
    # indexing windows of a contiguous batch, and the result is channels-last without a further copy.
    pixels = images.permute(0, 2, 3, 1).reshape(-1, channels)
    first = torch.arange(count, device=device)[:, None] * images.shape[2]
    index = (first + rows)[:, :, None] * images.shape[3] + columns[:, None, :]
    return pixels[index.view(-1)].view(count, height, width, channels).permute(0, 3, 1, 2)
