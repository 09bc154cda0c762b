# mmdet's RetinaNet with GhostNetV3 1.0x in place of ResNet-50; everything else is mmdet's.
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmgnv3.GhostNetV3',
        widen_factor=1.0,
        out_indices=(2, 3, 4),
    ),
    # Strides 8, 16 and 32, where ResNet's list begins with stride 4.
    neck=dict(in_channels=[40, 112, 160], start_level=0),
)
