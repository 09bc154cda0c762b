# DeiT-B, one of the paper's three teachers. 86.6M parameters, 81.76 % top-1 on ImageNet-1K by
# mmpretrain's table. A config that lists this file writes
#
#     model = dict(type='mmgnv3.KDClassifier', teacher=_base_.teacher, ...)
#
# Weights: deit-base_pt-16xb64_in1k_20220216-db63c16c.pth of mmpretrain.
# The host that its table names is gone: look in OneDL's model zoo or a mirror. The file goes where
# `checkpoint` says, the environment variable in it or --cfg-options model.teacher.checkpoint=PATH.
teacher = dict(
    config='mmpretrain::deit/deit-base_16xb64_in1k.py',
    checkpoint='{{$DEIT_BASE_CHECKPOINT:checkpoints/deit-base.pth}}',
    # This and the size as in that config: ImageNet's mean and standard deviation, RGB.
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
    ),
    input_size=224,
)
