# The paper's training as far as it is known: LAMB at 0.005, weight decay 0.05, cosine (recalled,
# to be checked); batch 2048, 600 epochs (quoted by later work). The rest of LAMB: mmpretrain's
# defaults. That the rate grows with every iteration of the warm-up: own choice.
max_epochs = 600
warmup_epochs = 3  # default of the public train.py, like the rates at both ends: 1e-4 and 1e-5

optim_wrapper = dict(
    optimizer=dict(type='mmgnv3.Lamb', lr=0.005, weight_decay=0.05),
    # As timm's optimizers, which the public code uses.
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-4 / 0.005,
        by_epoch=True,
        begin=0,
        end=warmup_epochs,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=True,
        begin=warmup_epochs,
        end=max_epochs,
        T_max=max_epochs - warmup_epochs,
    ),
]

train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=2048)
