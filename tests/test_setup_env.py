"""Tests of the set-up. All is real but the Python in .venv, a script that notes its calls."""

import ast
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / 'tools' / 'setup_env.py'
VERSION = f'{sys.version_info.major}.{sys.version_info.minor}'

spec = importlib.util.spec_from_file_location('setup_env', SCRIPT)
setup_env = importlib.util.module_from_spec(spec)
spec.loader.exec_module(setup_env)

# Notes its arguments, has the trouble that a test asks for, and "compiles" an empty wheel.
FAKE_PYTHON = """\
#!/bin/sh
echo "$*" >> "$CALLS"
case "$*" in *"$TROUBLE_AT"*) eval "$TROUBLE";; esac
case "$*" in *"pip wheel"*)
    while [ "$1" != -w ]; do shift; done
    : > "$2/onedl_mmcv-${3#*==}-cp-cp-linux_x86_64.whl"
esac
"""

# A part of each command, in the order of a complete set-up, and the step it belongs to.
COMMANDS = [
    ('setuptools==', 'build'),
    ('torch==', 'torch'),
    ('pip wheel', 'mmcv'),
    ('_x86_64.whl', 'mmcv'),
    ('onedl-mmdetection==', 'stack'),
    ('--force-reinstall opencv-python-headless==', 'stack'),
    ('-e .', 'package'),
    ('pytest==', 'package'),
    ('import torch', 'import'),
]
STEPS = list(dict.fromkeys(step for _, step in COMMANDS))


def write_program(path, text='#!/bin/sh\n'):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class Checkout:
    """A checkout with a .venv whose Python is fake, and compilers that are fake too."""

    def __init__(self, root, monkeypatch):
        self.root = root
        self.venv = root / '.venv'
        self.calls_file = root / 'calls'
        shutil.copytree(ROOT / 'requirements', root / 'requirements')
        (root / 'setup.py').touch()
        self.make_venv()
        for name in ('gcc', 'g++'):
            write_program(root / 'programs' / name)
        monkeypatch.setenv('PATH', str(root / 'programs'))
        monkeypatch.setenv('CALLS', str(self.calls_file))
        self.monkeypatch = monkeypatch
        self.trouble()

    def make_venv(self, version=VERSION):
        write_program(self.venv / 'bin' / 'python', FAKE_PYTHON)
        pip = self.venv / 'lib' / f'python{version}' / 'site-packages' / 'pip' / '__main__.py'
        pip.parent.mkdir(parents=True)
        pip.touch()

    def trouble(self, at='never', what=''):
        """Let the commands that contain ``at`` begin with the shell code ``what``."""
        self.monkeypatch.setenv('TROUBLE_AT', at)
        self.monkeypatch.setenv('TROUBLE', what)

    def run(self):
        """Run the set-up here and return the fake Python's calls."""
        self.calls_file.unlink(missing_ok=True)
        setup_env.Setup(self.root).run()
        return self.calls()

    def start(self):
        """Run the set-up in a process of its own."""
        code = (
            f'import sys, pathlib; sys.path.insert(0, {str(SCRIPT.parent)!r}); import setup_env;'
            'setup_env.DISK_SPACE = 0;'
            f'setup_env.Setup(pathlib.Path({str(self.root)!r})).run()'
        )
        return subprocess.Popen(
            [sys.executable, '-B', '-c', code], stdout=subprocess.PIPE, text=True
        )

    def calls(self):
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []

    def wheels(self):
        return sorted(path.name for path in self.root.glob('.cache/wheels/*/*'))

    def change_pin(self, file, name):
        path = self.root / 'requirements' / f'{file}.txt'
        lines = path.read_text().splitlines()
        changed = [f'{name}==99.0' if line.startswith(f'{name}==') else line for line in lines]
        assert changed != lines
        path.write_text('\n'.join(changed))


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    # Where the tests run is no matter of what they check.
    monkeypatch.setattr(setup_env, 'DISK_SPACE', 0)
    return Checkout(tmp_path / 'a checkout', monkeypatch)


def assert_commands(calls, first_step, without=()):
    steps = STEPS[STEPS.index(first_step) :]
    parts = [part for part, step in COMMANDS if step in steps and part not in without]
    assert len(calls) == len(parts), calls
    for part, call in zip(parts, calls, strict=True):
        assert part in call


def assert_fails(checkout, *parts):
    """Run the script as a user does: it has to end with one line that holds all parts."""
    checkout.monkeypatch.setattr(setup_env, '__file__', str(checkout.root / 'tools' / 'x.py'))
    with pytest.raises(SystemExit) as failure:
        setup_env.main()
    message = failure.value.code
    assert '\n' not in message
    for part in parts:
        assert part in message


def test_a_complete_set_up(checkout, capsys):
    calls = checkout.run()
    assert_commands(calls, 'build')
    lines = capsys.readouterr().out.splitlines()
    assert [line[:5] for line in lines[1:-1]] == [f'[{n}/7]' for n in range(2, 8)]
    assert len(checkout.wheels()) == 1
    # All pins of the stack get installed, and nothing is installed past them.
    for pin in setup_env.read_requirements(ROOT / 'requirements' / 'onedl.txt').values():
        assert any(pin in call.split() for call in calls)
    installations = [call for call in calls if 'pip install' in call and '--no-deps' not in call]
    assert all('-c ' in call and 'onedl.txt' in call for call in installations)


def test_a_second_run_does_nothing_and_says_nothing(checkout, capsys):
    checkout.run()
    capsys.readouterr()
    assert checkout.run() == []
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize(('part', 'step'), COMMANDS)
def test_killed_in_a_step(checkout, part, step):
    survivor = checkout.root / 'survivor'
    checkout.trouble(part, f'echo $$ > "{survivor}"; kill -9 $PPID; exec /bin/sleep 60')
    assert checkout.start().wait() == -signal.SIGKILL
    pid = survivor.read_text().strip()
    deadline = time.monotonic() + 60
    while is_alive(pid):
        assert time.monotonic() < deadline, 'the command outlives the set-up'
        time.sleep(0.01)
    checkout.trouble()
    compiled = () if part != '_x86_64.whl' else ('pip wheel',)
    assert_commands(checkout.run(), step, without=compiled)
    assert checkout.run() == []


def is_alive(pid):
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


def test_half_a_wheel_is_not_used(checkout):
    partial = 'while [ "$1" != -w ]; do shift; done; echo half > "$2/onedl_mmcv-1-linux_x86_64.whl"'
    checkout.trouble('pip wheel', f'{partial}; kill -9 $PPID; exec /bin/sleep 60')
    assert checkout.start().wait() == -signal.SIGKILL
    assert checkout.wheels() == []
    checkout.trouble()
    assert_commands(checkout.run(), 'mmcv')
    assert len(checkout.wheels()) == 1
    assert list(checkout.root.glob('.cache/tmp/*')) == []


def test_a_wheel_without_operators_is_refused(checkout):
    checkout.trouble('pip wheel', ': > "$8/onedl_mmcv-${9#*==}-py3-none-any.whl"; exit 0')
    with pytest.raises(setup_env.SetupError, match='without its compiled operators'):
        checkout.run()


def test_mmcv_is_compiled_once(checkout):
    checkout.run()
    shutil.rmtree(checkout.venv)
    checkout.make_venv()
    assert_commands(checkout.run(), 'build', without=('pip wheel',))


@pytest.mark.parametrize(
    ('file', 'name', 'first_step'),
    [
        ('build', 'ninja', 'build'),
        ('onedl', 'torchvision', 'torch'),
        ('onedl', 'onedl-mmcv', 'mmcv'),
        ('onedl', 'matplotlib', 'stack'),
        ('dev', 'ruff', 'package'),
    ],
)
def test_a_changed_pin(checkout, file, name, first_step):
    checkout.run()
    checkout.change_pin(file, name)
    rebuilt = name == 'onedl-mmcv'
    assert_commands(checkout.run(), first_step, without=() if rebuilt else ('pip wheel',))
    assert len(checkout.wheels()) == 1 + rebuilt


def test_another_torch_gets_another_wheel(checkout):
    checkout.run()
    checkout.change_pin('onedl', 'torch')
    assert_commands(checkout.run(), 'torch')
    assert len(checkout.wheels()) == 2


def test_a_pin_changed_back_after_an_interruption(checkout):
    """The stamps of the first run must not vouch for what the broken one has touched."""
    checkout.run()
    pins = (checkout.root / 'requirements' / 'onedl.txt').read_text()
    checkout.change_pin('onedl', 'torchvision')
    checkout.trouble('torch==', 'exit 1')
    with pytest.raises(setup_env.SetupError):
        checkout.run()
    (checkout.root / 'requirements' / 'onedl.txt').write_text(pins)
    checkout.trouble()
    assert_commands(checkout.run(), 'torch', without=('pip wheel',))


def test_a_moved_checkout(checkout, tmp_path):
    checkout.run()
    checkout.root = checkout.root.rename(tmp_path / 'moved')
    checkout.monkeypatch.setenv('CALLS', str(checkout.root / 'calls'))
    checkout.calls_file = checkout.root / 'calls'
    assert_commands(checkout.run(), 'package')


def drop_python(venv):
    (venv / 'bin' / 'python').unlink()


def dangle_python(venv):
    drop_python(venv)
    (venv / 'bin' / 'python').symlink_to('/no/python')


def make_of_another_python(venv):
    (venv / 'lib' / f'python{VERSION}').rename(venv / 'lib' / 'python3.9')


def drop_pip(venv):
    shutil.rmtree(venv / 'lib' / f'python{VERSION}' / 'site-packages' / 'pip')


def empty(venv):
    shutil.rmtree(venv)
    venv.mkdir()


@pytest.mark.parametrize(
    ('damage', 'reason'),
    [
        (shutil.rmtree, 'there is none yet'),
        (empty, 'half there'),
        (drop_python, 'half there'),
        (dangle_python, 'half there'),
        (drop_pip, 'no pip'),
        (make_of_another_python, 'Python 3.9'),
    ],
)
def test_a_damaged_venv_is_made_anew(checkout, capsys, damage, reason):
    checkout.run()
    capsys.readouterr()
    damage(checkout.venv)
    fake_venv_module(checkout)
    assert_commands(checkout.run(), 'build', without=('pip wheel',))
    announced = capsys.readouterr().out.splitlines()[1]
    assert announced.startswith('[1/7]')
    assert reason in announced


def fake_venv_module(checkout, fault=None):
    def create(path, *, clear, symlinks, with_pip):
        assert clear and symlinks and with_pip
        shutil.rmtree(path, ignore_errors=True)
        checkout.make_venv()
        if fault:
            raise fault

    checkout.monkeypatch.setitem(sys.modules, 'venv', SimpleNamespace(create=create))


def test_interrupted_while_venv_is_made(checkout):
    shutil.rmtree(checkout.venv)
    fake_venv_module(checkout, fault=KeyboardInterrupt())
    assert_fails(checkout, 'interrupted')
    # It looks complete, but who knows.
    fake_venv_module(checkout)
    assert 'half there' in setup_env.Setup(checkout.root).venv_fault()
    assert_commands(checkout.run(), 'build')
    assert checkout.run() == []


def test_venv_module_fails(checkout):
    shutil.rmtree(checkout.venv)
    fake_venv_module(checkout, subprocess.CalledProcessError(1, 'x', b'ERROR: no ensurepip today'))
    assert_fails(checkout, 'no ensurepip today', 'setup.log')


@pytest.mark.parametrize('name', ['gcc', 'g++'])
def test_missing_compiler(checkout, name):
    (checkout.root / 'programs' / name).unlink()
    assert_fails(checkout, f'no {name}', 'apt install gcc g++')
    assert checkout.calls() == []


def test_no_compiler_needed_once_mmcv_is_compiled(checkout):
    checkout.run()
    shutil.rmtree(checkout.root / 'programs')
    checkout.change_pin('onedl', 'onedl-mim')
    assert_commands(checkout.run(), 'stack')


def test_missing_headers(checkout, tmp_path):
    checkout.monkeypatch.setattr(setup_env.sysconfig, 'get_path', lambda name: str(tmp_path))
    assert_fails(checkout, 'Python.h', f'apt install python{VERSION}-dev')
    assert checkout.calls() == []


def test_missing_venv_module(checkout):
    shutil.rmtree(checkout.venv)
    checkout.monkeypatch.setattr(setup_env.importlib.util, 'find_spec', lambda name: None)
    assert_fails(checkout, 'ensurepip', f'apt install python{VERSION}-venv')
    assert not checkout.venv.exists()


@pytest.mark.parametrize(
    ('function', 'value'),
    [
        ('system', 'Darwin'),
        ('machine', 'aarch64'),
        ('python_implementation', 'PyPy'),
        ('libc_ver', ('', '')),
    ],
)
def test_wrong_platform(checkout, function, value):
    checkout.monkeypatch.setattr(setup_env.platform, function, lambda: value)
    assert_fails(checkout, 'unsupported platform', 'x86_64 Linux')
    assert checkout.calls() == []


def test_small_disk(checkout):
    checkout.monkeypatch.setattr(setup_env, 'DISK_SPACE', 1e18)
    assert_fails(checkout, 'GB are free', 'free some space')
    assert checkout.calls() == []


def test_unwritable_checkout(checkout):
    (checkout.root / '.cache').touch()
    assert_fails(checkout, '.cache')


NO_NETWORK = """\
WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by 'NewConnectionError(
'<HTTPSConnection object>: Failed to establish a new connection: [Errno -3] Temporary failure in
name resolution')': /simple/torch/
ERROR: Could not find a version that satisfies the requirement torch==1.0 (from versions: none)
ERROR: No matching distribution found for torch==1.0
"""


@pytest.mark.parametrize(
    ('output', 'parts'),
    [
        (NO_NETWORK, ['no network', 'run again']),
        ("ReadTimeoutError(\"HTTPSConnectionPool(host='x', port=443)", ['no network']),
        (NO_NETWORK.splitlines()[-1], ['does not offer torch==1.0', 'pip config list']),
        ('ERROR: Could not install: [Errno 28] No space left on device', ['disk is full', '12 GB']),
        ('g++: fatal error: Killed signal terminated program cc1plus', ['memory', 'MAX_JOBS=1']),
        (
            'RuntimeError: The detected CUDA version (11.8) mismatches the version',
            ['CUDA toolkit', 'CUDA_VISIBLE_DEVICES='],
        ),
        ('fine\nERROR: something new\n\nhint: read this', ['ERROR: something new', 'see the log']),
        ('', ['without a word']),
    ],
)
def test_a_failing_command_is_explained(checkout, output, parts):
    (checkout.root / 'output').write_text(output)
    checkout.trouble('torch==', f'/bin/cat "{checkout.root}/output"; exit 1')
    assert_fails(checkout, *parts, f'log: {checkout.venv}/setup.log')
    assert output in (checkout.venv / 'setup.log').read_text()


def test_only_the_failing_command_is_explained(checkout):
    checkout.trouble('setuptools==', 'echo "No space left on device"')
    checkout.run()
    checkout.change_pin('onedl', 'onedl-mim')
    checkout.trouble('onedl-mim==', 'echo "ERROR: other"; exit 1')
    assert_fails(checkout, 'ERROR: other')


def test_a_command_that_is_killed(checkout):
    checkout.trouble('torch==', 'kill -9 $$')
    assert_fails(checkout, 'signal 9')


def test_imports_that_fail(checkout):
    checkout.trouble('import torch', 'echo "ImportError: libGL.so.1"; exit 1')
    assert_fails(checkout, 'does not work', 'libGL.so.1', 'remove .venv')
    assert_fails(checkout, 'does not work')


def test_signs_of_life(checkout, capsys):
    checkout.monkeypatch.setattr(setup_env, 'HEARTBEAT', 0.01)
    checkout.trouble('pip wheel', '/bin/sleep 0.3')
    checkout.run()
    assert 'still at it after 1 min' in capsys.readouterr().out


def test_a_foreign_environment_is_kept_out(checkout):
    seen = checkout.root / 'seen'
    foreign = {'VIRTUAL_ENV': '/foreign', 'PYTHONPATH': '/foreign', 'PIP_USER': '1'}
    for name, value in foreign.items():
        checkout.monkeypatch.setenv(name, value)
    checkout.monkeypatch.delenv('HOME', raising=False)
    names = ['VIRTUAL_ENV', 'PYTHONPATH', 'PIP_USER', 'TMPDIR', 'PATH']
    shown = '|'.join(f'${name}' for name in names)
    checkout.trouble('torch==', f'echo "{shown}" > "{seen}"')
    checkout.run()
    values = dict(zip(names, seen.read_text().strip().split('|'), strict=True))
    assert values['VIRTUAL_ENV'] == str(checkout.venv)
    assert values['PYTHONPATH'] == ''
    assert values['PIP_USER'] == '0'
    assert values['TMPDIR'].startswith(str(checkout.root))
    assert values['PATH'].split(os.pathsep)[0] == str(checkout.venv / 'bin')


@pytest.mark.parametrize('has_nvcc', [True, False])
def test_cuda_is_hidden_from_the_build_without_nvcc(checkout, has_nvcc):
    seen = checkout.root / 'seen'
    programs = {'gcc', 'g++', 'nvcc'} if has_nvcc else {'gcc', 'g++'}
    checkout.monkeypatch.setattr(
        setup_env.shutil, 'which', lambda name, path=None: name if name in programs else None
    )
    checkout.monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0')
    checkout.trouble('pip wheel', f'echo "$MMCV_WITH_OPS,$CUDA_VISIBLE_DEVICES" > "{seen}"')
    checkout.run()
    assert seen.read_text().strip() == ('1,0' if has_nvcc else '1,')


def test_two_at_once(checkout):
    checkout.trouble('torch==', '/bin/sleep 0.5')
    processes = [checkout.start() for _ in range(2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert_commands(checkout.calls(), 'build')
    assert sum('set-up: complete' in output for output in outputs) == 1


@pytest.mark.parametrize('version', [(3, 6, 15), (3, 9, 0), (3, 13, 0, 'final', 0), (4, 0)])
def test_unsupported_python(version):
    message = setup_env.unsupported_python(version)
    assert f'{version[0]}.{version[1]}' in message
    assert 'make test PYTHON=python3.11' in message
    assert '\n' not in message


@pytest.mark.parametrize('version', [(3, 10), (3, 11, 7), (3, 12, 1, 'final', 0)])
def test_supported_python(version):
    assert setup_env.unsupported_python(version) == ''


def test_an_old_python_reaches_the_message():
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 6))
    names = [getattr(node, 'name', ast.unparse(node)) for node in tree.body]
    check = next(i for i, name in enumerate(names) if name.startswith('if unsupported_python('))
    defined = {i for i, node in enumerate(tree.body) if isinstance(node, ast.FunctionDef)}
    # Annotations of later functions are evaluated after the check has ended the run.
    assert [names[i] for i in sorted(defined) if i < check] == ['unsupported_python']


class TestMakefile:
    """The choice of the interpreter."""

    @pytest.fixture
    def make(self, tmp_path):
        shutil.copy(ROOT / 'Makefile', tmp_path)

        def run(*arguments, **variables):
            environment = {'PATH': os.environ['PATH'], **variables}
            return subprocess.run(
                ['make', *arguments],
                cwd=tmp_path,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
            )

        return run

    @pytest.mark.parametrize(
        ('arguments', 'variables', 'has_venv', 'chosen'),
        [
            ([], {}, False, 'python3'),
            ([], {}, True, '.venv/bin/python'),
            (['PYTHON=python3.12'], {}, True, 'python3.12'),
            ([], {'PYTHON': 'python3.12'}, True, 'python3.12'),
        ],
    )
    def test_python(self, make, tmp_path, arguments, variables, has_venv, chosen):
        if has_venv:
            write_program(tmp_path / '.venv' / 'bin' / 'python')
        commands = make('-n', 'env', *arguments, **variables).stdout
        assert f"'{chosen}' tools/setup_env.py" in commands

    def test_dangling_venv(self, make, tmp_path):
        (tmp_path / '.venv' / 'bin').mkdir(parents=True)
        (tmp_path / '.venv' / 'bin' / 'python').symlink_to('/no/python')
        assert "'python3' tools/setup_env.py" in make('-n', 'env').stdout

    def test_no_such_python(self, make):
        result = make('env', 'PYTHON=python3.99')
        assert result.returncode != 0
        assert 'no interpreter python3.99' in result.stderr
        assert 'make env PYTHON=python3.11' in result.stderr

    def test_help_is_the_default(self, make):
        output = make().stdout
        for target in ('env', 'demo', 'test', 'test-slow', 'lint', 'format', 'clean'):
            assert f'make {target} ' in output
