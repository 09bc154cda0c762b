# Depthwise units without their 1 x 1 branch, with distillation.
_base_ = '../ghostnetv3-1x0_8xb256-kd-600e_in1k.py'

model = dict(backbone=dict(with_scale=False))
