import json
import re

import pytest

from mmgnv3.apis import coco
from mmgnv3.apis.coco import check_coco
from mmgnv3.datasets import CLASSES, ToyShapes


@pytest.fixture
def data(tmp_path):
    return ToyShapes(num_train=4, num_val=1, width=64, height=64).write(tmp_path / 'data')


@pytest.fixture
def check(data):
    """Changes the annotations by a function of them, then checks."""

    def run(change=lambda content: content, classes=CLASSES, **options):
        path = data / 'annotations' / 'train.json'
        content = change(json.loads(path.read_text()))
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        check_coco(str(path), str(data / 'train'), classes, **options)

    return run


def _without(key):
    return lambda content: {k: v for k, v in content.items() if k != key}


def _in_first(name, key, value=None):
    def change(content):
        content[name][0].pop(key)
        if value is not None:
            content[name][0][key] = value
        return content

    return change


def _no_objects(content):
    return {**content, 'annotations': []}


def test_sound_data_pass(check):
    check(evaluated=True, skip_empty=True)


def test_some_classes_are_enough(check):
    check(classes=CLASSES[1:3])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda content: json.dumps(content)[:-9], 'not valid JSON.*cut off'),
        (lambda content: '', 'not valid JSON'),
        (lambda content: [], "no list 'images'"),
        (_without('images'), "no list 'images'"),
        (_without('annotations'), "no list 'annotations'"),
        (_without('categories'), "no list 'categories'"),
        (_in_first('images', 'width'), r"images\[0\] lacks 'width'"),
        (_in_first('annotations', 'area'), r"annotations\[0\] lacks 'area'"),
        (_in_first('annotations', 'bbox', [1, 2]), r'the bbox \[1, 2\].*four numbers'),
        (_in_first('annotations', 'bbox', [1, 2, 'a', 3]), 'four numbers'),
        (_no_objects, 'no image with an object'),
    ],
)
def test_corrupt_annotations(check, change, message):
    with pytest.raises(ValueError, match=message) as raised:
        check(change)
    assert 'train.json' in str(raised.value)


def test_iscrowd_is_needed_to_evaluate(check):
    change = _in_first('annotations', 'iscrowd')
    check(change)
    with pytest.raises(ValueError, match="lacks 'iscrowd'"):
        check(evaluated=True)


def test_unlabelled_images_can_be_predicted(check):
    check(_without('annotations'), labelled=False)


@pytest.mark.parametrize(
    ('classes', 'message'),
    [
        (('person', 'bicycle'), "no category 'person', 'bicycle'.*are 'starfish', 'urchin'"),
        ((*CLASSES, 'crab'), "no category 'crab'"),
        (CLASSES[::-1], 'another order'),
    ],
)
def test_classes_that_are_not_the_categories(check, classes, message):
    with pytest.raises(ValueError, match=message) as raised:
        check(classes=classes)
    assert f'num_classes={len(CLASSES)}' in str(raised.value)


def test_missing_images(check, data):
    (data / 'train' / '000002.jpg').unlink()
    expected = f'1 of the 4 images .* first {re.escape(str(data))}/train/000002.jpg'
    with pytest.raises(FileNotFoundError, match=expected):
        check()


def test_missing_image_without_objects(check, data):
    def change(content):
        content['images'].append(dict(id=99, file_name='sub/gone.jpg', width=64, height=64))
        return content

    check(change, skip_empty=True)
    with pytest.raises(FileNotFoundError, match=r'sub/gone\.jpg'):
        check()


def _cut(path):
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    'corrupt',
    [_cut, lambda path: path.write_bytes(b''), lambda path: path.write_text('<html>')],
    ids=['cut', 'empty', 'text'],
)
def test_corrupt_image(check, data, corrupt):
    corrupt(data / 'train' / '000001.jpg')
    with pytest.raises(ValueError, match=r'1 of 4 images .*000001\.jpg .*[Rr]eplace'):
        check()


def test_large_sets_are_sampled(check, data, monkeypatch):
    monkeypatch.setattr(coco, '_MAX_DECODED_IMAGES', 2)
    _cut(data / 'train' / '000001.jpg')
    check()
    _cut(data / 'train' / '000002.jpg')
    with pytest.raises(ValueError, match='1 of 2 images'):
        check()


def test_large_files_are_not_parsed(check, monkeypatch):
    monkeypatch.setattr(coco, '_MAX_PARSED_BYTES', 1024)
    check(classes=('no such class',))
    with pytest.raises(ValueError, match='its end is missing'):
        check(lambda content: json.dumps(content)[:-9])
