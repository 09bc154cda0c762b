# With distillation, at the temperature that is customary on CIFAR-10.
_base_ = [
    './ghostnetv3-small-2x8_1xb128-200e_cifar10.py',
    '../_base_/teachers/ghostnetv3-small-2x8_cifar10.py',
    '../_base_/losses/kd.py',
]

model = dict(
    type='mmgnv3.KDClassifier',
    teacher=_base_.teacher,
    head=dict(type='mmgnv3.KDClsHead', loss=dict(_base_.kd_loss, tau=4.0)),
)
