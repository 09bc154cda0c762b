import json
import math
import re

import pytest
from PIL import Image

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


def _without_in_first(name, key):
    def change(content):
        content[name][0].pop(key)
        return content

    return change


def _set(kind, **values):
    def change(content):
        content[kind][0].update(values)
        return content

    return change


def _in_all(**values):
    def change(content):
        for annotation in content['annotations']:
            annotation.update(values)
        return content

    return change


def _twice(name):
    return lambda content: {**content, name: [*content[name], content[name][0]]}


def _twice_by_name(content):
    content['categories'].append(dict(content['categories'][0], id=77))
    return content


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
        (_without_in_first('images', 'width'), r"images\[0\] lacks 'width'"),
        (_without_in_first('annotations', 'area'), r"annotations\[0\] lacks 'area'"),
        (_set('annotations', bbox=[1, 2]), r'the bbox \[1, 2\].*four numbers'),
        (_set('annotations', bbox=[1, 2, 'a', 3]), 'four numbers'),
        (_set('annotations', bbox=[1, 2, math.nan, 3]), 'four numbers'),
        (
            _set('annotations', area=None),
            r'annotations\[0\] has the area None; it must be a number',
        ),
        (_set('annotations', area=math.inf), 'area inf'),
        (_set('annotations', category_id=[1]), r'category_id \[1\]'),
        (_set('annotations', image_id=True), 'image_id True'),
        (_set('annotations', image_id=77), 'image_id 77, and there is no such entry'),
        (_set('annotations', category_id=77), 'category_id 77, and there is no such entry'),
        (_set('images', width='64'), "width '64'; it must be a positive number"),
        (_set('images', height=0), 'height 0; it must be a positive number'),
        (_set('images', file_name=1), 'file_name 1; it must be a text'),
        (_set('categories', name=''), "name ''; it must be a text"),
        (_twice('images'), r'images\[4\] has the id 0 of images\[0\]'),
        (_twice('categories'), r'categories\[5\] has the id 1 of categories\[0\]'),
        (_twice('annotations'), r'annotations\[\d+\] has the id 1 of annotations\[0\]'),
        (_no_objects, 'no image with an object: of its 0 annotations none'),
        (_in_all(bbox=[70, 0, 9, 9]), 'no image with an object.*inside its image'),
        (_in_all(bbox=[0.1, 0.1, 0.5, 0.5]), 'no image with an object.*one pixel a side'),
        (_set('annotations', bbox=[9, 9, 5, -5]), r'\[9, 9, 5, -5\].*the sizes not below 0'),
        (_in_all(area=0), 'no image with an object'),
        (_in_all(iscrowd=1), 'no image with an object.*no crowd'),
        (_in_all(ignore=1), 'no image with an object'),
        (lambda content: {**content, 'categories': []}, 'no categories.*starfish'),
        (_twice_by_name, r"categories\[5\] has the name 'starfish' of categories\[0\]"),
        (lambda content: 'null', "no list 'images'"),
        (lambda content: '[' * 100_000, 'not valid JSON.*cut off'),
    ],
)
def test_corrupt_annotations(check, change, message):
    with pytest.raises(ValueError, match=message) as raised:
        check(change)
    assert 'train.json' in str(raised.value)


def _odd_but_sound(content):
    """What COCO holds, or other tools write, and mmdet reads."""
    content['images'].append(dict(id='b', file_name='000001.jpg', width=64.0, height=64))
    first = content['annotations'][0]
    content['annotations'] += [
        dict(first, id='crowd', iscrowd=1),
        dict(first, id=901.0, bbox=[1.5, 2.5, 0, 0], area=0.0),
        dict(first, id=902, bbox=[-9, -9, 20.5, 20], image_id='b'),
    ]
    return content


def test_odd_annotations_pass(check):
    check(_odd_but_sound)
    with pytest.raises(ValueError, match="the id 'crowd'; it must be a number"):
        check(evaluated=True)


@pytest.mark.parametrize('value', [None, '0', 2])
def test_what_iscrowd_may_be(check, value):
    check(_set('annotations', iscrowd=value))
    with pytest.raises(ValueError, match='the iscrowd .*; it must be 0 or 1'):
        check(evaluated=True)


def test_iscrowd_is_needed_to_evaluate(check):
    change = _without_in_first('annotations', 'iscrowd')
    check(change)
    with pytest.raises(ValueError, match="lacks 'iscrowd'"):
        check(evaluated=True)


def test_evaluated_ids_are_not_0(check):
    change = _set('annotations', id=0)
    check(change)
    with pytest.raises(ValueError, match='the id 0; .* not 0, which counts as not found'):
        check(evaluated=True)


def _changed_boxes(change, share=1.0):
    def run(content):
        boxes = content['annotations']
        for annotation in boxes[: int(len(boxes) * share)]:
            annotation['bbox'] = change(*annotation['bbox'])
        return content

    return run


@pytest.mark.parametrize(
    'change',
    [
        _changed_boxes(lambda x, y, w, h: [x, y, x + w, y + h]),
        _changed_boxes(lambda x, y, w, h: [2 * x, 2 * y, 2 * w, 2 * h]),
        _changed_boxes(lambda x, y, w, h: [x, y, w, 0], share=0.2),
        _changed_boxes(lambda x, y, w, h: [64 - w / 2, y, w, h], share=0.2),
    ],
    ids=['corners', 'other size', 'empty', 'outside'],
)
def test_many_boxes_of_no_use(check, change):
    with pytest.raises(ValueError, match=r'boxes are empty or lie .* first annotations\[\d+\]'):
        check(change)


def test_boxes_may_reach_beyond_the_border(check):
    check(_changed_boxes(lambda x, y, w, h: [-w / 4, y, w, h]))


def test_images_of_another_size(check, data):
    change = _set('images', width=128)
    with pytest.raises(ValueError, match=r'1 of 4 images .*000000\.jpg \(64 x 64, not 128 x 64\)'):
        check(change)
    # As cameras write them.
    Image.new('RGB', (64, 128)).save(data / 'train' / '000000.jpg')
    check(change)


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
    expected = f'1 of 4 images .* first {re.escape(str(data))}/train/000002.jpg'
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
