"""All branches of a dense convolution in one convolution with N times the output channels.

For projections, whose input has so many channels that its covariance costs more than the branches.
The statistics are taken from the stacked output ``z``; the norms and the sum over the branches are
then one pass over it, ``y = sum_i a_i (z_i - m_i) + beta_i``, and so is the gradient with respect
to ``z``. No normalised branch is ever written down.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from .numerics import channel_statistics, statistics_dtype, sum_over_ranks, without_autocast
from .pointwise_algebra import sum_pixels


def stacked_branches(
    x: Tensor,
    kernels: Sequence[Tensor],
    stride: tuple[int, int],
    gammas: Tensor,
    betas: Tensor,
    eps: float,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of batch-normalised convolutions of one map.

    Args:
        x: Input of shape (B, C, H, W).
        kernels: N kernels of shape (O, C, k, k), k odd; the padding is k // 2.
        stride: Stride of all of them.
        gammas: Factors of the norms, shape (N, O).
        betas: Their offsets, shape (N, O).
        eps: What all norms add to the variance.
        group: Ranks over which the statistics are taken, None for this process alone.

    Returns:
        The output of shape (B, O, ceil(H / stride), ceil(W / stride)), and means and biased
        variances of the branches, both of shape (N, O), without gradient.
    """
    return _StackedBranches.apply(x, gammas, betas, stride, eps, group, *kernels)


class _StackedBranches(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        gammas: Tensor,
        betas: Tensor,
        stride: tuple[int, int],
        eps: float,
        group: ProcessGroup | None,
        *kernels: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = statistics_dtype(x)
        ctx.geometry = (stride, [size // 2 for size in kernels[0].shape[2:]], [1, 1])
        z = _convolve(x, torch.cat(kernels).to(x.dtype), ctx.geometry)
        count, means, variances = _moments(z, group)
        means, variances = means.to(dtype).view_as(gammas), variances.to(dtype).view_as(gammas)
        rstd = (variances + eps).rsqrt()
        # Of the factors as they are used, or what half precision rounds off would shift the mean.
        factors = (gammas.to(dtype) * rstd).to(z.dtype)
        bias = (betas.to(dtype) - factors * means).sum(0)
        is_exact = z.dtype == dtype
        out = bias[:, None, None] if is_exact else z.new_zeros(())
        for branch, factor in zip(z.chunk(len(gammas), 1), factors, strict=True):
            out = torch.addcmul(out, branch, _per_channel(factor, z))
        if not is_exact:
            out += bias[:, None, None]
        ctx.save_for_backward(x, z, gammas, means, rstd, *kernels)
        ctx.count, ctx.group = count, group
        ctx.mark_non_differentiable(means, variances)
        return out, means, variances

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, grad: Tensor, *_) -> tuple[Tensor | None, ...]:
        x, z, gammas, means, rstd, *kernels = ctx.saved_tensors
        dtype = means.dtype
        scale = gammas.to(dtype) * rstd
        grad_bias = sum_pixels(grad)
        # Half precision would round what is left of the differences taken below.
        z, grad = z.to(dtype), grad.to(dtype)
        products = [sum_pixels(grad * branch) for branch in z.chunk(len(gammas), 1)]
        grad_gammas = (torch.stack(products) - means * grad_bias).to(dtype) * rstd
        grad_bias = grad_bias.to(dtype)
        # d loss / d variance / n and d loss / d mean / n, over all ranks
        quadratic = -grad_gammas * scale * rstd / ctx.count
        offset = -scale * grad_bias / ctx.count
        if ctx.group is not None:
            quadratic, offset = sum_over_ranks((quadratic, offset), ctx.group)
        offset = offset - quadratic * means

        grad_x, grad_kernels = None, [None] * len(kernels)
        needs_kernels = any(ctx.needs_input_grad[6:])
        if ctx.needs_input_grad[0] or needs_kernels:
            grad_z = torch.addcmul(_per_channel(offset, z), z, _per_channel(quadratic, z))
            for branch, factor in zip(grad_z.chunk(len(gammas), 1), scale, strict=True):
                branch.addcmul_(grad, _per_channel(factor, grad))
            grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
                grad_z.to(x.dtype),
                x,
                torch.cat(kernels).to(x.dtype),
                None,
                *ctx.geometry,
                False,
                [0, 0],
                1,
                [ctx.needs_input_grad[0], needs_kernels, False],
            )
            if needs_kernels:
                chunks = grad_weight.chunk(len(kernels))
                grad_kernels = [
                    chunk.to(kernel.dtype) for chunk, kernel in zip(chunks, kernels, strict=True)
                ]
        grad_betas = grad_bias.to(gammas.dtype).expand_as(gammas)
        return grad_x, grad_gammas.to(gammas.dtype), grad_betas, None, None, None, *grad_kernels


def _convolve(x: Tensor, kernel: Tensor, geometry: tuple) -> Tensor:
    return torch.convolution(x, kernel, None, *geometry, False, [0, 0], 1)


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).view(-1, 1, 1)


def _moments(z: Tensor, group: ProcessGroup | None) -> tuple[Tensor | int, Tensor, Tensor]:
    """Number of pixels, means and biased variances of a map's channels over all ranks."""
    count: Tensor | int = z.numel() // z.shape[1]
    if not count:
        # A process that got no image has nothing to add.
        mean = variance = z.new_zeros(z.shape[1], dtype=torch.float64)
    else:
        mean, variance = channel_statistics(z)
    if group is None:
        return count, mean, variance
    # The local moments about zero add up, and float64 keeps what then cancels.
    local = mean.new_tensor(float(count))
    sums = (local, mean * count, (variance + mean.square()) * count)
    count, total, squares = sum_over_ranks(sums, group)
    mean = total / count
    return count, mean, (squares / count - mean.square()).clamp_min_(0)
