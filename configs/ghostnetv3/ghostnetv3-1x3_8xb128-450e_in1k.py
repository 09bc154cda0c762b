_base_ = './ghostnetv3-1x0_8xb128-450e_in1k.py'

model = dict(backbone=dict(widen_factor=1.3), head=dict(in_channels=1248))
