# The recipe without distillation, with steps in place of the cosine, which the paper compares. Its
# steps are not known: these, a tenth each at half and three quarters, are own choice.
_base_ = './ghostnetv3-1x0_8xb256-600e_in1k.py'

param_scheduler = [
    _base_.param_scheduler[0],
    dict(type='MultiStepLR', by_epoch=True, milestones=[300, 450], gamma=0.1),
]
