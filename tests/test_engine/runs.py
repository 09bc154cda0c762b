"""Whole training runs that take a second: a small network on sixteen pictures."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

_CONFIG = """
default_scope = 'mmpretrain'
backbone = dict(
    type='mmgnv3.GhostNetV3',
    arch=dict(stem_channels=8, rows=((3, 8, 8, 0, 1), (3, 16, 8, 0.25, 2)), last_channels=16),
    num_branches=2,
)
neck = dict(type='GlobalAveragePooling')
head = dict(num_classes=2, in_channels=16, mid_channels=[8], dropout_rate=0.2)
data_preprocessor = dict(num_classes=2, mean=[127.5] * 3, std=[127.5] * 3)
model = dict(
    type='ImageClassifier', backbone=backbone, neck=neck,
    head=dict(type='StackedLinearClsHead', **head),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomCrop', crop_size=24),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInputs'),
]
val_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=4, num_workers=0, collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset', data_root='data', serialize_data=False, pipeline=train_pipeline
    ),
)
val_dataloader = dict(
    batch_size=4, num_workers=0, collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset', data_root='data', serialize_data=False, pipeline=val_pipeline
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy')
test_evaluator = val_evaluator
train_cfg = dict(by_epoch=True, max_epochs=3, val_interval=3)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9))
param_scheduler = dict(type='LinearLR', start_factor=1.0, end_factor=0.1, by_epoch=False, end=12)
randomness = dict(seed=7)
default_hooks = dict(
    checkpoint=dict(type='mmgnv3.CheckpointHook', interval=1),
    visualization=dict(type='VisualizationHook', enable=False),
)
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
"""

_DISTILLED = """
_base_ = ['plain.py']
teacher = dict(
    model=dict(
        type='ImageClassifier',
        backbone=dict(_base_.backbone),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=2, in_channels=16),
    ),
    checkpoint='teacher.pth',
    data_preprocessor=dict(mean=[100.0] * 3, std=[50.0] * 3),
    channel_order='BGR',
)
model = dict(
    type='mmgnv3.KDClassifier',
    head=dict(type='mmgnv3.KDClsHead', loss=dict(type='mmgnv3.KDLoss', tau=2.0)),
    teacher=teacher,
    channel_order='BGR',
)
"""

_TTA = """
_base_ = ['plain.py']
model = dict(_delete_=True, type='AverageClsScoreTTA', module=_base_.model)
flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
test_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='TestTimeAug', transforms=[flips, [dict(type='PackInputs')]]),
        ]
    )
)
"""

EMA = dict(type='mmgnv3.EMAHook', momentum=0.3)
EXACT = dict(type='mmgnv3.ExactResumeHook')


def write_configs(folder: Path) -> Path:
    """Write pictures of two classes and the configs ``plain.py``, ``distilled.py``, ``tta.py``.

    Returns:
        The folder, in which the configs are to be run: their paths are relative.
    """
    rng = np.random.default_rng(0)
    for label, name in enumerate(('ant', 'bee')):
        images = folder / 'data' / name
        images.mkdir(parents=True)
        for index in range(8):
            image = rng.integers(60 * label, 190 + 60 * label, (32, 32, 3), np.uint8)
            cv2.imwrite(str(images / f'{index}.png'), image)
    (folder / 'plain.py').write_text(_CONFIG)
    (folder / 'distilled.py').write_text(_DISTILLED)
    (folder / 'tta.py').write_text(_TTA)
    return folder


def write_teacher(folder: Path, seed: int = 0) -> Path:
    """Write the checkpoint of a teacher for ``distilled.py``."""
    from mmengine.registry import DefaultScope
    from mmpretrain.registry import MODELS

    cfg = Config.fromfile(folder / 'distilled.py')
    torch.manual_seed(seed)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        network = MODELS.build(cfg.teacher.model)
        network.init_weights()
    path = folder / 'teacher.pth'
    torch.save(dict(state_dict=network.state_dict()), path)
    return path


def make_runner(
    config: Path,
    work_dir: Path | str,
    custom_hooks: Sequence[dict | Hook] = (),
    **options: Any,
) -> Runner:
    """Make a runner.

    Args:
        config: Config file.
        work_dir: Folder to work in.
        custom_hooks: Configs of hooks, which the config will hold, and hooks.
        **options: Changes of the config, with ``__`` for dots.
    """
    cfg = Config.fromfile(config)
    cfg.custom_hooks = [hook for hook in custom_hooks if isinstance(hook, dict)]
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in options.items()})
    cfg.work_dir = str(work_dir)
    # Runs that begin in the same second would share a name, and by it the log and its state.
    cfg.experiment_name = f'{work_dir}-{next(_counter)}'
    cfg.launcher = 'none'
    runner = Runner.from_cfg(cfg)
    for hook in custom_hooks:
        if not isinstance(hook, dict):
            runner.register_hook(hook)
    return runner


def load(path: Path | str) -> dict[str, Any]:
    """Load a checkpoint of mmengine's, which holds more than tensors."""
    return torch.load(path, weights_only=False)


def raw_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The weights that the optimizer works on, of a checkpoint with an average."""
    return {
        name.removeprefix('module.'): value
        for name, value in checkpoint['ema_state_dict'].items()
        if name != 'steps'
    }


def assert_equal_weights(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Bit by bit."""
    assert actual.keys() == expected.keys()
    unequal = [name for name, value in actual.items() if not value.equal(expected[name])]
    assert not unequal, f'{len(unequal)} of {len(actual)}, first {unequal[0]}'


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy that later training does not reach."""
    return {name: value.clone() for name, value in model.state_dict().items()}


_counter = itertools.count()


class MeanScore(BaseMetric):
    """Mean score of the first class, which no two sets of weights have in common."""

    def process(self, data_batch: Any, data_samples: list[dict]) -> None:
        self.results += [sample['pred_score'][0].double().item() for sample in data_samples]

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        return dict(score=sum(results) / len(results))


def mean_score() -> dict[str, dict]:
    """Options of :func:`make_runner` to evaluate with it alone."""
    return dict(val_evaluator=dict(type=MeanScore), test_evaluator=dict(type=MeanScore))


def by_iterations(number: int) -> dict[str, dict]:
    """Options of :func:`make_runner` to train without epochs and validate at the end."""
    loop = dict(_delete_=True, by_epoch=False, max_iters=number, val_interval=number)
    return dict(train_cfg=loop)


class Interruption(Exception):
    """What stops a run in a test."""


class InterruptHook(Hook):
    """Ends a run after an iteration, by an exception or as ``kill -9`` does."""

    priority = 'VERY_HIGH'

    def __init__(self, iteration: int, kill: bool = False) -> None:
        self.iteration = iteration
        self.kill = kill

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if runner.iter + 1 == self.iteration:
            if self.kill:
                os.kill(os.getpid(), 9)
            raise Interruption
