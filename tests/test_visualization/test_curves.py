import json

import cv2
import pytest

from mmgnv3.visualization import draw_curves

TRAIN = [dict(loss=2 / step, loss_cls=1 / step, loss_bbox=1 / step, step=step) for step in (1, 2)]
VAL = {'coco/bbox_mAP': 0.3, 'coco/bbox_mAP_50': 0.5, 'step': 1}


def write(path, records):
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))
    return path


def test_draws_losses_and_metrics(tmp_path):
    scalars = write(tmp_path / 'scalars.json', [*TRAIN, VAL])
    draw_curves(scalars, tmp_path / 'deep/curves.png')
    with_metrics = cv2.imread(str(tmp_path / 'deep/curves.png'))
    draw_curves(write(scalars, TRAIN), tmp_path / 'losses.png')
    losses_alone = cv2.imread(str(tmp_path / 'losses.png'))
    assert with_metrics.shape == losses_alone.shape
    assert (with_metrics != losses_alone).any()
    assert sorted(p.name for p in (tmp_path / 'deep').iterdir()) == ['curves.png']


def test_refuses_a_file_without_losses(tmp_path):
    with pytest.raises(ValueError, match='no training losses'):
        draw_curves(write(tmp_path / 'scalars.json', [VAL]), tmp_path / 'curves.png')
    assert not (tmp_path / 'curves.png').exists()
