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
    if probability:
        flipped = torch.rand(count, 1, 1, 1, generator=generator, device=device) < probability
    pixels = images.permute(0, 2, 3, 1)
    if padding:
        pixels = F.pad(pixels, (0, 0, padding, padding, padding, padding)).contiguous()
        top, left = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator, device=device)
        # A window's row is contiguous in the channels-last batch: gathering whole rows beats gathering pixels.
        tall, wide = pixels.shape[1:3]
        first = torch.arange(count, device=device)[:, None] * tall + top + torch.arange(height, device=device)
        first = first * wide + left  # (N, height): where each row begins, counted in pixels
        rows = pixels.as_strided((count * tall * wide - width + 1, width * channels), (channels, 1))
        pixels = rows[first.view(-1)].view(count, height, width, channels)
    if probability:
        pixels = torch.where(flipped, pixels.flip(2), pixels)
    return pixels.contiguous().permute(0, 3, 1, 2)
