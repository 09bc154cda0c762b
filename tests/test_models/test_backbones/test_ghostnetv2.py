import re

import pytest
import timm
import torch
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmgnv3.models import GhostNetV2, GhostNetV3
from mmgnv3.reparam import fold, relative_difference
from tests.utils import randomize_norms, timm_features

BLOCKS_PER_STAGE = [1, 2, 2, 6, 5]


def names_from_timm(reference: nn.Module) -> dict[str, str]:
    """Names of this package's modules for timm's convolutions and norms."""
    ours = [f'{s}.{i}' for s, count in enumerate(BLOCKS_PER_STAGE) for i in range(count)]
    theirs = sorted(
        {tuple(map(int, k.split('.')[1:3])) for k in reference.state_dict() if 'blocks.' in k}
    )
    names = {'conv_stem': 'stem.0.branches.0.conv', 'bn1': 'stem.0.branches.0.norm'}
    last = f'blocks.{theirs[-1][0]}.0'
    names.update({f'{last}.conv': 'stages.5.0.branches.0.conv'})
    names.update({f'{last}.bn1': 'stages.5.0.branches.0.norm'})
    for (stage, index), place in zip(theirs[:-1], ours, strict=True):
        prefix = f'blocks.{stage}.{index}.'
        units = {'conv_dw': 'downsample.branches.0.conv', 'bn_dw': 'downsample.branches.0.norm'}
        units.update({f'se.conv_{part}': f'se.{part}' for part in ('reduce', 'expand')})
        for ghost in ('ghost1', 'ghost2'):
            for theirs_name, name in (('primary_conv', 'primary'), ('cheap_operation', 'cheap')):
                for kind, word in enumerate(('conv', 'norm')):
                    units[f'{ghost}.{theirs_name}.{kind}'] = f'{ghost}.{name}.branches.0.{word}'
        for number in range(6):
            unit, kind = divmod(number, 2)
            word = ('conv', 'norm')[kind]
            units[f'ghost1.short_conv.{number}'] = f'ghost1.gate.convs.{unit}.branches.0.{word}'
            units[f'shortcut.{number}'] = f'shortcut.{unit}.branches.0.{word}'
        names.update({prefix + k: f'stages.{place}.{v}' for k, v in units.items()})
    return names


def timm_pair(width: float) -> tuple[nn.Module, GhostNetV2]:
    """timm's network and this backbone with the same weights."""
    torch.manual_seed(0)
    reference = randomize_norms(timm.create_model(f'ghostnetv2_{round(100 * width):03d}'))
    names = names_from_timm(reference)
    weights = {}
    for key, value in reference.state_dict().items():
        if not re.match('conv_head|classifier', key):
            module, _, tensor = key.rpartition('.')
            weights[f'{names[module]}.{tensor}'] = value
    backbone = GhostNetV2(widen_factor=width, out_indices=range(6))
    backbone.load_state_dict(weights, strict=True)
    return reference, backbone


@pytest.mark.parametrize('mode', ['eval', 'train'])
@torch.no_grad()
def test_features_of_every_stage_equal_timm(mode):
    reference, backbone = timm_pair(1.0)
    x = torch.randn(2, 3, 96, 80, dtype=torch.float64)
    expected = timm_features(reference.double().train(mode == 'train'), x)
    actual = backbone.double().train(mode == 'train')(x)
    for ours, theirs in zip(actual, expected, strict=True):
        scale = theirs.abs().max()
        torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=1e-8)


@pytest.mark.parametrize('width', [1.0, 1.3, 1.6])
def test_params_equal_timm(width):
    reference, backbone = timm_pair(width)
    head = sum(
        p.numel() for m in (reference.conv_head, reference.classifier) for p in m.parameters()
    )
    ours, theirs = (sum(p.numel() for p in m.parameters()) for m in (backbone, reference))
    assert ours + head == theirs


def test_folded_equals_unfolded_and_loads_from_ghostnetv3():
    torch.manual_seed(0)
    backbone = randomize_norms(GhostNetV2(widen_factor=0.5)).eval()
    folded = fold(backbone)
    assert not any(isinstance(m, _BatchNorm) for m in folded.modules())
    x = torch.randn(2, 3, 64, 64)
    assert relative_difference(backbone, folded, x) < 1e-4

    richer = fold(randomize_norms(GhostNetV3(widen_factor=0.5)))
    plain = GhostNetV2(widen_factor=0.5, deploy=True)
    plain.load_state_dict(richer.state_dict(), strict=True)
    assert relative_difference(richer, plain, x) == 0


def test_public_name():
    import mmgnv3

    assert mmgnv3.GhostNetV2 is GhostNetV2
    backbone = MMENGINE_MODELS.build(dict(type='mmgnv3.GhostNetV2', widen_factor=0.5))
    assert isinstance(backbone, GhostNetV2)


def test_weights_of_a_network_with_branches_are_refused():
    theirs = GhostNetV3(widen_factor=0.5, num_branches=1, with_scale=False)
    with pytest.raises(RuntimeError, match='with identity.*without identity'):
        GhostNetV2(widen_factor=0.5).load_state_dict(theirs.state_dict())
