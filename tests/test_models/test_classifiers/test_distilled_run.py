"""Real runs under a teacher: what they write, and what that loads into."""

import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from torch import nn

from mmgnv3.models import GhostNetV3
from tests.test_apis.tiny import write_classification
from tests.test_models.test_classifiers.small import NETWORK, STUDENT

HEAD = dict(num_classes=2, in_channels=16, mid_channels=[8])
TEACHER = dict(NETWORK, head=dict(NETWORK['head'], num_classes=2))


@pytest.fixture
def config(tmp_path) -> Config:
    """Two epochs of two batches under a teacher whose checkpoint is still to be written."""
    cfg = Config.fromfile(write_classification(tmp_path))
    cfg.model = dict(
        type='mmgnv3.KDClassifier',
        backbone=STUDENT['backbone'],
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='mmgnv3.KDClsHead', **HEAD, loss=dict(type='mmgnv3.KDLoss', tau=2.0)),
        teacher=dict(model=TEACHER, checkpoint=str(tmp_path / 'teacher.pth'), input_size=48),
        channel_order='BGR',
    )
    cfg.custom_hooks = [dict(type='EMAHook', momentum=0.5)]
    cfg.visualizer.vis_backends = []
    cfg.train_cfg.max_epochs = 2
    cfg.work_dir = str(tmp_path / 'run')
    cfg.experiment_name = f'distilled-{tmp_path.name}'
    cfg.randomness = dict(seed=0)
    return cfg


def write_teacher(path: str) -> None:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        torch.manual_seed(1)
        torch.save(dict(state_dict=MODELS.build(copy.deepcopy(TEACHER)).state_dict()), path)


def build(model: dict) -> nn.Module:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(model)


def test_a_run_leaves_an_ordinary_student(config):
    write_teacher(config.model.teacher.checkpoint)
    runner = Runner.from_cfg(config)
    model = runner.train()

    parts = [
        runner.message_hub.get_scalar(f'train/{name}').data[0]
        for name in ('loss', 'loss_cls', 'loss_kd')
    ]
    assert all(len(part) == 4 for part in parts)
    torch.testing.assert_close(parts[0], parts[1] + parts[2])

    path = str(Path(config.work_dir) / 'epoch_2.pth')
    checkpoint = torch.load(path, weights_only=False)
    plain = build(
        dict(
            type='ImageClassifier',
            backbone=STUDENT['backbone'],
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='StackedLinearClsHead', **HEAD),
        )
    )
    plain.load_state_dict(checkpoint['state_dict'])
    raw = {
        name.removeprefix('module.'): value
        for name, value in checkpoint['ema_state_dict'].items()
        if name != 'steps'
    }
    plain.load_state_dict(raw)
    groups = checkpoint['optimizer']['param_groups']
    assert sum(len(group['params']) for group in groups) == len(list(plain.parameters()))
    # The teacher has not moved.
    weights = torch.load(config.model.teacher.checkpoint)['state_dict']
    for name, value in model.teacher.build().state_dict().items():
        assert torch.equal(value, weights[name]), name

    backbone = GhostNetV3(
        **{key: value for key, value in STUDENT['backbone'].items() if key != 'type'},
        out_indices=(0, 1),
        init_cfg=dict(type='Pretrained', checkpoint=path, prefix='backbone.'),
    )
    backbone.init_weights()
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, checkpoint['state_dict'][f'backbone.{name}']), name


def test_without_the_teacher_s_checkpoint_a_run_evaluates_and_does_not_train(config, tmp_path):
    weights = build(copy.deepcopy(config.model)).state_dict()
    config.load_from = str(tmp_path / 'student.pth')
    torch.save(dict(state_dict=weights), config.load_from)
    runner = Runner.from_cfg(config)
    assert 'accuracy/top1' in runner.test()
    with pytest.raises(FileNotFoundError, match='teacher.pth of the teacher'):
        runner.train()
    assert runner.iter == 0
    assert not list(Path(config.work_dir).rglob('*.pth'))
