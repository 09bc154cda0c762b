# The recipe without distillation, with AutoAugment alone: its policies for ImageNet, as mmpretrain
# has them, with the colour and the interpolation of the recipe's RandAugment.
_base_ = '../ghostnetv3-1x0_8xb256-600e_in1k.py'

# The pipeline: load, crop, flip, RandAugment, RandomErasing, pack.
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            *_base_.augmented_pipeline[:3],
            dict(
                type='AutoAugment',
                policies='imagenet',
                hparams=_base_.augmented_pipeline[3].transforms.hparams,
            ),
            _base_.augmented_pipeline[5],
        ]
    )
)
