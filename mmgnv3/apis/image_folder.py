"""Checks of folders of images as mmpretrain's ``CustomDataset`` and ``ImageNet`` read them."""

import os
from collections.abc import Iterator, Sequence

from mmgnv3.utils.wording import count

from .coco import missing_files

_LAYOUT = (
    'Images belong into a folder for each class, {folder}/<class>/<image>, or into one whose '
    'labels stand in an annotation file with a line "<image> <number of the class>" for each.'
)
# Folders in which a stray image is looked for before giving up.
_MAX_FOLDERS = 100


def check_class_folders(
    folder: str, extensions: Sequence[str], num_classes: int | None
) -> tuple[str, ...]:
    """Check a folder that has a folder of images for every class.

    Args:
        folder: The folder.
        extensions: Endings of the names of images, in lower case.
        num_classes: How many classes there are to be, if that is known.

    Returns:
        Names of the classes in the order of their labels.

    Raises:
        ValueError: If it is laid out differently: how, and what to do.
    """
    folder = os.path.abspath(folder)
    with os.scandir(folder) as entries:
        entries = sorted(entries, key=lambda entry: entry.name)
    names = tuple(entry.name for entry in entries if entry.is_dir())
    layout = _LAYOUT.format(folder=folder)
    if not names:
        images = [e.name for e in entries if e.name.lower().endswith(tuple(extensions))]
        archives = [e.name for e in entries if e.name.lower().endswith(('.tar', '.zip', '.gz'))]
        if images:
            cause = (
                f'holds {count(len(images), "image")}, first {images[0]}, and no folders of '
                'classes: nothing says what they show.'
            )
        elif archives:
            cause = f'holds archives that have not been unpacked, first {archives[0]}.'
        else:
            cause = 'is empty, or holds no images.'
        raise ValueError(f'{folder} {cause} {layout}')
    if num_classes is not None and len(names) != num_classes:
        inner = [name for name in names if len(_folders(os.path.join(folder, name))) == num_classes]
        hint = (
            f' {count(num_classes, "folder")} can be found one level deeper, in '
            f'{os.path.join(folder, inner[0])}: give that one as data_prefix, or move them up.'
            if inner
            else ''
        )
        raise ValueError(
            f'{folder} has {count(len(names), "folder")} ({_some(names)}), and the config has '
            f'{count(num_classes, "class")}.{hint} {layout} What does not belong there has to go; '
            'classes of your own are given by metainfo=dict(classes=[...]) or ann_file.'
        )
    if not any(_has_image(os.path.join(folder, name), extensions) for name in names[:_MAX_FOLDERS]):
        raise ValueError(
            f'{folder} has {count(len(names), "folder")} ({_some(names)}), without an image; '
            f'images end in {", ".join(sorted(extensions))}. Archives are to be unpacked there.'
        )
    return names


def check_annotations(ann_file: str, folder: str, num_classes: int | None, labelled: bool) -> None:
    """Check a list of images, one a line.

    Args:
        ann_file: The file.
        folder: Folder that the names in it are relative to.
        num_classes: How many classes there are, if that is known.
        labelled: Whether the number of a class stands behind every name.

    Raises:
        FileNotFoundError: If images are missing.
        ValueError: If a line is something else, or a class is out of range.
    """
    names = []
    with open(ann_file, encoding='utf-8') as file:
        for number, line in enumerate(file, 1):
            name, _, label = line.strip().rpartition(' ') if labelled else (line.strip(), '', '0')
            if not name or not label.isdecimal():
                raise ValueError(
                    f'{ann_file}, line {number} is {line.strip()!r}; it must be the path of an '
                    f'image{" and the number of its class, counted from 0" if labelled else ""}.'
                )
            if num_classes is not None and int(label) >= num_classes:
                raise ValueError(
                    f'{ann_file}, line {number} has the class {label}; the config has '
                    f'{num_classes}, numbered from 0 to {num_classes - 1}.'
                )
            names.append(name)
    if not names:
        raise ValueError(f'{ann_file} is empty: it must list images, one a line.')
    missing = missing_files(names, folder)
    if missing:
        raise FileNotFoundError(
            f'{len(missing)} of {count(len(names), "image")} in {ann_file} cannot be found, first '
            f'{os.path.abspath(os.path.join(folder, missing[0]))}. Unpack the images there, or '
            'correct data_prefix.'
        )


def check_same_classes(folders: dict[str, tuple[str, ...]]) -> None:
    """Check that all splits have the same classes: labels are numbers in the order of the names.

    Args:
        folders: Names of the classes by the folder that holds them.

    Raises:
        ValueError: If they differ.
    """
    (first, expected), *others = folders.items()
    for folder, names in others:
        if names != expected:
            stray = sorted(set(names) ^ set(expected))
            raise ValueError(
                f'{os.path.abspath(first)} and {os.path.abspath(folder)} have different folders of '
                f'classes; in one of them only: {_some(stray)}. A class is known by the place '
                'of its folder in the alphabet, so that all splits need the same ones.'
            )


def _folders(path: str) -> list[str]:
    with os.scandir(path) as entries:
        return [entry.name for entry in entries if entry.is_dir()]


def _has_image(path: str, extensions: Sequence[str]) -> bool:
    return any(name.lower().endswith(tuple(extensions)) for name in _files(path))


def _files(path: str) -> Iterator[str]:
    for _, _, files in os.walk(path):
        yield from files


def _some(names: Sequence[str]) -> str:
    return ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')
