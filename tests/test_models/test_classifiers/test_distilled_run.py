"""Real runs under a teacher: what they write, and what that loads into."""

import copy
import json
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
    )
    cfg.custom_hooks = [dict(type='EMAHook', momentum=0.5)]
    cfg.default_hooks.update(logger=dict(type='LoggerHook', interval=1))
    cfg.train_cfg.max_epochs = 2
    cfg.work_dir = str(tmp_path / 'run')
    cfg.experiment_name = tmp_path.name
    cfg.randomness = dict(seed=0)
    return cfg


def write_teacher(path: str) -> None:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        torch.manual_seed(1)
        torch.save(dict(state_dict=MODELS.build(copy.deepcopy(TEACHER)).state_dict()), path)


def build(model: dict) -> nn.Module:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(model)


def test_a_run_leaves_an_ordinary_student(config, tmp_path):
    write_teacher(config.model.teacher.checkpoint)
    runner = Runner.from_cfg(config)
    model = runner.train()

    logged = [
        json.loads(line)
        for line in next(Path(config.work_dir).rglob('scalars.json')).read_text().splitlines()
    ]
    steps = [line for line in logged if 'loss' in line]
    assert len(steps) == 4
    for step in steps:
        assert step['loss'] == pytest.approx(step['loss_cls'] + step['loss_kd'], rel=1e-4)

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

    Path(config.model.teacher.checkpoint).unlink()
    tester = Runner.from_cfg(
        Config(
            dict(
                config,
                load_from=path,
                work_dir=f'{config.work_dir}_test',
                experiment_name=f'{config.experiment_name}_test',
            )
        )
    )
    assert 'accuracy/top1' in tester.test()
    assert not tester.model.teacher._built

    backbone = GhostNetV3(
        **{key: value for key, value in STUDENT['backbone'].items() if key != 'type'},
        out_indices=(0, 1),
        init_cfg=dict(type='Pretrained', checkpoint=path, prefix='backbone.'),
    )
    backbone.init_weights()
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, checkpoint['state_dict'][f'backbone.{name}']), name


def test_missing_checkpoint_stops_training_before_the_first_step(config):
    runner = Runner.from_cfg(config)
    with pytest.raises(FileNotFoundError, match='teacher.pth of the teacher'):
        runner.train()
    assert runner.iter == 0
    assert not list(Path(config.work_dir).rglob('*.pth'))
