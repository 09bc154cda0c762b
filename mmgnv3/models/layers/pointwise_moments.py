"""All branches of a 1 x 1 convolution as one, from the mean and covariance of its input.

Branch ``i`` is a batch norm of ``W_i x``. Its statistics over the batch follow from those of the
input, ``m_i = W_i mu`` and ``v_i = diag(W_i C W_i^T)``, so that the sum of all branches is one
convolution with the kernel ``sum_i a_i W_i``, ``a_i = gamma_i / sqrt(v_i + eps)``, exactly and in
training mode. The identity branch has the unit matrix for a kernel.

With ``G`` and ``b`` for the gradients of that convolution's kernel, taken over the centred input,
and of its bias, the way back is

- ``gamma_i' = diag(W_i G^T) / sqrt(v_i + eps)``, ``v_i' = -gamma_i gamma_i' / 2 (v_i + eps)``,
  ``m_i' = -a_i b``;
- ``W_i' = a_i G + 2 v_i' W_i C``;
- ``C' = sum_i W_i^T v_i' W_i``,
  ``x' = (sum_i a_i W_i)^T y' + (2 C' (x - mu) + sum_i W_i^T m_i') / n``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from .numerics import can_look, statistics_dtype, sum_over_ranks, without_autocast
from .pointwise_algebra import multiply_channels, outer_product, sum_pixels

# Where the terms that a variance is summed from exceed it by more than this factor, float32 has
# lost too many of its seven digits and the variance is measured again in float64.
MAX_CANCELLATION = 100.0


def pointwise_moments(
    x: Tensor,
    kernels: Sequence[Tensor],
    with_identity: bool,
    gammas: Tensor,
    betas: Tensor,
    eps: float,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the batch-normalised branches of a pointwise unit with stride 1.

    Args:
        x: Input of shape (B, C, H, W) with B * H * W > 1.
        kernels: N kernels of shape (O, C, 1, 1).
        with_identity: Adds a batch norm of the input itself as the last branch; needs O = C.
        gammas: Factors of the norms, shape (M, O) for M branches.
        betas: Their offsets, shape (M, O).
        eps: What all norms add to the variance.
        group: Ranks over which the statistics are taken, None for this process alone.

    Returns:
        The output of shape (B, O, H, W), and means and biased variances of the branches, both of
        shape (M, O), without gradient.
    """
    return _PointwiseMoments.apply(x, gammas, betas, with_identity, eps, group, *kernels)


class _PointwiseMoments(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        gammas: Tensor,
        betas: Tensor,
        with_identity: bool,
        eps: float,
        group: ProcessGroup | None,
        *kernels: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = statistics_dtype(x)
        weight = _stack(kernels, with_identity, dtype)
        # Where values may not be looked at, the sums are centred from the start.
        may_look = can_look(x)
        count, mean, covariance = _input_moments(x, group, centred=not may_look)
        means, variances, spread = _branch_moments(weight, mean, covariance)
        if may_look and dtype != torch.float64 and _cancels(weight, mean, covariance, variances):
            count, mean, covariance = _input_moments(x.double(), group, centred=True)
            means, variances, spread = _branch_moments(weight.double(), mean, covariance)
        mean, means, variances, spread = (
            moment.to(dtype) for moment in (mean, means, variances, spread)
        )
        rstd = (variances + eps).rsqrt()
        scale = gammas.to(dtype) * rstd
        # Of the kernel as it is used, or what half precision rounds off it would shift the mean.
        kernel = _merge(scale, weight).to(x.dtype)
        bias = betas.to(dtype).sum(0) - kernel.to(dtype) @ mean
        out = multiply_channels(x, kernel, bias)
        ctx.save_for_backward(x, gammas, mean, spread, rstd, *kernels)
        ctx.with_identity, ctx.count, ctx.group = with_identity, count, group
        ctx.mark_non_differentiable(means, variances)
        return out, means, variances

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, grad: Tensor, *_) -> tuple[Tensor | None, ...]:
        x, gammas, mean, spread, rstd, *kernels = ctx.saved_tensors
        dtype = mean.dtype
        weight = _stack(kernels, ctx.with_identity, dtype)
        scale = gammas.to(dtype) * rstd
        grad_bias = sum_pixels(grad)
        grad_kernel = outer_product(grad, x) - torch.outer(grad_bias, mean.double())
        grad_bias, grad_kernel = grad_bias.to(dtype), grad_kernel.to(dtype)
        grad_gammas = (weight * grad_kernel).sum(2) * rstd
        grad_variances = -0.5 * grad_gammas * scale * rstd

        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_covariance = _merge(grad_variances, weight, weight)
            grad_mean = (-scale * grad_bias).flatten() @ weight.flatten(0, 1)
            if ctx.group is not None:
                grad_covariance, grad_mean = sum_over_ranks((grad_covariance, grad_mean), ctx.group)
            quadratic = grad_covariance * (2 / ctx.count)
            offset = grad_mean / ctx.count - quadratic @ mean
            grad_x = multiply_channels(grad, _merge(scale, weight).t(), offset)
            grad_x.add_(multiply_channels(x, quadratic))
        grad_kernels = [None] * len(kernels)
        if any(ctx.needs_input_grad[6:]):
            # The identity, if there is one, comes last and has no kernel of its own.
            parts = (scale[:, :, None], grad_variances[:, :, None], spread)
            own_scale, own_grad, own_spread = (part[: len(kernels)] for part in parts)
            grad_weight = torch.addcmul(own_scale * grad_kernel, own_grad, own_spread, value=2)
            grad_kernels = [
                part.view_as(kernel).to(kernel.dtype)
                for part, kernel in zip(grad_weight, kernels, strict=True)
            ]
        grad_betas = grad_bias.to(gammas.dtype).expand_as(gammas)
        return grad_x, grad_gammas.to(gammas.dtype), grad_betas, None, None, None, *grad_kernels


def _stack(kernels: Sequence[Tensor], with_identity: bool, dtype: torch.dtype) -> Tensor:
    """Kernels of all branches, shape (M, O, C)."""
    matrices = [kernel.flatten(1).to(dtype) for kernel in kernels]
    if with_identity:
        matrices.append(torch.eye(len(matrices[0]), dtype=dtype, device=matrices[0].device))
    return torch.stack(matrices)


def _merge(factors: Tensor, weight: Tensor, other: Tensor | None = None) -> Tensor:
    """The kernel ``sum_i diag(f_i) W_i``, or ``sum_i W_i^T diag(f_i) W_i`` with ``other``."""
    scaled = factors[:, :, None] * weight
    return scaled.sum(0) if other is None else scaled.flatten(0, 1).t() @ other.flatten(0, 1)


def _input_moments(
    x: Tensor, group: ProcessGroup | None, centred: bool
) -> tuple[Tensor | int, Tensor, Tensor]:
    """Number of pixels, mean (C,) and biased covariance (C, C) of a map over all ranks.

    Args:
        x: Map of shape (B, C, H, W).
        group: Ranks, None for this process alone.
        centred: Subtracts the mean before squaring instead of its square afterwards: dearer by a
            copy of the map, but safe where a mean is large against its standard deviation.
    """
    count: Tensor | int = x.shape[0] * x.shape[2] * x.shape[3]
    total = sum_pixels(x)
    if group is not None:
        count, total = sum_over_ranks((total.new_tensor(float(count)), total), group)
    mean = total / count
    if centred:
        x = x.to(statistics_dtype(x))
        x = x - mean.to(x.dtype)[:, None, None]
    squares = outer_product(x, x)
    if group is not None:
        (squares,) = sum_over_ranks((squares,), group)
    covariance = squares / count
    if not centred:
        covariance -= torch.outer(mean, mean)
    dtype = statistics_dtype(x)
    return count, mean.to(dtype), covariance.to(dtype)


def _branch_moments(
    weight: Tensor, mean: Tensor, covariance: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Means and biased variances of all branches, shape (M, O), and ``W_i C``, which gave them."""
    spread = weight @ covariance
    # Rounding can leave a constant channel slightly below zero.
    return weight @ mean, (spread * weight).sum(2).clamp_min_(0), spread


def _cancels(weight: Tensor, mean: Tensor, covariance: Tensor, variances: Tensor) -> bool:
    squares = covariance.diagonal() + mean.square()
    terms = weight.square() @ squares + (weight @ mean).square()
    return bool((terms > MAX_CANCELLATION * variances).any())
