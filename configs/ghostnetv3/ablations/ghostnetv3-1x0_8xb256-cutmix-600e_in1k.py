# The recipe without distillation, with CutMix alone.
_base_ = [
    './ghostnetv3-1x0_8xb256-noaug-600e_in1k.py',
    '../../_base_/augmentations/mixup-cutmix.py',
]

model = dict(train_cfg=dict(augments=_base_.mixup_cutmix['augments'][1]))
