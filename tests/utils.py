"""Helpers shared by the tests."""

import re
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


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


_TIMM_NAMES = (
    (r'(primary|cheap)_rpr_conv\.(\d+)\.conv\.', r'\1.branches.\2.conv.'),
    (r'(primary|cheap)_rpr_conv\.(\d+)\.bn1\.', r'\1.branches.\2.norm.'),
    (r'cheap_rpr_scale\.conv\.', r'cheap.scale.conv.'),
    (r'cheap_rpr_scale\.bn1\.', r'cheap.scale.norm.'),
    (r'cheap_rpr_skip\.', r'cheap.identity.'),
    (r'dw_rpr_conv\.(\d+)\.conv\.', r'downsample.branches.\1.conv.'),
    (r'dw_rpr_conv\.(\d+)\.bn1\.', r'downsample.branches.\1.norm.'),
    (r'dw_rpr_scale\.conv\.', r'downsample.scale.conv.'),
    (r'dw_rpr_scale\.bn1\.', r'downsample.scale.norm.'),
    (r'se\.conv_(reduce|expand)\.', r'se.\1.'),
)


def backbone_weights_from_timm(
    state_dict: dict[str, Tensor], blocks_per_stage: list[int]
) -> 'OrderedDict[str, Tensor]':
    """Rename the weights of a timm ghostnetv3 (training form) to this package's, head left out.

    Args:
        state_dict: Of timm's model.
        blocks_per_stage: Number of bottlenecks of this package's stages, the last conv left out.
    """
    ours = [(s, i) for s, count in enumerate(blocks_per_stage) for i in range(count)]
    theirs = sorted(
        {tuple(map(int, k.split('.')[1:3])) for k in state_dict if k.startswith('blocks.')}
    )
    blocks = {f'{s}.{i}.': place for (s, i), place in zip(theirs[:-1], ours, strict=True)}
    last = f'blocks.{theirs[-1][0]}.0.'
    renamed = OrderedDict()
    for key, value in state_dict.items():
        if key.startswith(('conv_head.', 'classifier.')):
            continue
        if key.startswith('conv_stem.'):
            name = 'stem.0.branches.0.conv.weight'
        elif key.startswith('bn1.'):
            name = key.replace('bn1.', 'stem.0.branches.0.norm.')
        elif key.startswith(last):
            name = key.replace(last, f'stages.{len(blocks_per_stage)}.0.branches.0.')
            name = name.replace('.bn1.', '.norm.')
        else:
            place = re.match(r'blocks\.(\d+\.\d+\.)', key).group(1)
            stage, index = blocks[place]
            rest = key.removeprefix(f'blocks.{place}')
            for pattern, replacement in _TIMM_NAMES:
                rest = re.sub(pattern, replacement, rest)
            rest = re.sub(r'short_conv\.(\d)\.', _paired('gate.convs'), rest)
            rest = re.sub(r'shortcut\.(\d)\.', _paired('shortcut'), rest)
            name = f'stages.{stage}.{index}.{rest}'
        renamed[name] = value
    return renamed


def _paired(name: str):
    """Timm writes conv, norm, conv, norm, ... flat; here every pair is one unit."""

    def replace(match: re.Match) -> str:
        unit, is_norm = divmod(int(match.group(1)), 2)
        return f'{name}.{unit}.branches.0.{"norm" if is_norm else "conv"}.'

    return replace
