# The paper's recipe as far as it is known, whole: with distillation from BEiTV2-B, which later work
# quotes.
_base_ = [
    './ghostnetv3-1x0_8xb256-600e_in1k.py',
    '../_base_/teachers/beitv2-base.py',
    '../_base_/losses/kd.py',
]

model = dict(
    type='mmgnv3.KDClassifier',
    teacher=_base_.teacher,
    head=dict(type='mmgnv3.KDClsHead', loss=_base_.kd_loss),
)
