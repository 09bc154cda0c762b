"""Writing matplotlib figures."""

import os

from matplotlib.figure import Figure

from mmgnv3.utils import replacing


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write a figure; it appears under its name when it is complete.

    Args:
        figure: What to write.
        path: Picture to write; its folder is created, its suffix sets the format.
    """
    with replacing(path) as temporary:
        figure.savefig(temporary)
