"""Checks of a COCO annotation file and of the images that it names."""

import json
import os
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from PIL import Image

# A file above this many bytes is not parsed, since the data set will do that anyway: COCO's own
# training set (450 MB) would take 20 s more. The validation set has 20 MB.
_MAX_PARSED_BYTES = 100 << 20
# So many images, evenly spaced over the set, are decoded: one or two milliseconds each.
_MAX_DECODED_IMAGES = 2000

# What mmdet and pycocotools read from every entry.
_FIELDS = dict(
    images={'id', 'file_name', 'height', 'width'},
    categories={'id', 'name'},
    annotations={'id', 'image_id', 'category_id', 'bbox', 'area'},
)


def check_coco(
    ann_file: str,
    image_folder: str,
    classes: Sequence[str],
    *,
    skip_empty: bool = False,
    evaluated: bool = False,
    labelled: bool = True,
) -> None:
    """Check annotations and images as mmdet's ``CocoDataset`` will read them.

    Args:
        ann_file: The annotation file.
        image_folder: Folder that the file names in it are relative to.
        classes: Names of the classes in the order of their labels.
        skip_empty: Whether images without objects are not used.
        evaluated: Whether pycocotools evaluates against the file: it wants ``iscrowd``.
        labelled: Whether the file must hold objects.

    Raises:
        FileNotFoundError: If images are missing.
        ValueError: If the file or an image is corrupt, if the categories of the file are not the
            classes, in their order, or if no image has an object of theirs.
    """
    content = _read(ann_file)
    if content is None:
        return
    fields = {name: fields for name, fields in _FIELDS.items() if labelled or name != 'annotations'}
    if labelled and evaluated:
        fields['annotations'] = fields['annotations'] | {'iscrowd'}
    for name, needed in fields.items():
        _check_entries(content, name, needed, ann_file)
    _check_classes(content['categories'], classes, ann_file)

    images = content['images']
    if labelled:
        labels = {c['id'] for c in content['categories'] if c['name'] in classes}
        with_objects = {a['image_id'] for a in content['annotations'] if a['category_id'] in labels}
        used = [image for image in images if image['id'] in with_objects]
        if not used:
            raise ValueError(
                f'{ann_file} has no image with an object of a known category: none of its '
                f'{len(content["annotations"])} annotations has the image_id of one of its '
                f'{len(images)} images and the category_id of a class. Export it again.'
            )
        images = used if skip_empty else images
    _check_images([image['file_name'] for image in images], image_folder, ann_file)


def _read(path: str) -> Any:
    """Parse a file. Of a very large one only the end is looked at, and None returned."""
    remedy = 'It may have been cut off when it was downloaded or unpacked: get or export it again.'
    if os.path.getsize(path) > _MAX_PARSED_BYTES:
        with open(path, 'rb') as file:
            file.seek(-1024, os.SEEK_END)
            if not file.read().rstrip().endswith(b'}'):
                raise ValueError(f'{path} is not valid JSON: its end is missing. {remedy}')
        return None
    with open(path, encoding='utf-8') as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise ValueError(f'{path} is not valid JSON: {error}. {remedy}') from error


def _check_entries(content: Any, name: str, needed: set[str], path: str) -> None:
    entries = content.get(name) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise ValueError(
            f'{path} is no COCO annotation file for detection: it has no list {name!r} at its top '
            f'level; {", ".join(map(repr, _FIELDS))} must be there.'
        )
    for index, entry in enumerate(entries):
        lacking = needed - entry.keys() if isinstance(entry, dict) else needed
        if lacking:
            raise ValueError(
                f'{path}: {name}[{index}] lacks {", ".join(map(repr, sorted(lacking)))}. Every '
                f'entry of {name!r} needs {", ".join(map(repr, sorted(needed)))}.'
            )
        if 'bbox' in needed and not _is_box(entry['bbox']):
            raise ValueError(
                f'{path}: {name}[{index}] has the bbox {entry["bbox"]!r}; it must be four '
                'numbers [x, y, width, height] in pixels.'
            )


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)


def _check_classes(categories: list[dict], classes: Sequence[str], path: str) -> None:
    names = [category['name'] for category in categories]
    known = [name for name in names if name in classes]
    if known == list(classes):
        return
    missing = [name for name in classes if name not in names]
    # CocoDataset numbers the categories that it knows in the order of the file, whatever the order
    # of the classes is. With one missing it would train on the wrong names, with all missing on
    # nothing, and in both cases without a word.
    cause = (
        f'has no category {_names(missing)}' if missing else 'has them in another order or twice'
    )
    raise ValueError(
        f'The classes of the config are {_names(classes)}, but {path} {cause}: its categories are '
        f'{_names(names)}. Set metainfo=dict(classes=({_names(names)},)) in the data sets of '
        f'all splits, and num_classes={len(names)} in the heads of the model.'
    )


def _check_images(names: Sequence[str], folder: str, ann_file: str) -> None:
    missing = missing_files(names, folder)
    if missing:
        raise FileNotFoundError(
            f'{len(missing)} of the {len(names)} images that {ann_file} names are not there, first '
            f'{os.path.abspath(os.path.join(folder, missing[0]))}. Unpack the images there, or '
            "correct data_prefix=dict(img=...) or the 'file_name' entries."
        )
    step = -(-len(names) // _MAX_DECODED_IMAGES)
    broken = []
    for name in names[::step]:
        path = os.path.join(folder, name)
        fault = _image_fault(path)
        if fault:
            broken.append(f'{os.path.abspath(path)} ({fault})')
    if broken:
        raise ValueError(
            f'{len(broken)} of {len(names[::step])} images that were looked at cannot be decoded: '
            f'{_names(broken, quote=False)}. Replace them, or remove their entries from {ann_file}.'
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


def _image_fault(path: str) -> str | None:
    """Why an image cannot be decoded. OpenCV, which loads it later, fills up a cut-off JPEG."""
    try:
        with Image.open(path) as image:
            # An eighth of the size is the cheapest that JPEG offers; everything is still read.
            image.draft('RGB', (1, 1))
            image.load()
    except Image.DecompressionBombError:
        return None
    except Exception as error:
        return str(error)
    return None


def _names(names: Sequence[str], quote: bool = True) -> str:
    shown = [repr(name) if quote else name for name in names[:10]]
    return ', '.join(shown) + (f' and {len(names) - 10} more' if len(names) > 10 else '')
