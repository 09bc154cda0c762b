import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch

ROOT = Path(__file__).parents[2]


def run_demo(*args: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / 'tools/demo.py', *args]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT)


@pytest.fixture(scope='module')
def demo(tmp_path_factory) -> tuple[Path, str]:
    """The demo on few pictures: where it wrote and what it said."""
    work_dir = tmp_path_factory.mktemp('demo') / 'work'
    size = ('--num-train', '96', '--num-val', '16', '--epochs', '10')
    result = run_demo('--work-dir', work_dir, *size)
    assert result.returncode == 0, result.stdout + result.stderr
    return work_dir, result.stdout


@pytest.mark.slow
def test_writes_what_it_names(demo):
    work_dir, output = demo
    for name in ('retinanet.pth', 'retinanet_deploy.pth', 'curves.png', 'detections.png'):
        assert re.search(rf'^  {re.escape(name)} ', output, re.MULTILINE), output
        assert (work_dir / name).is_file()
    assert {path.name for path in work_dir.iterdir()} == {
        *('retinanet.pth', 'retinanet_deploy.pth', 'curves.png', 'detections.png'),
        *('data', 'run'),
    }


@pytest.mark.slow
def test_learns_and_keeps_what_it_learned_when_folded(demo):
    _, output = demo
    trained, folded = (
        float(re.search(rf'^  {form} +mAP (\S+),', output, re.MULTILINE).group(1))
        for form in ('trained', 'folded')
    )
    assert trained > 0
    assert folded == pytest.approx(trained, abs=0.0011)


@pytest.mark.slow
def test_shows_progress_and_no_noise(demo):
    _, output = demo
    assert re.search(r'Epoch\(train\).* eta: .* loss: ', output)
    assert re.search(r'Epoch\(val\).* coco/bbox_mAP: ', output)
    for noise in ('deprecated', 'Warning', 'creating index', 'System environment'):
        assert noise not in output


@pytest.mark.slow
def test_deployed_checkpoint_is_plain_and_has_no_batch_norm(demo):
    work_dir, _ = demo
    trained = torch.load(work_dir / 'retinanet.pth', map_location='cpu', weights_only=False)
    deployed = torch.load(work_dir / 'retinanet_deploy.pth', map_location='cpu', weights_only=True)
    assert any('running_mean' in name for name in trained['state_dict'])
    assert not any(
        part in name
        for name in deployed['state_dict']
        for part in ('running_mean', 'running_var', 'num_batches_tracked', 'norm', 'bn')
    )
    assert deployed['meta']['deployed'] is True
    assert 'optimizer' not in trained


@pytest.mark.slow
def test_pictures_show_something(demo):
    work_dir, _ = demo
    for name in ('curves.png', 'detections.png'):
        image = cv2.imread(str(work_dir / name))
        assert min(image.shape[:2]) > 300
        assert image.std() > 10


@pytest.mark.slow
def test_losses_fall(demo):
    work_dir, _ = demo
    (scalars,) = work_dir.glob('run/train/*/vis_data/scalars.json')
    records = [json.loads(line) for line in scalars.read_text().splitlines()]
    losses = [record['loss'] for record in records if 'loss' in record]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ('args', 'named'),
    [
        (('--epochs', '0'), '--epochs'),
        (('--num-train', '0'), 'num_train'),
        (('--num-val', '-3'), 'num_val'),
        (('--cfg-options', 'foo'), "expected KEY=VALUE, got 'foo'"),
    ],
)
def test_bad_arguments_end_in_one_line(tmp_path, args, named):
    result = run_demo('--work-dir', tmp_path / 'work', *args)
    assert result.returncode != 0
    assert named in result.stderr.splitlines()[-1]
    assert 'Traceback' not in result.stderr
    assert not (tmp_path / 'work').exists()


def test_foreign_data_are_left_alone(tmp_path):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/mine.txt').write_text('mine')
    result = run_demo('--work-dir', tmp_path)
    assert result.returncode != 0
    assert result.stderr.startswith('error: ') and 'mine' not in result.stdout
    assert (tmp_path / 'data/mine.txt').read_text() == 'mine'
