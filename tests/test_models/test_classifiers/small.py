"""Students and teachers so small that a pass takes milliseconds."""

import copy
from typing import Any

import torch
from mmengine.registry import DefaultScope
from mmpretrain.models.classifiers import BaseClassifier
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mmgnv3.models import KDClassifier
from tests.utils import randomize_norms

NUM_CLASSES = 3
STUDENT = dict(
    backbone=dict(
        type='mmgnv3.GhostNetV3',
        arch=dict(stem_channels=8, rows=((3, 8, 8, 0, 1), (3, 16, 12, 0, 2)), last_channels=16),
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='mmgnv3.KDClsHead', num_classes=NUM_CLASSES, in_channels=16, mid_channels=[8]),
    data_preprocessor=dict(mean=[100.0, 110.0, 120.0], std=[50.0, 55.0, 60.0], to_rgb=True),
)
# An ordinary classifier of mmpretrain.
NETWORK = dict(
    type='ImageClassifier',
    backbone=dict(STUDENT['backbone']),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=NUM_CLASSES, in_channels=16),
    data_preprocessor=dict(mean=[120.0, 115.0, 100.0], std=[60.0, 58.0, 56.0], to_rgb=True),
)


class Mirror(BaseClassifier):
    """A teacher that answers with the mean colour of what it is shown, and keeps that."""

    def __init__(self, data_preprocessor: dict) -> None:
        super().__init__(data_preprocessor=dict(data_preprocessor, type='ClsDataPreprocessor'))
        self.gain = nn.Parameter(torch.ones(()))
        self.shown: list[Tensor] = []
        self.modes: list[tuple[bool, bool]] = []

    def forward(
        self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor'
    ) -> Tensor:
        self.shown.append(inputs)
        self.modes.append((self.training, torch.is_grad_enabled()))
        return self.gain * inputs.mean((2, 3))


def build(teacher: dict, **options: Any) -> KDClassifier:
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = {'type': 'mmgnv3.KDClassifier', **STUDENT, 'teacher': teacher, **options}
        # mmpretrain fills in defaults in place.
        return MODELS.build(copy.deepcopy(model))


def mirror(**data_preprocessor: Any) -> dict:
    """Config of a teacher that shows its input."""
    preprocessor = {**NETWORK['data_preprocessor'], **data_preprocessor}
    return dict(model=dict(type=Mirror, data_preprocessor=preprocessor), random_init=True)


def trained_network(seed: int = 0) -> nn.Module:
    """A plain classifier with weights of its own, as a teacher is."""
    torch.manual_seed(seed)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return randomize_norms(MODELS.build(copy.deepcopy(NETWORK)), seed).eval()


def batch(size: int = 32, images: int = 4) -> dict:
    """What a data loader gives: BGR images and labels."""
    generator = torch.Generator().manual_seed(0)
    return dict(
        inputs=torch.randint(256, (images, 3, size, size), generator=generator, dtype=torch.uint8),
        data_samples=[DataSample().set_gt_label(i % NUM_CLASSES) for i in range(images)],
    )
