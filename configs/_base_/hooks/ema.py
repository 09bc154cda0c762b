# The moving average of weights. Decay 0.9999: recalled from the paper, to be checked; GhostNetV2's
# public command line has the same.
ema_hook = dict(type='mmgnv3.EMAHook', momentum=1e-4)  # mmengine's word for 1 - decay
