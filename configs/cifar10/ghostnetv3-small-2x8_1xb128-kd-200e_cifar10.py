# With distillation.
_base_ = [
    './ghostnetv3-small-2x8_1xb128-200e_cifar10.py',
    '../_base_/teachers/ghostnetv3-small-2x8_cifar10.py',
    '../_base_/losses/kd-cifar10.py',
]

model = dict(
    type='mmgnv3.KDClassifier',
    teacher=_base_.teacher,
    channel_order='RGB',  # in either form of the data
    head=dict(type='mmgnv3.KDClsHead', loss=_base_.kd_loss),
)
