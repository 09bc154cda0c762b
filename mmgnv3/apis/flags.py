"""Checks of command line flags, made before anything is read or written."""

import os
from pathlib import Path

from mmengine.device import get_device

_OUT_SUFFIXES = dict(
    pred=('.pkl', '.pickle'), metrics=('.json', '.yaml', '.yml', '.pkl', '.pickle')
)
# What starts the processes of a launcher, and a variable that it gives to each.
_LAUNCHERS = dict(
    pytorch=('torchrun', 'RANK'),
    slurm=('srun', 'SLURM_PROCID'),
    mpi=('mpirun', 'OMPI_COMM_WORLD_LOCAL_RANK'),
)


def check_amp() -> None:
    """Check that there is a device for mixed precision.

    Raises:
        ValueError: If there is none.
    """
    if get_device() == 'cpu':
        raise ValueError('--amp needs a GPU: on a CPU, mixed precision is not done.')


def check_launcher(launcher: str) -> None:
    """Check that this process was started by what the launcher stands for.

    Args:
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.

    Raises:
        ValueError: If it was not.
    """
    starter, variable = _LAUNCHERS.get(launcher, ('', ''))
    if variable and variable not in os.environ:
        raise ValueError(
            f'--launcher {launcher} is for processes that {starter} has started, and {variable} is '
            f'not set. Start them by {starter}, or leave the flag out for a single process.'
        )


def check_out(out: str | None, item: str | None) -> None:
    """Check that results can be written.

    Args:
        out: File to write to.
        item: ``'pred'``, the default, or ``'metrics'``.

    Raises:
        ValueError: If the name does not fit what is written, or its folder cannot be written to.
    """
    if not out:
        if item:
            raise ValueError('--out-item says what to write; --out must say where to.')
        return
    item = item or 'pred'
    if not out.endswith(_OUT_SUFFIXES[item]):
        raise ValueError(
            f'--out {out}: {item} are written to a file that ends in '
            f'{" or ".join(_OUT_SUFFIXES[item])}.'
        )
    path = Path(out).absolute()
    # Folders that are missing are made.
    folder = next(parent for parent in path.parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(
            f'--out {out}: no file can be written there. Name one in a folder that is there and '
            'can be written to, or is yet to be made.'
        )
