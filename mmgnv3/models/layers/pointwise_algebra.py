"""Products over the channels of a map, in whichever memory format it comes."""

from collections.abc import Callable, Sequence
from functools import wraps

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, all_reduce
from torch.nn import functional as F

# Longest sum that is taken in float32 at a stretch; the pieces are added in float64. Beyond it,
# what rounding leaves of a variance shows in the fifth digit.
MAX_PIXELS_PER_SUM = 32768


def statistics_dtype(x: Tensor) -> torch.dtype:
    """Type in which statistics of a map are kept: float32, or float64 if the map has it."""
    return torch.promote_types(x.dtype, torch.float32)


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of a pixel of a (B, C, H, W) map lie side by side in memory."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def convolve_and_shift(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution of stride 1 whose output is as large as its input.

    Args:
        x: Map of shape (B, C, H, W).
        kernel: Kernel of shape (O, C, k, k) or (C, 1, k, k) in the type of ``x``.
        bias: Offsets of shape (O,) in any type, or None. They are not rounded to half precision
            before they are added, which would shift the mean of every channel.

    Returns:
        Map of shape (B, O, H, W) in the type of ``x``.
    """
    padding, groups = kernel.shape[2] // 2, x.shape[1] // kernel.shape[1]
    bias = None if bias is None else bias.to(statistics_dtype(x))
    if bias is None or bias.dtype == x.dtype:
        return F.conv2d(x, kernel, bias, padding=padding, groups=groups)
    return F.conv2d(x, kernel, padding=padding, groups=groups).add_(bias[:, None, None])


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


def sum_over_ranks(tensors: Sequence[Tensor], group: ProcessGroup) -> list[Tensor]:
    """Add tensors of one type over the ranks of a group, all in one message."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    all_reduce(flat, group=group)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def without_autocast(backward: Callable[..., tuple]) -> Callable[..., tuple]:
    """Keep a function's way back in the types it chose, wherever ``backward()`` is called."""

    @wraps(backward)
    def wrapped(ctx, grad: Tensor, *grads: Tensor) -> tuple:
        with torch.autocast(grad.device.type, enabled=False):
            return backward(ctx, grad, *grads)

    return wrapped
