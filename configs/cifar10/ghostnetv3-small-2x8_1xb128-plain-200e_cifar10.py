# Without branches: one convolution and one norm in place of each re-parameterizable unit.
_base_ = './ghostnetv3-small-2x8_1xb128-200e_cifar10.py'

model = dict(backbone=dict(type='mmgnv3.GhostNetV2'))
