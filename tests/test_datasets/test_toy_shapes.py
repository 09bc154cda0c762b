import json
import os
import warnings
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmgnv3.datasets import CLASSES, ToyShapes, draw_scene

SMALL = ToyShapes(num_train=3, num_val=2, width=128, height=96)


def contents(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob('*') if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.fixture(scope='module')
def scenes() -> list[tuple[np.ndarray, list[dict]]]:
    return [draw_scene(np.random.default_rng(i)) for i in range(40)]


def test_same_parameters_give_the_same_bytes(tmp_path):
    first, second = SMALL.write(tmp_path / 'first'), SMALL.write(tmp_path / 'deep/second')
    assert contents(first) == contents(second)
    assert len(contents(first)) == 3 + 2 + 2 + 1


@pytest.mark.parametrize('change', [dict(seed=1), dict(height=128)])
def test_other_parameters_give_other_pictures(tmp_path, change):
    first = SMALL.write(tmp_path / 'first')
    second = replace(SMALL, **change).write(tmp_path / 'second')
    assert contents(first)['train/000000.jpg'] != contents(second)['train/000000.jpg']


def test_pictures_do_not_depend_on_their_number_or_each_other(tmp_path):
    few = contents(SMALL.write(tmp_path / 'few'))
    more = contents(replace(SMALL, num_train=4).write(tmp_path / 'more'))
    pictures = [name for name in few if name.endswith('.jpg')]
    assert all(few[name] == more[name] for name in pictures)
    assert len({more[name] for name in more if name.endswith('.jpg')}) == 6


def test_annotations_are_valid_coco(tmp_path):
    root = SMALL.write(tmp_path / 'data')
    for split, count in (('train', 3), ('val', 2)):
        coco = json.loads((root / 'annotations' / f'{split}.json').read_text())
        assert [category['name'] for category in coco['categories']] == list(CLASSES)
        assert len(coco['images']) == count
        for image in coco['images']:
            shape = cv2.imread(str(root / split / image['file_name'])).shape
            assert shape == (image['height'], image['width'], 3) == (96, 128, 3)
        ids = [annotation['id'] for annotation in coco['annotations']]
        assert ids == list(range(1, len(ids) + 1))
        category_ids = {category['id'] for category in coco['categories']}
        image_ids = {image['id'] for image in coco['images']}
        for annotation in coco['annotations']:
            x, y, w, h = annotation['bbox']
            assert x >= 0 and y >= 0 and x + w <= 128 and y + h <= 96
            assert 0 < annotation['area'] <= w * h
            assert annotation['iscrowd'] == 0
            assert annotation['category_id'] in category_ids
            assert annotation['image_id'] in image_ids


def test_scenes_vary_in_class_size_and_number(scenes):
    objects = [found for _, objects in scenes for found in objects]
    areas = np.array([found['area'] for found in objects])
    assert {found['label'] for found in objects} == set(range(len(CLASSES)))
    # COCO's small, medium and large.
    assert (areas < 32**2).any() and (areas > 96**2).any()
    assert ((areas >= 32**2) & (areas <= 96**2)).mean() > 0.3
    assert len({len(objects) for _, objects in scenes}) > 3


def test_scenes_hold_overlapping_objects(scenes):
    def overlap(a: list[int], b: list[int]) -> bool:
        return all(a[i] < b[i] + b[i + 2] and b[i] < a[i] + a[i + 2] for i in (0, 1))

    boxes = [[found['bbox'] for found in objects] for _, objects in scenes]
    crossing = [
        any(overlap(a, b) for i, a in enumerate(in_scene) for b in in_scene[:i])
        for in_scene in boxes
    ]
    assert 0.2 < np.mean(crossing) < 1


def test_color_alone_does_not_tell_the_class(scenes):
    samples = [
        (image[y : y + h, x : x + w].reshape(-1, 3).mean(0), found['label'])
        for image, objects in scenes
        for found in objects
        for x, y, w, h in [found['bbox']]
    ]
    colors = np.array([color for color, _ in samples])
    labels = np.array([label for _, label in samples])
    distance = np.linalg.norm(colors[:, None] - colors[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    # Chance is 0.2. Classes have favorite colors, but color is wrong more often than right.
    assert (labels[distance.argmin(1)] == labels).mean() < 0.5


def test_a_complete_set_is_not_written_again(tmp_path):
    root = SMALL.write(tmp_path / 'data')
    before = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
    assert SMALL.write(root) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob('*')} == before


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _without_images(path: Path) -> None:
    path.write_text(json.dumps(dict(json.loads(path.read_text()), images=[])))


@pytest.mark.parametrize(
    ('name', 'damage'),
    [
        ('train/000001.jpg', Path.unlink),
        ('annotations/val.json', Path.unlink),
        ('annotations/train.json', _cut),
        ('annotations/train.json', _without_images),
        ('annotations/train.json', lambda path: path.write_text('[]')),
        ('toy_shapes.json', _cut),
        ('toy_shapes.json', lambda path: path.write_bytes(b'\xff')),
    ],
)
def test_a_damaged_set_is_drawn_again(tmp_path, name, damage):
    root = SMALL.write(tmp_path / 'data')
    expected = contents(root)
    damage(root / name)
    with pytest.warns(UserWarning, match='data is incomplete or damaged'):
        SMALL.write(root)
    assert contents(root) == expected


def test_a_set_of_other_parameters_is_replaced(tmp_path):
    root = SMALL.write(tmp_path / 'data')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        replace(SMALL, num_train=1).write(root)
    assert len(list((root / 'train').iterdir())) == 1
    assert os.listdir(tmp_path) == ['data']


@pytest.mark.parametrize('name', ['notes.txt', 'train/000000.jpg'])
def test_foreign_files_are_left_alone(tmp_path, name):
    foreign = tmp_path / name
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text('mine')
    with pytest.raises(FileExistsError, match='something else'):
        SMALL.write(tmp_path)
    assert contents(tmp_path) == {name: b'mine'}


def test_foreign_files_in_an_own_set_are_left_alone(tmp_path):
    root = SMALL.write(tmp_path / 'data')
    (root / 'notes.txt').write_text('mine')
    with pytest.raises(FileExistsError, match='something else'):
        replace(SMALL, seed=1).write(root)
    assert (root / 'notes.txt').read_text() == 'mine'


def test_a_file_in_the_way_is_left_alone(tmp_path):
    (tmp_path / 'data').write_text('mine')
    with pytest.raises(FileExistsError, match='something else'):
        SMALL.write(tmp_path / 'data')


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError('disk full')

    monkeypatch.setattr('mmgnv3.datasets.toy_shapes._write_json', fail)
    with pytest.raises(OSError, match='disk full'):
        SMALL.write(tmp_path / 'data')
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('num_train', 0),
        ('num_val', -1),
        ('width', 63),
        ('height', 5000),
        ('seed', -1),
        ('num_train', 1.5),
        ('num_val', True),
    ],
)
def test_bad_parameters_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        replace(SMALL, **{name: value})


def test_mmdet_reads_the_set_through_the_config(tmp_path, monkeypatch):
    Config = pytest.importorskip('mmengine.config').Config
    DATASETS = pytest.importorskip('mmdet.registry').DATASETS
    monkeypatch.setenv('TOYSHAPES_ROOT', str(SMALL.write(tmp_path / 'data')))
    configs = Path(__file__).parents[2] / 'configs'
    cfg = Config.fromfile(configs / '_base_/datasets/toyshapes_detection.py')
    assert tuple(cfg.metainfo.classes) == CLASSES
    for loader, split in ((cfg.train_dataloader, 'train'), (cfg.val_dataloader, 'val')):
        dataset = DATASETS.build({**loader.dataset, '_scope_': 'mmdet'})
        coco = json.loads((tmp_path / 'data/annotations' / f'{split}.json').read_text())
        assert len(dataset) == len(coco['images'])
        found = sum(len(dataset.get_data_info(i)['instances']) for i in range(len(dataset)))
        assert found == len(coco['annotations'])
        assert dataset[0]['inputs'].shape == (3, 96, 128) or split == 'val'
