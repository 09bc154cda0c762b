"""Constant matrices between sums over a map and the moments of its zero-padded 3 x 3 patches.

See :mod:`.depthwise_sums` for what they are good for.
"""

from itertools import product

import torch
from torch import Tensor

TAPS = tuple(product((-1, 0, 1), repeat=2))
"""Offsets (row, column) of a 3 x 3 kernel's weights, in their order in memory."""

_EDGES = ((0, 1), (0, -1), (1, 1), (1, -1))
"""Top, bottom, left and right edge as (axis, coordinate along it of every tap that a ring output
beyond that edge shares with the map)."""
_CORNERS = tuple(product((1, -1), repeat=2))
"""Top left, top right, bottom left, bottom right as the one tap a ring output shares."""
RANGES = ((0, 0), (1, 0), (2, 0), (0, 1), (0, 2))
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
        return RANGES.index((max(0, tap, tap - other), max(0, -tap, other - tap)))

    return torch.tensor([place(t[1], o[1]) * 5 + place(t[0], o[0]) for t in TAPS for o in TAPS])


MOMENTS = _moment_matrix()
STENCILS = _stencil_matrix()
RECTANGLES = _missing_lines()
ALONE = slice(4, None, 9)
"""Places of the pairs (t, 0) among the pairs of taps."""
