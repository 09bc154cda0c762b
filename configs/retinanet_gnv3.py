# RetinaNet with GhostNetV3 1.0x, FPN, COCO, 12 epochs.
#
#     python tools/train.py configs/retinanet_gnv3.py
#     mim train mmdetection configs/retinanet_gnv3.py
#
# Data, schedule and head are mmdet's own 1x setting for RetinaNet (8 x 2 images, SGD, lr 0.01), so
# that the backbone is the only difference to its ResNet-50 baseline. The backbone starts from
# random weights; ImageNet weights are given by
#     --cfg-options model.backbone.init_cfg.type=Pretrained \
#                   model.backbone.init_cfg.checkpoint=PATH model.backbone.init_cfg.prefix=backbone.
_base_ = [
    './_base_/models/retinanet_ghostnetv3-1x0_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
    'mmdet::retinanet/retinanet_tta.py',
]

optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0001))
