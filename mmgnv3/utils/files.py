"""Files that appear under their name when they are complete, and what is in them."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file so that its name never stands for half of it.

    A process that is killed in between leaves the old file, and beside it a hidden one whose name
    begins with ``.tmp.`` and which the next attempt overwrites.

    Args:
        path: File to write; its folder is created.

    Yields:
        The temporary path to write to, in the same folder and with the same suffix. It takes the
        place of ``path`` at the end, or is removed if an exception is raised.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.tmp.{path.name}')
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(content: dict, path: str | os.PathLike) -> None:
    """Write a JSON file that appears under its name when it is complete.

    Args:
        content: What ``json`` can write.
        path: File to write; its folder is created.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + '\n')


def sha256(path: str | os.PathLike) -> str:
    """Digest of a file's content in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
