import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmgnv3.datasets import ToyShapes

CONFIG = Path(__file__).parents[2] / 'configs' / 'retinanet_gnv3.py'


def write_small_coco(root: Path) -> None:
    """Generated pictures in COCO's folders and under names of its classes."""
    ToyShapes(num_train=4, num_val=2, width=128, height=96).write(root)
    for split in ('train', 'val'):
        (root / split).rename(root / f'{split}2017')
        old = root / 'annotations' / f'{split}.json'
        content = json.loads(old.read_text())
        for category, name in zip(
            content['categories'], ('person', 'bicycle', 'car', 'bird', 'boat'), strict=True
        ):
            category['name'] = name
        old.with_name(f'instances_{split}2017.json').write_text(json.dumps(content))


@pytest.mark.slow
def test_front_door_runs_under_mim_from_another_directory(tmp_path):
    """The framework's own script, which knows of this package what the config names."""
    write_small_coco(tmp_path / 'data' / 'coco')
    options = [
        'train_cfg.max_epochs=1',
        'train_dataloader.dataset.pipeline.2.scale=(160,120)',
        'val_dataloader.dataset.pipeline.1.scale=(160,120)',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
        'val_dataloader.num_workers=0',
        'val_dataloader.persistent_workers=False',
    ]
    mim = Path(sys.executable).with_name('mim')
    command = [mim, 'train', 'mmdetection', CONFIG, '--gpus', '0', '--work-dir', 'run']
    result = subprocess.run(
        [str(part) for part in [*command, '--cfg-options', *options]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert 'Epoch(val) [1][2/2]' in result.stdout + result.stderr
    # mmengine's checkpoints hold more than tensors; this one was written a moment ago.
    checkpoint = torch.load(tmp_path / 'run' / 'epoch_1.pth', weights_only=False)
    assert any(name.startswith('backbone.stem.') for name in checkpoint['state_dict'])
