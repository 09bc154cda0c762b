# GhostNetV3 1.0x with the network's own head: pooling, 1280 hidden units, 1000 classes.
# Structure: the public code, three branches a unit included. Of the widths, 1.3x is in the paper's
# abstract, 1.0x and 1.6x are quoted by later work, and 0.5x is timm's.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmgnv3.GhostNetV3', widen_factor=1.0),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='StackedLinearClsHead',
        num_classes=1000,
        in_channels=960,  # the last stage's: 480 at 0.5x, 1248 at 1.3x, 1536 at 1.6x
        mid_channels=[1280],
        dropout_rate=0.2,  # GhostNetV2's command line; V3's code sets it and does not apply it
    ),
)
