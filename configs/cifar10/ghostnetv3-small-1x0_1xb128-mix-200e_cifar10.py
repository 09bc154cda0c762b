# With Mixup and CutMix.
_base_ = [
    './ghostnetv3-small-1x0_1xb128-200e_cifar10.py',
    '../_base_/augmentations/mixup-cutmix.py',
]

model = dict(train_cfg=_base_.mixup_cutmix)
