"""Depthwise branches of stride 2 with their batch norms, as one autograd function.

On a strided grid the moments that serve at stride 1 (:mod:`.depthwise_moments`) are so many that
they cost what the branches cost. So the branches are run, and what surrounds them is made cheap:

- The 1 x 1 branch is every other pixel times a weight; its statistics are those of the pixels.
- Each branch's output is read for its statistics and once more for the sum, but not written again,
  nor kept: running the kernels again is a small part of the way back, and the outputs would be the
  largest part of what a strided unit keeps.
- The branches' gradients meet a few images at a time, within a cache, and not in maps of full size.
- A 5 x 5 weight gradient of stride 2, for which oneDNN has no fast code, is taken from the four
  grids of every other row and column by 3 x 3 ones of stride 1.
"""

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .depthwise_branches import depthwise_branches
from .depthwise_correlation import cached_images, sample_mean, weight_gradient
from .numerics import (
    MAX_PIXELS_PER_SUM,
    channel_statistics,
    statistics_dtype,
    without_autocast,
)


def depthwise_strided(
    x: Tensor,
    kernels: Sequence[Tensor],
    scale: Tensor | None,
    stride: tuple[int, int],
    gammas: Tensor,
    betas: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of strided depthwise branches, each normalised by its own batch statistics.

    Equal to running the branches one by one, gradients of every tensor included. Branches are
    counted in the order kernels, 1 x 1 branch; M is their number.

    Args:
        x: Input of shape (B, C, H, W). The output keeps its memory format; channels_last is the
            faster one on CPUs.
        kernels: Kernels of the branches, each of shape (C, 1, k, k), k odd. The padding is half
            of it.
        scale: Kernel of the 1 x 1 branch, shape (C, 1, 1, 1), or None.
        stride: Strides along rows and columns.
        gammas: Weights of the norms, shape (M, C).
        betas: Biases of the norms, shape (M, C).
        eps: What all the norms add to the variance.

    Returns:
        Output of shape (B, C, ceil(H / stride), ceil(W / stride)), and the branches' batch means
        and biased variances, both of shape (M, C), in at least single precision and without
        gradients.
    """
    if torch.compiler.is_compiling():
        return depthwise_branches(x, kernels, scale, False, stride, gammas, betas, eps)
    return _DepthwiseStrided.apply(x, scale, stride, gammas, betas, eps, *kernels)


class _DepthwiseStrided(Function):
    """Forward and backward of :func:`depthwise_strided`.

    Maps have the shape (B, H, W, C) inside, whatever the memory format of the input.
    """

    @staticmethod
    def forward(ctx, x, scale, stride, gammas, betas, eps, *kernels):
        maps = _prepare(x)
        kernels_ = [kernel.to(maps.dtype) for kernel in kernels]
        # A mean that is large against the spread would take digits from sums and differences.
        centre = sample_mean(maps)
        offsets = torch.stack([-centre * kernel.sum((1, 2, 3)) for kernel in kernels_])
        if scale is not None:
            offsets = torch.cat((offsets, -centre[None]))
        parts = _run_branches(maps, kernels_, offsets, stride)
        mean, var = _statistics(parts)
        # What the 1 x 1 branch multiplies with; the others have been through their kernels.
        weight = torch.ones_like(mean)
        if scale is not None:
            weight[-1] = scale.view(-1)
        branch_var = var * weight.square()
        inv_std = (branch_var + eps).rsqrt()
        factor = gammas * inv_std * weight
        bias = (betas - factor * mean).sum(0).to(maps.dtype)
        # As (B, C, H, W): a result that is a view could not be changed in place.
        out = torch.empty(
            (len(x), x.shape[1], *parts[0][0].shape[1:3]),
            dtype=maps.dtype,
            device=x.device,
            memory_format=torch.channels_last,
        )
        outs = out.permute(0, 2, 3, 1).split([len(part[0]) for part in parts])
        for here, part in zip(outs, parts, strict=True):
            _weighted_sum(part, factor.to(maps.dtype), bias, here)
        out = out.to(x.dtype)

        ctx.save_for_backward(x, scale, gammas, betas, *kernels, offsets, weight, mean, inv_std)
        ctx.stride, ctx.eps = stride, eps
        mean = (mean - offsets) * weight
        ctx.mark_non_differentiable(mean, branch_var)
        return out.contiguous() if x.is_contiguous() else out, mean, branch_var

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, grad_out, _mean, _var):
        return _backward(ctx, grad_out)


def _backward(ctx, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of everything that :meth:`_DepthwiseStrided.forward` was given."""
    x, scale, gammas, betas, *kernels, offsets, weight, mean, inv_std = ctx.saved_tensors
    maps, grad_out = _prepare(x), _prepare(grad_out)
    kernels_ = [kernel.to(maps.dtype) for kernel in kernels]
    grads = [None] * len(ctx.needs_input_grad)

    parts = _run_branches(maps, kernels_, offsets, ctx.stride)
    grad_parts = grad_out.split([len(part[0]) for part in parts])
    sums = [
        _centred_sums(*args, mean.to(maps.dtype)) for args in zip(grad_parts, parts, strict=True)
    ]
    count = grad_out[..., 0].numel()
    centred, grad_beta = (torch.stack(group).sum(0) for group in zip(*sums, strict=True))
    grads[3] = (centred * weight * inv_std).to(gammas.dtype)
    grads[4] = grad_beta.expand(betas.shape).to(betas.dtype)
    if scale is not None:
        # Exactly what is left of terms that cancel down to eps, as the norm takes out the size.
        grad_scale = centred[-1] * gammas[-1] * inv_std[-1] ** 3 * ctx.eps
        grads[1] = grad_scale.view(scale.shape).to(scale.dtype)

    # A norm's gradient is an affine map of that of its output and of its input.
    of_grad = gammas * inv_std * weight
    of_branch = of_grad * (inv_std * weight).square() * centred / -count
    constant = of_grad * grad_beta / -count - of_branch * mean
    grads[0], grads[6:] = _convolutions_backward(
        maps,
        kernels_,
        parts,
        grad_parts,
        torch.stack((of_grad, of_branch, constant), 1).to(maps.dtype),
        ctx.stride,
        (ctx.needs_input_grad[0], any(ctx.needs_input_grad[6:])),
    )
    if grads[0] is not None:
        grads[0] = _finish(grads[0], x)
    for i, kernel in enumerate(kernels, 6):
        if grads[i] is not None:
            grads[i] = grads[i].view(kernel.shape).to(kernel.dtype)
    return tuple(grads)


def _prepare(x: Tensor) -> Tensor:
    """A map (B, C, H, W) as a contiguous one (B, H, W, C) of at least single precision."""
    return x.permute(0, 2, 3, 1).to(statistics_dtype(x)).contiguous()


def _finish(x: Tensor, like: Tensor) -> Tensor:
    """A map (B, H, W, C) as (B, C, H, W), in the dtype and memory format of another one."""
    x = x.permute(0, 3, 1, 2).to(like.dtype)
    return x.contiguous() if like.is_contiguous() else x


def _statistics(parts: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every channel of branches, shape (M, C), float64.

    Args:
        parts: For a few images at a time, the maps of the branches, each (B, H, W, C).
    """
    found = [channel_statistics(branch.permute(0, 3, 1, 2)) for part in parts for branch in part]
    # Of shape (parts, M, C).
    means, variances = (
        torch.stack(values).unflatten(0, (len(parts), -1)) for values in zip(*found, strict=True)
    )
    share = means.new_tensor([len(part[0]) for part in parts])[:, None, None]
    share /= share.sum()
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean).square())).sum(0)


def _centred_sums(grad: Tensor, branches: Sequence[Tensor], means: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over a map of ``grad (branch - mean)``, shape (M, C), and of grad, (C,), float64."""
    one = torch.ones_like(means[0])
    sums = [
        torch.ops.aten.native_batch_norm_backward(
            grad.permute(0, 3, 1, 2),
            branch.permute(0, 3, 1, 2),
            one,
            None,
            None,
            mean,
            one,
            True,
            0.0,
            [False, True, True],
        )[1:]
        for branch, mean in zip(branches, means, strict=True)
    ]
    return torch.stack([centred for centred, _ in sums]).double(), sums[0][1].double()


def _run_branches(
    x: Tensor, kernels: Sequence[Tensor], offsets: Tensor, stride: tuple[int, int]
) -> list[list[Tensor]]:
    """Run kernels of one size over a map, and last pick the pixels that a 1 x 1 kernel sees.

    Args:
        x: Map of shape (B, H, W, C).
        kernels: Kernels of shape (C, 1, k, k).
        offsets: What is added to the branches, shape (M, C); pixels are picked if there is one
            more than there are kernels.
        stride: Strides along rows and columns.

    Returns:
        The maps of all branches for a few images at a time, which fit into a cache: several
        passes over them are cheap there.
    """
    padding = [size // 2 for size in kernels[0].shape[2:]]
    parts = []
    for part in x.split(cached_images(x)):
        source = part.permute(0, 3, 1, 2)
        outs = [
            F.conv2d(source, kernel, offset, stride, padding, 1, len(kernel)).permute(0, 2, 3, 1)
            for kernel, offset in zip(kernels, offsets, strict=False)
        ]
        if len(offsets) > len(kernels):
            outs.append(part[:, :: stride[0], :: stride[1]] + offsets[-1])
        parts.append(outs)
    return parts


def _convolutions_backward(
    x: Tensor,
    kernels: Sequence[Tensor],
    parts: Sequence[Sequence[Tensor]],
    grad_parts: Sequence[Tensor],
    factors: Tensor,
    stride: tuple[int, int],
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of the input of all branches together, and of their kernels.

    Args:
        x: Input of shape (B, H, W, C).
        kernels: Kernels of the branches.
        parts: Maps of all branches, see :func:`_run_branches`.
        grad_parts: Gradient of the sum of all the norms, for the same images each.
        factors: For every branch, the gradient of its norm's input as factors of ``grad_out`` and
            of that input, and as a constant: shape (M, 3, C).
        stride: Strides of the branches.
        needs: Whether the gradient of the input and those of the kernels are wanted.

    Returns:
        Gradient of x, and those of the kernels in float64, any shape.
    """
    needs_x, needs_kernels = needs
    size = kernels[0].shape[2:]
    by_phases = needs_kernels and size == (5, 5) and stride == (2, 2)
    grad_x = torch.empty_like(x) if needs_x else None
    grad_kernels = [None] * len(kernels)
    grad_outs = [
        x.new_empty(len(x), *parts[0][0].shape[1:]) for _ in range(len(kernels) if by_phases else 0)
    ]
    start = 0
    for branches, grad_out in zip(parts, grad_parts, strict=True):
        here = slice(start, start + len(grad_out))
        start = here.stop
        part, total = x[here], None
        for i, kernel in enumerate(kernels):
            grad = grad_outs[i][here] if by_phases else None
            grad = _weighted_sum((grad_out, branches[i]), factors[i, :2], factors[i, 2], grad)
            grad_part, grad_kernel, _ = torch.ops.aten.convolution_backward(
                grad.permute(0, 3, 1, 2),
                part.permute(0, 3, 1, 2),
                kernel,
                None,
                stride,
                [size[0] // 2, size[1] // 2],
                [1, 1],
                False,
                [0, 0],
                len(kernel),
                [needs_x, needs_kernels and not by_phases, False],
            )
            if grad_kernel is not None:
                grad_kernel = grad_kernel.double()
                grad_kernels[i] = grad_kernel if here.start == 0 else grad_kernels[i] + grad_kernel
            if needs_x:
                total = grad_part if total is None else total.add_(grad_part)
        if needs_x:
            total = total.permute(0, 2, 3, 1)
            if len(factors) > len(kernels):
                picked = _weighted_sum((grad_out, branches[-1]), factors[-1, :2], factors[-1, 2])
                total[:, :: stride[0], :: stride[1]] += picked
            grad_x[here] = total
    if by_phases:
        grad_kernels = _phase_weight_gradients(x, grad_outs)
    return grad_x, grad_kernels


def _weighted_sum(
    maps: Sequence[Tensor], factors: Sequence[Tensor], constant: Tensor, out: Tensor | None = None
) -> Tensor:
    """Sum of maps (B, H, W, C) times factors, and a constant, all of shape (C,)."""
    out = torch.addcmul(constant, maps[0], factors[0], out=out)
    for one, factor in zip(maps[1:], factors[1:], strict=True):
        out.addcmul_(one, factor)
    return out


def _phase_weight_gradients(x: Tensor, grads: Sequence[Tensor]) -> list[Tensor]:
    """Weight gradients of depthwise 5 x 5 convolutions of stride 2.

    On the grid of even rows, taps -2, 0, 2 are the neighbours -1, 0, 1; on that of odd rows, taps
    -1, 1 are -1, 0. Likewise for columns.

    Args:
        x: Input of shape (B, H, W, C).
        grads: Gradients of the outputs, each of shape (B, ceil(H / 2), ceil(W / 2), C).

    Returns:
        For every gradient of an output, shape (C, 5, 5), float64.
    """
    height, width, channels = x.shape[1:]
    if height % 2 or width % 2:
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
    images = max(1, MAX_PIXELS_PER_SUM // (grads[0].shape[1] * grads[0].shape[2]))
    results = [x.new_zeros(channels, 5, 5, dtype=torch.float64) for _ in grads]
    for row, column in product(range(2), repeat=2):
        phase = x[:, row::2, column::2].contiguous().permute(0, 3, 1, 2)
        for result, grad in zip(results, grads, strict=True):
            parts = grad.permute(0, 3, 1, 2).split(images), phase.split(images)
            for args in zip(*parts, strict=True):
                taps = weight_gradient(*args, (3, 3))[0].view(channels, 3, 3)
                result[:, row::2, column::2] += taps[:, : 3 - row, : 3 - column]
    return results
