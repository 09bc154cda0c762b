"""Two processes on one CPU against one process with the doubled batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.test_engine.runs import load, raw_weights, write_configs, write_teacher

REPOSITORY = Path(__file__).parents[2]

# What makes the sum over two halves of a batch another function than the whole is off: statistics
# of the batch, dropout, and what is random about an image. Without shuffling, mmengine deals images
# out in turn, so that both see the same ones in every step.
_CONFIG = """
_base_ = ['distilled.py']
model = dict(backbone=dict(norm_eval=True), head=dict(dropout_rate=0.0))
optim_wrapper = dict(optimizer=dict(lr=0.2))
train_dataloader = dict(
    batch_size={batch_size},
    sampler=dict(shuffle=False),
    dataset=dict(pipeline={{{{_base_.val_pipeline}}}}),
)
custom_hooks = [
    dict(type='mmgnv3.EMAHook', momentum=0.3, gamma=2),
    dict(type='mmgnv3.ReparamHook', evaluate=True),
    dict(type='mmgnv3.ExactResumeHook'),
    dict(type='mmgnv3.FiniteLossHook'),
]
"""


def train(folder, config, *arguments, launch=()):
    command = [sys.executable, *launch, REPOSITORY / 'tools/train.py', config, *arguments]
    env = {**os.environ, 'PYTHONPATH': str(REPOSITORY), 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr


def largest_difference(weights, others):
    return max((value - others[name]).abs().max().item() for name, value in weights.items())


@pytest.mark.slow
def test_two_processes_equal_one_with_the_doubled_batch(tmp_path):
    folder = write_configs(tmp_path)
    write_teacher(folder)
    for name, batch_size in (('one', 4), ('two', 2)):
        (folder / f'{name}.py').write_text(_CONFIG.format(batch_size=batch_size))
    train(folder, 'one.py')
    # A port that is free is chosen by the launcher.
    launch = ('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2')
    train(folder, 'two.py', '--launcher', 'pytorch', launch=launch)

    one, two = (load(folder / f'work_dirs/{name}/epoch_3.pth') for name in ('one', 'two'))
    for key in ('state_dict', 'ema_state_dict'):
        assert one[key].keys() == two[key].keys()
        for name, value in one[key].items():
            torch.testing.assert_close(two[key][name], value, rtol=1e-4, atol=1e-4)
    # That would say nothing of weights that had not moved, or an average that was not one.
    start, end = (
        raw_weights(load(folder / f'work_dirs/one/epoch_{epoch}.pth')) for epoch in (1, 3)
    )
    assert largest_difference(start, end) > 1e-3
    assert largest_difference(one['state_dict'], end) > 1e-3

    folded = [
        torch.load(folder / f'work_dirs/{name}/deployed_epoch_3.pth', weights_only=True)
        for name in ('one', 'two')
    ]
    for name, value in folded[0]['state_dict'].items():
        torch.testing.assert_close(folded[1]['state_dict'][name], value, rtol=1e-3, atol=1e-3)

    # Killed or not, a run of two processes goes on from its own checkpoint.
    train(
        folder,
        'two.py',
        '--launcher',
        'pytorch',
        '--resume',
        'work_dirs/two/epoch_2.pth',
        '--work-dir',
        'resumed',
        launch=launch,
    )
    resumed = load(folder / 'resumed/epoch_3.pth')
    for key in ('state_dict', 'ema_state_dict'):
        assert all(value.equal(resumed[key][name]) for name, value in two[key].items())
