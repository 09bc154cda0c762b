# ResNet-101, one of the paper's three teachers. 44.5M parameters, 77.97 % top-1 on ImageNet-1K by
# mmpretrain's table. A config that lists this file writes
#
#     model = dict(type='mmgnv3.KDClassifier', teacher=_base_.teacher, ...)
#
# Weights: resnet101_8xb32_in1k_20210831-539c63f8.pth of mmpretrain.
# The host that its table names is gone: look in OneDL's model zoo or a mirror. The file goes where
# `checkpoint` says, the environment variable in it or --cfg-options model.teacher.checkpoint=PATH.
teacher = dict(
    config='mmpretrain::resnet/resnet101_8xb32_in1k.py',
    checkpoint='{{$RESNET101_CHECKPOINT:checkpoints/resnet101.pth}}',
    # This and the size as in that config: ImageNet's mean and standard deviation, RGB.
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
    ),
    input_size=224,
)
