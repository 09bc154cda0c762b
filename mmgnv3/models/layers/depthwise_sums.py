"""Sums over a map that hold everything a depthwise 3 x 3 kernel's batch statistics depend on.

The output of a kernel ``K`` at pixel ``p`` is ``K . patch(p)``, so its mean and variance over a
batch follow from the first two moments of the patches: ``sum patch`` (9 numbers a channel) and
``sum patch patch^T`` (9 x 9). These need not be taken product by product. Over an unbounded map
they would depend on the distance of two pixels only: 13 lag sums. The map ends, however, and the
outputs on the ring just outside of it do not exist; what they would have added depends on the
outermost rows, columns and corners alone. This module takes those few sums with convolutions that
CPUs are good at, maps them to the moments by one constant matrix, and applies the adjoint.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .depthwise_correlation import cached_images, pieces, rectangle_sums, weight_gradient
from .depthwise_matrices import ALONE, MOMENTS, STENCILS


def ends(x: Tensor, dim: int) -> Tensor:
    """First and last slice of a tensor along a dimension, as a view; twice the same if only one."""
    size = x.shape[dim]
    if size == 1:
        return x.expand(*x.shape[:dim], 2, *x.shape[dim + 1 :])
    return x[(slice(None),) * dim + (slice(None, None, size - 1),)]


def add_to_ends(x: Tensor, dim: int, value: Tensor) -> None:
    """Add in place to the first and last slice, see :func:`ends`."""
    if x.shape[dim] == 1:
        x += value.sum(dim, keepdim=True)
    else:
        ends(x, dim).add_(value)


def edge_lines(x: Tensor) -> Tensor:
    """The outermost lines of a map side by side, filled up with zeros to the same length.

    Args:
        x: Map of shape (B, H, W, C).

    Returns:
        Shape (B, max(H, W), 4, C): top row, bottom row, left column, right column.
    """
    batch, height, width, channels = x.shape
    lines = x.new_zeros(batch, max(height, width), 4, channels)
    lines[:, :width, :2] = ends(x, 1).transpose(1, 2)
    lines[:, :height, 2:] = ends(x, 2)
    return lines


def _as_map(lines: Tensor) -> Tensor:
    """Lines of shape (B, L, 4, C) as a map of 4 C channels, L rows and one column."""
    return lines.flatten(2)[:, :, None].permute(0, 3, 1, 2)


class _Signal:
    """A map as one long signal in which a lag is a distance in memory.

    Two columns of zeros before every row, and a pixel after the last one, keep rows apart that
    reach up to two columns over their ends. The memory is used again for maps of the same shape.
    """

    def __init__(self) -> None:
        self.shape = None

    def put(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Lay out a map.

        Args:
            x: Shape (B, H, W, C), contiguous.

        Returns:
            The map, and the same one a pixel further on, as overlapping views of shape
            (B, C, H, W + 2) in channels_last format.
        """
        if x.shape != self.shape:
            self.shape = x.shape
            batch, height, width, channels = x.shape
            signal = x.new_empty(batch * height * (width + 2) * channels + channels)
            shape = (batch, height, width + 2, channels)
            rows = signal[:-channels].view(shape)
            rows[:, :, :2] = 0
            signal[-channels:] = 0
            self.inside = rows[:, :, 2:]
            self.here = rows.permute(0, 3, 1, 2)
            self.moved = signal[channels:].view(shape).permute(0, 3, 1, 2)
        self.inside.copy_(x)
        return self.here, self.moved


def patch_moments(x: Tensor, centre: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """First and second moments of the zero-padded 3 x 3 patches of a map.

    Args:
        x: Map of shape (B, H, W, C), contiguous, of at least single precision.
        centre: A number for every channel, shape (C,), near its mean. The sums are taken of what
            deviates from it, so that a large mean costs no digits; the result is the same. None
            means zero and saves a pass and a few sums.

    Returns:
        Mean of ``patch``, shape (C, 9); mean of ``patch patch^T``, shape (C, 9, 9); and the mean
        square whose sum was taken in single precision, shape (C, 1), to which rounding errors are
        relative. All float64.
    """
    if centre is not None:
        x = x - centre
    channels = x.shape[3]
    lags = []
    signals = _Signal(), _Signal()
    for part in x.split(cached_images(x)):
        for here, there in pieces(part, part, 2):
            signal, moved = signals[0].put(there)
            signal = signal if here is there else signals[1].put(here)[0]
            # Taps -1, 0, 1 of what was moved by one column are lags of 0, 1 and 2 columns.
            lags.append(weight_gradient(signal, moved, (5, 3)))
    lines = _as_map(edge_lines(x))
    edges, edge_totals = weight_gradient(lines, lines, (5, 1))
    corners = ends(ends(x, 1), 2)
    sums = torch.cat(
        (
            *lags[0],
            edges.view(4, channels, 5).transpose(0, 1).reshape(channels, 20),
            edge_totals.view(4, channels).t(),
            corners.sum(0).view(4, channels).t(),
            (corners * corners).sum(0).view(4, channels).t(),
        ),
        1,
    ).double()
    for more in lags[1:]:
        sums[:, :16] += torch.cat(more, 1)
    # A process that got no image has sums of zero.
    sums *= 1 / max(1, x[..., 0].numel())
    moments = sums @ MOMENTS.to(x.device)
    first, second = moments[:, 81:], moments[:, :81]
    if centre is not None:
        first, second = _uncentred(x, centre, second)
    return first, second.unflatten(1, (9, 9)), sums[:, 6:7]


def _uncentred(u: Tensor, centre: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Moments of ``x = u + centre`` from the second ones of u.

    With e = 1 inside of the map and 0 outside, x is u + centre e everywhere, and the sum of
    ``u(p + t) e(p + t')`` over the map is a sum of u over a rectangle that misses up to two lines.

    Args:
        u: Map of shape (B, H, W, C).
        centre: Shape (C,).
        second: Mean of the products of u's patches, shape (C, 81).
    """
    height, width, channels = u.shape[1:]
    count = rectangle_sums(u.new_ones(1, height, width, 1)).t() / (height * width)
    sums = rectangle_sums(u).t() / max(1, u[..., 0].numel())
    centre = centre.double()[:, None]
    cross = sums.view(channels, 9, 9)
    cross = (cross + cross.transpose(1, 2)).flatten(1)
    first = sums[:, ALONE] + centre * count[:, ALONE]
    return first, second + centre * cross + centre.square() * count


def map_gradient(grad: Tensor, x: Tensor, grad_out: Tensor, kernel: Tensor) -> Tensor:
    """Gradient of a map through :func:`patch_moments` and through a 3 x 3 convolution.

    The first is one depthwise 5 x 5 convolution of the map, one of its outermost lines, and the
    corners.

    Args:
        grad: Gradients of the second moments and of the first, shape (C, 9 * 9 + 9), float64,
            over the number of pixels.
        x: The map, shape (B, H, W, C), contiguous.
        grad_out: Gradient of the convolution's output, of the same shape and dtype.
        kernel: Kernel of the convolution, shape (C, 9).

    Returns:
        Gradient of x.
    """
    height, width, channels = x.shape[1:]
    stencils = (grad @ STENCILS.to(x.device)).to(x.dtype)
    inner, edges, corners = stencils.split((26, 24, 8), 1)
    inner, constant = inner[:, :25].reshape(channels, 1, 5, 5), inner[:, 25].contiguous()
    kernel = kernel.flip(1).to(x.dtype).view(channels, 1, 3, 3)

    def gradient(x: Tensor, grad_out: Tensor) -> Tensor:
        out = F.conv2d(grad_out.permute(0, 3, 1, 2), kernel, padding=1, groups=channels)
        out += F.conv2d(x.permute(0, 3, 1, 2), inner, constant, padding=2, groups=channels)
        return out.permute(0, 2, 3, 1)

    images = cached_images(x)
    if images >= len(x):
        grad_x = gradient(x, grad_out)
    else:
        grad_x = torch.empty_like(x)
        parts = (value.split(images) for value in (grad_x, x, grad_out))
        for target, *sources in zip(*parts, strict=True):
            target.copy_(gradient(*sources))

    lines = F.conv2d(
        _as_map(edge_lines(x)),
        edges[:, :20].unflatten(1, (4, 5)).transpose(0, 1).reshape(4 * channels, 1, 5, 1),
        edges[:, 20:].t().reshape(-1),
        padding=(2, 0),
        groups=4 * channels,
    )
    lines = lines[..., 0].permute(0, 2, 1).unflatten(2, (4, channels))
    add_to_ends(grad_x, 1, lines[:, :width, :2].transpose(1, 2))
    add_to_ends(grad_x, 2, lines[:, :height, 2:])

    constant, factor = corners.t().contiguous().view(2, 2, 2, channels)
    corners = torch.addcmul(constant, ends(ends(x, 1), 2), factor)
    if height == 1:
        corners = corners.sum(1, keepdim=True)
    if width == 1:
        corners = corners.sum(2, keepdim=True)
    grad_x[:, :: max(height - 1, 1), :: max(width - 1, 1)] += corners
    return grad_x
