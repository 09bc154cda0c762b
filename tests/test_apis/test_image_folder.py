import re

import pytest

from mmgnv3.apis.image_folder import check_annotations, check_class_folders, check_same_classes

ENDINGS = ('.jpg', '.jpeg', '.png')


@pytest.fixture
def folder(tmp_path):
    """Two classes with two images each."""
    for name in ('ant/0.JPEG', 'ant/1.jpg', 'bee/0.jpg', 'bee/more/1.png'):
        path = tmp_path / 'train' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / 'train'


def test_sound_folders(folder):
    assert check_class_folders(str(folder), ENDINGS, 2) == ('ant', 'bee')
    assert check_class_folders(str(folder), ENDINGS, None) == ('ant', 'bee')


def _flat(folder):
    for index, path in enumerate([*folder.rglob('*.jpg'), *folder.rglob('*.JPEG')]):
        path.rename(folder / f'{index}.jpg')
    for path in sorted(folder.rglob('*'), reverse=True):
        if path.is_dir():
            for inner in path.iterdir():
                inner.unlink()
            path.rmdir()


def _archives(folder):
    _flat(folder)
    for path in folder.iterdir():
        path.unlink()
    (folder / 'n01440764.tar').touch()


def _empty(folder):
    _archives(folder)
    (folder / 'n01440764.tar').unlink()


def _deeper(folder):
    (folder / 'inner').mkdir()
    for name in ('ant', 'bee'):
        (folder / name).rename(folder / 'inner' / name)


def _stray(folder):
    (folder / '.cache').mkdir()


def _no_images(folder):
    for path in (p for p in folder.rglob('*') if p.is_file()):
        path.rename(path.with_suffix('.tar'))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (_flat, r'holds 3 images, first 0\.jpg, and no folders of classes'),
        (_archives, r'holds archives that have not been unpacked, first n01440764\.tar'),
        (_empty, 'is empty, or holds no images'),
        (
            _deeper,
            r'has 1 folder \(inner\), and the config has 2.* one level deeper.*train/inner:',
        ),
        (_stray, r'has 3 folders \(\.cache, ant, bee\), and the config has 2 classes\.'),
        (_no_images, r'has 2 folders \(ant, bee\), without an image;'),
    ],
)
def test_another_layout(folder, change, message):
    change(folder)
    with pytest.raises(ValueError, match=f'^{re.escape(str(folder))} {message}'):
        check_class_folders(str(folder), ENDINGS, 2)


def test_same_classes():
    check_same_classes(dict(train=('a', 'b')))
    check_same_classes(dict(train=('a', 'b'), val=('a', 'b')))
    with pytest.raises(ValueError, match=r'/train and .*/val have different.* only: b, c\.'):
        check_same_classes(dict(train=('a', 'b'), val=('a', 'c')))


@pytest.fixture
def annotations(folder):
    path = folder.parent / 'train.txt'
    path.write_text('ant/0.JPEG 0\nbee/0.jpg 1\n')
    return path


def test_sound_annotations(folder, annotations):
    for num_classes in (2, None):
        check_annotations(str(annotations), str(folder), num_classes, labelled=True)
    annotations.write_text('ant/0.JPEG\n')
    check_annotations(str(annotations), str(folder), 2, labelled=False)


@pytest.mark.parametrize(
    ('text', 'error', 'message'),
    [
        (
            'ant/0.JPEG 0\nbee/0.jpg\n',
            ValueError,
            r"line 2 is 'bee/0\.jpg'; .* number of its class",
        ),
        ('ant/0.JPEG zero\n', ValueError, 'line 1 is'),
        ('ant/0.JPEG -1\n', ValueError, 'line 1 is'),
        ('ant/0.JPEG 2\n', ValueError, 'line 1 has the class 2; the config has 2, .* from 0 to 1'),
        ('', ValueError, 'is empty'),
        ('ant/0.JPEG 0\nant/7.jpg 0\n', FileNotFoundError, r'1 of 2 .* first .*/ant/7\.jpg'),
    ],
)
def test_other_annotations(folder, annotations, text, error, message):
    annotations.write_text(text)
    with pytest.raises(error, match=message) as raised:
        check_annotations(str(annotations), str(folder), 2, labelled=True)
    assert str(annotations) in str(raised.value)
