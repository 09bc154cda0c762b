"""Checkpoint files of folded models."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

import mmgnv3


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
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = {**(meta or {}), 'deployed': True, 'mmgnv3_version': mmgnv3.__version__}
    state_dict = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        torch.save(dict(meta=meta, state_dict=state_dict), temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def is_deployed_checkpoint(path: str | os.PathLike) -> bool:
    """Whether a file was written by :func:`save_deployed`.

    Args:
        path: A checkpoint file on this machine.

    Returns:
        False for every other checkpoint, also for those that hold more than plain data.
    """
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    except Exception:
        # Anything that does not load as plain data, mmengine's own checkpoints included, is not
        # one of ours; whether it is a checkpoint at all is for its loader to say.
        return False
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    return isinstance(meta, dict) and meta.get('deployed') is True
