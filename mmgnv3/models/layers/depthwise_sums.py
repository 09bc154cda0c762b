"""Sums over a map that hold everything a depthwise 3 x 3 kernel's batch statistics depend on.

The output of a kernel ``K`` at pixel ``p`` is ``K . patch(p)``, so its mean and variance over a
batch follow from the first two moments of the patches: ``sum patch`` (9 numbers a channel) and
``sum patch patch^T`` (9 x 9). These need not be taken product by product. Over an unbounded map
they would depend on the distance of two pixels only: 13 lag sums. The map ends, however, and the
outputs on the ring just outside of it do not exist; what they would have added depends on the
outermost rows, columns and corners alone. This module takes those few sums with convolutions that
CPUs are good at, maps them to the moments by one constant matrix, and applies the adjoint.
"""

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

TAPS = tuple(product((-1, 0, 1), repeat=2))
"""Offsets (row, column) of a 3 x 3 kernel's weights, in their order in memory."""

MAX_PIXELS = 32768
"""Longest sum in single precision; longer ones are split and added in double precision."""

MAX_BYTES = 2**22
"""Size of intermediate maps that a cache holds, and that need no new memory from the system."""

_EDGES = ((0, 1), (0, -1), (1, 1), (1, -1))
"""Top, bottom, left and right edge as (axis, coordinate along it of every tap that a ring output
beyond that edge shares with the map)."""
_CORNERS = tuple(product((1, -1), repeat=2))
"""Top left, top right, bottom left, bottom right as the one tap a ring output shares."""
_RANGES = ((0, 0), (1, 0), (2, 0), (0, 1), (0, 2))
"""How many lines at both ends of an axis two taps together can miss."""

# Places of the sums: 5 x 3 lags, total; 4 x 5 lags along the edges, their totals; corner values,
# their squares.
_LAGS, _TOTAL, _EDGE, _EDGE_TOTAL, _CORNER, _SQUARE, _NUM_SUMS = 0, 15, 16, 36, 40, 44, 48
_NUM_MOMENTS = 81 + 9


def _lag_index(lag: tuple[int, int]) -> int:
    row, column = lag if lag[1] >= 0 else (-lag[0], -lag[1])
    return _LAGS + (row + 2) * 3 + column


def _moment_matrix() -> Tensor:
    """The constant matrix from sums to moments, shape (48, 81 + 9)."""
    matrix = torch.zeros(_NUM_SUMS, _NUM_MOMENTS, dtype=torch.float64)
    for i, tap in enumerate(TAPS):
        first = 81 + i
        matrix[_TOTAL, first] = 1
        for j, other in enumerate(TAPS):
            lag = (other[0] - tap[0], other[1] - tap[1])
            second = 9 * i + j
            matrix[_lag_index(lag), second] = 1
            for edge, (axis, offset) in enumerate(_EDGES):
                if tap[axis] == other[axis] == offset:
                    matrix[_EDGE + 5 * edge + lag[1 - axis] + 2, second] -= 1
        for edge, (axis, offset) in enumerate(_EDGES):
            if tap[axis] == offset:
                matrix[_EDGE_TOTAL + edge, first] -= 1
        # The ring's corners lie beyond two edges and were taken off twice.
        if tap in _CORNERS:
            matrix[_CORNER + _CORNERS.index(tap), first] += 1
            matrix[_SQUARE + _CORNERS.index(tap), 10 * i] += 1
    return matrix


def _stencil_matrix() -> Tensor:
    """The adjoint of the moments: from their gradient to stencils on the map, shape (90, 58).

    A lag sum's gradient is the map moved by the lag in both directions, a square's is twice the
    value, a total's is one. Columns: 5 x 5 stencil, constant; for the four edges stencils of 5 and
    constants; for the four corners constants and factors.
    """
    fold = torch.zeros(_NUM_SUMS, 58, dtype=torch.float64)
    for row, column in product(range(-2, 3), range(3)):
        for sign in (1, -1):
            fold[_lag_index((row, column)), (sign * row + 2) * 5 + sign * column + 2] += 1
    fold[_TOTAL, 25] = 1
    for edge, lag in product(range(4), range(5)):
        first = 5 * edge
        fold[_EDGE + first + lag, 26 + first + lag] += 1
        fold[_EDGE + first + lag, 26 + first + 4 - lag] += 1
    for place in range(4):
        fold[_EDGE_TOTAL + place, 46 + place] = 1
        fold[_CORNER + place, 50 + place] = 1
        fold[_SQUARE + place, 54 + place] = 2
    return _moment_matrix().t() @ fold


def _missing_lines() -> Tensor:
    """For taps t, t': which of the 5 x 5 rectangles p + t covers while p and p + t' are inside."""

    def place(tap: int, other: int) -> int:
        return _RANGES.index((max(0, tap, tap - other), max(0, -tap, other - tap)))

    return torch.tensor([place(t[1], o[1]) * 5 + place(t[0], o[0]) for t in TAPS for o in TAPS])


_MOMENTS = _moment_matrix()
_STENCILS = _stencil_matrix()
_RECTANGLES = _missing_lines()
_ALONE = slice(4, None, 9)
"""Places of the pairs (t, 0) among the pairs of taps."""


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
    images = MAX_PIXELS // (height * width)
    if images >= batch:
        yield grad, x
        return
    if images:
        for part in zip(grad.split(images), x.split(images), strict=True):
            # The same map twice stays one.
            yield part if grad is not x else (part[1], part[1])
        return
    rows = max(1, MAX_PIXELS // width)
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
        centre: See :func:`patch_sums`; the result does not depend on it.

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
        alone = _rectangle_sums(grad)[_ALONE].t()
        # x(p + tap) is inside for the pixels p that lie in the rectangle of the opposite tap.
        centred = total[:, :9] + centre.double()[:, None] * alone.flip(1)
        total = torch.cat((centred, alone[:, 4:5]), 1)
    return total


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
    rows, columns = ends(x, 1).transpose(1, 2), ends(x, 2)
    height, width = x.shape[1:3]
    if height < width:
        columns = F.pad(columns, (0, 0, 0, 0, 0, width - height))
    elif width < height:
        rows = F.pad(rows, (0, 0, 0, 0, 0, height - width))
    return torch.cat((rows, columns), 2)


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


def patch_sums(x: Tensor, centre: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """First and second moments of the zero-padded 3 x 3 patches of a map, as sums.

    Args:
        x: Map of shape (B, H, W, C), contiguous, of at least single precision.
        centre: A number for every channel, shape (C,), near its mean. The sums are taken of what
            deviates from it, so that a large mean costs no digits; the result is the same. None
            means zero and saves a pass and a few sums.

    Returns:
        Sum of ``patch``, shape (C, 9); sum of ``patch patch^T``, shape (C, 9, 9); and the sum of
        squares that was taken in single precision, shape (C, 1), to which rounding errors are
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
    moments = sums @ _MOMENTS.to(x.device)
    first, second = moments[:, 81:], moments[:, :81]
    if centre is not None:
        first, second = _uncentred(x, centre, second)
    return first, second.unflatten(1, (9, 9)), sums[:, 6:7]


def _rectangle_sums(x: Tensor) -> Tensor:
    """Sums of x(p + t) over the p with p + t' inside, for all pairs of taps (t, t').

    Args:
        x: Map of shape (B, H, W, C).

    Returns:
        Shape (81, C), float64.
    """
    height, width = x.shape[1:3]
    x = x.sum(0, dtype=torch.float64)
    rows = torch.stack([x[a : height - b].sum(0) for a, b in _RANGES])
    sums = torch.stack([rows[:, a : width - b].sum(1) for a, b in _RANGES])
    return sums.flatten(0, 1)[_RECTANGLES.to(x.device)]


def _uncentred(u: Tensor, centre: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Moments of ``x = u + centre`` from the second ones of u.

    With e = 1 inside of the map and 0 outside, x is u + centre e everywhere, and the sum of
    ``u(p + t) e(p + t')`` over the map is a sum of u over a rectangle that misses up to two lines.

    Args:
        u: Map of shape (B, H, W, C).
        centre: Shape (C,).
        second: Sum of the products of u's patches, shape (C, 81).
    """
    batch, height, width, channels = u.shape
    count = _rectangle_sums(u.new_ones(1, height, width, 1)).t() * batch
    sums = _rectangle_sums(u).t()
    centre = centre.double()[:, None]
    cross = sums.view(channels, 9, 9)
    cross = (cross + cross.transpose(1, 2)).flatten(1)
    first = sums[:, _ALONE] + centre * count[:, _ALONE]
    return first, second + centre * cross + centre.square() * count


def cached_images(x: Tensor) -> int:
    """How many images of a map of shape (B, H, W, C) stay within ``MAX_BYTES``, at least one."""
    return max(1, MAX_BYTES // (x[0].numel() * x.element_size()))


def map_gradient(grad: Tensor, x: Tensor, grad_out: Tensor, kernel: Tensor) -> Tensor:
    """Gradient of a map through :func:`patch_sums` and through a 3 x 3 convolution.

    The first is one depthwise 5 x 5 convolution of the map, one of its outermost lines, and the
    corners.

    Args:
        grad: Gradients of the second moments and of the first, shape (C, 9 * 9 + 9), float64.
        x: The map, shape (B, H, W, C), contiguous.
        grad_out: Gradient of the convolution's output, of the same shape and dtype.
        kernel: Kernel of the convolution, shape (C, 9).

    Returns:
        Gradient of x.
    """
    height, width, channels = x.shape[1:]
    stencils = (grad @ _STENCILS.to(x.device)).to(x.dtype)
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
