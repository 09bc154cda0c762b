# What `make demo` trains: a light RetinaNet on the embedded data set, from scratch, in minutes on a
# CPU. Every value that is not mmdet's is own choice. By hand:
#
#     python tools/make_toy_dataset.py data/toyshapes
#     python tools/train.py configs/retinanet-light_ghostnetv3-0x5_1xb4_toyshapes.py
_base_ = [
    './_base_/models/retinanet-light_ghostnetv3-0x5.py',
    './_base_/datasets/toyshapes_detection.py',
    './_base_/schedules/adamw-cosine_light-detection.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(bbox_head=dict(num_classes=5))

train_cfg = dict(max_epochs=5, val_interval=1)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=1, max_keep_ckpts=1))
