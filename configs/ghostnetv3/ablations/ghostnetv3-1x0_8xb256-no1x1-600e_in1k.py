# Depthwise units without their 1 x 1 branch, without distillation.
_base_ = '../ghostnetv3-1x0_8xb256-600e_in1k.py'

model = dict(backbone=dict(with_scale=False))
