# The recipe without distillation, with RandAugment alone.
_base_ = '../ghostnetv3-1x0_8xb256-600e_in1k.py'

# The pipeline: load, crop, flip, RandAugment, RandomErasing, pack.
train_dataloader = dict(
    dataset=dict(pipeline=[*_base_.augmented_pipeline[:4], _base_.augmented_pipeline[5]])
)
