"""Make ``.venv`` and fill it with the default stack, with the Python that runs this file.

The work is cut into numbered steps. A finished step leaves a stamp that holds a hash of what it
depends on: a later call goes on with the first step that is new, out of date or was interrupted.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from itertools import dropwhile
from pathlib import Path
from typing import NamedTuple

OLDEST, NEWEST = (3, 10), (3, 12)


def unsupported_python(version: tuple) -> str:
    """Say why a Python cannot be used.

    Args:
        version (tuple): As ``sys.version_info``.

    Returns:
        str: The message; empty where the version is supported.
    """
    if OLDEST <= tuple(version[:2]) <= NEWEST:
        return ''
    return (
        f'set-up: unsupported Python {version[0]}.{version[1]} ({sys.executable}); name one from '
        f'{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}, e.g. make test PYTHON=python3.11'
    )


# Here and not in main(): an old Python gets this far, but trips over the annotations below. That is
# also why this file keeps to syntax that Python 3.6 can parse.
if unsupported_python(sys.version_info):
    sys.exit(unsupported_python(sys.version_info))

HEARTBEAT = 60  # seconds between two signs of life of a long step
DISK_SPACE = 12e9  # bytes: 9 GB stay, downloads lie beside the first of them for a while

# What pip's output says about a failure -> cause, remedy. The first match counts.
KNOWN_FAILURES = (
    (r'No space left on device', 'the disk is full', 'free about 12 GB and run again'),
    (
        r'Killed signal terminated program|[Cc]annot allocate memory|MemoryError',
        'the memory ran out',
        'compile fewer files at a time: MAX_JOBS=1 make env',
    ),
    (
        r'detected CUDA version .* mismatches',
        'the CUDA toolkit found here does not fit torch',
        'install the one torch was built with, or leave CUDA out: CUDA_VISIBLE_DEVICES= make env',
    ),
    (
        r'NewConnectionError|NameResolutionError|Temporary failure in name resolution'
        r'|Name or service not known|Network is unreachable|Max retries exceeded|ProxyError'
        r'|ConnectTimeoutError|ReadTimeoutError|Connection broken|SSLError',
        'no network, or the package index does not answer',
        'check the connection and the proxy, then run again',
    ),
    (
        r'(?:No matching distribution found for|Could not find a version that satisfies the '
        r'requirement) (\S+)',
        'the package index does not offer {}',
        'check the network and which index pip is told to use (pip config list), then run again',
    ),
)


class SetupError(Exception):
    """The set-up cannot go on.

    Args:
        cause (str): What is wrong.
        remedy (str): What the user can do about it.
    """

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(f'{cause}; {remedy}')


class Step(NamedTuple):
    """One stage of the set-up.

    Attributes:
        name: Names the stamp.
        title: What is announced, duration included.
        inputs: What the result depends on, beside the interpreter and the earlier steps.
        action: Does the work; may be repeated after an interruption.
    """

    name: str
    title: str
    inputs: list[str]
    action: Callable[[], None]


def say(line: str) -> None:
    """Print a line at once, whatever the output is connected to."""
    print(line, flush=True)


def read_requirements(path: Path) -> dict[str, str]:
    """Read a requirements file.

    Args:
        path (Path): The file.

    Returns:
        dict[str, str]: Distribution name -> its requirement line.
    """
    lines = (line.partition('#')[0].strip() for line in path.read_text().splitlines())
    return {re.split(r'[=<>!~ ]', line)[0]: line for line in lines if line}


def explain(output: str) -> SetupError:
    """Turn the output of a failed command into a message.

    Args:
        output (str): What the command wrote.

    Returns:
        SetupError: A known cause with its remedy, or the last line of the output.
    """
    for pattern, cause, remedy in KNOWN_FAILURES:
        found = re.search(pattern, output)
        if found:
            return SetupError(cause.format(*found.groups()), remedy)
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    # pip ends with hints; what happened stands in its last ERROR line.
    errors = [line for line in lines if line.lower().startswith('error')]
    return SetupError((errors or lines or ['it failed without a word'])[-1], 'see the log')


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends.

    A pip that outlives a killed set-up would still write to ``.venv`` when the next one begins.
    """
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


class Setup:
    """Brings the environment of one checkout up to date.

    Args:
        root (Path): The checkout.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.version = '{}.{}'.format(*sys.version_info)
        self.venv = root / '.venv'
        self.python = self.venv / 'bin' / 'python'
        self.log = self.venv / 'setup.log'
        self.stamps = self.venv / '.setup'
        self.cache = root / '.cache'
        self.downloads = self.cache / 'tmp'
        # Lies outside .venv, which is emptied when it is made.
        self.venv_unfinished = self.cache / 'venv-unfinished'
        self.stack = root / 'requirements' / 'onedl.txt'
        self.pins = read_requirements(self.stack)

    def run(self) -> None:
        """Do all steps that are not done yet.

        Raises:
            SetupError: A step cannot be done.
        """
        with self.locked():
            fault = self.venv_fault()
            steps = self.steps()
            pending = steps if fault else list(dropwhile(self.is_done, steps))
            if not pending:
                return
            self.check_machine(new_venv=bool(fault), pending={step.name for step in pending})
            shutil.rmtree(self.downloads, ignore_errors=True)
            self.downloads.mkdir(exist_ok=True)
            say(f'set-up: filling .venv with Python {self.version}; details in {self.log}')
            if fault:
                say(f'[1/{len(steps) + 1}] virtual environment, some 10 s: {fault}')
                self.make_venv()
            self.stamps.mkdir(exist_ok=True)
            # What follows a step builds on it, and is out of date with it.
            for step in pending:
                (self.stamps / step.name).unlink(missing_ok=True)
            for number, step in enumerate(steps, start=2):
                if step in pending:
                    say(f'[{number}/{len(steps) + 1}] {step.title}')
                    step.action()
                    (self.stamps / step.name).write_text(self.key(step))
            say('set-up: complete')

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second set-up of this checkout waiting."""
        self.cache.mkdir(exist_ok=True)
        with (self.cache / 'setup.lock').open('w') as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say('set-up: another one is at work in this checkout; waiting for it')
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def steps(self) -> list[Step]:
        """List the steps after the making of ``.venv``, in order."""
        stack = dict(self.pins)
        torch = [stack.pop(name) for name in ('torch', 'torchvision', 'numpy')]
        mmcv = stack.pop('onedl-mmcv')
        rest = list(stack.values())
        build = list(read_requirements(self.root / 'requirements' / 'build.txt').values())
        dev = list(read_requirements(self.root / 'requirements' / 'dev.txt').values())
        metadata = (self.root / 'setup.py').read_text()
        return [
            Step('build', 'build tools, some 10 s', build, lambda: self.install(*build)),
            Step('torch', 'torch, about 2 min and 7 GB', torch, lambda: self.install(*torch)),
            Step('mmcv', 'mmcv, 6 to 16 min on two cores if not compiled yet', [mmcv], self.mmcv),
            Step(
                'stack', 'mmdet, mmpretrain, mim, about 1 min', rest, lambda: self.libraries(rest)
            ),
            Step(
                'package',
                'mmgnv3 and what checks it, some 10 s',
                # An editable install knows the checkout by its path.
                [str(self.root), metadata, *dev],
                lambda: self.package(dev),
            ),
            Step('import', 'importing everything once, some 20 s', [], self.try_imports),
        ]

    def key(self, step: Step) -> str:
        """Compute what the stamp of a finished step holds: a hash of all that it depends on."""
        return hashlib.sha256(repr((self.version, step.inputs)).encode()).hexdigest()

    def is_done(self, step: Step) -> bool:
        """Tell whether the stamp of a step is there and up to date."""
        stamp = self.stamps / step.name
        return stamp.is_file() and stamp.read_text() == self.key(step)

    def venv_fault(self) -> str:
        """Say why ``.venv`` has to be made anew; empty where it can stay."""
        if not self.venv.exists():
            return 'there is none yet'
        made_by = [path.name[len('python') :] for path in self.venv.glob('lib/python3.*')]
        if made_by and self.version not in made_by:
            return f'the old one is of Python {made_by[0]} and makes way'
        has_pip = (
            self.venv / 'lib' / f'python{self.version}' / 'site-packages' / 'pip' / '__main__.py'
        )
        if self.venv_unfinished.exists() or not os.access(self.python, os.X_OK):
            return 'the old one is only half there and makes way'
        if not has_pip.is_file():
            return 'the old one has no pip and makes way'
        return ''

    def check_machine(self, *, new_venv: bool, pending: set[str]) -> None:
        """Find what would make the set-up fail before anything is downloaded.

        Args:
            new_venv (bool): Whether ``.venv`` will be made.
            pending (set[str]): Names of the steps that will be done.

        Raises:
            SetupError: Something is missing.
        """
        machine = (platform.python_implementation(), platform.system(), platform.machine())
        libc = platform.libc_ver()[0]
        if (*machine, libc) != ('CPython', 'Linux', 'x86_64', 'glibc'):
            raise SetupError(
                f'unsupported platform ({", ".join(machine)}, {libc or "another libc than glibc"})',
                'the binaries of the default stack are for CPython on x86_64 Linux with glibc',
            )
        if new_venv and not importlib.util.find_spec('ensurepip'):
            raise SetupError(
                f'{sys.executable} lacks the modules venv and ensurepip',
                f'install them (Debian, Ubuntu: apt install python{self.version}-venv)',
            )
        if 'mmcv' in pending and not self.find_mmcv_wheel():
            missing = [name for name in ('gcc', 'g++') if not shutil.which(name)]
            if missing:
                raise SetupError(
                    f'no {" and no ".join(missing)}, which mmcv is compiled with',
                    'install them (Debian, Ubuntu: apt install gcc g++)',
                )
            header = Path(sysconfig.get_path('include'), 'Python.h')
            if not header.is_file():
                raise SetupError(
                    f'no {header}, which mmcv is compiled with',
                    f'install it (Debian, Ubuntu: apt install python{self.version}-dev)',
                )
        free = shutil.disk_usage(self.root).free
        if 'torch' in pending and free < DISK_SPACE:
            raise SetupError(
                f'{free / 1e9:.1f} GB are free at {self.root}, {DISK_SPACE / 1e9:.0f} are needed',
                'free some space, or move the checkout to another disk',
            )

    def make_venv(self) -> None:
        """Make ``.venv``, in place of one that may be there.

        Raises:
            SetupError: Python's venv module fails.
        """
        import venv  # Some distributions leave it out: check_machine has a message for that.

        self.venv_unfinished.touch()
        try:
            venv.create(self.venv, clear=True, symlinks=True, with_pip=True)
        except subprocess.CalledProcessError as error:
            self.log.write_bytes(error.output or b'')
            raise explain((error.output or b'').decode(errors='replace')) from error
        self.venv_unfinished.unlink()

    def execute(self, *command: str, **variables: str) -> None:
        """Run a command with ``.venv`` active, its output in the log.

        Args:
            *command (str): Arguments of ``.venv``'s Python.
            **variables (str): Additional environment variables.

        Raises:
            SetupError: It fails.
        """
        foreign = ('PYTHONHOME', 'PYTHONPATH')
        environment = {name: value for name, value in os.environ.items() if name not in foreign}
        environment.update(
            VIRTUAL_ENV=str(self.venv),
            # torch looks for ninja here, and compiles on one core if it finds none.
            PATH=os.pathsep.join([str(self.python.parent), os.environ.get('PATH', os.defpath)]),
            # The downloads take 4 GB, and /tmp is often small. What a killed run leaves goes too.
            TMPDIR=str(self.downloads),
            PIP_DISABLE_PIP_VERSION_CHECK='1',
            PIP_NO_INPUT='1',
            PIP_PROGRESS_BAR='off',
            PIP_USER='0',
            **variables,
        )
        with self.log.open('ab') as log:
            log.write(f'$ python {" ".join(command)}\n'.encode())
            log.flush()
            start = log.tell()
            process = subprocess.Popen(
                [str(self.python), *command],
                cwd=self.root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )
            minutes = 0
            while True:
                try:
                    code = process.wait(timeout=HEARTBEAT)
                    break
                except subprocess.TimeoutExpired:
                    minutes += 1
                    say(f'    still at it after {minutes} min')
        if code:
            output = self.log.read_bytes()[start:].decode(errors='replace')
            raise explain(output if code > 0 else f'{output}\nit was ended by signal {-code}')

    def install(self, *requirements: str) -> None:
        """Install requirements, with nothing moved away from the pins."""
        self.execute(
            *('-m', 'pip', 'install', '--no-build-isolation', '-c', str(self.stack), *requirements)
        )

    def find_mmcv_wheel(self) -> 'Path | None':
        """Find the compiled mmcv for this Python, torch and pin; None where there is none."""
        version = self.pins['onedl-mmcv'].partition('==')[2]
        wheels = self.mmcv_wheels().glob(f'onedl_mmcv-{version}-*linux_x86_64.whl')
        return next(wheels, None)

    def mmcv_wheels(self) -> Path:
        """Name the folder of the wheels built against this torch and this Python."""
        torch = self.pins['torch'].replace('==', '-')
        return self.cache / 'wheels' / f'{torch}-cp{self.version.replace(".", "")}'

    def mmcv(self) -> None:
        """Compile mmcv, unless that was done before, and install it."""
        if not self.find_mmcv_wheel():
            # Without a compiler for CUDA, mmcv's build fails where torch sees a GPU.
            homes = [os.environ.get('CUDA_HOME', ''), '/usr/local/cuda']
            places = [os.environ.get('PATH', os.defpath), *(f'{home}/bin' for home in homes)]
            nvcc = shutil.which('nvcc', path=os.pathsep.join(places))
            variables = {} if nvcc else {'CUDA_VISIBLE_DEVICES': ''}
            with tempfile.TemporaryDirectory(dir=self.downloads) as folder:
                # No cache of pip's: it would hand out a wheel that was built against another torch.
                self.execute(
                    *('-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '--no-cache-dir'),
                    *('-w', folder, self.pins['onedl-mmcv']),
                    MMCV_WITH_OPS='1',
                    **variables,
                )
                self.mmcv_wheels().mkdir(parents=True, exist_ok=True)
                for wheel in Path(folder).iterdir():
                    wheel.replace(self.mmcv_wheels() / wheel.name)
        wheel = self.find_mmcv_wheel()
        if not wheel:
            raise SetupError('mmcv was built without its compiled operators', 'see the log')
        self.install(str(wheel))

    def libraries(self, requirements: list[str]) -> None:
        """Install the rest of the stack."""
        self.install(*requirements)
        # Both builds of cv2 are asked for, and write to the same folder. Let the headless one have
        # the last word: the other cannot be imported without libGL.so.1, which servers lack.
        self.execute(
            *('-m', 'pip', 'install', '--no-deps', '--force-reinstall'),
            self.pins['opencv-python-headless'],
        )

    def package(self, requirements: list[str]) -> None:
        """Install this checkout, editable, and the tools of its checks."""
        self.install('--no-deps', '-e', '.')
        self.install(*requirements)

    def try_imports(self) -> None:
        """Import what has been installed.

        Raises:
            SetupError: Something cannot be imported.
        """
        try:
            self.execute(
                '-c', 'import torch, torchvision, mmcv.ops, mmdet, mmpretrain, cv2, mmgnv3.models'
            )
        except SetupError as error:
            raise SetupError(
                f'what was installed does not work ({error})', 'remove .venv and run again'
            ) from error


def main() -> None:
    """Bring the environment of this checkout up to date, or say in one line why not."""
    setup = Setup(Path(__file__).resolve().parent.parent)
    try:
        setup.run()
    except SetupError as error:
        log = f' (log: {setup.log})' if setup.log.exists() else ''
        sys.exit(f'set-up: {error}{log}')
    except OSError as error:
        sys.exit(f'set-up: {error}')
    except KeyboardInterrupt:
        sys.exit('set-up: interrupted; run again to go on')


if __name__ == '__main__':
    main()
