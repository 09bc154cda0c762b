"""Networks and data so small that a whole run takes seconds."""

from pathlib import Path

import cv2
import numpy as np

from mmgnv3.datasets import CLASSES, ToyShapes

_DETECTOR = """
default_scope = 'mmdet'
randomness = dict(seed=0)
model = dict(
    type='RetinaNet',
    data_preprocessor=dict(type='DetDataPreprocessor', mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(type='mmgnv3.GhostNetV3', widen_factor=0.5, out_indices=(2, 3, 4)),
    neck=dict(
        type='FPN', in_channels=[20, 56, 80], out_channels=16, num_outs=5,
        add_extra_convs='on_input', norm_cfg=dict(type='BN'),
    ),
    bbox_head=dict(
        type='RetinaHead', num_classes={num_classes}, in_channels=16, feat_channels=16,
        stacked_convs=1, norm_cfg=dict(type='BN'),
        anchor_generator=dict(
            type='AnchorGenerator', octave_base_scale=2, scales_per_octave=1, ratios=[1.0],
            strides=[8, 16, 32, 64, 128],
        ),
    ),
    train_cfg=dict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
        sampler=dict(type='PseudoSampler'),
        allowed_border=-1, pos_weight=-1,
    ),
    test_cfg=dict(
        nms_pre=100, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=20
    ),
)
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64)),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CocoDataset', data_root={root!r}, ann_file='annotations/train.json',
        data_prefix=dict(img='train/'), metainfo=dict(classes={classes!r}), pipeline=pipeline,
    ),
)
val_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset', data_root={root!r}, ann_file='annotations/val.json',
        data_prefix=dict(img='val/'), metainfo=dict(classes={classes!r}), test_mode=True,
        pipeline=pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoMetric', ann_file={root!r} + '/annotations/val.json')
test_evaluator = val_evaluator
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1e-3))
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(visualization=dict(type='DetVisualizationHook'))
visualizer = dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
"""

_CLASSIFIER = """
default_scope = 'mmpretrain'
randomness = dict(seed=0)
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmgnv3.GhostNetV3', widen_factor=0.5),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=480, topk=(1,)),
)
data_preprocessor = dict(num_classes=2, mean=[127.5] * 3, std=[127.5] * 3)
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset', data_root={root!r}, data_prefix='train', pipeline=pipeline
    ),
)
val_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CustomDataset', data_root={root!r}, data_prefix='train', pipeline=pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
train_cfg = dict(by_epoch=True, max_epochs=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=1e-3))
default_hooks = dict(visualization=dict(type='VisualizationHook', enable=False))
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
"""


def write_detection(folder: Path) -> Path:
    """Write four training and two validation images below ``data`` and a config that uses them."""
    root = ToyShapes(num_train=4, num_val=2, width=64, height=64).write(folder / 'data')
    config = folder / 'detector.py'
    config.write_text(_DETECTOR.format(root=str(root), classes=CLASSES, num_classes=len(CLASSES)))
    return config


def write_classification(folder: Path) -> Path:
    """Write a folder of two classes with two images each and a config that uses it."""
    rng = np.random.default_rng(0)
    for name in ('ant', 'bee'):
        images = folder / 'data' / 'train' / name
        images.mkdir(parents=True)
        for index in range(2):
            cv2.imwrite(str(images / f'{index}.png'), rng.integers(0, 255, (64, 64, 3), np.uint8))
    config = folder / 'classifier.py'
    config.write_text(_CLASSIFIER.format(root=str(folder / 'data')))
    return config
