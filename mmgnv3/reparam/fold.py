"""Folding of whole models: backbone, neck and head."""

import copy
from typing import TypeVar

import torch
from mmcv.cnn import Conv2d, ConvModule
from torch import Tensor, nn

from mmgnv3.models.layers import fuse_conv_norm, is_foldable_norm
from mmgnv3.utils.wrappers import unwrap

ModelType = TypeVar('ModelType', bound=nn.Module)


def fold(model: ModelType) -> ModelType:
    """Fold a copy of a model for deployment.

    Two kinds of parts are folded, wherever they are in the model:

    - modules that fold themselves, that is, have a method ``switch_to_deploy``: GhostNetV3, the
      multi-branch convolution, and foreign ones such as MobileOne, whose own folding is trusted;
    - mmcv's ``ConvModule`` whose batch norm directly follows its convolution, unless the kernel
      is computed anew on every call, as with ``with_spectral_norm``.

    Outputs in eval mode stay the same up to rounding. Other norms stay as they are.

    Args:
        model: Any model: classifier, detector, segmentor, a part of one, or one of them inside a
            data-parallel wrapper, of which the inner model is taken.

    Returns:
        The folded copy, which can be trained further; gradients reach all weights that had them.
        The model itself is not touched. Folding a folded model copies it.

    Examples:
        >>> from mmgnv3.models import GhostNetV3
        >>> deployed = fold(GhostNetV3(widen_factor=0.5))
    """
    model = unwrap(model)
    # Kernels that a hook computed in the last forward pass have a graph behind them, which cannot
    # be copied; the next pass computes them anew.
    computed = (v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor))
    folded = copy.deepcopy(model, {id(v): v.detach().clone() for v in computed})
    # New convolutions are initialised before they get their weights; a training that goes on draws
    # the same random numbers all the same.
    with torch.random.fork_rng(devices=[]):
        _fold_own(folded)
    _fold_conv_modules(folded)
    return folded


def _fold_own(module: nn.Module) -> None:
    if not hasattr(module, 'switch_to_deploy'):
        for child in module.children():
            _fold_own(child)
        return
    had_grad = any(p.requires_grad for p in module.parameters())
    module.switch_to_deploy()
    if had_grad and not any(p.requires_grad for p in module.parameters()):
        # Several foreign implementations detach every parameter on folding.
        module.requires_grad_(True)


def _fold_conv_modules(model: nn.Module) -> None:
    conv_modules = [m for m in model.modules() if isinstance(m, ConvModule) and _can_fold(m)]
    for conv_module in conv_modules:
        # Heads such as RTMDet's share one convolution between levels that each have a norm of their
        # own. Folded, every level needs a convolution of its own.
        conv_module.conv = copy.deepcopy(conv_module.conv)
        conv, norm = conv_module.conv, conv_module.norm
        kernel, bias = fuse_conv_norm(conv.weight, conv.bias, norm)
        requires_grad = any(p.requires_grad for m in (conv, norm) for p in m.parameters())
        conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad)
        conv.weight = nn.Parameter(kernel.to(conv.weight.dtype), requires_grad)
        setattr(conv_module, conv_module.norm_name, nn.Identity())
        # mmcv's shortcut for conv + norm in eval mode looks into the norm, which is gone.
        conv_module.efficient_conv_bn_eval_forward = None


def _can_fold(module: ConvModule) -> bool:
    order = module.order
    return (
        module.with_norm
        and is_foldable_norm(module.norm)
        # Not isinstance: some of mmcv's convolutions standardise their weights on every call.
        and type(module.conv) in (nn.Conv2d, Conv2d)
        # Nor may a hook compute them, as spectral norm and pruning do: it would undo the folding.
        and isinstance(module.conv.weight, nn.Parameter)
        and order.index('norm') == order.index('conv') + 1
    )
