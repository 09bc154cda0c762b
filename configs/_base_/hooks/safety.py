# Nothing of the method: a run that can be interrupted at any time and resumed exactly, that stops
# at the first loss which is not a number, and that overwrites neither half a checkpoint nor what
# another run left. A checkpoint an epoch, of which the last three and the best stay: own choice.
runner_type = 'mmgnv3.CheckedRunner'
safety_hooks = [dict(type='mmgnv3.ExactResumeHook'), dict(type='mmgnv3.FiniteLossHook')]
checkpoint_hook = dict(type='mmgnv3.CheckpointHook', interval=1, max_keep_ckpts=3, save_best='auto')
