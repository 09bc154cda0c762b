"""The C++ code of this package, compiled where it runs and kept.

Nothing but a C++ compiler is needed, neither torch's headers nor Python's, so that it takes some
seconds, once on every kind of machine. Without one the package computes the same with PyTorch's
operators.
"""

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from mmengine.logging import print_log

SOURCES = Path(__file__).with_name('csrc')

# The vectors have the width that this machine's processor has; threads are those of torch.
FLAGS = ('-std=c++17', '-O3', '-march=native', '-fopenmp', '-fPIC', '-shared', '-Wno-psabi')

SWITCH = 'MMGNV3_COMPILED_OPS'
"""Environment variable that keeps the package from compiling if it is 0."""


@cache
def load_library() -> ctypes.CDLL | None:
    """Load the compiled code, and compile it before if that was not done on such a machine.

    The result is kept in ``~/.cache/mmgnv3`` (``$XDG_CACHE_HOME/mmgnv3`` if that is set). ``CXX``
    names the compiler; otherwise the first of c++, g++ and clang++ is taken.

    Returns:
        The library, or None where there is none: on other systems than Linux, without a compiler,
        if compiling fails (which is warned of), or if ``MMGNV3_COMPILED_OPS`` is 0.
    """
    if sys.platform != 'linux' or os.environ.get(SWITCH) == '0':
        return None
    try:
        path = _cache_folder() / f'depthwise_branches_{_digest()}.so'
        if not path.exists():
            compiler = _find_compiler()
            if compiler is None:
                print_log(
                    'There is no C++ compiler: units with branches are computed with the operators '
                    'of PyTorch, which takes longer on CPUs. Install g++, or name a compiler in '
                    'the environment variable CXX.',
                    'current',
                )
                return None
            print_log(f'Compiling the operators of mmgnv3, once, for {path}', 'current')
            _compile(compiler, path)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError) as error:
        print_log(
            f'The operators of mmgnv3 cannot be compiled or loaded, and those of PyTorch, slower '
            f'on CPUs, are used instead ({SWITCH}=0 in the environment stops the attempt): {error}',
            'current',
            logging.WARNING,
        )
        return None


def _cache_folder() -> Path:
    """Folder that belongs to the user alone: what lies in it is run."""
    root = os.environ.get('XDG_CACHE_HOME')
    return (Path(root) if root else Path.home() / '.cache') / 'mmgnv3'


def _digest() -> str:
    """What the compiled code depends on: sources, flags, and what this processor can do."""
    digest = hashlib.sha256(' '.join(FLAGS).encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.read_bytes())
    with open('/proc/cpuinfo', encoding='utf-8') as lines:
        # The first processor's; x86 names its instructions in one field and ARM in another.
        found = [line for line in lines if line.startswith(('flags', 'Features'))]
    digest.update(''.join(found[:1]).encode())
    return digest.hexdigest()[:16]


def _find_compiler() -> str | None:
    names = (os.environ.get('CXX'), 'c++', 'g++', 'clang++')
    return next((path for path in map(shutil.which, filter(None, names)) if path), None)


def _compile(compiler: str, path: Path) -> None:
    """Compile the sources into a file that appears when it is complete.

    Raises:
        RuntimeError: If the compiler fails, with the beginning of what it says.
        OSError: If the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes of one training run compile at the same time, each into a folder of its own.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix='.tmp.') as folder:
        result = Path(folder, path.name)
        done = subprocess.run(
            [compiler, *FLAGS, *map(str, sorted(SOURCES.glob('*.cpp'))), '-o', str(result)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f'{compiler} failed: {done.stderr.strip()[:500]}')
        os.replace(result, path)
