"""Checks of a COCO annotation file and of the images that it names."""

import json
import os
import reprlib
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any

from PIL import Image

from mmgnv3.utils.arguments import is_real
from mmgnv3.utils.wording import count

# A file above this many bytes is not parsed, since the data set will do that anyway: COCO's own
# training set (450 MB) would take 20 s more. The validation set has 20 MB.
_MAX_PARSED_BYTES = 100 << 20
# So many images, evenly spaced over the set, are decoded: one or two milliseconds each.
_MAX_DECODED_IMAGES = 2000
# Of a box, this share may be outside its image: some data sets guess what is hidden there. And so
# many of the boxes may be of no use: single ones slip into every large set.
_MAX_OUTSIDE = 1 / 3
_MAX_USELESS = 1 / 10

_Kind = tuple[Callable[[Any], bool], str]
_ID: _Kind = (lambda v: is_real(v) or isinstance(v, str), 'a number or a text')
_TEXT: _Kind = (lambda v: isinstance(v, str) and v != '', 'a text')
_SIZE: _Kind = (lambda v: is_real(v) and v > 0, 'a positive number')
_NUMBER: _Kind = (is_real, 'a number')
_FLAG: _Kind = (lambda v: v in (0, 1), '0 or 1')
_BOX: _Kind = (
    lambda v: isinstance(v, list) and len(v) == 4 and all(map(is_real, v)) and min(v[2:]) >= 0,
    'four numbers [x, y, width, height] in pixels, the sizes not below 0',
)
# What mmdet and pycocotools read from every entry.
_FIELDS: dict[str, dict[str, _Kind]] = dict(
    images=dict(id=_ID, file_name=_TEXT, height=_SIZE, width=_SIZE),
    categories=dict(id=_ID, name=_TEXT),
    annotations=dict(id=_ID, image_id=_ID, category_id=_ID, bbox=_BOX, area=_NUMBER),
)
# What pycocotools wants besides: it keeps ids of annotations in an array of numbers, where 0 says
# that nothing was found.
_FOUND_ID: _Kind = (
    lambda v: is_real(v) and v != 0,
    'a number, and not 0, which counts as not found when detections are evaluated',
)
_EVALUATED: dict[str, _Kind] = dict(id=_FOUND_ID, iscrowd=_FLAG)


def check_coco(
    ann_file: str,
    image_folder: str | None,
    classes: Sequence[str],
    *,
    skip_empty: bool = False,
    evaluated: bool = False,
    labelled: bool = True,
) -> None:
    """Check annotations and images as mmdet's ``CocoDataset`` will read them.

    Args:
        ann_file: The annotation file.
        image_folder: Folder that the file names in it are relative to, None if images are not used.
        classes: Names of the classes in the order of their labels.
        skip_empty: Whether images without objects are not used.
        evaluated: Whether pycocotools evaluates against the file: it wants ``iscrowd``.
        labelled: Whether the file must hold objects.

    Raises:
        FileNotFoundError: If images are missing.
        ValueError: If the file or an image is corrupt, if the categories of the file are not the
            classes, in their order, if no image has an object of theirs, or if more than single
            boxes are none within their images. The first fault is named.
    """
    if os.path.getsize(ann_file) > _MAX_PARSED_BYTES:
        _check_end(ann_file)
        return
    content = _read(ann_file)
    fields = {name: kinds for name, kinds in _FIELDS.items() if labelled or name != 'annotations'}
    if labelled and evaluated:
        fields['annotations'] = fields['annotations'] | _EVALUATED
    for name, kinds in fields.items():
        _check_entries(content, name, kinds, ann_file)
    _check_classes(content['categories'], classes, ann_file)

    images = content['images']
    if labelled:
        used = _check_objects(content, classes, ann_file)
        images = [image for image in images if image['id'] in used] if skip_empty else images
    if image_folder is not None:
        _check_images(images, image_folder, ann_file)


_CUT_OFF = 'It may have been cut off when it was downloaded or unpacked: get or export it again.'


def _check_end(path: str) -> None:
    with open(path, 'rb') as file:
        file.seek(-1024, os.SEEK_END)
        if not file.read().rstrip().endswith(b'}'):
            raise ValueError(f'{path} is not valid JSON: its end is missing. {_CUT_OFF}')


def _read(path: str) -> Any:
    with open(path, encoding='utf-8') as file:
        try:
            return json.load(file)
        except (ValueError, RecursionError) as error:
            raise ValueError(f'{path} is not valid JSON: {error}. {_CUT_OFF}') from error


def _check_entries(content: Any, name: str, kinds: dict[str, _Kind], path: str) -> None:
    entries = content.get(name) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise ValueError(
            f'{path} is no COCO annotation file for detection: it has no list {name!r} at its top '
            f'level; {", ".join(map(repr, _FIELDS))} must be there.'
        )
    places: dict[Any, int] = {}
    for index, entry in enumerate(entries):
        lacking = kinds.keys() - entry.keys() if isinstance(entry, dict) else kinds.keys()
        if lacking:
            raise ValueError(
                f'{path}: {name}[{index}] lacks {", ".join(map(repr, sorted(lacking)))}. Every '
                f'entry of {name!r} needs {", ".join(map(repr, sorted(kinds)))}.'
            )
        for key, (is_kind, kind) in kinds.items():
            if not is_kind(entry[key]):
                raise ValueError(
                    f'{path}: {name}[{index}] has the {key} {reprlib.repr(entry[key])}; it must be '
                    f'{kind}. Correct or remove the entry.'
                )
        if places.setdefault(entry['id'], index) != index:
            raise ValueError(
                f'{path}: {name}[{index}] has the id {entry["id"]!r} of '
                f'{name}[{places[entry["id"]]}]. Give every entry of {name!r} an id of its own.'
            )


def _check_objects(content: dict, classes: Sequence[str], path: str) -> set:
    """Check that annotations are of images and categories that are there, and some of use.

    Returns:
        Ids of the images with an annotation of one of the classes.
    """
    images = {image['id']: image for image in content['images']}
    known = {category['id']: category['name'] in classes for category in content['categories']}
    used, num_boxes, num_objects, useless = set(), 0, 0, []
    for index, annotation in enumerate(content['annotations']):
        for key, ids in (('image_id', images), ('category_id', known)):
            if annotation[key] not in ids:
                raise ValueError(
                    f'{path}: annotations[{index}] has the {key} {annotation[key]!r}, and there is '
                    'no such entry. Correct or remove the annotation, or add what it belongs to.'
                )
        if known[annotation['category_id']]:
            used.add(annotation['image_id'])
            if annotation.get('iscrowd') or annotation.get('ignore'):
                continue
            num_boxes += 1
            is_object, share = _use(annotation, images[annotation['image_id']])
            num_objects += is_object
            if not is_object or share < 1 - _MAX_OUTSIDE:
                useless.append(index)
    if not num_objects:
        total = count(len(content['annotations']), 'annotation')
        raise ValueError(
            f'{path} has no image with an object: of its {total} none is of a known category, no '
            'crowd, and has a box of one pixel a side or more inside its image. Boxes are '
            '[x, y, width, height] in pixels. Export the file again.'
        )
    if len(useless) > _MAX_USELESS * num_boxes:
        first = content['annotations'][useless[0]]
        image = images[first['image_id']]
        raise ValueError(
            f'{path}: {len(useless)} of {num_boxes} boxes are empty or lie to a good part '
            f'outside their image, first annotations[{useless[0]}] with the bbox {first["bbox"]} '
            f'in {image["width"]} x {image["height"]} pixels. Boxes are [x, y, width, height] in '
            'pixels, x and y of the upper left corner: two corners or a centre may have been '
            'written. Export the file again.'
        )
    return used


def _use(annotation: dict, image: dict) -> tuple[bool, float]:
    """Whether mmdet takes a box for an object to be found; which share of it is in the image."""
    x, y, width, height = annotation['bbox']
    inner_width = max(0, min(x + width, image['width']) - max(x, 0))
    inner_height = max(0, min(y + height, image['height']) - max(y, 0))
    if min(inner_width, inner_height, annotation['area']) <= 0 or min(width, height) < 1:
        return False, 0.0
    return True, inner_width * inner_height / (width * height)


def _check_classes(categories: list[dict], classes: Sequence[str], path: str) -> None:
    names = [category['name'] for category in categories]
    known = [name for name in names if name in classes]
    if known == list(classes):
        return
    if not names:
        raise ValueError(
            f"{path} has no categories. List them there as dict(id=..., name=...), the config's: "
            f'{_names(classes)}.'
        )
    places: dict[str, int] = {}
    for index, name in enumerate(names):
        if places.setdefault(name, index) != index:
            raise ValueError(
                f'{path}: categories[{index}] has the name {name!r} of '
                f'categories[{places[name]}]. Give every category a name of its own, or make '
                'them one.'
            )
    missing = [name for name in classes if name not in names]
    # CocoDataset numbers the categories that it knows in the order of the file, whatever the order
    # of the classes is. With one missing it would train on the wrong names, with all missing on
    # nothing, and in both cases without a word.
    cause = f'has no category {_names(missing)}' if missing else 'has them in another order'
    raise ValueError(
        f'The classes of the config are {_names(classes)}, but {path} {cause}: its categories are '
        f'{_names(names)}. Set metainfo=dict(classes=({_names(names)},)) in the data sets of '
        f'all splits, and num_classes={len(names)} in the heads of the model.'
    )


def _check_images(images: Sequence[dict], folder: str, ann_file: str) -> None:
    missing = missing_files([image['file_name'] for image in images], folder)
    if missing:
        raise FileNotFoundError(
            f'{len(missing)} of {count(len(images), "image")} named in {ann_file} cannot be found, '
            f'first {os.path.abspath(os.path.join(folder, missing[0]))}. Unpack the images there, '
            "or correct data_prefix=dict(img=...) or the 'file_name' entries."
        )
    looked_at = images[:: max(1, -(-len(images) // _MAX_DECODED_IMAGES))]
    broken, resized = [], []
    for image in looked_at:
        path = os.path.abspath(os.path.join(folder, image['file_name']))
        stated = (image['width'], image['height'])
        try:
            size = _decode(path) or stated
        except Exception as error:
            broken.append(f'{path} ({error})')
            continue
        # A picture may be stored on its side, with a mark that turns it when it is loaded.
        if sorted(size) != sorted(stated):
            resized.append(f'{path} ({size[0]} x {size[1]}, not {stated[0]} x {stated[1]})')
    if broken:
        raise ValueError(
            f'{len(broken)} of {count(len(looked_at), "image")} looked at cannot be decoded: '
            f'{_names(broken, quote=False)}. Replace them, or remove their entries from {ann_file}.'
        )
    if resized:
        raise ValueError(
            f'{len(resized)} of {count(len(looked_at), "image")} looked at have another size than '
            f'{ann_file} says: {_names(resized, quote=False)}. Its boxes are in pixels of the size '
            'that it says: give the images that it was made for, or export it again.'
        )


def missing_files(names: Sequence[str], folder: str) -> list[str]:
    """Find names without a file.

    Args:
        names: Paths relative to the folder.
        folder: The folder. One listing of each folder is far cheaper than one look-up a name.

    Returns:
        The names that are not there.
    """
    by_folder = defaultdict(list)
    for name in names:
        by_folder[os.path.dirname(name)].append(name)
    missing = []
    for inner, group in by_folder.items():
        path = os.path.join(folder, inner)
        present: Collection[str] = set(os.listdir(path)) if os.path.isdir(path) else ()
        missing += [name for name in group if os.path.basename(name) not in present]
    return missing


def _decode(path: str) -> tuple[int, int] | None:
    """Width and height of an image in pixels; None if it is too large for a trial.

    Fails where OpenCV, which loads it later, fills up a cut-off JPEG.
    """
    try:
        with Image.open(path) as image:
            size = image.size
            # An eighth of the size is the cheapest that JPEG offers; everything is still read.
            image.draft('RGB', (1, 1))
            image.load()
    except Image.DecompressionBombError:
        return None
    return size


def _names(names: Sequence[str], quote: bool = True) -> str:
    shown = [repr(name) if quote else name for name in names[:10]]
    return ', '.join(shown) + (f' and {len(names) - 10} more' if len(names) > 10 else '')
