# RandAugment and RandomErasing: the paper names both, their settings are those of GhostNetV2's
# public command line (rand-m9-mstd0.5, erasing 0.2 with pixels), as the paper's are not known.
#
# mmpretrain has timm's list of operations with growing strength only, the command line takes the
# other one. A RandomApply of probability 1 changes nothing; it is the place where --cfg-options
# take RandAugment out (prob=0) or put something else.
bgr_mean = [103.53, 116.28, 123.675]
bgr_std = [57.375, 57.12, 58.395]

augmented_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(
        type='RandomApply',
        prob=1.0,
        transforms=dict(
            type='RandAugment',
            policies='timm_increasing',
            num_policies=2,
            total_level=10,
            magnitude_level=9,
            magnitude_std=0.5,
            hparams=dict(pad_val=[round(x) for x in bgr_mean], interpolation='bicubic'),
        ),
    ),
    dict(
        type='RandomErasing',
        erase_prob=0.2,
        mode='rand',
        min_area_ratio=0.02,  # this and the next: timm's defaults
        max_area_ratio=1 / 3,
        fill_color=bgr_mean,
        fill_std=bgr_std,
    ),
    dict(type='PackInputs'),
]
