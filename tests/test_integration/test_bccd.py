import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs' / 'retinanet-light_ghostnetv3-0x5_1xb4_bccd.py'
DATA = Path(os.environ.get('BCCD_ROOT', ROOT / 'data' / 'bccd'))


def run(tool: str, *args: object) -> None:
    command = [sys.executable, ROOT / 'tools' / f'{tool}.py', *args]
    subprocess.run([str(part) for part in command], cwd=ROOT, check=True, timeout=1800)


def losses(work_dir: Path) -> list[float]:
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    rows = map(json.loads, log.read_text().splitlines())
    return [row['loss'] for row in rows if 'loss' in row]


@pytest.mark.slow
@pytest.mark.skipif(
    not (DATA / 'train.json').is_file(), reason=f'no BCCD in {DATA}; BCCD_ROOT names its folder'
)
def test_two_epochs_on_real_photographs(tmp_path):
    epochs = ['train_cfg.max_epochs=2', 'train_cfg.val_interval=2']
    # The config's warm-up alone would take all of two epochs.
    epochs += ['param_scheduler.0.end=20', 'randomness.seed=0']
    hooks = ['default_hooks.checkpoint.interval=2', 'env_cfg.dist_cfg.backend=gloo']
    run('train', CONFIG, '--work-dir', tmp_path, '--cfg-options', *epochs, *hooks)
    checkpoint, deployed = tmp_path / 'epoch_2.pth', tmp_path / 'deployed.pth'
    history = losses(tmp_path)
    assert history[-1] < 0.8 * history[0]

    run('reparam', CONFIG, checkpoint, deployed)
    weights = torch.load(deployed, weights_only=True)['state_dict']
    assert not any('running_' in name for name in weights)
    metrics = []
    for path in (checkpoint, deployed):
        out = tmp_path / f'{path.stem}.json'
        run('test', CONFIG, path, '--work-dir', tmp_path, '--out', out, '--out-item', 'metrics')
        metrics.append(json.loads(out.read_text()))
    assert metrics[0]['coco/bbox_mAP_50'] > 0.005
    assert metrics[1] == pytest.approx(metrics[0], abs=1e-3)
