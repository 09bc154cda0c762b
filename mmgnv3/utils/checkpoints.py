"""Opening checkpoints, anybody's, without running anything that is in them."""

import argparse
import os
import re
from collections.abc import Callable
from http.client import HTTPException
from pickle import UnpicklingError
from types import FunctionType
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from filelock import FileLock
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader

import mmgnv3.registry  # noqa: F401  (it makes ghostnetv3:// known to mmengine's loader)


def read_checkpoint(filename: str | os.PathLike, label: str | None = None) -> dict[str, Any]:
    """Read a checkpoint to the CPU.

    Only tensors, plain data and what :func:`_harmless` lists are read: enough for whole training
    checkpoints of mmengine and for the files of the reference code and timm.

    Args:
        filename: A file of ``torch.save`` or of safetensors, whatever its name ends with; an
            ``http(s)://`` URL of one, which is fetched into torch's hub cache once, as mmengine
            does; or another address that mmengine's checkpoint loader knows, such as
            ``ghostnetv3://1.0x`` or ``s3://``, whose loader decides what it reads.
        label: What messages call it, such as ``'The checkpoint a.pth of the teacher'``. None: its
            name.

    Returns:
        What was saved, as it is.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it cannot be downloaded.
        RuntimeError: If torch is older than 2.5, or safetensors is needed and not installed.
        ValueError: If it is no checkpoint or only a part of one, or holds another class.
    """
    if not hasattr(torch.serialization, 'safe_globals'):
        raise RuntimeError(
            f'Opening checkpoints safely needs torch 2.5; this is torch {torch.__version__}.'
        )
    filename = os.fspath(filename)
    missing = f'{label} is missing: there' if label else 'There'
    label = label or filename
    if filename.startswith(('http://', 'https://')):
        path = _fetch(filename, label)
        # A connection that breaks leaves a part of a file, which has to be found to be removed.
        content = _read_file(path, f'{label} (in {path})')
    elif '://' in filename:
        content = _read_address(filename, label)
    else:
        path = os.path.expanduser(filename)
        if not os.path.isfile(path):
            raise FileNotFoundError(f'{missing} is no checkpoint {os.path.abspath(path)}.')
        content = _read_file(path, label)
    if not isinstance(content, dict):
        raise ValueError(f'{label} is no checkpoint: it holds a {type(content).__name__}.')
    return content


def _read_file(path: str, label: str) -> Any:
    with open(path, 'rb') as file:
        start = file.read(9)
    # Behind the length of its header, in eight bytes, a safetensors file goes on with JSON.
    load = _safetensors_loader(label) if start[8:] == b'{' else _load_torch
    try:
        return load(path)
    except Exception as error:
        raise _unreadable(error, label) from error


def _read_address(address: str, label: str) -> Any:
    try:
        with torch.serialization.safe_globals(_harmless()):
            return CheckpointLoader.load_checkpoint(address, map_location='cpu', logger='silent')
    except (OSError, ValueError):
        # Loaders of addresses say themselves what is wrong.
        raise
    except Exception as error:
        raise _unreadable(error, label) from error


def _fetch(url: str, label: str) -> str:
    """Download a file to where mmengine's loader, which a run asks later, looks for it."""
    name = os.path.basename(urlparse(url).path)
    path = os.path.join(torch.hub.get_dir(), 'checkpoints', name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    # The processes of a distributed run come here at once.
    with FileLock(f'{path}.lock'):
        if not os.path.isfile(path):
            try:
                torch.hub.download_url_to_file(url, path, progress=False)
            except (OSError, HTTPException) as error:
                raise OSError(f'{label} cannot be downloaded ({error}).') from error
    return path


def _load_torch(path: str) -> Any:
    with torch.serialization.safe_globals(_harmless()):
        return torch.load(path, map_location='cpu', weights_only=True)


def _safetensors_loader(label: str) -> Callable[[str], Any]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise RuntimeError(
            f'{label} is a safetensors file: pip install safetensors, or take a .pth file.'
        ) from error
    return load_file


def _unreadable(error: Exception, label: str) -> ValueError:
    """Say why a file cannot be read. What is raised depends on the byte at which it ends."""
    unknown = re.search(r'GLOBAL (\S+)', str(error))
    if unknown:
        return ValueError(
            f'{label} holds an object of {unknown.group(1)}. Creating it could run any code, so '
            'nothing but tensors and plain data is read. If you trust the file, save its '
            "'state_dict' alone: torch.save(torch.load(path, weights_only=False)"
            "['state_dict'], new_path). To resume from it, allow the class in a module of the "
            "config's custom_imports: torch.serialization.add_safe_globals([TheClass])."
        )
    reason = type(error).__name__
    # What torch says of a file that is no pickle is advice to open it without this check.
    if str(error) and not isinstance(error, UnpicklingError):
        reason += f': {str(error).splitlines()[0]}'
    return ValueError(
        f'{label} cannot be read: it is no checkpoint, or was cut off when it was written or '
        f'copied ({reason}). Take another one.'
    )


def _harmless() -> list[Callable]:
    """What checkpoints hold beside tensors and plain data, and may.

    - The training script behind the reference code saves its arguments, a Namespace.
    - mmengine's message hub has histories, whose numbers are NumPy's and which name their methods;
      its one-cycle schedule names its function. Both become calls of ``getattr``.
    - Metadata of data sets may be a part of a config.
    """
    numbers = '?' + np.typecodes['AllInteger'] + np.typecodes['AllFloat'] + 'SU'
    return [
        argparse.Namespace,
        ConfigDict,
        HistoryBuffer,
        OneCycleParamScheduler,
        np.ndarray,
        np.dtype,
        *{type(np.dtype(code)) for code in numbers},
        # NumPy 2 moved them, and a file has the name of the NumPy that wrote it.
        *(
            _known_as(f'numpy.{core}.multiarray.{function.__name__}', function)
            for core in ('core', '_core')
            for function in (np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0])
        ),
        _known_as('builtins.getattr', _get_method),
    ]


def _get_method(owner: Any, name: str) -> Callable:
    """Stand in for ``getattr``, which in full would lead to everything that is loaded."""
    known = {
        HistoryBuffer: ('min', 'max', 'mean', 'current'),
        OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
    }
    if not isinstance(owner, type) or name not in known.get(owner, ()):
        raise UnpicklingError(f'GLOBAL {getattr(owner, "__qualname__", owner)}.{name}')
    return getattr(owner, name)


def _known_as(path: str, function: Callable) -> FunctionType:
    """Give torch's list of safe names a function under the name that files have for it."""

    def call(*args: Any) -> Any:
        return function(*args)

    call.__module__, _, call.__name__ = path.rpartition('.')
    call.__qualname__ = call.__name__
    return call
