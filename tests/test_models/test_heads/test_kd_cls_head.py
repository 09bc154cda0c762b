import pytest
import torch
from mmengine.registry import DefaultScope
from mmpretrain.models import StackedLinearClsHead
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import nn

from mmgnv3.models import KDLoss

SHAPE = dict(num_classes=4, in_channels=6, mid_channels=[8], dropout_rate=0.2)


def build(**options) -> nn.Module:
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(dict(type='mmgnv3.KDClsHead', **SHAPE, **options))


@pytest.fixture
def batch() -> tuple:
    torch.manual_seed(1)
    feats = (torch.randn(3, 6),)
    samples = [DataSample().set_gt_label(label) for label in (2, 0, 3)]
    return feats, samples, torch.randn(3, 4)


def test_is_the_plain_head_but_for_the_loss(batch):
    head, plain = build().eval(), StackedLinearClsHead(**SHAPE).eval()
    plain.load_state_dict(head.state_dict())
    feats, _, _ = batch
    assert torch.equal(head(feats), plain(feats))
    for sample, expected in zip(head.predict(feats), plain.predict(feats), strict=True):
        assert torch.equal(sample.pred_score, expected.pred_score)
        assert torch.equal(sample.pred_label, expected.pred_label)


def test_returns_the_losses_one_by_one(batch):
    feats, samples, teacher_score = batch
    head = build(loss=dict(type='mmgnv3.KDLoss', alpha=0.3, tau=2.0)).eval()
    losses = head.loss(feats, samples, teacher_score=teacher_score)
    expected = KDLoss(alpha=0.3, tau=2.0)(head(feats), torch.tensor([2, 0, 3]), teacher_score)
    torch.testing.assert_close(losses, expected)


def test_shares_of_classes_come_before_labels(batch):
    feats, samples, teacher_score = batch
    scores = torch.eye(4)[[1, 1, 2]] * 0.6 + 0.1
    for sample, score in zip(samples, scores, strict=True):
        sample.set_gt_score(score)
    head = build().eval()
    losses = head.loss(feats, samples, teacher_score=teacher_score)
    torch.testing.assert_close(losses, KDLoss()(head(feats), scores, teacher_score))


def test_accuracy_beside_the_losses(batch):
    feats, samples, teacher_score = batch
    losses = build(cal_acc=True, topk=(1,)).loss(feats, samples, teacher_score=teacher_score)
    assert set(losses) == {'loss_cls', 'loss_kd', 'accuracy_top-1'}


def test_training_without_a_teacher_is_refused(batch):
    feats, samples, _ = batch
    with pytest.raises(ValueError, match='mmgnv3.KDClassifier'):
        build().loss(feats, samples)


def test_another_loss_is_refused():
    with pytest.raises(ValueError, match='mmgnv3.KDLoss, got LabelSmoothLoss'):
        build(loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1))
