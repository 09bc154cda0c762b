"""Products over the channels of a map, in whichever memory format it comes."""

import torch
from torch import Tensor

from .numerics import MAX_PIXELS_PER_SUM, convolve_and_shift, is_channels_last, statistics_dtype


def multiply_channels(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1 x 1 convolution.

    Args:
        x: Map of shape (B, C, H, W).
        matrix: Kernel of shape (O, C), rounded to the type of ``x``.
        bias: Offsets of shape (O,), or None; see :func:`convolve_and_shift`.

    Returns:
        Map of shape (B, O, H, W) in the type and memory format of ``x``.
    """
    matrix = matrix.to(x.dtype)
    slow = x.device.type == 'cpu' and x.dtype == torch.float32 and not is_channels_last(x)
    if not slow or torch.compiler.is_compiling():
        return convolve_and_shift(x, matrix[:, :, None, None], bias)
    # oneDNN would first bring a contiguous map into an order of its own.
    out = x.new_empty(len(x), len(matrix), *x.shape[2:])
    matrices = matrix.expand(len(x), *matrix.shape)
    if bias is None:
        torch.bmm(matrices, x.flatten(2), out=out.flatten(2))
    else:
        torch.baddbmm(bias.to(x.dtype)[:, None], matrices, x.flatten(2), out=out.flatten(2))
    return out


def outer_product(a: Tensor, b: Tensor) -> Tensor:
    """Sum over all pixels of the products of every channel of one map with every one of another.

    Args:
        a: Map of shape (B, O, H, W).
        b: Map of shape (B, C, H, W).

    Returns:
        Matrix of shape (O, C) in float64.
    """
    dtype = statistics_dtype(a)
    if is_channels_last(a) and is_channels_last(b):
        # (pixels, channels), all images in one.
        rows = [m.permute(0, 2, 3, 1).flatten(0, 2).to(dtype) for m in (a, b)]
        pieces = zip(*(m.split(MAX_PIXELS_PER_SUM) for m in rows), strict=True)
        return sum((p.t() @ q).double() for p, q in pieces)
    rows = [m.flatten(2).to(dtype) for m in (a, b)]
    pieces = zip(*(m.split(MAX_PIXELS_PER_SUM, dim=2) for m in rows), strict=True)
    return sum((p @ q.transpose(1, 2)).double().sum(0) for p, q in pieces)


def sum_pixels(x: Tensor) -> Tensor:
    """Sum of every channel of a map, float64 of shape (C,)."""
    sums = x.sum((2, 3), dtype=statistics_dtype(x))
    return sums.double().sum(0)
