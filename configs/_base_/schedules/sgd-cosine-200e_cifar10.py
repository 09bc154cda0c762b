# What is customary on CIFAR-10: SGD at 0.1 with momentum 0.9 for a batch of 128, 200 epochs
# (mmpretrain's cifar10_bs128). Cosine, because the paper, as later work quotes it, finds it better
# than steps. Weight decay, Nesterov's form of the momentum and five epochs of warm-up, from a
# hundredth of the rate, are own choice.
max_epochs = 200
warmup_epochs = 5

optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.01,
        by_epoch=True,
        begin=0,
        end=warmup_epochs,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=warmup_epochs,
        end=max_epochs,
        T_max=max_epochs - warmup_epochs,
        convert_to_iter_based=True,
    ),
]

train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=128)
