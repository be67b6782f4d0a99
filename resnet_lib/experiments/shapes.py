"""What a CIFAR ResNet of any depth and width costs, in closed form, and the width at which it costs a given amount."""

import math
from collections.abc import Callable

WIDEST = 200  # of the first stage, in channels
Side = int | tuple[int, int]  # of a picture in pixels: of a square, or height and width


def both(side: Side) -> tuple[int, int]:
    """Height and width."""
    return (side, side) if isinstance(side, int) else tuple(side)


def cifar_parameters(depth: int, w: int = 16, c: int = 3, classes: int = 10) -> int:
    """Parameters of a CIFAR ResNet with shortcut A, in closed form."""
    n = (depth - 2) // 6
    return 9 * w * w * (42 * n - 10) + 28 * n * w + 2 * w + 9 * c * w + (4 * w + 1) * classes


def cifar_flops(depth: int, w: int = 16, c: int = 3, classes: int = 10, side: Side = 32) -> int:
    """FLOPs of one picture's forward pass, in closed form; each side in pixels must be a multiple of 4."""
    n = (depth - 2) // 6
    return 18 * w * math.prod(both(side)) * (c + w * (6 * n - 1)) + 8 * w * classes


def flops_here(s, depth: int, width: int = 16) -> int:
    """`cifar_flops` for the pictures at hand."""
    return cifar_flops(depth, width, s.facts["shape"][0], s.facts["classes"], s.facts["shape"][1:])


def parameters_here(s, depth: int, width: int = 16) -> int:
    """`cifar_parameters` for the pictures at hand."""
    return cifar_parameters(depth, width, s.facts["shape"][0], s.facts["classes"])


def nearest_width(cost: Callable[[int], int], budget: int) -> int:
    """The whole width whose cost is nearest to the budget."""
    return min(range(1, WIDEST), key=lambda width: abs(cost(width) - budget))
