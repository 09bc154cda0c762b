# Five branches in place of three, with distillation.
_base_ = '../ghostnetv3-1x0_8xb256-kd-600e_in1k.py'

model = dict(backbone=dict(num_branches=5))
