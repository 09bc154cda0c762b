# Ordinary training, the baseline: GhostNetV2's public command line applied to GhostNetV3.
_base_ = [
    '../_base_/models/ghostnetv3-1x0_in1k.py',
    'mmpretrain::_base_/datasets/imagenet_bs32_pil_bicubic.py',
    '../_base_/augmentations/randaugment-erasing.py',
    '../_base_/schedules/rmsprop-step-450e_in1k.py',
    '../_base_/hooks/ema.py',
    '../_base_/hooks/reparam.py',
    '../_base_/hooks/safety.py',
    'mmpretrain::_base_/default_runtime.py',
]

# The default of that command line's train.py.
model = dict(head=dict(loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')))

data_root = '{{$IMAGENET_ROOT:data/imagenet}}'
train_dataloader = dict(
    batch_size=128, dataset=dict(data_root=data_root, pipeline=_base_.augmented_pipeline)
)
val_dataloader = dict(batch_size=128, dataset=dict(data_root=data_root))
test_dataloader = val_dataloader

custom_hooks = [_base_.ema_hook, _base_.reparam_hook, *_base_.safety_hooks]
default_hooks = dict(checkpoint=_base_.checkpoint_hook)
