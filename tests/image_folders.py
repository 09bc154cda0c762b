"""Folders of generated pictures, a folder a class, as classifiers read them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np


def write_image_folders(
    root: Path, images: Mapping[str, int], classes: Sequence[str], size: int
) -> Path:
    """Write random pictures, of every class some of its own brightness.

    Args:
        root: Folder to write to.
        images: Number of pictures of a class by split, which is the name of a folder.
        classes: Names of folders below.
        size: Height and width in pixels.
    """
    rng = np.random.default_rng(0)
    for split, number in images.items():
        for place, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            low = 200 * place // len(classes)
            for index in range(number):
                image = rng.integers(low, low + 50, (size, size, 3), np.uint8)
                cv2.imwrite(str(folder / f'{index}.jpg'), image)
    return root


def write_cifar10(root: Path, num_train: int = 4, num_test: int = 1) -> Path:
    """Write ten classes of 32 x 32 pixels, so many pictures of each, in CIFAR-10's folders."""
    classes = [f'class{label}' for label in range(10)]
    return write_image_folders(root, dict(train=num_train, test=num_test), classes, 32)
