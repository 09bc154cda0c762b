import copy
import math

import numpy as np
import pytest
import timm
import torch
from mmengine.registry import MODELS as MMENGINE_MODELS
from timm.utils.model import reparameterize_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmgnv3.models import GhostNetV3
from mmgnv3.models.layers.ghost import GhostModule, make_divisible
from mmgnv3.reparam import fold, relative_difference
from tests.utils import backbone_weights_from_timm, randomize_norms, timm_features

WIDTHS = [0.5, 1.0, 1.3, 1.6]
ALL_STAGES = (0, 1, 2, 3, 4, 5)
BLOCKS_PER_STAGE = [1, 2, 2, 6, 5]


def make_backbone(**kwargs) -> GhostNetV3:
    torch.manual_seed(0)
    return randomize_norms(GhostNetV3(**{**dict(widen_factor=0.5), **kwargs}))


def num_params(*modules: nn.Module) -> int:
    return sum(p.numel() for m in modules for p in m.parameters())


def num_macs(backbone: nn.Module, size: int = 224) -> int:
    """Multiply-accumulates of the convolutions for one image."""
    total = 0

    def count(conv: nn.Conv2d, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal total
        total += output[0].numel() * conv.weight[0].numel()

    handles = [
        m.register_forward_hook(count) for m in backbone.modules() if isinstance(m, nn.Conv2d)
    ]
    with torch.no_grad():
        backbone.eval()(torch.zeros(1, 3, size, size))
    for handle in handles:
        handle.remove()
    return total


def head_params(channels: int, num_classes: int = 1000) -> int:
    """Parameters of the classification head: 1280 hidden units."""
    return (channels + 1) * 1280 + (1280 + 1) * num_classes


def timm_pair(width: float) -> tuple[nn.Module, GhostNetV3]:
    """timm's network and this backbone with the same weights."""
    torch.manual_seed(0)
    reference = randomize_norms(timm.create_model(f'ghostnetv3_{round(100 * width):03d}'))
    backbone = GhostNetV3(widen_factor=width, out_indices=ALL_STAGES)
    weights = backbone_weights_from_timm(reference.state_dict(), BLOCKS_PER_STAGE)
    backbone.load_state_dict(weights, strict=True)
    return reference, backbone


@pytest.mark.parametrize(
    ('mode', 'dtype', 'tolerance'),
    [
        ('eval', torch.float32, 1e-4),
        ('folded', torch.float32, 1e-4),
        ('folded', torch.float64, 1e-10),
        # In training a norm over few values magnifies what reordered sums differ by in float32.
        ('train', torch.float64, 1e-8),
    ],
)
@pytest.mark.parametrize('width', WIDTHS)
@torch.no_grad()
def test_features_of_every_stage_equal_timm(width, mode, dtype, tolerance):
    reference, backbone = timm_pair(width)
    reference.to(dtype)
    backbone.to(dtype)
    if mode == 'train':
        reference.train()
        backbone.train()
    else:
        reference.eval()
        backbone.eval()
    if mode == 'folded':
        reference = reparameterize_model(reference)
        backbone.switch_to_deploy()
    x = torch.randn(2, 3, 96, 80, dtype=dtype)
    expected = timm_features(reference, x)
    actual = backbone(x)
    assert len(actual) == len(expected) == 6
    for ours, theirs in zip(actual, expected, strict=True):
        scale = theirs.abs().max()
        torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=tolerance)
    if mode == 'train':
        weights = backbone_weights_from_timm(reference.state_dict(), BLOCKS_PER_STAGE)
        for name, value in backbone.state_dict().items():
            torch.testing.assert_close(value, weights[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ('width', 'training', 'folded', 'macs', 'channels'),
    [
        (0.5, 3.395, 2.853, 49.6, (12, 20, 56, 80, 480)),
        (1.0, 8.129, 6.148, 167.0, (24, 40, 112, 160, 960)),
        (1.3, 12.218, 8.948, 269.3, (32, 52, 144, 208, 1248)),
        (1.6, 17.276, 12.378, 398.6, (40, 64, 180, 256, 1536)),
    ],
)
def test_counts(width, training, folded, macs, channels):
    reference = timm.create_model(f'ghostnetv3_{round(100 * width):03d}')
    backbone = GhostNetV3(widen_factor=width, out_indices=(1, 2, 3, 4, 5))
    head = head_params(channels[-1])
    assert backbone.out_channels == channels
    assert num_params(backbone) + head == num_params(reference)
    assert round((num_params(backbone) + head) / 1e6, 3) == training

    backbone.switch_to_deploy()
    reference = reparameterize_model(reference)
    # timm leaves the norms outside the multi-branch units alone: there a norm has two values a
    # channel where the folded convolution has one, its bias.
    norms = [m for m in reference.modules() if isinstance(m, _BatchNorm)]
    assert len(norms) == 54
    left = sum(norm.num_features for norm in norms)
    assert num_params(backbone) + head + left == num_params(reference)
    assert round((num_params(backbone) + head + left) / 1e6, 3) == folded
    head_macs = channels[-1] * 1280 + 1280 * 1000
    assert abs((num_macs(backbone) + head_macs) / 1e6 - macs) <= 0.1


@pytest.mark.parametrize(
    ('num_branches', 'params'), [(1, 8.991), (2, 10.605), (3, 12.218), (4, 13.831), (5, 15.444)]
)
def test_params_by_number_of_branches(num_branches, params):
    backbone = GhostNetV3(widen_factor=1.3, num_branches=num_branches)
    total = num_params(backbone) + head_params(1248)
    assert round(total / 1e6, 3) == params


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(),
        # Widths at which the primary convolution has an identity branch.
        dict(widen_factor=0.30),
        dict(widen_factor=0.35),
        dict(widen_factor=0.01),
        dict(num_branches=1),
        dict(num_branches=1, with_scale=False),
        dict(num_branches=4, with_scale=False),
        dict(norm_cfg=dict(type='SyncBN')),
        dict(arch='small'),
        dict(arch=dict(stem_stride=1)),
        dict(arch=dict(rows=[(3, 16, 16, 0, 1), (5, 32, 24, 0.25, 2), (1, 48, 24, 0, 2)])),
    ],
    ids=str,
)
def test_folded_equals_unfolded(kwargs):
    backbone = make_backbone(**kwargs).eval()
    folded = fold(backbone)
    assert not any(isinstance(m, _BatchNorm) for m in folded.modules())
    size = max(65, backbone.min_input_size)
    x = torch.randn(2, 3, size, size + 6)
    assert relative_difference(backbone, folded, x) < 1e-4
    assert relative_difference(backbone.double(), fold(backbone), x.double()) < 1e-10


def test_width_030_has_the_identity_branch_of_the_primary_convolution():
    modules = [m for m in make_backbone(widen_factor=0.30).modules() if isinstance(m, GhostModule)]
    assert any(m.primary.identity is not None for m in modules)


def test_fold_leaves_the_original_alone_and_is_idempotent():
    backbone = make_backbone()
    before = copy.deepcopy(backbone.state_dict())
    folded = fold(backbone)
    assert not backbone.deploy and folded.deploy
    assert backbone.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    again = fold(folded)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in folded.state_dict().items())


def test_folded_copy_trains():
    folded = fold(make_backbone(out_indices=(2, 3, 4, 5))).train()
    sum(x.square().mean() for x in folded(torch.randn(2, 3, 64, 64))).backward()
    for name, parameter in folded.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_deployed_weights_load_into_deploy_true():
    folded = fold(make_backbone(out_indices=(2, 4))).eval()
    other = GhostNetV3(widen_factor=0.5, out_indices=(2, 4), deploy=True).eval()
    other.load_state_dict(folded.state_dict(), strict=True)
    assert relative_difference(folded, other, torch.randn(1, 3, 64, 64)) == 0


def test_forward_through_mmengine_registry():
    backbone = MMENGINE_MODELS.build(dict(type='mmgnv3.GhostNetV3', widen_factor=0.5))
    assert backbone.out_indices == (5,)
    assert [tuple(x.shape) for x in backbone(torch.rand(2, 3, 64, 64))] == [(2, 480, 2, 2)]


@pytest.mark.parametrize('size', [(33, 33), (33, 47), (50, 101), (64, 64)])
def test_maps_have_the_announced_shapes(size):
    backbone = make_backbone(out_indices=(4, 0, 2, 5, 1, 3)).eval()
    assert backbone.out_strides == (32, 2, 8, 32, 4, 16)
    outs = backbone(torch.rand(1, 3, *size))
    for out, channels, stride in zip(
        outs, backbone.out_channels, backbone.out_strides, strict=True
    ):
        assert out.shape == (1, channels, *(math.ceil(n / stride) for n in size))


def test_order_of_outputs_is_that_of_out_indices():
    backbone = make_backbone(out_indices=(2, 4)).eval()
    swapped = make_backbone(out_indices=(-2, 2)).eval()
    assert swapped.out_indices == (4, 2)
    swapped.load_state_dict(backbone.state_dict())
    x = torch.rand(1, 3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(backbone(x), swapped(x)[::-1], strict=True))


@pytest.mark.parametrize(
    ('kwargs', 'smallest'),
    [
        (dict(), 33),
        (dict(out_indices=(3,)), 17),
        (dict(out_indices=(0,)), 1),
        (dict(arch='small'), 5),
    ],
    ids=str,
)
def test_smallest_image(kwargs, smallest):
    backbone = make_backbone(**kwargs).eval()
    assert backbone.min_input_size == smallest
    backbone(torch.rand(1, 3, smallest, smallest))
    if smallest > 1:
        with pytest.raises(ValueError, match=f'so {smallest} pixels a side'):
            backbone(torch.rand(1, 3, smallest - 1, 100))


def test_stages_behind_the_last_asked_for_are_not_built():
    backbone = make_backbone(out_indices=(2, 3, 4))
    assert len(backbone.stages) == 5
    sum(x.mean() for x in backbone(torch.randn(2, 3, 64, 64))).backward()
    assert all(p.grad is not None for p in backbone.parameters())
    # ... and a classifier's weights fit all the same.
    whole = make_backbone()
    backbone.load_state_dict(whole.state_dict(), strict=True)
    assert len(whole.state_dict()) > len(backbone.state_dict())


def test_frozen_stages():
    backbone = make_backbone(out_indices=(2, 3), frozen_stages=1).train()
    frozen = [backbone.stem, *backbone.stages[:2]]
    live = backbone.stages[2:]
    assert not any(m.training for part in frozen for m in part.modules())
    assert all(m.training for part in live for m in part.modules())
    before = copy.deepcopy(backbone.state_dict())
    sum(x.square().mean() for x in backbone(torch.randn(2, 3, 64, 64))).backward()
    assert all(p.grad is None for part in frozen for p in part.parameters())
    assert all(p.grad is not None for p in live.parameters())
    changed = {k for k, v in backbone.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(k.startswith(('stages.2.', 'stages.3.')) for k in changed)
    backbone.switch_to_deploy()
    backbone.train()
    assert not any(p.requires_grad for part in frozen for p in part.parameters())
    assert all(p.requires_grad for p in live.parameters())


def test_norm_eval_keeps_statistics():
    backbone = make_backbone(norm_eval=True).train()
    before = {k: v.clone() for k, v in backbone.named_buffers()}
    backbone(torch.randn(2, 3, 64, 64))[0].mean().backward()
    assert all(torch.equal(v, before[k]) for k, v in backbone.named_buffers())
    assert all(p.requires_grad and p.grad is not None for p in backbone.parameters())


def test_checkpointing_changes_nothing():
    plain = make_backbone(out_indices=(2, 4)).double().train()
    thrifty = make_backbone(out_indices=(2, 4), with_cp=True).double().train()
    thrifty.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for backbone in (plain, thrifty):
        sum(out.square().mean() for out in backbone(x)).backward()
    for (name, ours), theirs in zip(thrifty.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12, msg=name)
    # Recomputation must not update the running statistics a second time.
    for (name, ours), theirs in zip(thrifty.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, msg=name)


def test_checkpointing_is_left_to_a_compiler():
    arch = dict(stem_channels=8, rows=[(3, 16, 16, 0, 1)])
    backbone = make_backbone(arch=arch, out_indices=(0,), with_cp=True).train()
    expected = copy.deepcopy(backbone)
    x = torch.randn(2, 3, 32, 32)
    torch.compiler.reset()
    outs = [
        net(x)[0]
        for net in (torch.compile(backbone, backend='aot_eager', fullgraph=True), expected)
    ]
    torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-5)
    for out in outs:
        out.square().mean().backward()
    for (name, ours), theirs in zip(backbone.named_buffers(), expected.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(arch='large'), "Unknown arch 'large'.*'base', 'small'"),
        (dict(arch=dict(depth=3)), 'keys among'),
        (dict(arch=dict(rows=[])), 'at least one block'),
        (dict(arch=dict(rows=[(3, 16, 16, 0)])), 'a row is'),
        (dict(arch=dict(rows=None)), 'at least one block'),
        (dict(arch=dict(rows=[None])), 'a row is'),
        (dict(arch=dict(rows=[3])), 'a row is'),
        (dict(arch=dict(rows=[(3, 16, 0, 0, 1)])), 'positive'),
        (dict(arch=dict(rows=[(3, 16, 16, 0, 1.5)])), 'positive integers'),
        (dict(arch=dict(rows=[('3', 16, 16, 0, 1)])), 'positive integers'),
        (dict(arch=dict(rows=[(3, 16, 16, math.nan, 1)])), 'SE ratio'),
        (dict(arch=dict(rows=[(3, 16, 16, -0.25, 1)])), 'SE ratio'),
        (dict(arch=dict(rows=[(4, 16, 16, 0, 2)])), 'kernel_size must be odd'),
        (dict(arch=dict(stem_stride=0)), 'stem_stride'),
        (dict(widen_factor=0), 'widen_factor'),
        (dict(widen_factor=-1.0), 'widen_factor'),
        (dict(widen_factor=math.nan), 'widen_factor'),
        (dict(widen_factor='1.0x'), 'widen_factor'),
        (dict(widen_factor=True), 'widen_factor'),
        (dict(num_branches=0), 'num_branches'),
        (dict(out_indices=(6,)), 'between 0 and 5'),
        (dict(out_indices=(-7,)), 'between 0 and 5'),
        (dict(out_indices=()), 'between 0 and 5'),
        (dict(out_indices='23'), 'must be integers'),
        (dict(out_indices=(2.0, 3)), 'must be integers'),
        (dict(out_indices=True), 'must be integers'),
        (dict(out_indices=(2, 2)), 'twice'),
        (dict(out_indices=(5, -1)), 'twice'),
        (dict(frozen_stages=6), 'frozen_stages'),
        (dict(frozen_stages='1'), 'frozen_stages must be an integer'),
        (dict(frozen_stages=None), 'frozen_stages must be an integer'),
        (dict(frozen_stages=2.5), 'frozen_stages must be an integer'),
        (dict(frozen_stages=3, out_indices=(2,)), 'frozen_stages'),
        (dict(norm_cfg=dict(type='GN', num_groups=2)), 'cannot be folded'),
        (dict(with_scale='False'), 'with_scale must be True or False'),
        (dict(norm_eval='False'), 'norm_eval must be True or False'),
        (dict(with_cp='x'), 'with_cp must be True or False'),
        (dict(deploy=None), 'deploy must be True or False'),
        (dict(with_identity='False'), 'with_identity must be True or False'),
    ],
    ids=str,
)
def test_refused_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        GhostNetV3(**{**dict(widen_factor=0.5), **kwargs})


def test_numbers_of_numpy_are_numbers():
    """Configs compute their arguments, too."""
    rows = [tuple(np.int64(v) for v in (3, 16, 16, 0, 1)), (3, 32, 20, np.float32(0.25), 2)]
    backbone = make_backbone(
        widen_factor=np.float32(0.5),
        arch=dict(rows=rows),
        out_indices=np.array([0, 1]),
        frozen_stages=np.int64(0),
    )
    assert backbone.out_indices == (0, 1)
    assert [tuple(x.shape) for x in backbone(torch.rand(2, 3, 32, 32))] == [
        (2, 8, 16, 16),
        (2, 12, 8, 8),
    ]


def test_key_of_no_stage_is_left_over():
    backbone = make_backbone()
    weights = {**backbone.state_dict(), 'stages.foo.x': torch.zeros(1)}
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"stages\.foo\.x"'):
        backbone.load_state_dict(weights)
    assert backbone.load_state_dict(weights, strict=False).unexpected_keys == ['stages.foo.x']


@pytest.mark.parametrize(
    ('theirs', 'ours', 'message'),
    [
        (dict(widen_factor=1.0), dict(), '16 stem channels.*8 stem channels'),
        (dict(deploy=True), dict(), 'deployed form.*training form'),
        (dict(), dict(deploy=True), 'training form.*deployed form'),
        (dict(num_branches=4), dict(), '4 branches.*3 branches'),
        (dict(with_scale=False), dict(), 'without 1 x 1 branch.*with 1 x 1 branch'),
        (dict(widen_factor=0.55), dict(), 'another arch or width'),
        (dict(arch='small', deploy=True), dict(deploy=True), 'another arch or width'),
    ],
    ids=str,
)
@pytest.mark.parametrize('strict', [True, False])
def test_checkpoint_of_another_network_is_refused(theirs, ours, message, strict, tmp_path):
    """Also through mmengine's loader, which by itself only logs what does not fit."""
    source = make_backbone(**theirs)
    path = tmp_path / 'other.pth'
    torch.save(dict(state_dict={f'backbone.{k}': v for k, v in source.state_dict().items()}), path)
    with pytest.raises(RuntimeError, match=message):
        make_backbone(**ours).load_state_dict(source.state_dict(), strict=strict)
    init_cfg = dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')
    with pytest.raises(RuntimeError, match=message):
        make_backbone(**ours, init_cfg=init_cfg).init_weights()


def test_checkpoint_without_a_backbone_is_refused(tmp_path):
    """A forgotten prefix, or another network: mmengine would go on with random weights."""
    path = tmp_path / 'whole.pth'
    source = make_backbone().state_dict()
    torch.save({f'backbone.{key}': value for key, value in source.items()}, path)
    with pytest.raises(RuntimeError, match="prefix='backbone.'"):
        make_backbone(init_cfg=dict(type='Pretrained', checkpoint=str(path))).init_weights()
    torch.save(timm.create_model('mobilenetv3_small_050').state_dict(), path)
    with pytest.raises(RuntimeError, match='holds no GhostNetV3: its first weight is '):
        make_backbone(init_cfg=dict(type='Pretrained', checkpoint=str(path))).init_weights()


@pytest.mark.parametrize(
    ('channels', 'expected'),
    [(8, 8), (10.4, 12), (0.1, 4), (2.5, 4), (57.2, 56), (93.6, 92), (11, 12), (4.5, 8)],
)
def test_make_divisible(channels, expected):
    assert make_divisible(channels) == expected
    assert make_divisible(channels) == timm.layers.make_divisible(channels, 4)
