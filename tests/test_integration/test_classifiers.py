"""The backbone inside mmpretrain's classifier, with the network's own head."""

import copy

import pytest
import timm
import torch
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmgnv3.reparam import fold, relative_difference
from tests.utils import classifier_config, randomize_norms


def build_classifier(widen_factor: float, num_classes: int = 1000) -> nn.Module:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        config = classifier_config(widen_factor, num_classes)
        torch.manual_seed(0)
        classifier = MODELS.build(config)
        classifier.init_weights()
    return randomize_norms(classifier)


def num_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def train_one_step(classifier: nn.Module) -> None:
    """Also checks that the loss is finite and reaches every parameter."""
    classifier.train()
    optimizer = torch.optim.SGD(classifier.parameters(), lr=1e-3)
    data = dict(
        inputs=torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8),
        data_samples=[DataSample().set_gt_label(label) for label in range(4)],
    )
    data = classifier.data_preprocessor(data, training=True)
    loss, _ = classifier.parse_losses(classifier(**data, mode='loss'))
    assert loss.isfinite()
    loss.backward()
    for name, parameter in classifier.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in classifier.parameters())


@pytest.mark.parametrize('width', [0.5, 1.0, 1.3, 1.6])
def test_params_equal_timm(width):
    reference = timm.create_model(f'ghostnetv3_{round(100 * width):03d}')
    assert num_params(build_classifier(width)) == num_params(reference)


@pytest.mark.parametrize('folded', [False, True])
def test_one_training_step(folded):
    classifier = build_classifier(0.5, num_classes=10)
    train_one_step(fold(classifier) if folded else classifier)


@pytest.mark.parametrize(
    ('dtype', 'tolerance'), [(torch.float32, 1e-4), (torch.float64, 1e-10)], ids=str
)
def test_fold_keeps_logits_and_original(dtype, tolerance):
    classifier = build_classifier(0.5).to(dtype)
    before = copy.deepcopy(classifier.state_dict())
    folded = fold(classifier)
    assert not any(isinstance(module, _BatchNorm) for module in folded.modules())
    # A single image keeps its batch dimension.
    images = torch.randn(1, 3, 64, 96, dtype=dtype)
    assert folded.eval()(images).shape == (1, 1000)
    assert relative_difference(classifier, folded, images) < tolerance
    assert classifier.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in classifier.state_dict().items())
