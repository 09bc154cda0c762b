# A RetinaNet whose neck and head do not outweigh the backbone: for small data and CPUs. Its width
# and sizes: own choice.
_base_ = './retinanet_ghostnetv3-1x0_fpn.py'

model = dict(
    backbone=dict(widen_factor=0.5),
    # From random weights, batch norms in the neck make training several times faster; they fold.
    neck=dict(in_channels=[20, 56, 80], out_channels=64, norm_cfg=dict(type='BN')),
    bbox_head=dict(in_channels=64, feat_channels=64, stacked_convs=2),
)
