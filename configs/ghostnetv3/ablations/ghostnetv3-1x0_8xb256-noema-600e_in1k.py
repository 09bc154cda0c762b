# The recipe without distillation and without a moving average.
_base_ = '../ghostnetv3-1x0_8xb256-600e_in1k.py'

custom_hooks = _base_.custom_hooks[1:]
