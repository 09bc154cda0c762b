_base_ = './ghostnetv3-1x0_8xb128-450e_in1k.py'

model = dict(backbone=dict(widen_factor=0.5), head=dict(in_channels=480))
