# Training on your own data: photographs of blood cells (BCCD, 3 classes, COCO json, 205 images to
# train, 87 to validate, 72 to test), from scratch, on a CPU.
#
#     git clone https://github.com/Shenggan/BCCD_Dataset
#     python tools/voc_to_coco.py BCCD_Dataset/BCCD data/bccd RBC WBC Platelets
#     python tools/train.py configs/retinanet-light_ghostnetv3-0x5_1xb4_bccd.py
#
# For other data in COCO format change what stands above the line. Every value that is not mmdet's
# is own choice, found on these data.
_base_ = [
    './_base_/models/retinanet-light_ghostnetv3-0x5.py',
    './_base_/schedules/adamw-cosine_light-detection.py',
    'mmdet::_base_/default_runtime.py',
]

data_root = '{{$BCCD_ROOT:data/bccd}}'  # the folder, or the environment variable BCCD_ROOT
metainfo = dict(
    classes=('RBC', 'WBC', 'Platelets'),
    palette=[(220, 20, 60), (65, 105, 225), (255, 165, 0)],
)
image_scale = (320, 240)  # width, height in pixels that the network sees
# --------------------------------------------------------------------------------------------------

model = dict(
    bbox_head=dict(
        num_classes=len(metainfo['classes']),
        # Half of RetinaNet's anchors: the smallest has 16 pixels a side. A platelet has about 20 at
        # this image scale and overlaps none of the default anchors, 32 pixels and up, enough.
        anchor_generator=dict(octave_base_scale=2),
    ),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=image_scale, ratio_range=(0.8, 1.25), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(image_scale[1], image_scale[0])),
    # A slide has no up and no left.
    dict(
        type='RandomFlip', prob=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal']
    ),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]

train_dataloader = dict(
    batch_size=4,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CocoDataset',
        data_root=data_root,
        ann_file='train.json',
        data_prefix=dict(img='images/'),
        metainfo=metainfo,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset',
        data_root=data_root,
        ann_file='val.json',
        data_prefix=dict(img='images/'),
        metainfo=metainfo,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = {
    **val_dataloader,
    'dataset': {**val_dataloader['dataset'], 'ann_file': 'test.json'},
}
val_evaluator = dict(
    type='CocoMetric', ann_file=f'{data_root}/val.json', metric='bbox', classwise=True
)
test_evaluator = {**val_evaluator, 'ann_file': f'{data_root}/test.json'}

randomness = dict(seed=0)
train_cfg = dict(max_epochs=30, val_interval=10)
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=10, max_keep_ckpts=1, save_best='coco/bbox_mAP'),
)
