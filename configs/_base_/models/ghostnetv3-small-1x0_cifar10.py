# GhostNetV3-Small 1.0x for images of 32 x 32 (arXiv 2509.12380). No dropout: own choice.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmgnv3.GhostNetV3', arch='small', widen_factor=1.0),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='StackedLinearClsHead',
        num_classes=10,
        in_channels=160,
        mid_channels=[1280],  # as in the network for ImageNet: with it the parameters are 0.48M
    ),
)
