# CIFAR-10, in one of two forms:
#   - as it is given out: mmpretrain downloads it to data/cifar10;
#   - as an image folder, where the environment variable CIFAR10_ROOT names one:
#     train/<class>/*.jpg and test/<class>/*.jpg.
# Crop, flip, mean and deviation: mmpretrain's cifar10_bs16; the batch of 128: its schedule
# cifar10_bs128; the batch of an evaluation changes nothing.
data_root = '{{$CIFAR10_ROOT:data/cifar10}}'
is_folder = data_root != 'data/cifar10'

data_preprocessor = dict(
    num_classes=10,
    mean=[125.307, 122.961, 113.8575],  # RGB
    std=[51.5865, 50.847, 51.255],
    to_rgb=is_folder,  # the form given out is RGB already, a file is read as BGR
)

# A KeyMapper does nothing: --cfg-options find the crop at the same place in both forms.
load = dict(type='LoadImageFromFile') if is_folder else dict(type='KeyMapper')
train_pipeline = [
    load,
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [load, dict(type='PackInputs')]

if is_folder:
    train_set = dict(type='CustomDataset', data_root=data_root, data_prefix='train')
    test_set = dict(type='CustomDataset', data_root=data_root, data_prefix='test')
else:
    train_set = dict(type='CIFAR10', data_root=data_root, split='train')
    test_set = dict(type='CIFAR10', data_root=data_root, split='test')

train_dataloader = dict(
    batch_size=128,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**train_set, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=256,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**test_set, test_mode=True, pipeline=test_pipeline),
)
val_evaluator = dict(type='Accuracy', topk=(1,))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
