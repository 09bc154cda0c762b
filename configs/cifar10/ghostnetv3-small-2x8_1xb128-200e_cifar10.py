# GhostNetV3-Small 2.8x; published with another training (arXiv 2509.12380): 93.94 %, 2.42M
# parameters. Also the teacher of the configs with distillation.
_base_ = './ghostnetv3-small-1x0_1xb128-200e_cifar10.py'

model = dict(backbone=dict(widen_factor=2.8), head=dict(in_channels=448))
