import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mim
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS

from mmgnv3.datasets import ToyShapes
from tests.image_folders import write_cifar10, write_image_folders

CONFIGS = Path(__file__).parents[2] / 'configs'
# Loaders without processes: starting them would take longer than the work.
IN_PROCESS = [
    f'{split}_dataloader.{key}'
    for split in ('train', 'val', 'test')
    for key in ('num_workers=0', 'persistent_workers=False')
]


def run_mim(folder: Path, command: str, package: str, config: Path, *args, **variables) -> str:
    """Run mim in a folder, as one run in a terminal, and return what it says."""
    mim = Path(sys.executable).with_name('mim')
    result = subprocess.run(
        [str(part) for part in (mim, command, package, config, *args)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, **{name: str(value) for name, value in variables.items()}},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


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
        *IN_PROCESS[:4],
    ]
    config = CONFIGS / 'retinanet_gnv3.py'
    arguments = ('--gpus', '0', '--work-dir', 'run', '--cfg-options', *options)
    output = run_mim(tmp_path, 'train', 'mmdetection', config, *arguments)
    assert 'Epoch(val) [1][2/2]' in output
    # mmengine's checkpoints hold more than tensors; this one was written a moment ago.
    checkpoint = torch.load(tmp_path / 'run' / 'epoch_1.pth', weights_only=False)
    assert any(name.startswith('backbone.stem.') for name in checkpoint['state_dict'])


def top1(output: str) -> str:
    return re.findall(r'accuracy/top1: (\S+)', output)[-1]


@pytest.fixture
def imagenet(tmp_path) -> Path:
    """A folder of ImageNet's form: 1000 classes, of which the first two have pictures."""
    root = write_image_folders(tmp_path / 'imagenet', dict(train=4, val=1), ('n0', 'n1'), 64)
    for split in ('train', 'val'):
        for label in range(998):
            (root / split / f'o{label:03d}').mkdir()
    return root


@pytest.mark.slow
def test_recipe_trains_and_is_evaluated_under_mim(tmp_path, imagenet):
    """Distillation, average and folding by mmpretrain's own scripts; then the folded file."""
    teacher = tmp_path / 'teacher.py'
    base = CONFIGS / 'ghostnetv3/ghostnetv3-0x5_8xb256-600e_in1k.py'
    teacher.write_text(f"_base_ = '{base}'\n")
    cfg = Config.fromfile(teacher)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), tmp_path / 'teacher.pth')
    config = CONFIGS / 'ghostnetv3/ghostnetv3-0x5_8xb256-kd-600e_in1k.py'
    options = [
        *('train_cfg.max_epochs=2', 'train_dataloader.batch_size=4', *IN_PROCESS),
        *(f'model.teacher.config={teacher}', f'model.teacher.checkpoint={tmp_path}/teacher.pth'),
        'default_hooks.logger.interval=1',
    ]
    arguments = ('--gpus', '0', '--work-dir', 'run', '--cfg-options', *options)
    output = run_mim(tmp_path, 'train', 'mmpretrain', config, *arguments, IMAGENET_ROOT=imagenet)
    assert len(re.findall(r'Epoch\(train\).* loss_cls: \S+ +loss_kd: [0-9.]+', output)) == 4
    assert 'accuracy/top1_raw' in output
    run = tmp_path / 'run'
    checkpoint = torch.load(run / 'epoch_2.pth', weights_only=False)
    assert not any('teacher' in name for name in checkpoint['state_dict'])
    deployed = run / 'deployed_epoch_2.pth'
    torch.load(deployed, weights_only=True)
    # The config without a teacher evaluates what was distilled, and its folded form.
    plain = CONFIGS / 'ghostnetv3/ghostnetv3-0x5_8xb256-600e_in1k.py'
    for file, option in ((run / 'epoch_2.pth', []), (deployed, ['model.backbone.deploy=True'])):
        tested = run_mim(
            *(tmp_path, 'test', 'mmpretrain', plain, '--checkpoint', file, '--gpus', '0'),
            *('--work-dir', 'tested', '--cfg-options', *IN_PROCESS, *option),
            IMAGENET_ROOT=imagenet,
        )
        assert top1(tested) == top1(output)


@pytest.mark.slow
def test_every_classifier_trains_under_mim(tmp_path, imagenet, monkeypatch):
    """A step, an evaluation and the folded file of each, two at a time: most of it is starting."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('IMAGENET_ROOT', str(imagenet))
    monkeypatch.setenv('CIFAR10_ROOT', str(write_cifar10(tmp_path / 'cifar10')))
    loader = ('train_dataloader.batch_size=2', 'train_dataloader.dataset.indices=2', *IN_PROCESS)

    def train(config: Path) -> set[str]:
        options = ['train_cfg.max_epochs=1', 'log_level=ERROR', *loader]
        if '-kd-' in config.stem:
            options += ['model.teacher.checkpoint=None', 'model.teacher.random_init=True']
        # What the command calls: training itself is a process of its own.
        arguments = ('--work-dir', config.stem, '--cfg-options', *options)
        mim.train('mmpretrain', str(config), gpus=0, other_args=arguments)
        written = {path.name for path in Path(config.stem).glob('*.pth')}
        shutil.rmtree(config.stem)
        return written

    configs = sorted(c for c in CONFIGS.glob('*/**/*.py') if '_base_' not in c.parts)
    with ThreadPoolExecutor(2) as pool:
        written = dict(zip(configs, pool.map(train, configs), strict=True))
    assert written
    for config, names in written.items():
        assert names >= {'epoch_1.pth', 'deployed_epoch_1.pth'}, config


@pytest.mark.slow
def test_two_processes_train_under_mim(tmp_path):
    """Without a GPU, which mmengine's launching and wrapping take for granted."""
    root = write_cifar10(tmp_path / 'cifar10')
    base = CONFIGS / 'cifar10/ghostnetv3-small-1x0_1xb128-kd-200e_cifar10.py'
    (tmp_path / 'gloo.py').write_text(
        "import torch\n\ntorch.distributed.init_process_group('gloo')\n"
    )
    (tmp_path / 'two.py').write_text(
        f"_base_ = '{base}'\n"
        "custom_imports = dict(imports=['gloo'])\n"
        'model_wrapper_cfg = dict(device_ids=None)\n'
        'model = dict(teacher=dict(checkpoint=None, random_init=True))\n'
    )
    options = ['train_cfg.max_epochs=1', 'train_dataloader.batch_size=10', *IN_PROCESS]
    arguments = ('--launcher', 'pytorch', '--gpus', '2', '--work-dir', 'run')
    output = run_mim(
        *(tmp_path, 'train', 'mmpretrain', 'two.py', *arguments, '--cfg-options', *options),
        CIFAR10_ROOT=root,
        PYTHONPATH=tmp_path,
    )
    # Of forty pictures, each process takes ten a step.
    assert 'Epoch(train) [1][2/2]' in output
    assert {'epoch_1.pth', 'deployed_epoch_1.pth'} <= {p.name for p in (tmp_path / 'run').iterdir()}
