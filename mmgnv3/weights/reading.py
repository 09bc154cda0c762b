"""Opening files from elsewhere without running anything that is in them."""

import argparse
import os
import re
from collections.abc import Callable
from typing import Any

import torch


def read_foreign(path: str | os.PathLike) -> dict[str, Any]:
    """Read a file of somebody else's weights to the CPU.

    Only tensors and plain data are read. ``argparse.Namespace`` is read too, as a bag of plain
    data: the training script that the reference code comes from saves its arguments so.

    Args:
        path: A file of ``torch.save`` or of safetensors, whatever its name ends with.

    Returns:
        What was saved.

    Raises:
        FileNotFoundError: If there is no such file.
        RuntimeError: If it is a safetensors file and that package is not installed.
        ValueError: If the file is something else, is cut off, or holds another class.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'There is no file {os.path.abspath(path)}.')
    with open(path, 'rb') as file:
        start = file.read(9)
    # Behind the length of its header, in eight bytes, a safetensors file goes on with JSON.
    load = _safetensors_loader(path) if start[8:] == b'{' else _load_torch
    try:
        content = load(path)
    except Exception as error:
        # What is raised depends on the byte at which a file ends.
        unknown = re.search(r'GLOBAL (\S+)', str(error))
        if unknown:
            raise ValueError(
                f'{path} holds an object of {unknown.group(1)}. Creating it could run any code, so '
                'nothing but tensors and plain data is read. If you trust the file, save its '
                "'state_dict' alone: torch.save(torch.load(path, weights_only=False)"
                "['state_dict'], new_path)."
            ) from None
        reason = (str(error).splitlines() or [''])[0]
        raise ValueError(
            f'{path} cannot be read: it is no file of weights, or was cut off when it was written '
            f'or copied ({type(error).__name__}: {reason}). Take another one.'
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f'{path} holds a {type(content).__name__}, not a dict of weights.')
    return content


def _load_torch(path: str | os.PathLike) -> Any:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location='cpu', weights_only=True)


def _safetensors_loader(path: str | os.PathLike) -> Callable[[str | os.PathLike], Any]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise RuntimeError(
            f'{path} is a safetensors file: pip install safetensors, or take a .pth file.'
        ) from error
    return load_file
