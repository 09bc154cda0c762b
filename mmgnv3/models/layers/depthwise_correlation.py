"""Correlations of depthwise maps, in parts that are short enough for single precision."""

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from .depthwise_matrices import ALONE, RANGES, RECTANGLES
from .numerics import MAX_PIXELS_PER_SUM

MAX_BYTES = 2**22
"""Size of intermediate maps that a cache holds, and that need no new memory from the system."""


def cached_images(x: Tensor) -> int:
    """How many images of a map of shape (B, H, W, C) stay within ``MAX_BYTES``, at least one."""
    return max(1, MAX_BYTES // (x.shape[1:].numel() * x.element_size()))


def weight_gradient(grad: Tensor, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Depthwise correlation of two maps and the sum of the first, over batch and pixels.

    The weight gradient of a depthwise convolution of stride 1 whose output is as large as its
    input. oneDNN is fast at kernels of up to 5 rows and 3 columns.

    Args:
        grad: Map of shape (B, C, H, W).
        x: Map of the same shape.
        size: Kernel size, odd (rows, columns).

    Returns:
        ``sum grad(p) x(p + tap)`` for every tap, shape (C, rows * columns), and ``sum grad``,
        shape (C, 1).
    """
    channels = x.shape[1]
    weight, bias = torch.ops.aten.convolution_backward(
        grad,
        x,
        x.new_empty(channels, 1, *size),
        [channels],
        [1, 1],
        [size[0] // 2, size[1] // 2],
        [1, 1],
        False,
        [0, 0],
        channels,
        [False, True, True],
    )[1:]
    return weight.view(channels, -1), bias[:, None]


def pieces(grad: Tensor, x: Tensor, reach: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut a correlation of two maps into parts that are short enough for single precision.

    Whole images where they are small; otherwise bands of rows, and what x reaches beyond them
    stands against zeros.

    Args:
        grad: Map of shape (B, H, W, C).
        x: Map of the same shape.
        reach: How many rows apart two correlated pixels can be.

    Yields:
        Pairs of maps whose correlations add up to that of the whole maps.
    """
    batch, height, width = x.shape[:3]
    images = MAX_PIXELS_PER_SUM // (height * width)
    if images >= batch:
        yield grad, x
        return
    if images:
        for part in zip(grad.split(images), x.split(images), strict=True):
            # The same map twice stays one.
            yield part if grad is not x else (part[1], part[1])
        return
    rows = max(1, MAX_PIXELS_PER_SUM // width)
    for image, start in product(range(batch), range(0, height, rows)):
        above, below = min(start, reach), max(0, min(height - start - rows, reach))
        band = grad[image : image + 1, start : start + rows]
        yield (
            F.pad(band, (0, 0, 0, 0, above, below)),
            x[image : image + 1, start - above : start + rows + below],
        )


def correlate(grad: Tensor, x: Tensor, centre: Tensor | None = None) -> Tensor:
    """Sums of ``grad(p) x(p + tap)`` over all pixels for the taps of a 3 x 3 kernel, and of grad.

    Args:
        grad: Map of shape (B, H, W, C).
        x: Map of the same shape.
        centre: See :func:`patch_moments`; the result does not depend on it.

    Returns:
        Shape (C, 10), float64.
    """
    total = None
    for here, there in pieces(grad, x, 1):
        there = there if centre is None else there - centre
        parts = weight_gradient(here.permute(0, 3, 1, 2), there.permute(0, 3, 1, 2), (3, 3))
        parts = torch.cat(parts, 1).double()
        total = parts if total is None else total.add_(parts)
    if centre is not None:
        alone = rectangle_sums(grad)[ALONE].t()
        # x(p + tap) is inside for the pixels p that lie in the rectangle of the opposite tap.
        centred = total[:, :9] + centre.double()[:, None] * alone.flip(1)
        total = torch.cat((centred, alone[:, 4:5]), 1)
    return total


def rectangle_sums(x: Tensor) -> Tensor:
    """Sums of x(p + t) over the p with p + t' inside, for all pairs of taps (t, t').

    Args:
        x: Map of shape (B, H, W, C).

    Returns:
        Shape (81, C), float64.
    """
    height, width = x.shape[1:3]
    x = x.sum(0, dtype=torch.float64)
    rows = torch.stack([x[a : height - b].sum(0) for a, b in RANGES])
    sums = torch.stack([rows[:, a : width - b].sum(1) for a, b in RANGES])
    return sums.flatten(0, 1)[RECTANGLES.to(x.device)]


def sample_mean(x: Tensor) -> Tensor:
    """A number near the mean of every channel of a map of shape (B, H, W, C), shape (C,)."""
    sample = x[:, :: max(1, x.shape[1] // 4), :: max(1, x.shape[2] // 4)]
    # A process may have no image.
    return sample.sum((0, 1, 2)) / max(1, sample[..., 0].numel())
