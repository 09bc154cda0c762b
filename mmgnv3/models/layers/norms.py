"""The batch norms behind the branches of a unit: building, folding, updating their statistics."""

import importlib
from collections.abc import Sequence
from contextlib import suppress
from inspect import isclass
from typing import Any

import torch
from mmcv.cnn import build_norm_layer
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.distributed import ProcessGroup, get_world_size, is_available, is_initialized
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights


def build_norm(norm_cfg: dict, num_features: int) -> nn.Module:
    """Build a norm that can be folded.

    Args:
        norm_cfg: Config of the norm, such as ``dict(type='BN')``.
        num_features: Its channels.

    Raises:
        ValueError: If it is unknown, is no batch norm of maps, or has no running statistics.
    """
    # Before it is built: others want arguments of their own, or take other inputs than maps.
    norm = build_norm_layer(norm_cfg, num_features)[1] if _is_batch_norm(norm_cfg) else None
    if norm is None or not is_foldable_norm(norm):
        raise ValueError(
            f'norm_cfg={norm_cfg} cannot be folded into a convolution. Use a batch norm of maps '
            "with running statistics, such as 'BN' or 'SyncBN': the statistics of other norms "
            'depend on the input in deployment too.'
        )
    return norm


def _is_batch_norm(norm_cfg: Any) -> bool:
    """Whether a config names a batch norm of maps, as a type or by a name that is registered."""
    kind = norm_cfg.get('type') if isinstance(norm_cfg, dict) else None
    if isinstance(kind, str):
        name = kind
        if name == 'MMSyncBN':
            # Registered by mmcv's compiled operators alone.
            with suppress(ImportError):
                importlib.import_module('mmcv.ops')
        with MODELS.switch_scope_and_registry(None) as registry:
            kind = registry.get(name)
        if kind is None:
            raise ValueError(
                f'norm_cfg={norm_cfg} names the unknown norm {name!r}. Correct the name, or import '
                'what registers it by custom_imports.'
            )
    # mmcv's SyncBatchNorm is no subclass of torch's.
    return isclass(kind) and (
        issubclass(kind, nn.BatchNorm2d | nn.SyncBatchNorm) or kind.__name__ == 'SyncBatchNorm'
    )


def is_foldable_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm that is a fixed affine map per channel in eval mode.

    True for torch's batch norms, its SyncBatchNorm and mmcv's, as long as they track running
    statistics; False for group, layer and instance norm.
    """
    is_batch_norm = isinstance(module, _BatchNorm) or type(module).__name__ == 'SyncBatchNorm'
    return is_batch_norm and getattr(module, 'running_var', None) is not None


def fuse_conv_norm(kernel: Tensor, bias: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Kernel and bias of the convolution that equals ``norm(conv(x))`` in eval mode.

    Args:
        kernel: Kernel of the convolution, shape (out_channels, in_channels / groups, ...).
        bias: Its bias of shape (out_channels,), or None.
        norm: A norm for which :func:`is_foldable_norm` holds.

    Returns:
        Kernel and bias of the fused convolution, both float64, cut from the autograd graph.
    """
    tensors = (kernel, bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    kernel, bias, mean, var, gamma, beta = (
        None if tensor is None else tensor.detach().double() for tensor in tensors
    )
    kernel, bias = fuse_conv_bn_weights(kernel, bias, mean, var, norm.eps, gamma, beta)
    return kernel.detach(), bias.detach()


def are_alike(norms: Sequence[nn.Module]) -> bool:
    """Whether norms compute what torch's own do and differ in nothing but their tensors.

    Only then may they be computed together. A user can put some of them into eval mode, or give
    one another momentum.
    """
    first = norms[0]
    # Subclasses such as mmengine's SyncBatchNorm only check their input in another way.
    forward = type(first).forward
    is_known = forward is nn.BatchNorm2d.forward or forward is nn.SyncBatchNorm.forward
    return is_known and all(
        type(norm) is type(first)
        and norm.training == first.training
        and norm.eps == first.eps
        and norm.momentum == first.momentum
        and norm.affine == first.affine
        and norm.track_running_stats
        for norm in norms
    )


def affine_maps(norms: Sequence[nn.Module]) -> tuple[Tensor, Tensor]:
    """Factors and offsets of norms, both of shape (number of norms, channels)."""
    gammas = [n.weight if n.affine else torch.ones_like(n.running_var) for n in norms]
    betas = [n.bias if n.affine else torch.zeros_like(n.running_var) for n in norms]
    return torch.stack(gammas), torch.stack(betas)


def process_group(norms: Sequence[nn.Module]) -> ProcessGroup | None:
    """Ranks over which norms that are alike take their statistics; None for one process."""
    if not (isinstance(norms[0], nn.SyncBatchNorm) and is_available() and is_initialized()):
        return None
    group = norms[0].process_group or torch.distributed.group.WORLD
    return group if get_world_size(group) > 1 else None


@torch.no_grad()
def update_running_statistics(
    norms: Sequence[nn.Module], means: Tensor, variances: Tensor, count: int | Tensor
) -> None:
    """Do to the buffers of norms what their own forward does in training mode.

    Args:
        norms: M norms in training mode that are alike.
        means: Means of the batch, shape (M, channels).
        variances: Biased variances of the batch, shape (M, channels).
        count: Number of values behind each of them, at least 2.
    """
    batches = [norm.num_batches_tracked for norm in norms]
    torch._foreach_add_(batches, 1)
    running = [*(norm.running_mean for norm in norms), *(norm.running_var for norm in norms)]
    current = torch.cat([means, variances * (count / (count - 1))]).to(running[0].dtype).unbind()
    momentum = norms[0].momentum
    if momentum is not None:
        torch._foreach_lerp_(running, current, momentum)
        return
    # The average over all batches so far.
    for old, new, batch in zip(running, current, batches * 2, strict=True):
        old.lerp_(new, 1.0 / batch.to(old.dtype))
