# GhostNetV2's public command line: RMSprop at 0.064 for a batch of 8 x 128, weight decay 1e-5, 450
# epochs, the rate times 0.973 every 2.4 epochs, warm-up from 1e-6; momentum, alpha and the length
# of the warm-up are the defaults of its train.py and of timm. Not the same here:
#   - timm's RMSpropTF adds its epsilon (0.001) inside of the root, PyTorch's outside (hence the
#     root of it, as in mmpretrain's MobileNetV3); its mean square begins at 1, and its momentum
#     holds the rates at which the steps were taken;
#   - the noise on the rate between 42 and 90 % of the epochs is left out;
#   - the rate grows with every iteration of the warm-up, there with every epoch.
max_epochs = 450
warmup_epochs = 3

optim_wrapper = dict(
    optimizer=dict(
        type='RMSprop', lr=0.064, alpha=0.9, momentum=0.9, eps=0.0316, weight_decay=1e-5
    ),
    # As timm's optimizers.
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-6 / 0.064,
        by_epoch=True,
        begin=0,
        end=warmup_epochs,
        convert_to_iter_based=True,
    ),
    # The first whole epoch after every 2.4.
    dict(
        type='MultiStepLR',
        by_epoch=True,
        milestones=[-(-12 * step // 5) for step in range(1, 188)],
        gamma=0.973,
    ),
]

train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=1024)
