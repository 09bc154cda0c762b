# The standard network with stem stride 1; published with another training (arXiv 2509.12380):
# 91.23 %, 6.86M parameters.
_base_ = './ghostnetv3-small-1x0_1xb128-200e_cifar10.py'

model = dict(backbone=dict(arch=dict(_delete_=True, stem_stride=1)), head=dict(in_channels=960))
