# The recipe without distillation, its images cropped and flipped and no more. The others of this
# family add one thing to it; in which company the paper tries each is not known.
_base_ = '../ghostnetv3-1x0_8xb256-600e_in1k.py'

# The pipeline: load, crop, flip, RandAugment, RandomErasing, pack.
train_dataloader = dict(
    dataset=dict(pipeline=[*_base_.augmented_pipeline[:3], _base_.augmented_pipeline[5]])
)
