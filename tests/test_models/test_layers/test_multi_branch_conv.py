import copy

import pytest
import torch
from torch import nn

from mmgnv3.models.layers import MultiBranchConv2d, fuse_conv_norm, is_foldable_norm
from mmgnv3.reparam import relative_difference
from tests.utils import randomize_norms

UNITS = {
    'conv-norm': dict(in_channels=6, out_channels=10, kernel_size=3),
    'dense': dict(in_channels=6, out_channels=10, kernel_size=3, num_branches=3, with_scale=True),
    'dense-identity': dict(
        in_channels=8,
        out_channels=8,
        kernel_size=3,
        num_branches=2,
        with_scale=True,
        with_identity=True,
    ),
    'pointwise-identity': dict(
        in_channels=8, out_channels=8, kernel_size=1, num_branches=3, with_identity=True
    ),
    'grouped-identity': dict(
        in_channels=8,
        out_channels=8,
        kernel_size=3,
        groups=2,
        num_branches=3,
        with_scale=True,
        with_identity=True,
    ),
    'depthwise': dict(
        in_channels=8,
        out_channels=8,
        kernel_size=3,
        groups=8,
        num_branches=5,
        with_scale=True,
        with_identity=True,
    ),
    'depthwise-5x5-strided': dict(
        in_channels=8,
        out_channels=8,
        kernel_size=5,
        stride=2,
        groups=8,
        num_branches=3,
        with_scale=True,
    ),
    'strided-3': dict(
        in_channels=4, out_channels=6, kernel_size=3, stride=3, num_branches=2, with_scale=True
    ),
    'row': dict(in_channels=8, out_channels=8, kernel_size=(1, 5), groups=8, num_branches=2),
}


def make_unit(name: str, **kwargs) -> MultiBranchConv2d:
    torch.manual_seed(0)
    return randomize_norms(MultiBranchConv2d(**UNITS[name], **kwargs)).double()


@pytest.mark.parametrize('size', [(9, 7), (8, 8), (1, 1)])
@pytest.mark.parametrize('name', UNITS)
def test_folded_equals_sum_of_branches(name, size):
    unit = make_unit(name).eval()
    x = torch.randn(2, unit.in_channels, *size, dtype=torch.float64)
    expected = sum(branch(x) for branch in unit.branches)
    if unit.scale is not None:
        expected = expected + unit.scale(x)
    if unit.identity is not None:
        expected = expected + unit.identity(x)
    torch.testing.assert_close(unit(x), expected, rtol=0, atol=1e-13)

    unit.switch_to_deploy()
    torch.testing.assert_close(unit(x), expected, rtol=0, atol=1e-13)
    assert [type(m) for m in unit.modules()] == [MultiBranchConv2d, nn.Conv2d]


@pytest.mark.parametrize('part', ['branches.0', 'branches.1', 'scale', 'identity'])
def test_every_branch_counts(part):
    """The equality above would notice if folding left one branch out."""
    unit = make_unit('depthwise').eval()
    folded = copy.deepcopy(unit)
    norm = unit.get_submodule(part)
    norm = norm if part == 'identity' else norm.norm
    nn.init.zeros_(norm.weight)
    folded.switch_to_deploy()
    x = torch.randn(1, 8, 9, 9, dtype=torch.float64)
    assert relative_difference(unit, folded, x) > 1e-3


def test_switch_to_deploy_twice_changes_nothing():
    unit = make_unit('depthwise')
    unit.switch_to_deploy()
    conv, kernel = unit.conv, unit.conv.weight.clone()
    unit.switch_to_deploy()
    assert unit.conv is conv
    assert torch.equal(unit.conv.weight, kernel)
    assert all(torch.equal(a, b) for a, b in zip(unit.fold(), conv.parameters(), strict=True))


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('requires_grad', [True, False])
def test_switch_to_deploy_keeps_mode_and_gradient(training, requires_grad):
    unit = make_unit('depthwise').train(training).requires_grad_(requires_grad)
    unit.switch_to_deploy()
    assert all(m.training is training for m in unit.modules())
    assert [p.requires_grad for p in unit.parameters()] == [requires_grad] * 2
    assert unit.conv.weight.dtype == torch.float64


def test_folding_of_float32_rounds_once():
    unit = make_unit('dense-identity').eval()
    single = copy.deepcopy(unit).float()
    kernel, bias = copy.deepcopy(single).double().fold()
    assert torch.equal(single.fold()[0], kernel.float())
    assert torch.equal(single.fold()[1], bias.float())


@pytest.mark.parametrize(
    'norm_cfg', [dict(type='BN'), dict(type='SyncBN'), dict(type='BN', eps=1e-2)]
)
def test_foldable_norms(norm_cfg):
    unit = make_unit('depthwise', norm_cfg=norm_cfg).eval()
    folded = copy.deepcopy(unit)
    folded.switch_to_deploy()
    x = torch.randn(2, 8, 7, 7, dtype=torch.float64)
    assert relative_difference(unit, folded, x) < 1e-13


def test_norm_without_affine_map_folds():
    unit = make_unit('depthwise', norm_cfg=dict(type='BN', affine=False)).eval()
    folded = copy.deepcopy(unit)
    folded.switch_to_deploy()
    assert relative_difference(unit, folded, torch.randn(2, 8, 7, 7).double()) < 1e-13


def test_deployed_weights_load_into_deployed_unit():
    unit = make_unit('depthwise')
    unit.switch_to_deploy()
    other = MultiBranchConv2d(**UNITS['depthwise'], deploy=True).double()
    other.load_state_dict(unit.state_dict())
    assert relative_difference(unit, other, torch.randn(1, 8, 5, 5).double()) == 0


def test_fuse_conv_norm_with_bias():
    conv = nn.Conv2d(3, 4, 3).double()
    norm = randomize_norms(nn.BatchNorm2d(4)).double().eval()
    kernel, bias = fuse_conv_norm(conv.weight, conv.bias, norm)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(nn.functional.conv2d(x, kernel, bias), norm(conv(x)))


@pytest.mark.parametrize(
    ('norm', 'foldable'),
    [
        (nn.BatchNorm2d(4), True),
        (nn.SyncBatchNorm(4), True),
        (nn.BatchNorm2d(4, track_running_stats=False), False),
        (nn.InstanceNorm2d(4, track_running_stats=True), False),
        (nn.GroupNorm(2, 4), False),
    ],
)
def test_is_foldable_norm(norm, foldable):
    assert is_foldable_norm(norm) is foldable


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(num_branches=0), 'num_branches'),
        (dict(num_branches=1.5), 'num_branches'),
        (dict(num_branches=True), 'num_branches'),
        (dict(kernel_size=4), 'kernel_size must be odd'),
        (dict(kernel_size=(3, 3, 3)), 'kernel_size must be one or two integers'),
        (dict(kernel_size='3'), 'kernel_size must be one or two integers'),
        (dict(stride=0), 'stride must be one or two integers'),
        (dict(stride='2'), 'stride must be one or two integers'),
        (dict(in_channels=0), 'in_channels'),
        (dict(out_channels=8.0), 'out_channels'),
        (dict(groups=0), 'groups'),
        (dict(kernel_size=1, with_scale=True), 'with_scale'),
        (dict(stride=2, with_identity=True), 'with_identity'),
        (dict(out_channels=16, with_identity=True), 'with_identity'),
        (dict(norm_cfg=dict(type='GN', num_groups=2)), 'cannot be folded.*SyncBN'),
        (dict(norm_cfg=dict(type='IN')), 'cannot be folded'),
    ],
)
def test_refused_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MultiBranchConv2d(**{**dict(in_channels=8, out_channels=8, kernel_size=3), **kwargs})
