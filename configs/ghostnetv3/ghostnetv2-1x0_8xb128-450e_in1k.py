# GhostNetV2 in its own ordinary training.
_base_ = './ghostnetv3-1x0_8xb128-450e_in1k.py'

model = dict(backbone=dict(type='mmgnv3.GhostNetV2'))
