"""Depthwise 3 x 3 branches, each with its own batch norm, as one convolution in training too.

A branch is ``norm(K . patch)``, and its batch statistics follow from mean and covariance of the
patches (:mod:`.depthwise_sums`): ``m = K mu``, ``v = K Cov K^T``. So the sum of all branches is one
convolution with ``sum_i a_i K_i``, ``a_i = gamma_i / sqrt(v_i + eps)``, and a bias, exactly, and
the gradients go through ``mu`` and ``Cov``. The 1 x 1 branch and the identity are kernels with
nothing but a centre. Only the input is kept for the backward pass.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from .depthwise_branches import depthwise_branches
from .depthwise_correlation import correlate, sample_mean
from .depthwise_sums import map_gradient, patch_moments
from .numerics import (
    can_look,
    convolve_and_shift,
    statistics_dtype,
    sum_over_ranks,
    without_autocast,
)

CENTRE_BELOW = 0.04
"""Variance over mean square of the input below which sums are taken again, about the mean."""

MEASURE_BELOW = 0.005
"""Variance over what it would be for white noise below which a branch is run to measure it."""

_CENTRE = torch.tensor([[0.0, 0, 0, 0, 1, 0, 0, 0, 0]])


def depthwise_moments(
    x: Tensor,
    kernels: Sequence[Tensor],
    scale: Tensor | None,
    with_identity: bool,
    gammas: Tensor,
    betas: Tensor,
    eps: float,
    group: ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of depthwise 3 x 3 branches of stride 1, each normalised by its own batch statistics.

    Equal to running the branches one by one, gradients of every tensor included. Branches are
    counted in the order kernels, 1 x 1 branch, identity; M is their number.

    Args:
        x: Input of shape (B, C, H, W). The output keeps its memory format; channels_last is the
            faster one on CPUs.
        kernels: Kernels of the branches, each of shape (C, 1, 3, 3).
        scale: Kernel of the 1 x 1 branch, shape (C, 1, 1, 1), or None.
        with_identity: Whether the input itself is a branch.
        gammas: Weights of the norms, shape (M, C).
        betas: Biases of the norms, shape (M, C).
        eps: What all the norms add to the variance.
        group: Processes over whose batches the statistics are taken, or None for this one's alone.

    Returns:
        Output of shape (B, C, H, W), and the branches' batch means and biased variances, both of
        shape (M, C), in at least single precision and without gradients.
    """
    if torch.compiler.is_compiling() and group is None:
        ones = (1, 1)
        return depthwise_branches(x, kernels, scale, with_identity, ones, gammas, betas, eps)
    return _DepthwiseMoments.apply(x, scale, with_identity, gammas, betas, eps, group, *kernels)


class _DepthwiseMoments(Function):
    """Forward and backward of :func:`depthwise_moments`.

    The small algebra is done in double precision: a few numbers a channel, whose differences count.
    Every call costs as much as a thousand pixels, so there are few.
    """

    @staticmethod
    def forward(ctx, x, scale, with_identity, gammas, betas, eps, group, *kernels):
        channels = x.shape[1]
        maps = x.permute(0, 2, 3, 1).contiguous()
        weights = _as_kernels(kernels, scale, with_identity)
        moments = _moments(maps, weights, group)

        inv_std = (moments.var + eps).rsqrt()
        factor = gammas.t() * inv_std
        kernel = factor[:, None] @ weights
        rounded = kernel[:, 0].to(x.dtype)
        # Of the kernel as it is used, or what half precision rounds off it would shift the mean.
        bias = betas.sum(0) - (rounded * moments.mu).sum(1)
        out = convolve_and_shift(maps.permute(0, 3, 1, 2), rounded.view(channels, 1, 3, 3), bias)
        if x.is_contiguous():
            out = out.contiguous()

        *saved, ctx.count = moments
        ctx.save_for_backward(
            x, scale, gammas, betas, *kernels, weights, inv_std, factor, kernel, *saved
        )
        ctx.eps, ctx.group = eps, group
        mean, var = moments.mean.t(), moments.var.t()
        ctx.mark_non_differentiable(mean, var)
        return out, mean, var

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, grad_out, _mean, _var):
        return _backward(ctx, grad_out)


class _Moments(NamedTuple):
    """Batch statistics of all the branches of a unit.

    Attributes:
        mu: Mean patch, shape (C, 9).
        mean: Means of the branches, shape (C, M).
        var: Biased variances of the branches, shape (C, M).
        pull: Their kernels times the covariance of the patches, shape (C, M, 9).
        centre: Number that sums were taken about, shape (C,), or None for zero.
        measured: Channels whose branches were run to measure them, or None.
        count: Number of pixels, a tensor without dimensions if it was summed over processes.
    """

    mu: Tensor
    mean: Tensor
    var: Tensor
    pull: Tensor
    centre: Tensor | None
    measured: Tensor | None
    count: Tensor | float


def _backward(ctx, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of everything that :meth:`_DepthwiseMoments.forward` was given."""
    x, scale, gammas, betas, *saved = ctx.saved_tensors
    num_kernels = len(ctx.needs_input_grad) - 7
    kernels = saved[:num_kernels]
    weights, inv_std, factor, kernel, *saved = saved[num_kernels:]
    moments = _Moments(*saved, ctx.count)
    dtype = statistics_dtype(x)
    maps = x.permute(0, 2, 3, 1).to(dtype).contiguous()
    grad_out = grad_out.permute(0, 2, 3, 1).to(dtype).contiguous()
    needs = ctx.needs_input_grad
    grads = [None] * len(needs)

    # Gradients of the one kernel and its bias; the kernel's after the mean was taken off.
    grad_kernel, grad_bias = correlate(grad_out, maps, moments.centre).split((9, 1), 1)
    grad_kernel = torch.addcmul(grad_kernel, grad_bias, moments.mu, value=-1)
    grad_factor = (weights @ grad_kernel[:, :, None])[..., 0]
    if moments.measured is not None:
        index = moments.measured
        parts = grad_out[..., index]
        for branch, out in enumerate(_run_branches(maps, weights, moments.mean, index)):
            grad_factor[index, branch] = (parts * out).sum((0, 1, 2), dtype=torch.float64)
    grad_gamma = inv_std * grad_factor
    grad_var = grad_gamma * factor * inv_std * -0.5
    if any(needs[7:]):
        rows = slice(num_kernels)
        grad_weights = factor[:, rows, None] * grad_kernel[:, None]
        grad_weights += 2 * grad_var[:, rows, None] * moments.pull[:, rows]
        grads[7:] = [
            grad.reshape(like.shape).to(like.dtype)
            for grad, like in zip(grad_weights.unbind(1), kernels, strict=True)
        ]
    if needs[1]:
        # The two terms above cancel down to eps: the norm takes out the 1 x 1 weight's size.
        grad_scale = factor[:, num_kernels] * inv_std[:, num_kernels].square() * ctx.eps
        grads[1] = (grad_scale * grad_kernel[:, 4]).view(scale.shape).to(scale.dtype)
    if needs[3]:
        grads[3] = grad_gamma.t().to(gammas.dtype)
    if needs[4]:
        grads[4] = grad_bias.t().expand(betas.shape).to(betas.dtype)
    if needs[0]:
        per_pixel = 1 / moments.count
        grad_cov = weights.transpose(1, 2) @ ((grad_var * per_pixel)[:, :, None] * weights)
        grad_mu = torch.baddbmm(
            (grad_bias * -per_pixel)[:, None] * kernel, moments.mu[:, None], grad_cov, alpha=-2
        )
        grad_moments = torch.cat((grad_cov.flatten(1), grad_mu[:, 0]), 1)
        if ctx.group is not None:
            (grad_moments,) = sum_over_ranks((grad_moments,), ctx.group)
        grad_x = map_gradient(grad_moments, maps, grad_out, kernel[:, 0])
        grad_x = grad_x.permute(0, 3, 1, 2).to(x.dtype)
        grads[0] = grad_x.contiguous() if x.is_contiguous() else grad_x
    return tuple(grads)


def _moments(maps: Tensor, weights: Tensor, group: ProcessGroup | None) -> _Moments:
    """Batch statistics, their digits checked where looking at values costs nothing.

    Args:
        maps: Input of shape (B, H, W, C).
        weights: All branches as kernels, shape (C, M, 9).
        group: Processes that share the statistics, or None.
    """
    maps = maps.to(statistics_dtype(maps))
    may_look = can_look(maps)
    centre = None if may_look else sample_mean(maps)
    while True:
        mu, second, power = patch_moments(maps, centre)
        count = maps[..., 0].numel()
        if group is not None:
            mu, second, power, count = _mean_over(group, count, mu, second, power)
        spread = torch.addcmul(second, mu[:, :, None], mu[:, None], value=-1)
        pull = weights @ spread
        mean = (weights @ mu[:, :, None])[..., 0]
        var = (pull * weights).sum(2)
        moments = _Moments(mu, mean, var, pull, centre, None, count)
        if not may_look:
            break
        # What a branch's variance would be if pixels were independent and had no mean.
        white = power * weights.square().sum(2)
        if not (var < white * CENTRE_BELOW).any():
            break
        if centre is None and (spread[:, 4, 4:5] < power * CENTRE_BELOW).any():
            centre = mu[:, 4].to(maps.dtype)
            continue
        unsure = (var < white * MEASURE_BELOW).any(1)
        if unsure.any():
            moments = moments._replace(measured=unsure.nonzero()[:, 0])
            _measure(maps, weights, moments, group)
        break
    var.clamp_(min=0)
    return moments


def _as_kernels(kernels: Sequence[Tensor], scale: Tensor | None, with_identity: bool) -> Tensor:
    """All branches as 3 x 3 kernels, shape (C, M, 9), float64."""
    channels = kernels[0].shape[0]
    centre = _CENTRE.to(kernels[0])
    rows = [kernel.reshape(channels, 9) for kernel in kernels]
    if scale is not None:
        rows.append(scale.view(channels, 1) * centre)
    if with_identity:
        rows.append(centre.expand(channels, 9))
    return torch.cat(rows, 1).double().view(channels, -1, 9)


def _run_branches(maps: Tensor, weights: Tensor, mean: Tensor, index: Tensor) -> Iterator[Tensor]:
    """Outputs of one branch after the other for some channels, their means taken off.

    Args:
        maps: Input of shape (B, H, W, C).
        weights: Kernels of the branches, shape (C, M, 9).
        mean: Means of the branches, shape (C, M).
        index: Which channels, shape (K,).

    Yields:
        Shape (B, H, W, K).
    """
    maps = maps[..., index].permute(0, 3, 1, 2)
    weights, mean = weights[index].to(maps.dtype), mean[index].to(maps.dtype)
    for branch in range(weights.shape[1]):
        kernel = weights[:, branch].reshape(-1, 1, 3, 3)
        out = F.conv2d(maps, kernel, -mean[:, branch], padding=1, groups=len(index))
        yield out.permute(0, 2, 3, 1)


def _measure(maps: Tensor, weights: Tensor, moments: _Moments, group: ProcessGroup | None) -> None:
    """Replace what is known of the channels to be measured, in place, by running their branches.

    A kernel that takes out nearly all there is, such as a Laplacian of a smooth map, has a variance
    that is a small difference of large sums. Its output has not.

    Args:
        maps: Input of shape (B, H, W, C).
        weights: All branches as kernels, shape (C, M, 9).
        moments: What is known so far.
        group: Processes that share the statistics, or None.
    """
    mu, mean, var, pull, centre, index, count = moments
    parts = maps[..., index]
    centre = None if centre is None else centre[index]
    for branch, out in enumerate(_run_branches(maps, weights, mean, index)):
        sums = correlate(out, parts, centre)
        square = out.double().square().sum((0, 1, 2))
        if group is not None:
            sums, square = sum_over_ranks((sums, square), group)
        rest = sums[:, 9] / count
        var[index, branch] = square / count - rest.square()
        pull[index, branch] = sums[:, :9] / count - rest[:, None] * mu[index]


def _mean_over(group: ProcessGroup, count: int, *means: Tensor) -> tuple[Tensor, ...]:
    """Means over the processes of a group, from those of each and its count; the sum of counts."""
    total = means[0].new_tensor(float(count))
    *sums, total = sum_over_ranks((*(mean * total for mean in means), total), group)
    return *(value / total for value in sums), total
