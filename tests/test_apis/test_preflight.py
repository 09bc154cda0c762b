import json
import re

import pytest
from mmengine.config import Config

from mmgnv3.apis import coco, run
from mmgnv3.apis.preflight import check_data, iter_datasets
from tests.test_apis.tiny import write_classification, write_detection

SPLITS = ('train', 'val', 'test')


@pytest.fixture
def detector(tmp_path):
    return Config.fromfile(write_detection(tmp_path))


@pytest.fixture
def classifier(tmp_path):
    return Config.fromfile(write_classification(tmp_path))


def _missing(path, entry):
    return rf'^{re.escape(str(path))} is missing; the config asks for it in {re.escape(entry)}\.'


def test_iter_datasets():
    first, second, third = ({'type': 'CocoDataset', 'ann_file': name} for name in 'abc')
    mixed = dict(type='MultiImageMixDataset', dataset=dict(type='RepeatDataset', dataset=second))
    both = dict(type='ConcatDataset', datasets=[first, mixed])
    assert list(iter_datasets(both, 'x')) == [
        ('x.datasets.0', first),
        ('x.datasets.1.dataset.dataset', second),
    ]
    assert list(iter_datasets(third, 'x')) == [('x', third)]


def test_sound_data_pass(detector):
    check_data(detector, SPLITS)


def test_sound_folders_pass(classifier):
    check_data(classifier, SPLITS)


@pytest.mark.parametrize(
    ('entry', 'value', 'missing'),
    [
        ('train_dataloader.dataset.ann_file', 'a.json', 'data/a.json'),
        ('train_dataloader.dataset.data_prefix.img', 'gone/', 'data/gone'),
        ('val_dataloader.dataset.data_prefix.img', '/gone', '/gone'),
        ('val_evaluator.ann_file', '/gone/val.json', '/gone/val.json'),
    ],
)
def test_missing_path(detector, tmp_path, entry, value, missing):
    detector.merge_from_dict({entry: value})
    with pytest.raises(FileNotFoundError, match=_missing(tmp_path / missing, entry)):
        check_data(detector, SPLITS)


def test_relative_paths_are_named_in_full(detector, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    detector.train_dataloader.dataset.data_root = 'gone'
    expected = _missing(
        tmp_path / 'gone/annotations/train.json', 'train_dataloader.dataset.ann_file'
    )
    with pytest.raises(FileNotFoundError, match=expected) as raised:
        check_data(detector, SPLITS)
    assert str(raised.value).endswith('--cfg-options train_dataloader.dataset.data_root=PATH')


def test_all_that_has_to_be_changed_is_named(detector, tmp_path):
    for entry in ('train_dataloader.dataset', 'val_dataloader.dataset'):
        detector.merge_from_dict({f'{entry}.data_root': str(tmp_path / 'gone')})
    metric = dict(detector.val_evaluator, ann_file=str(tmp_path / 'gone/annotations/val.json'))
    detector.val_evaluator = [dict(type='DumpDetResults', out_file_path='x.pkl'), metric]
    with pytest.raises(FileNotFoundError) as raised:
        check_data(detector, ('train', 'val'))
    message, _, changes = str(raised.value).partition(' --cfg-options ')
    root = tmp_path / 'data'
    detector.merge_from_dict(dict(c.split('=') for c in changes.replace('PATH', str(root)).split()))
    assert f'{tmp_path}/gone/annotations/train.json is missing' in message
    check_data(detector, ('train', 'val'))


def test_home_is_not_expanded(detector):
    detector.train_dataloader.dataset.data_root = '~/coco'
    with pytest.raises(FileNotFoundError, match='Nothing turns ~ into .* write the path in full'):
        check_data(detector, SPLITS)


def test_a_link_is_proposed_where_one_can_be_made(detector, tmp_path):
    detector.train_dataloader.dataset.data_root = str(tmp_path / 'new' / 'coco')
    link = f'mkdir -p {tmp_path}/new && ln -s /path/to/them {tmp_path}/new/coco'
    with pytest.raises(FileNotFoundError, match=link):
        check_data(detector, SPLITS)
    (tmp_path / 'new' / 'coco').mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r'into .*/new/coco\. `make demo`'):
        check_data(detector, SPLITS)


def test_only_the_splits_in_use_are_checked(detector):
    detector.test_dataloader.dataset.ann_file = 'gone.json'
    check_data(detector, ('train', 'val'))
    with pytest.raises(FileNotFoundError, match=r'test_dataloader\.dataset\.ann_file'):
        check_data(detector, ('test',))


@pytest.mark.parametrize(
    ('wrap', 'entry'),
    [
        (lambda d: dict(type='RepeatDataset', times=2, dataset=d), 'dataset.dataset.ann_file'),
        (
            lambda d: dict(type='ConcatDataset', datasets=[d, d]),
            'dataset.datasets.0.ann_file',
        ),
        (
            lambda d: dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=d),
            'dataset.dataset.ann_file',
        ),
        (
            lambda d: dict(type='MultiImageMixDataset', pipeline=[], dataset=d),
            'dataset.dataset.ann_file',
        ),
    ],
)
def test_wrapped_data_set(detector, tmp_path, wrap, entry):
    inner = detector.train_dataloader.dataset
    inner.ann_file = 'gone.json'
    detector.train_dataloader.dataset = wrap(inner)
    expected = _missing(tmp_path / 'data/gone.json', f'train_dataloader.{entry}')
    with pytest.raises(FileNotFoundError, match=expected):
        check_data(detector, SPLITS)


def test_metrics_inside_an_evaluator(detector):
    metric = dict(detector.val_evaluator, ann_file='/gone/val.json')
    detector.val_evaluator = dict(type='Evaluator', metrics=[metric])
    with pytest.raises(FileNotFoundError, match='/gone/val.json is missing'):
        check_data(detector, SPLITS)


@pytest.mark.parametrize(
    'options',
    [
        dict(ann_file='http://host/a.json', data_prefix=dict(img='http://host/train/')),
        dict(data_root='gone', backend_args=dict(backend='petrel')),
    ],
)
def test_other_backends_are_not_looked_at(detector, options):
    detector.train_dataloader.dataset.update(options)
    check_data(detector, ('train',))


def test_data_set_that_downloads_itself(classifier):
    dataset = dict(type='CIFAR10', data_root='gone', split='train', pipeline=[])
    classifier.train_dataloader.dataset = dataset
    with pytest.raises(ValueError, match=r'has 10 classes, and model\.head\.num_classes is 2'):
        check_data(classifier, ('train',))
    classifier.model.head.num_classes = 10
    check_data(classifier, ('train',))
    classifier.train_dataloader.dataset = dict(dataset, download=False)
    with pytest.raises(FileNotFoundError, match='data_prefix.root'):
        check_data(classifier, ('train',))


def test_unknown_types_are_left_to_the_framework(detector):
    detector.train_dataloader.dataset.type = 'NoSuchDataset'
    check_data(detector, ('train',))


@pytest.mark.parametrize(
    ('root', 'hints'),
    [
        ('data/coco/', ('cocodataset.org', 'train2017.zip', '{root}', 'make demo')),
        ('data/imagenet', ('image-net.org', '{root}', 'IMAGENET_ROOT')),
        ('data/toyshapes', ('tools/make_toy_dataset.py {root}', 'TOYSHAPES_ROOT')),
        ('data/bccd', ('tools/voc_to_coco.py BCCD_Dataset/BCCD {root} RBC', 'BCCD_ROOT')),
        ('data/cifar10', ('CIFAR10_ROOT',)),
    ],
)
def test_public_data_sets_are_known(detector, tmp_path, monkeypatch, root, hints):
    monkeypatch.chdir(tmp_path)
    detector.train_dataloader.dataset.data_root = root
    with pytest.raises(FileNotFoundError) as raised:
        check_data(detector, SPLITS)
    for hint in hints:
        assert hint.format(root=str(tmp_path / root).rstrip('/')) in str(raised.value)


def test_other_data_get_no_such_hint(detector):
    detector.train_dataloader.dataset.data_root = 'gone'
    with pytest.raises(FileNotFoundError) as raised:
        check_data(detector, SPLITS)
    assert 'COCO' not in str(raised.value)


def test_coco_annotations_are_checked(detector, tmp_path):
    path = tmp_path / 'data/annotations/val.json'
    path.write_text(json.dumps(dict(json.loads(path.read_text()), annotations=[])))
    with pytest.raises(ValueError, match=r'val\.json has no image with an object'):
        check_data(detector, SPLITS)
    check_data(detector, ('train',))
    detector.val_evaluator.update(format_only=True, outfile_prefix='x')
    check_data(detector, ('train', 'val'))


def test_own_file_of_a_metric_is_checked(detector, tmp_path):
    own = tmp_path / 'own.json'
    content = json.loads((tmp_path / 'data/annotations/val.json').read_text())
    # Only the data set's images are opened.
    content['images'][0]['file_name'] = 'elsewhere.jpg'
    own.write_text(json.dumps(content))
    detector.val_evaluator.ann_file = str(own)
    check_data(detector, ('val',))
    own.write_text('null')
    with pytest.raises(ValueError, match=r'own\.json is no COCO annotation file'):
        check_data(detector, ('val',))
    detector.val_evaluator = [dict(type='DumpDetResults', out_file_path='x.pkl', ann_file=str(own))]
    check_data(detector, ('val',))


def test_a_file_is_read_once(detector, monkeypatch):
    read, original = [], coco._read
    monkeypatch.setattr(coco, '_read', lambda path: read.append(path) or original(path))
    check_data(detector, SPLITS)
    assert [path.rsplit('/', 1)[1] for path in read] == ['train.json', 'val.json']


def test_heads_have_the_classes_of_the_data(detector):
    detector.model.bbox_head.num_classes = 80
    message = (
        r'train_dataloader\.dataset has 5 classes, and model\.bbox_head\.num_classes is 80\. '
        r'Set model\.bbox_head\.num_classes=5'
    )
    with pytest.raises(ValueError, match=message):
        check_data(detector, SPLITS)


def test_classifiers_have_a_class_for_every_folder(classifier):
    classifier.model.head.num_classes = 1000
    with pytest.raises(ValueError, match=r'has 2 classes, and model\.head\.num_classes is 1000'):
        check_data(classifier, ('train',))


def test_default_classes_of_coco_are_not_taken_for_own_ones(detector):
    del detector.train_dataloader.dataset['metainfo']
    with pytest.raises(ValueError, match="classes of the config are 'person', 'bicycle'"):
        check_data(detector, SPLITS)


@pytest.mark.parametrize('kind', ['CustomDataset', 'ImageNet'])
def test_folders_of_classes_are_checked(classifier, tmp_path, kind):
    for split in ('train', 'val'):
        dataset = classifier[f'{split}_dataloader'].dataset
        dataset.update(type=kind, metainfo=dict(classes=['ant', 'bee', 'cat']))
    with pytest.raises(ValueError, match=r'data/train has 2 folders \(ant, bee\), .* 3 classes'):
        check_data(classifier, ('train',))
    classifier.train_dataloader.dataset.metainfo = dict(classes=['ant', 'bee'])
    check_data(classifier, ('train',))


def test_splits_with_other_classes(classifier, tmp_path):
    (tmp_path / 'data/val/ant').mkdir(parents=True)
    (tmp_path / 'data/val/ant/0.png').touch()
    classifier.val_dataloader.dataset.data_prefix = 'val'
    with pytest.raises(
        ValueError, match=r'data/train and .*data/val have different .* in one of them only: bee\.'
    ):
        check_data(classifier, ('train', 'val'))


def test_lists_of_images_are_checked(classifier, tmp_path):
    (tmp_path / 'data/train.txt').write_text('ant/0.png 0\nant/7.png 0\n')
    classifier.train_dataloader.dataset.ann_file = 'train.txt'
    with pytest.raises(FileNotFoundError, match=r'data/train/ant/7\.png'):
        check_data(classifier, ('train',))


def test_missing_imagenet(classifier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    classifier.train_dataloader.dataset = dict(
        type='ImageNet', data_root='data/imagenet', split='train', pipeline=[]
    )
    with pytest.raises(FileNotFoundError, match=r'data/imagenet/train is missing.*image-net\.org'):
        check_data(classifier, ('train',))


def test_images_on_other_backends_are_not_looked_at(classifier):
    dataset = classifier.train_dataloader.dataset
    dataset.update(data_root='', data_prefix='http://host/train')
    check_data(classifier, ('train',))


def test_runs_check_before_they_build(tmp_path):
    config = write_detection(tmp_path)
    options = {'train_dataloader.dataset.ann_file': 'gone.json', 'work_dir': str(tmp_path / 'work')}
    with pytest.raises(FileNotFoundError, match=r'gone\.json is missing'):
        run.train(str(config), cfg_options=options)
    assert not (tmp_path / 'work').exists()
