import json
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmgnv3.apis.coco import check_coco
from mmgnv3.datasets.voc import voc_to_coco

CLASSES = ('RBC', 'WBC')
_OBJECT = """<object><name>{}</name><difficult>{}</difficult>
<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


def _write(root, name, objects):
    cv2.imwrite(str(root / 'JPEGImages' / f'{name}.jpg'), np.zeros((24, 32, 3), np.uint8))
    objects = ''.join(_OBJECT.format(*values) for values in objects)
    size = '<size><width>32</width><height>24</height><depth>3</depth></size>'
    path = root / 'Annotations' / f'{name}.xml'
    path.write_text(f'<annotation>{size}{objects}</annotation>')


@pytest.fixture
def root(tmp_path):
    root = tmp_path / 'voc'
    for folder in ('Annotations', 'ImageSets/Main', 'JPEGImages'):
        (root / folder).mkdir(parents=True)
    _write(root, 'b_0', [('WBC', 0, 1, 2, 11, 22), ('RBC', 1, 5, 5, 9, 8)])
    _write(root, 'a 1', [('RBC', 0, 4, 4, 4, 9), ('RBC', 0, 20, 10, 32, 24)])
    (root / 'ImageSets/Main/train.txt').write_text('b_0\n')
    (root / 'ImageSets/Main/test.txt').write_text('a 1\n\n')
    return root


def test_what_is_written(root, tmp_path):
    out = tmp_path / 'coco'
    # What is written may be written again.
    for _ in range(2):
        written = voc_to_coco(root, out, CLASSES)
    assert {path.name for path in out.iterdir()} == {'train.json', 'test.json', 'images'}
    assert (out / 'images').samefile(root / 'JPEGImages')
    for split, content in written.items():
        path = out / f'{split}.json'
        assert json.loads(path.read_text()) == content
        check_coco(str(path), str(out / 'images'), CLASSES, evaluated=True)
    assert written['train'] == dict(
        images=[dict(id=1, file_name='b_0.jpg', width=32, height=24)],
        annotations=[
            dict(id=1, image_id=1, category_id=2, bbox=[1, 2, 10, 20], area=200, iscrowd=0),
            dict(id=2, image_id=1, category_id=1, bbox=[5, 5, 4, 3], area=12, iscrowd=1),
        ],
        categories=[dict(id=1, name='RBC'), dict(id=2, name='WBC')],
    )
    # The other box has no width.
    assert [item['bbox'] for item in written['test']['annotations']] == [[20, 10, 12, 14]]


@pytest.mark.parametrize(
    ('path', 'text', 'error', 'message'),
    [
        ('Annotations/b_0.xml', None, FileNotFoundError, r'Annotations/b_0\.xml is missing'),
        ('JPEGImages/b_0.jpg', None, FileNotFoundError, r'JPEGImages/b_0\.\* is missing'),
        ('Annotations/b_0.xml', '<annotation>', ValueError, r'b_0\.xml is no annotation of PASCAL'),
        ('Annotations/b_0.xml', '<a/>', ValueError, '<a> has no size/width'),
        ('ImageSets/Main', None, FileNotFoundError, 'not laid out as PASCAL VOC'),
        ('../coco/images', 'a file', ValueError, 'images is there already and is no link'),
    ],
)
def test_bad_input(root, tmp_path, path, text, error, message):
    path, out = root / path, tmp_path / 'coco'
    if text is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    else:
        path.rename(tmp_path / 'away')
    with pytest.raises(error, match=message):
        voc_to_coco(root, out, CLASSES)
    assert not list(out.glob('*.json'))


def test_another_class(root, tmp_path):
    with pytest.raises(ValueError, match="class 'WBC', which is none of 'RBC'"):
        voc_to_coco(root, tmp_path / 'coco', ['RBC'])


def test_the_tool_says_what_it_wrote(root, tmp_path, monkeypatch, capsys):
    tool = str(Path(__file__).parents[2] / 'tools/voc_to_coco.py')
    monkeypatch.setattr(sys, 'argv', [tool, str(root), str(tmp_path / 'coco'), *CLASSES])
    runpy.run_path(tool, run_name='__main__')
    assert 'coco/train.json: 1 image, 2 objects' in capsys.readouterr().out
    sys.argv[1] = str(tmp_path)
    with pytest.raises(SystemExit, match='^error: .* is not laid out as PASCAL VOC'):
        runpy.run_path(tool, run_name='__main__')
