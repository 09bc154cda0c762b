"""Concatenation of a ghost module's parts and multiplication with its gate in one step."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .numerics import without_autocast


def gated_concat(primary: Tensor, cheap: Tensor, gate: Tensor) -> Tensor:
    """Compute ``cat([primary, cheap], 1) * interpolate(gate, size=(H, W), mode='nearest')``.

    Written out in operators this keeps the concatenated and the enlarged map for the way back.
    Here only the arguments are kept, two of which their activations keep anyway.

    Args:
        primary: The first channels, shape (B, C, H, W).
        cheap: The other channels, shape (B, D, H, W).
        gate: Factors on a coarser grid, shape (B, C + D, h, w).

    Returns:
        Map of shape (B, C + D, H, W).
    """
    if torch.onnx.is_in_onnx_export():
        # The exporter drops writes into parts of a map without a word.
        factors = F.interpolate(gate, size=primary.shape[2:], mode='nearest')
        return torch.cat([primary, cheap], 1) * factors
    if not torch.is_grad_enabled():
        return _multiply_parts(_enlarge(gate, primary), primary, cheap)
    return _GatedConcat.apply(primary, cheap, gate)


class _GatedConcat(torch.autograd.Function):
    @staticmethod
    def forward(ctx, primary: Tensor, cheap: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(primary, cheap, gate)
        return _multiply_parts(_enlarge(gate, primary), primary, cheap)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        primary, cheap, gate = ctx.saved_tensors
        factors = _enlarge(gate, primary)
        first = primary.shape[1]
        grad_primary = grad[:, :first] * factors[:, :first]
        grad_cheap = grad[:, first:] * factors[:, first:]
        grad_gate = None
        if ctx.needs_input_grad[2]:
            products = _multiply_parts(factors.copy_(grad), primary, cheap)
            grad_gate = torch.ops.aten.upsample_nearest2d_backward(
                products, primary.shape[2:], gate.shape
            )
        return grad_primary, grad_cheap, grad_gate


def _enlarge(gate: Tensor, like: Tensor) -> Tensor:
    if gate.shape[2:] == like.shape[2:]:
        return gate.clone()
    return F.interpolate(gate, size=like.shape[2:], mode='nearest')


def _multiply_parts(out: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Multiply the first channels of a map with one map and the others with another, in place."""
    out[:, : first.shape[1]].mul_(first)
    out[:, first.shape[1] :].mul_(second)
    return out
