# What `make demo` trains: a light RetinaNet on the embedded data set, from scratch, in minutes on a
# CPU. By hand:
#
#     python tools/make_toy_dataset.py data/toyshapes
#     python tools/train.py configs/retinanet-light_ghostnetv3-0x5_1xb4_toyshapes.py
_base_ = [
    './_base_/models/retinanet-light_ghostnetv3-0x5.py',
    './_base_/datasets/toyshapes_detection.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(bbox_head=dict(num_classes=5))

max_epochs = 5
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1.5e-3, weight_decay=0.05, fused=True),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        convert_to_iter_based=True,
        T_max=max_epochs,
        eta_min_ratio=0.01,
    ),
]
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=1, max_keep_ckpts=1))
