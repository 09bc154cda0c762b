"""Writing matplotlib figures."""

import os
from pathlib import Path

from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from mmgnv3.utils.files import replacing


def check_picture(path: str | os.PathLike) -> None:
    """Check the name of a picture before the work that leads to it.

    Args:
        path: Picture to write.

    Raises:
        ValueError: If its suffix names no format of pictures, or there is a folder of that name.
    """
    formats = FigureCanvasBase.get_supported_filetypes()
    if Path(path).suffix.lower().removeprefix('.') not in formats:
        raise ValueError(
            f'{path} does not say which kind of picture to write: give it one of the suffixes '
            f'{", ".join(f".{name}" for name in sorted(formats))}.'
        )
    if Path(path).is_dir():
        raise ValueError(f'{path} is a folder: name a picture in it, such as {path}/out.png.')


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write a figure; it appears under its name when it is complete.

    Args:
        figure: What to write.
        path: Picture to write; its folder is created, its suffix sets the format.
    """
    with replacing(path) as temporary:
        figure.savefig(temporary)
