# The paper's recipe as far as it is known, without distillation: LAMB, batch 2048, 600 epochs,
# cosine, RandAugment, RandomErasing, EMA. Much of it is recalled and to be checked: how sure each
# value is stands beside it, in the parts below. Eight times 256 images: own choice.
_base_ = [
    '../_base_/models/ghostnetv3-1x0_in1k.py',
    'mmpretrain::_base_/datasets/imagenet_bs32_pil_bicubic.py',
    '../_base_/augmentations/randaugment-erasing.py',
    '../_base_/schedules/lamb-cosine-600e_in1k.py',
    '../_base_/hooks/ema.py',
    '../_base_/hooks/reparam.py',
    '../_base_/hooks/safety.py',
    'mmpretrain::_base_/default_runtime.py',
]

data_root = '{{$IMAGENET_ROOT:data/imagenet}}'
train_dataloader = dict(
    batch_size=256, dataset=dict(data_root=data_root, pipeline=_base_.augmented_pipeline)
)
val_dataloader = dict(batch_size=256, dataset=dict(data_root=data_root))
test_dataloader = val_dataloader

custom_hooks = [_base_.ema_hook, _base_.reparam_hook, *_base_.safety_hooks]
default_hooks = dict(checkpoint=_base_.checkpoint_hook)
