# The recipe without distillation, its moving average with a decay of 0.99999.
_base_ = '../ghostnetv3-1x0_8xb256-600e_in1k.py'

custom_hooks = [dict(_base_.ema_hook, momentum=1e-5), *_base_.custom_hooks[1:]]
