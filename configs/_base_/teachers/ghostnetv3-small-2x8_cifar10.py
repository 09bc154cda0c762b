# GhostNetV3-Small 2.8x, trained by its own config; CIFAR10_TEACHER names another file of it.
teacher = dict(
    config='{{ fileDirname }}/../../cifar10/ghostnetv3-small-2x8_1xb128-200e_cifar10.py',
    checkpoint='{{$CIFAR10_TEACHER:work_dirs/ghostnetv3-small-2x8_1xb128-200e_cifar10/epoch_200.pth}}',
    channel_order='RGB',  # as the student of the same data
)
