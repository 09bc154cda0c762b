"""Depthwise branches one by one, of operations that a compiler can take apart.

The joint forms (:mod:`.depthwise_moments`, :mod:`.depthwise_strided`) are made of calls that are
fast when each is run by itself. A compiler merges passes on its own, and has no code for some of
those calls, so that compiled graphs get this one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .numerics import statistics_dtype


def depthwise_branches(
    x: Tensor,
    kernels: Sequence[Tensor],
    scale: Tensor | None,
    with_identity: bool,
    stride: tuple[int, int],
    gammas: Tensor,
    betas: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of depthwise branches, each normalised by its own batch statistics.

    Args:
        x: Input of shape (B, C, H, W).
        kernels: Kernels of the branches, each of shape (C, 1, k, k), k odd.
        scale: Kernel of the 1 x 1 branch, shape (C, 1, 1, 1), or None.
        with_identity: Whether the input itself is a branch.
        stride: Strides along rows and columns.
        gammas: Weights of the norms, shape (M, C): kernels, 1 x 1 branch, identity.
        betas: Biases of the norms, shape (M, C).
        eps: What all the norms add to the variance.

    Returns:
        Output, and the branches' batch means and biased variances, both of shape (M, C), in at
        least single precision and without gradients.
    """
    dtype = statistics_dtype(x)
    kernels = list(kernels) if scale is None else [*kernels, scale]
    outs = []
    for kernel in kernels:
        padding = [size // 2 for size in kernel.shape[2:]]
        outs.append(F.conv2d(x, kernel.to(x.dtype), None, stride, padding, 1, x.shape[1]))
    if with_identity:
        outs.append(x)
    total, means, variances = 0, [], []
    for out, gamma, beta in zip(outs, gammas, betas, strict=True):
        out = out.to(dtype)
        var, mean = torch.var_mean(out, (0, 2, 3), correction=0, keepdim=True)
        factor = gamma[:, None, None] * (var + eps).rsqrt()
        total = total + (out - mean) * factor + beta[:, None, None]
        means.append(mean.flatten())
        variances.append(var.flatten())
    return total.to(x.dtype), torch.stack(means).detach(), torch.stack(variances).detach()
