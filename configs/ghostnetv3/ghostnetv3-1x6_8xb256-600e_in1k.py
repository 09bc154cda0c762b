_base_ = './ghostnetv3-1x0_8xb256-600e_in1k.py'

model = dict(backbone=dict(widen_factor=1.6), head=dict(in_channels=1536))
