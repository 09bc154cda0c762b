"""What no CPU can run: SyncBatchNorm, mixed precision, a teacher on the device, folding there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmgnv3.reparam import is_deployed_checkpoint
from tests.test_engine.runs import load, raw_weights

REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')

_CONFIG = """
_base_ = ['distilled.py']
sync_bn = 'torch'
train_cfg = dict(val_interval=1)
custom_hooks = [
    dict(type='mmgnv3.EMAHook', momentum=0.3),
    dict(type='mmgnv3.ReparamHook', evaluate=True),
    dict(type='mmgnv3.ExactResumeHook'),
    dict(type='mmgnv3.FiniteLossHook'),
]
"""


def train(folder, work_dir, *arguments):
    """Train in a process group of one, where SyncBatchNorm and nccl are what they always are."""
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=1']
    command += [REPOSITORY / 'tools/train.py', 'run.py', '--launcher', 'pytorch', '--amp']
    command += ['--work-dir', work_dir, *arguments]
    env = {**os.environ, 'PYTHONPATH': str(REPOSITORY)}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_distilled_run_with_everything(folder):
    (folder / 'run.py').write_text(_CONFIG)
    log = train(folder, 'work')
    assert 'loss_kd' in log
    for name in ('accuracy/top1:', 'accuracy/top1_raw:', 'accuracy/top1_deployed'):
        assert name in log

    saved = load('work/epoch_3.pth')
    assert not any('teacher' in name for name in saved['state_dict'])
    for weights in (saved['state_dict'], raw_weights(saved)):
        for value in weights.values():
            assert value.device.type == 'cpu' and value.isfinite().all()
    assert is_deployed_checkpoint(load('work/deployed_epoch_3.pth'))

    # Sums have no fixed order on a GPU: close, not equal.
    train(folder, 'resumed', '--resume', 'work/epoch_2.pth')
    resumed = load('resumed/epoch_3.pth')
    assert resumed['ema_state_dict']['steps'] == saved['ema_state_dict']['steps']
    for name, value in saved['state_dict'].items():
        torch.testing.assert_close(resumed['state_dict'][name], value, rtol=0.05, atol=0.05)
