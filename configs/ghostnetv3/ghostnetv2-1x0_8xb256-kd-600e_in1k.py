# The recipe on GhostNetV2: the same network without branches.
_base_ = './ghostnetv3-1x0_8xb256-kd-600e_in1k.py'

model = dict(backbone=dict(type='mmgnv3.GhostNetV2'))
