import pytest

from mmgnv3.apis.num_classes import check_num_classes

HEAD = dict(type='Head', num_classes=80)


@pytest.mark.parametrize(
    ('model', 'entry'),
    [
        (dict(bbox_head=HEAD), 'model.bbox_head'),
        (dict(head=HEAD), 'model.head'),
        (dict(type='TimmClassifier', num_classes=80), 'model'),
        (dict(roi_head=dict(bbox_head=HEAD)), 'model.roi_head.bbox_head'),
        (dict(roi_head=dict(bbox_head=[HEAD, HEAD])), 'model.roi_head.bbox_head.0'),
        (dict(roi_head=dict(mask_head=HEAD)), 'model.roi_head.mask_head'),
        (dict(type='DetTTAModel', module=dict(bbox_head=HEAD)), 'model.module.bbox_head'),
    ],
    ids=str,
)
def test_another_number(model, entry):
    with pytest.raises(ValueError, match=f'x has 3 classes, and .*{entry}.num_classes is 80'):
        check_num_classes(model, 3, 'x')
    check_num_classes(model, 80, 'x')


def test_every_head_of_a_cascade():
    heads = [dict(HEAD, num_classes=3), HEAD]
    with pytest.raises(ValueError, match='bbox_head.1.num_classes is 80'):
        check_num_classes(dict(roi_head=dict(bbox_head=heads)), 3, 'x')


@pytest.mark.parametrize(
    'model',
    [
        dict(rpn_head=dict(num_classes=1), roi_head=dict(bbox_head=dict(HEAD, num_classes=3))),
        dict(head=dict(num_classes=3), teacher=dict(model=dict(head=HEAD))),
        dict(roi_head=dict(semantic_head=dict(num_classes=183), bbox_head=dict(type='Head'))),
        dict(language_model=dict(), bbox_head=dict(num_classes=256)),
        dict(head=None),
    ],
    ids=str,
)
def test_numbers_of_something_else(model):
    check_num_classes(model, 3, 'x')


def test_one_class():
    with pytest.raises(ValueError, match='x has 1 class, and'):
        check_num_classes(dict(head=HEAD), 1, 'x')
