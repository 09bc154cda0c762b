# RandAugment and RandomErasing: the paper names both. Their settings are those of GhostNetV2's
# public command line (rand-m9-mstd0.5, erasing 0.2 with pixels), as the paper's are not known, and
# what that leaves open are timm's defaults: two operations an image, the sizes that are erased, the
# mean colour where an operation leaves nothing.
#
# mmpretrain has timm's list of operations with growing strength only, the command line takes the
# other one. A RandomApply of probability 1 changes nothing; it is the place where --cfg-options
# take RandAugment out (prob=0) or put something else.
bgr_mean = [103.53, 116.28, 123.675]  # ImageNet's, as everywhere
bgr_std = [57.375, 57.12, 58.395]

augmented_pipeline = [
    dict(type='LoadImageFromFile'),
    # Crop and flip as in mmpretrain's imagenet_bs32_pil_bicubic. So are they in the public scripts
    # but for the interpolation, which is drawn there: bilinear or bicubic.
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
        min_area_ratio=0.02,
        max_area_ratio=1 / 3,
        fill_color=bgr_mean,
        fill_std=bgr_std,
    ),
    dict(type='PackInputs'),
]
