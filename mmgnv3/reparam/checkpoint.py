"""Checkpoint files of folded models."""

import os
from typing import Any

import torch
from torch import nn

import mmgnv3
from mmgnv3.utils.files import replacing

# Of the metadata of a checkpoint, what still holds for its deployed form.
_KEPT_META = ('dataset_meta', 'epoch', 'iter', 'cfg')


def save_deployed(
    model: nn.Module, path: str | os.PathLike, meta: dict[str, Any] | None = None
) -> None:
    """Write the weights of a folded model.

    The file holds tensors and plain metadata only, so that ``torch.load(weights_only=True)`` reads
    it. It appears under its name when it is complete.

    Args:
        model: The folded model, see :func:`mmgnv3.reparam.fold`.
        path: File to write; its folder is created.
        meta: More metadata: numbers, strings and containers of them.
    """
    meta = {**(meta or {}), 'deployed': True, 'mmgnv3_version': mmgnv3.__version__}
    state_dict = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    with replacing(path) as temporary:
        torch.save(dict(meta=meta, state_dict=state_dict), temporary)


def deployed_meta(meta: dict[str, Any]) -> dict[str, Any]:
    """Of the metadata of a training checkpoint, what is plain and holds for its folded form.

    Args:
        meta: What mmengine saves under ``meta``.

    Returns:
        What ``torch.load(weights_only=True)`` reads without help, at any depth of dicts.
    """
    return _plain({key: meta.get(key) for key in _KEPT_META})


def _plain(values: dict) -> dict:
    values = {key: _plain(v) if isinstance(v, dict) else v for key, v in values.items()}
    return {key: value for key, value in values.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    # The very types: NumPy's float64 is a float too.
    return type(value) in (str, int, float, bool)


def is_deployed_checkpoint(checkpoint: Any) -> bool:
    """Whether a checkpoint holds a folded network, as :func:`save_deployed` writes it.

    Args:
        checkpoint: Its content, see :func:`mmgnv3.utils.checkpoints.read_checkpoint`.

    Returns:
        False for every other checkpoint.
    """
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    return isinstance(meta, dict) and meta.get('deployed') is True
