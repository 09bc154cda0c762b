"""Types, memory formats and sums that the joint forms of the branches have in common."""

from collections.abc import Callable, Sequence
from functools import wraps

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, all_reduce
from torch.nn import functional as F

MAX_PIXELS_PER_SUM = 32768
"""Longest sum that is taken in float32 at a stretch; the pieces are added in float64. Beyond it,
what rounding leaves of a variance shows in the fifth digit."""


MANY_CHANNELS = 96
"""From as many channels on, torch takes their statistics at full speed."""

MIN_SHARED_PIXELS = 2048
"""Fewest pixels that are divided among channels for it."""


def statistics_dtype(x: Tensor) -> torch.dtype:
    """Type in which statistics of a map are kept: float32, or float64 if the map has it."""
    return torch.promote_types(x.dtype, torch.float32)


def can_look(x: Tensor) -> bool:
    """Whether the values of a map may decide what is computed.

    A GPU would have to be waited for, and a compiled graph broken.
    """
    return x.device.type == 'cpu' and not torch.compiler.is_compiling()


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of a pixel of a (B, C, H, W) map lie side by side in memory."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def convolve_and_shift(
    x: Tensor, kernel: Tensor, bias: Tensor | None, stride: tuple[int, int] = (1, 1)
) -> Tensor:
    """A convolution with a padding of half the kernel.

    Args:
        x: Map of shape (B, C, H, W).
        kernel: Kernel of shape (O, C / groups, k, k), k odd, in the type of ``x``.
        bias: Offsets of shape (O,) in any type, or None. They are not rounded to half precision
            before they are added, which would shift the mean of every channel.
        stride: Strides along rows and columns.

    Returns:
        Map of shape (B, O, ceil(H / stride), ceil(W / stride)) in the type of ``x``.
    """
    padding = [size // 2 for size in kernel.shape[2:]]
    groups = x.shape[1] // kernel.shape[1]
    bias = None if bias is None else bias.to(statistics_dtype(x))
    if bias is None or bias.dtype == x.dtype:
        return F.conv2d(x, kernel, bias, stride, padding, groups=groups)
    return F.conv2d(x, kernel, None, stride, padding, groups=groups).add_(bias[:, None, None])


def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel.

    Args:
        x: Map of shape (B, C, H, W) with at least one pixel.

    Returns:
        Both of shape (C,), float64.
    """
    if torch.compiler.is_compiling():
        # A compiler makes one pass of this; eager it is ten times slower for channels_last maps.
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        return mean.double(), variance.double()
    channels, pixels, parts = x.shape[1], x.numel() // x.shape[1], 1
    if is_channels_last(x):
        # Few channels, or a number that does not fill registers, take five to forty times as long
        # as many: neighbouring pixels pass for other channels. Not on small maps, where it saves
        # nothing and the parts' means, which are rounded, would differ by more than rounding may.
        while parts * channels < MANY_CHANNELS or parts * channels % 16:
            if pixels % 2 or pixels < MIN_SHARED_PIXELS:
                break
            parts, pixels = 2 * parts, pixels // 2
        x = x.permute(0, 2, 3, 1).reshape(pixels, parts * channels)
    # Only buffers to update, which are thrown away, make it return float32 for half precision.
    unused = torch.zeros(x.shape[1], dtype=statistics_dtype(x), device=x.device)
    found = torch.batch_norm_update_stats(x, unused, unused.clone(), 0.0)
    mean, variance = (values.double() for values in found)
    if parts == 1:
        return mean, variance
    between, mean = torch.var_mean(mean.view(parts, channels), 0, correction=0)
    return mean, variance.view(parts, channels).mean(0) + between


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
