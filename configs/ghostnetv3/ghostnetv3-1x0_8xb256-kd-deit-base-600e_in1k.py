# The recipe with another teacher of the paper's comparison; the width of the student: own choice.
_base_ = [
    './ghostnetv3-1x0_8xb256-600e_in1k.py',
    '../_base_/teachers/deit-base.py',
    '../_base_/losses/kd.py',
]

model = dict(
    type='mmgnv3.KDClassifier',
    teacher=_base_.teacher,
    head=dict(type='mmgnv3.KDClsHead', loss=_base_.kd_loss),
)
