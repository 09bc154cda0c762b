import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mmgnv3.apis import ablation
from mmgnv3.apis.ablation import run_ablation
from mmgnv3.apis.ablation_results import CELLS, Result, Settings, format_table
from mmgnv3.utils.files import sha256
from tests.image_folders import write_cifar10

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs/cifar10'
SMALL = Settings(epochs=2, num_train=20, num_test=10)


def result(cell: str, seed: int, top1: float = 50.0, settings: Settings = SMALL) -> Result:
    return Result(
        cell=cell,
        seed=seed,
        top1=top1,
        top1_raw=top1 - 1,
        curve=[(1, top1 / 2, top1 / 3), (2, top1, top1 - 1)],
        seconds=30.0,
        num_train=20,
        num_test=10,
        epochs=2,
        machine='an abacus',
        settings=asdict(settings),
    )


@pytest.fixture
def runs(monkeypatch):
    """Stands in for training: notes what would have been run, and returns invented figures."""
    calls = []

    def run(config, work_dir, cell, seed, settings, options):
        assert config.is_file()
        calls.append((config.stem, cell, seed, options))
        run_dir = work_dir / 'runs' / f'{cell}-seed{seed}'
        run_dir.mkdir(parents=True)
        (run_dir / 'epoch_2.pth').touch()
        (run_dir / 'last_checkpoint').write_text(f'{run_dir}/epoch_2.pth')
        return result(cell, seed, 50.0 + 10 * seed + len(cell))

    monkeypatch.setattr(ablation, '_run', run)
    return calls


def test_teacher_comes_first_and_seeds_before_cells(tmp_path, runs):
    run_ablation(CONFIGS, tmp_path, SMALL, seeds=(0, 1))
    assert [(cell, seed) for _, cell, seed, _ in runs] == [
        ('teacher', 0),
        *((cell, seed) for seed in (0, 1) for cell in CELLS),
    ]
    assert runs[0][0] == 'ghostnetv3-small-2x8_1xb128-200e_cifar10'
    (options,) = (options for _, cell, seed, options in runs if (cell, seed) == ('kd', 1))
    assert options == {'model.teacher.checkpoint': f'{tmp_path}/runs/teacher-seed0/epoch_2.pth'}


def test_a_teacher_that_is_there_is_not_trained(tmp_path, runs):
    teacher = tmp_path / 'teacher.pth'
    teacher.touch()
    run_ablation(CONFIGS, tmp_path / 'work', SMALL, cells=['kd'], seeds=[5], teacher=str(teacher))
    ((config, *run, options),) = runs
    assert config == 'ghostnetv3-small-1x0_1xb128-kd-200e_cifar10'
    assert run == ['kd', 5] and options == {'model.teacher.checkpoint': str(teacher)}


def test_finished_runs_are_not_repeated(tmp_path, runs):
    run_ablation(CONFIGS, tmp_path, SMALL, cells=['plain'], seeds=[0])
    assert len(runs) == 1
    table = run_ablation(CONFIGS, tmp_path, SMALL, cells=['plain', 'mix'], seeds=[0, 1])
    assert [run[1:3] for run in runs[1:]] == [('mix', 0), ('plain', 1), ('mix', 1)]
    assert table == (tmp_path / 'table.md').read_text()
    assert {path.name for path in (tmp_path / 'results').iterdir()} == {
        f'{cell}-seed{seed}.json' for cell in ('plain', 'mix') for seed in (0, 1)
    }
    image = cv2.imread(str(tmp_path / 'ablation.png'))
    assert min(image.shape[:2]) > 300 and image.std() > 10


def test_results_of_other_settings_are_refused(tmp_path, runs):
    run_ablation(CONFIGS, tmp_path, SMALL, cells=['plain'], seeds=[0])
    other = Settings(epochs=3, num_train=20, num_test=10)
    with pytest.raises(ValueError, match='of other settings.*another --work-dir'):
        run_ablation(CONFIGS, tmp_path, other, cells=['mix', 'plain'], seeds=[0])
    assert len(runs) == 1


def test_results_of_another_teacher_are_refused(tmp_path, runs):
    arguments = dict(cells=['plain', 'kd'], seeds=[0])
    run_ablation(CONFIGS, tmp_path, SMALL, **arguments)
    run_ablation(CONFIGS, tmp_path, SMALL, **arguments)
    assert len(runs) == 3
    empty = sha256(tmp_path / 'runs/teacher-seed0/epoch_2.pth')
    other = tmp_path / 'other.pth'
    other.write_text('other')
    # By name, in place of the one that was trained, and where it has to be trained anew.
    message = f'kd-seed0.json .* had the SHA-256 {empty}, .* has {sha256(other)}.*--teacher'
    with pytest.raises(ValueError, match=message):
        run_ablation(CONFIGS, tmp_path, SMALL, **arguments, teacher=str(other))
    other.rename(tmp_path / 'runs/teacher-seed0/epoch_2.pth')
    with pytest.raises(ValueError, match=message):
        run_ablation(CONFIGS, tmp_path, SMALL, **arguments)
    shutil.rmtree(tmp_path / 'runs/teacher-seed0')
    (tmp_path / 'results/teacher-seed0.json').unlink()
    with pytest.raises(ValueError, match='is yet to be made'):
        run_ablation(CONFIGS, tmp_path, SMALL, **arguments)
    assert len(runs) == 3
    # Elsewhere it is the same one.
    (tmp_path / 'elsewhere.pth').touch()
    run_ablation(CONFIGS, tmp_path, SMALL, **arguments, teacher=str(tmp_path / 'elsewhere.pth'))
    assert len(runs) == 3


@pytest.mark.parametrize('order', ['sorted', 'mixed'])
def test_a_selection_has_as_many_images_of_each_class(order):
    labels = np.repeat(np.arange(10), 12)
    if order == 'mixed':
        labels = np.random.default_rng(0).permutation(labels)
    chosen = ablation._spread(labels, 40)
    assert len(set(chosen)) == 40
    assert np.bincount(labels[chosen]).tolist() == [4] * 10


def test_table_says_what_it_is_of():
    table = format_table([result('plain', 0, 40.0), result('plain', 1, 42.0), result('mix', 0)])
    head, _, plain, mix, _, note, *_ = table.splitlines()
    assert 'a subset, 20 training and 10 test images, 2 epochs' in head
    # Of 40 and 42: mean 41, standard deviation of a sample sqrt(2).
    assert plain == '| no branches | 2 | 40.00 ± 1.41 | 41.00 ± 1.41 |'
    assert mix == '| branches, Mixup and CutMix | 1 | 49.00 | 50.00 |'
    assert '1.5 min' in note and 'an abacus' in note


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(cells=['plain', 'brnaches']), r"among branches, plain, kd, mix.*'brnaches'"),
        (dict(cells=[]), 'at least one'),
        (dict(seeds=[]), 'at least one seed'),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        run_ablation(CONFIGS, tmp_path / 'work', SMALL, **arguments)
    assert not (tmp_path / 'work').exists()


def test_missing_teacher(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'checkpoint /gone\.pth'):
        run_ablation(CONFIGS, tmp_path / 'work', SMALL, cells=['kd'], teacher='/gone.pth')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(network='resnet18'), 'ghostnetv3-small-2x8'),
        (dict(epochs=1), 'epochs must be 2 or more'),
        (dict(num_train=0), 'num_train must be 1 or more'),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        Settings(**arguments)


def run_tool(*args: str | Path, **variables: str) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / 'tools/cifar_ablation.py', *args]
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, **variables},
    )


@pytest.mark.slow
def test_missing_data_and_too_many_images_end_in_one_line(tmp_path):
    size = ('--work-dir', tmp_path / 'work', '--epochs', '2', '--workers', '0')
    missing = run_tool(*size, CIFAR10_ROOT=str(tmp_path / 'gone'))
    assert missing.stderr.splitlines()[-1].startswith(f'error: {tmp_path}/gone')
    root = write_cifar10(tmp_path / 'data')
    too_many = run_tool(*size, '--num-train', '41', CIFAR10_ROOT=str(root))
    assert too_many.stderr.splitlines()[-1].startswith('error: 41 images are asked for')
    assert not list(tmp_path.glob('work/results/*'))


@pytest.mark.slow
def test_distillation_and_its_teacher_from_the_command_line(tmp_path):
    root = write_cifar10(tmp_path / 'data')
    arguments = (
        *('--work-dir', tmp_path / 'work', '--cells', 'plain', 'kd', '--seeds', '0'),
        *('--epochs', '2', '--num-train', '20', '--workers', '0'),
        *('--cfg-options', 'train_dataloader.batch_size=10'),
    )
    run = run_tool(*arguments, CIFAR10_ROOT=str(root))
    assert run.returncode == 0, run.stdout + run.stderr
    assert 'a subset, 20 training and 10 test images, 2 epochs' in run.stdout
    assert 'Warning' not in run.stdout
    results = tmp_path / 'work/results'
    names = ('teacher-seed0', 'plain-seed0', 'kd-seed0')
    figures = {name: json.loads((results / f'{name}.json').read_text()) for name in names}
    for figure in figures.values():
        assert [point[0] for point in figure['curve']] == [1, 2]
        assert figure['curve'][-1][1:] == [figure['top1'], figure['top1_raw']]
    # Two of every class.
    cfg = torch.load(tmp_path / 'work/runs/plain-seed0/epoch_2.pth', weights_only=False)
    assert 'indices=[' in cfg['meta']['cfg'].replace(' ', '').replace('\n', '')
    again = run_tool(*arguments, CIFAR10_ROOT=str(root))
    assert 'Epoch(train)' not in again.stdout
    assert again.stdout.splitlines()[-8:] == run.stdout.splitlines()[-8:]
