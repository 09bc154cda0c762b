import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS


def test_networks_see_batches_in_channels_last(folder):
    cfg = Config.fromfile(folder / 'plain.py')
    names = dict(work_dir='work', experiment_name=str(folder))
    cfg.merge_from_dict(dict(names, runner_type='mmgnv3.ChannelsLastRunner'))
    runner = RUNNERS.build(cfg)
    seen = []
    runner.model.backbone.register_forward_pre_hook(lambda _, arguments: seen.append(*arguments))
    runner.val()
    assert len(seen) == 4
    assert all(images.is_contiguous(memory_format=torch.channels_last) for images in seen)
