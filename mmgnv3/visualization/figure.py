"""Writing matplotlib figures."""

import os
from pathlib import Path

from matplotlib.figure import Figure


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write a figure; it appears under its name when it is complete.

    Args:
        figure: What to write.
        path: Picture to write; its folder is created, its suffix sets the format.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{os.getpid()}-{path.name}')
    try:
        figure.savefig(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
