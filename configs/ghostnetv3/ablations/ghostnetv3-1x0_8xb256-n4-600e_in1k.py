# Four branches in place of three, without distillation.
_base_ = '../ghostnetv3-1x0_8xb256-600e_in1k.py'

model = dict(backbone=dict(num_branches=4))
