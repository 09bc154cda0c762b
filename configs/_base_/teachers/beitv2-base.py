# BEiTV2-B, the teacher of the paper's final recipe (so work that quotes it says). 86.5M parameters,
# 86.47 % top-1 on ImageNet-1K by mmpretrain's table. A config that lists this file writes
#
#     model = dict(type='mmgnv3.KDClassifier', teacher=_base_.teacher, ...)
#
# Weights: beitv2-base_3rdparty_in1k_20221114-73e11905.pth of mmpretrain.
# The host that its table names is gone: look in OneDL's model zoo or a mirror. The file goes where
# `checkpoint` says, the environment variable in it or --cfg-options model.teacher.checkpoint=PATH.
teacher = dict(
    config='mmpretrain::beitv2/benchmarks/beit-base-p16_8xb64_in1k.py',
    checkpoint='{{$BEITV2_BASE_CHECKPOINT:checkpoints/beitv2-base.pth}}',
    # This and the size as in that config: ImageNet's mean and standard deviation, RGB.
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
    ),
    input_size=224,
)
