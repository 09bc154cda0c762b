import copy

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.model import MMDistributedDataParallel
from mmpretrain.models import MobileOne
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmgnv3.models import GhostNetV3, MultiBranchConv2d
from mmgnv3.reparam import fold, relative_difference
from tests.utils import randomize_norms


def conv_module(**kwargs) -> ConvModule:
    torch.manual_seed(0)
    kwargs = {**dict(norm_cfg=dict(type='BN')), **kwargs}
    return randomize_norms(ConvModule(4, 4, 3, padding=1, **kwargs)).double().eval()


class SharedConvs(nn.Module):
    """Two levels with one convolution and a norm each, as in RTMDet's head."""

    def __init__(self, norm_cfg: dict) -> None:
        super().__init__()
        self.levels = nn.ModuleList([conv_module(), conv_module(norm_cfg=norm_cfg)])
        randomize_norms(self.levels[1], seed=1)
        self.levels[1].conv = self.levels[0].conv

    def forward(self, x: Tensor) -> list[Tensor]:
        return [level(x) for level in self.levels]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 4, 9, 9, dtype=torch.float64)


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(),
        dict(norm_cfg=dict(type='SyncBN')),
        dict(norm_cfg=dict(type='BN', affine=False)),
        dict(bias=True),
        dict(groups=4),
        dict(order=('act', 'conv', 'norm')),
        dict(padding_mode='reflect'),
        dict(conv_cfg=dict(type='Conv')),
    ],
    ids=str,
)
def test_conv_module(kwargs, x):
    module = conv_module(**kwargs)
    folded = fold(module)
    assert relative_difference(module, folded, x) < 1e-13
    assert not any(isinstance(m, _BatchNorm) for m in folded.modules())
    assert folded.conv.bias is not None
    again = fold(folded)
    assert relative_difference(folded, again, x) == 0


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(order=('norm', 'conv', 'act')),
        dict(conv_cfg=dict(type='ConvWS')),
        dict(with_spectral_norm=True),
        dict(norm_cfg=dict(type='GN', num_groups=2)),
        dict(norm_cfg=dict(type='IN')),
        dict(norm_cfg=dict(type='BN', track_running_stats=False)),
        dict(norm_cfg=None),
    ],
    ids=str,
)
def test_conv_module_without_a_norm_to_fold_is_copied(kwargs, x):
    module = conv_module(**kwargs)
    folded = fold(module)
    assert folded is not module
    assert folded.state_dict().keys() == module.state_dict().keys()
    assert relative_difference(module, folded, x) == 0


def test_computed_kernel_in_training(x):
    module = conv_module(with_spectral_norm=True).train()
    module(x)
    folded = fold(module)
    assert relative_difference(module.eval(), folded.eval(), x) == 0
    folded.train()(x).sum().backward()
    assert all(p.grad is not None for p in folded.parameters())


@pytest.mark.parametrize('norm_cfg', [dict(type='BN'), dict(type='GN', num_groups=2)], ids=str)
def test_convolution_shared_between_norms(norm_cfg, x):
    model = SharedConvs(norm_cfg)
    folded = fold(model)
    assert relative_difference(model, folded, x) < 1e-13
    assert folded.levels[0].conv is not folded.levels[1].conv
    assert model.levels[0].conv is model.levels[1].conv


def test_shortcut_of_mmcv_for_eval_mode_is_switched_off(x):
    module = conv_module()
    module.turn_on_efficient_conv_bn_eval()
    assert relative_difference(module, fold(module), x) < 1e-13


def test_mixed_model(x):
    model = nn.Sequential(
        MultiBranchConv2d(4, 4, 3, num_branches=3, with_scale=True, with_identity=True),
        nn.ReLU(),
        nn.Sequential(conv_module(), conv_module()),
        nn.BatchNorm2d(4),
    )
    randomize_norms(model).double()
    before = copy.deepcopy(model.state_dict())
    folded = fold(model)
    assert relative_difference(model, folded, x) < 1e-13
    # A norm that follows no convolution of a ConvModule is not fold's to judge.
    assert [type(m) for m in folded.modules() if isinstance(m, _BatchNorm)] == [nn.BatchNorm2d]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    folded.train()(x).sum().backward()
    assert all(p.grad is not None for p in folded.parameters())


def test_no_random_number_is_drawn():
    torch.manual_seed(0)
    expected = torch.rand(2)
    model = MultiBranchConv2d(4, 4, 3, num_branches=2)
    torch.manual_seed(0)
    fold(model)
    assert torch.rand(2).equal(expected)


def test_frozen_parts_stay_frozen():
    module = conv_module().requires_grad_(False)
    assert not any(p.requires_grad for p in fold(module).parameters())


def test_foreign_backbone_that_detaches_can_be_trained_after_folding():
    model = randomize_norms(MobileOne('s0'))
    model.eval()
    folded = fold(model)
    assert relative_difference(model, folded, torch.rand(1, 3, 64, 64)) < 1e-4
    assert all(p.requires_grad for p in folded.parameters())


def test_wrapped_model(monkeypatch):
    monkeypatch.setattr(
        MMDistributedDataParallel, '__init__', lambda self: nn.Module.__init__(self)
    )
    wrapper = MMDistributedDataParallel()
    wrapper.module = GhostNetV3(widen_factor=0.5)
    folded = fold(wrapper)
    assert isinstance(folded, GhostNetV3) and folded.deploy and not wrapper.module.deploy
