"""The C++ code of this package, compiled where it runs and kept.

Nothing but a C++ compiler is needed, neither torch's headers nor Python's, so that it takes some
seconds, once on every kind of machine. Without one the package computes the same with PyTorch's
operators.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from mmengine.logging import print_log

from mmgnv3.utils.machine import cpu_info

SOURCES = Path(__file__).with_name('csrc')

# The vectors have the width that this machine's processor has; threads are those of torch.
FLAGS = ('-std=c++17', '-O3', '-march=native', '-fopenmp', '-fPIC', '-shared', '-Wno-psabi')

TIMEOUT = 300
"""Seconds that compiling may take; it takes about ten."""

SWITCH = 'MMGNV3_COMPILED_OPS'
"""Environment variable that keeps the package from compiling if it is 0."""


@cache
def load_library() -> ctypes.CDLL | None:
    """Load the compiled code, and compile it before if that was not done on such a machine.

    The result is kept in ``~/.cache/mmgnv3`` (``$XDG_CACHE_HOME/mmgnv3`` if that is set). ``CXX``
    names the compiler, with arguments if it needs some; otherwise the first of c++, g++ and clang++
    is taken.

    Returns:
        The library, or None where there is none: on other systems than Linux, without a compiler,
        if compiling fails (which is warned of), or if ``MMGNV3_COMPILED_OPS`` is 0.
    """
    if sys.platform != 'linux' or os.environ.get(SWITCH) == '0':
        return None
    try:
        path = _cache_folder() / f'depthwise_branches_{_digest()}.so'
        if path.exists():
            try:
                return _open(path)
            except OSError:
                # Not by this machine's compiler or C library, if not damaged: made again below.
                path.unlink(missing_ok=True)
        compiler = _find_compiler()
        if compiler is None:
            print_log(
                'There is no C++ compiler: units with branches are computed with the operators of '
                'PyTorch, which takes longer on CPUs. Install g++, or name a compiler in the '
                'environment variable CXX.',
                'current',
            )
            return None
        print_log(f'Compiling the operators of mmgnv3, once, for {path}', 'current')
        return _compile(compiler, path)
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        print_log(
            f'The operators of mmgnv3 cannot be compiled or loaded, and those of PyTorch, slower '
            f'on CPUs, are used instead ({SWITCH}=0 in the environment stops the attempt): {error}',
            'current',
            logging.WARNING,
        )
        return None


def _cache_folder() -> Path:
    """Folder in which compiled code is kept."""
    root = os.environ.get('XDG_CACHE_HOME')
    return (Path(root) if root else Path.home() / '.cache') / 'mmgnv3'


def _digest() -> str:
    """What the compiled code depends on: sources, flags, and what this processor can do."""
    digest = hashlib.sha256(' '.join(FLAGS).encode())
    for path in sorted(path for path in SOURCES.iterdir() if path.suffix in ('.cpp', '.h')):
        digest.update(path.read_bytes())
    # x86 names its instructions in one field and ARM in another.
    machine = platform.machine(), *platform.libc_ver(), cpu_info('flags', 'Features')
    digest.update(' '.join(machine).encode())
    return digest.hexdigest()[:16]


def _open(path: Path) -> ctypes.CDLL:
    """Load a library that nobody else can have written: what lies in the cache is run.

    Raises:
        RuntimeError: If somebody else can have.
        OSError: If it cannot be loaded.
    """
    for place in (path, path.parent):
        status = place.stat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise RuntimeError(
                f'{place} belongs to, or can be written by, others than this user; remove it, or '
                'name another folder in XDG_CACHE_HOME'
            )
    return ctypes.CDLL(str(path))


def _find_compiler() -> list[str] | None:
    """Command of the compiler, None if there is none.

    Raises:
        RuntimeError: If ``CXX`` names one that does not exist.
    """
    if named := shlex.split(os.environ.get('CXX', '')):
        if shutil.which(named[0]) is None:
            raise RuntimeError(
                f'there is no compiler {named[0]}, which CXX in the environment names'
            )
        return named
    found = filter(None, map(shutil.which, ('c++', 'g++', 'clang++')))
    return next(([path] for path in found), None)


def _compile(compiler: list[str], path: Path) -> ctypes.CDLL:
    """Compile the sources, load the result, and put it where it is found next time.

    Raises:
        RuntimeError: If the compiler fails, with the beginning of what it says.
        OSError: If the file cannot be written or loaded.
        subprocess.TimeoutExpired: If the compiler takes longer than ``TIMEOUT``.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Processes of one training run compile at the same time, each into a folder of its own.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix='.tmp.') as folder:
        result = Path(folder, path.name)
        done = subprocess.run(
            [*compiler, *FLAGS, *map(str, sorted(SOURCES.glob('*.cpp'))), '-o', str(result)],
            capture_output=True,
            text=True,
            errors='replace',
            timeout=TIMEOUT,
        )
        if done.returncode:
            raise RuntimeError(f'{shlex.join(compiler)} failed: {done.stderr.strip()[:500]}')
        result.chmod(0o700)
        ctypes.CDLL(str(result))
        os.replace(result, path)
    return _open(path)
