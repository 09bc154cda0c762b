"""From the layout of PASCAL VOC to COCO's."""

import os
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from mmgnv3.utils.files import write_json

SPLITS = ('train', 'val', 'test')


def voc_to_coco(
    root: str | os.PathLike, out: str | os.PathLike, classes: Sequence[str]
) -> dict[str, dict]:
    """Write ``train.json``, ``val.json``, ``test.json`` and a link ``images`` to the pictures.

    Splits without a list of names are left out, and so are boxes without an area. Objects marked
    as difficult become crowds, which are neither trained on nor counted.

    Args:
        root: Folder with ``Annotations/*.xml``, ``ImageSets/Main/*.txt`` and ``JPEGImages``.
        out: Folder to write to.
        classes: Names of the classes in the order of their labels.

    Returns:
        What was written, by split.

    Raises:
        FileNotFoundError: If a file or folder is missing.
        ValueError: If an annotation is corrupt or of another class, or ``out`` holds other images.
    """
    root, out = Path(root), Path(out)
    images = root / 'JPEGImages'
    lists = {split: root / 'ImageSets' / 'Main' / f'{split}.txt' for split in SPLITS}
    lists = {split: path for split, path in lists.items() if path.is_file()}
    if not lists or not images.is_dir():
        raise FileNotFoundError(
            f'{root} is not laid out as PASCAL VOC: Annotations/*.xml, JPEGImages/* and '
            f'ImageSets/Main/{{{",".join(SPLITS)}}}.txt must be in it.'
        )
    file_names = {Path(name).stem: name for name in os.listdir(images)}
    content = {
        split: _convert(path.read_text().splitlines(), root / 'Annotations', file_names, classes)
        for split, path in lists.items()
    }
    link = out / 'images'
    if os.path.lexists(link) and not (link.exists() and link.samefile(images)):
        raise ValueError(f'{link} is there already and is no link to {images}. Remove it.')
    out.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.symlink_to(images.resolve(), target_is_directory=True)
    for split, annotations in content.items():
        write_json(annotations, out / f'{split}.json')
    return content


def _convert(
    names: Sequence[str], folder: Path, file_names: dict[str, str], classes: Sequence[str]
) -> dict:
    labels = {name: index for index, name in enumerate(classes, 1)}
    images, objects = [], []
    for image_id, name in enumerate(filter(None, map(str.strip, names)), 1):
        path = folder / f'{name}.xml'
        if not path.is_file() or name not in file_names:
            gone = f'JPEGImages/{name}.*' if path.is_file() else f'Annotations/{name}.xml'
            raise FileNotFoundError(
                f'{folder.parent}/{gone} is missing, and a list in ImageSets/Main names it.'
            )
        try:
            width, height, boxes = _read(path)
        except (ElementTree.ParseError, ValueError) as error:
            raise ValueError(
                f'{path} is no annotation of PASCAL VOC: {error}. Get or export it again.'
            ) from error
        images.append(dict(id=image_id, file_name=file_names[name], width=width, height=height))
        for label, box, difficult in boxes:
            if label not in labels:
                raise ValueError(
                    f'{path} has an object of the class {label!r}, which is none of '
                    f'{", ".join(map(repr, classes))}. Name all classes.'
                )
            if min(box[2:]) > 0:
                objects.append(
                    dict(
                        id=len(objects) + 1,
                        image_id=image_id,
                        category_id=labels[label],
                        bbox=box,
                        area=box[2] * box[3],
                        iscrowd=difficult,
                    )
                )
    categories = [dict(id=label, name=name) for name, label in labels.items()]
    return dict(images=images, annotations=objects, categories=categories)


def _read(path: Path) -> tuple[int, int, list[tuple[str, list[float], int]]]:
    """Width and height of a picture; class, box and difficulty of its objects."""
    tree = ElementTree.parse(path).getroot()
    width, height = (int(_text(tree, f'size/{side}')) for side in ('width', 'height'))
    boxes = []
    for item in tree.iter('object'):
        left, top, right, bottom = (
            float(_text(item, f'bndbox/{side}')) for side in ('xmin', 'ymin', 'xmax', 'ymax')
        )
        box = [left, top, right - left, bottom - top]
        boxes.append((_text(item, 'name'), box, int(item.findtext('difficult', '0'))))
    return width, height, boxes


def _text(element: ElementTree.Element, name: str) -> str:
    text = element.findtext(name)
    if text is None:
        raise ValueError(f'<{element.tag}> has no {name}')
    return text.strip()
