"""Helpers shared by the tests."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmgnv3.models.layers.ghost import make_divisible
from mmgnv3.ops import load_library
from mmgnv3.weights.mapping import rename

needs_compiled_ops = pytest.mark.skipif(
    load_library() is None, reason='the compiled code needs Linux and a C++ compiler'
)


def randomize_norms(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm statistics and an affine map of its own: fresh ones hide errors."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        value = torch.rand(like.shape, generator=generator, dtype=torch.float64)
        return (low + (high - low) * value).to(like)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, _BatchNorm) and module.track_running_stats:
                module.running_mean.copy_(uniform(module.running_mean, -0.5, 0.5))
                module.running_var.copy_(uniform(module.running_var, 0.5, 1.5))
                if module.affine:
                    module.weight.copy_(uniform(module.weight, 0.4, 0.8))
                    module.bias.copy_(uniform(module.bias, -0.3, 0.3))
    return model


def backbone_weights_from_timm(
    state_dict: dict[str, Tensor], blocks_per_stage: list[int]
) -> dict[str, Tensor]:
    """Rename the weights of a timm ghostnetv3 (training form) to this package's, head left out.

    Args:
        state_dict: Of timm's model.
        blocks_per_stage: Number of bottlenecks of this package's stages, the last conv left out.
    """
    names = rename(state_dict, blocks_per_stage)
    return {
        names[key].removeprefix('backbone.'): value
        for key, value in state_dict.items()
        if names[key].startswith('backbone.')
    }


def classifier_config(widen_factor: float, num_classes: int = 1000, **backbone) -> dict:
    """Config of mmpretrain's classifier with this backbone and the network's own head."""
    return dict(
        type='ImageClassifier',
        data_preprocessor=dict(num_classes=num_classes),
        backbone=dict(type='mmgnv3.GhostNetV3', widen_factor=widen_factor, **backbone),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='StackedLinearClsHead',
            num_classes=num_classes,
            in_channels=make_divisible(960 * widen_factor),
            mid_channels=[1280],
            dropout_rate=0.2,
        ),
    )


def timm_features(reference: nn.Module, x: Tensor) -> list[Tensor]:
    """Maps at the ends of this package's stages, from a timm ghostnetv2 or ghostnetv3."""
    features = []
    x = reference.act1(reference.bn1(reference.conv_stem(x)))
    for index, block in enumerate(reference.blocks):
        x = block(x)
        # Where the flat list ``blocks.<i>`` ends each stage.
        if index in (0, 2, 4, 6, 8, 9):
            features.append(x)
    return features
