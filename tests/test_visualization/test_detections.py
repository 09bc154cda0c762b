import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.dataset import BaseDataset
from mmengine.structures import InstanceData
from torch import nn

from mmgnv3.visualization import draw_detections

SHAPE = (60, 80)


class Pictures(BaseDataset):
    """Grey pictures with one annotated square each."""

    METAINFO = dict(classes=('square',), palette=[(255, 0, 0)])

    def __init__(self, folder, num):
        self.folder, self.num = folder, num
        super().__init__(serialize_data=False)

    def load_data_list(self):
        paths = [str(self.folder / f'{i}.png') for i in range(self.num)]
        for path in paths:
            cv2.imwrite(path, np.full((*SHAPE, 3), 128, np.uint8))
        square = dict(bbox=[10, 10, 40, 40], bbox_label=0)
        return [dict(img_path=path, instances=[square]) for path in paths]


class Detector(nn.Module):
    """Finds one square in every picture, with a given score."""

    def __init__(self, score):
        super().__init__()
        self.score, self.seen = score, []

    def test_step(self, batch):
        self.seen += batch['img_path']
        boxes = torch.tensor([[10.0, 10, 40, 40]])
        found = InstanceData(
            bboxes=boxes, scores=torch.tensor([self.score]), labels=torch.tensor([0])
        )
        return [DetDataSample(pred_instances=found)]


@pytest.fixture
def unused(monkeypatch):
    """A detector that must not be asked for anything."""
    detector = Detector(0.9)
    monkeypatch.setattr(detector, 'test_step', None)
    return detector


def draw(tmp_path, score=0.9, available=5, **options):
    path = tmp_path / 'out.jpg'
    detector = Detector(score)
    draw_detections(detector, Pictures(tmp_path, available), path, **options)
    return cv2.imread(str(path)), [name.rsplit('/', 1)[1] for name in detector.seen]


def red(image):
    blue, green, red = (image[..., channel].astype(int) for channel in range(3))
    return (red - np.maximum(blue, green) > 60).sum()


def test_draws_detections_from_the_threshold_up(tmp_path):
    sure, _ = draw(tmp_path, score=0.9)
    unsure, _ = draw(tmp_path, score=0.1)
    assert red(sure) > 100 + red(unsure)


def test_takes_pictures_at_even_steps(tmp_path):
    assert draw(tmp_path, available=9, num=3)[1] == ['0.png', '4.png', '8.png']
    assert draw(tmp_path, available=2, num=3)[1] == ['0.png', '1.png']


def test_more_rows_make_a_taller_picture(tmp_path):
    one_row, _ = draw(tmp_path, num=4, columns=4)
    two_rows, _ = draw(tmp_path, num=4, columns=2)
    assert one_row.shape[1] > two_rows.shape[1]
    assert one_row.shape[0] < two_rows.shape[0]


@pytest.mark.parametrize(('option', 'value'), [('num', 0), ('columns', -1)])
def test_refuses_numbers_that_make_no_grid(tmp_path, option, value):
    with pytest.raises(ValueError, match='1 or more'):
        draw(tmp_path, **{option: value})


def test_refuses_an_empty_data_set(tmp_path):
    with pytest.raises(ValueError, match='no pictures'):
        draw(tmp_path, available=0)


@pytest.mark.parametrize('name', ['out', 'out.pgn', 'folder.png'])
def test_refuses_what_is_no_picture_before_it_looks_for_anything(tmp_path, unused, name):
    (tmp_path / 'folder.png').mkdir()
    with pytest.raises(ValueError, match=r'suffixes .*\.png|is a folder'):
        draw_detections(unused, Pictures(tmp_path, 2), tmp_path / name)
