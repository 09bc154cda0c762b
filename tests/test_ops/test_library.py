import shlex
import shutil
import stat
import subprocess
import sys

import pytest

from mmgnv3.ops import library

COMPILER = shlex.join(library._find_compiler() or [])

pytestmark = pytest.mark.skipif(
    sys.platform != 'linux' or not COMPILER, reason='needs Linux and a C++ compiler'
)


@pytest.fixture
def load(monkeypatch, tmp_path):
    """The function as a new process has it, with a cache of its own."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return library.load_library.__wrapped__


@pytest.fixture
def make_compiler(monkeypatch, tmp_path):
    """Put a shell script in the place of the compiler."""

    def make(script):
        path = tmp_path / 'compiler'
        path.write_text(f'#!/bin/sh\n{script}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv('CXX', str(path))

    return make


@pytest.fixture
def messages(monkeypatch):
    found = []
    monkeypatch.setattr(library, 'print_log', lambda message, *_: found.append(message))
    return found


def cached(tmp_path):
    return list((tmp_path / 'cache' / 'mmgnv3').iterdir())


@pytest.mark.slow
@pytest.mark.parametrize('march', ['native', 'x86-64-v3', 'x86-64'])
def test_compiles_without_a_warning(march, tmp_path):
    sources = sorted(library.SOURCES.glob('*.cpp'))
    flags = [*library.FLAGS, f'-march={march}', '-Wall', '-Wextra', '-Werror']
    files = [*sources, '-o', tmp_path / 'library.so']
    subprocess.run([*shlex.split(COMPILER), *flags, *files], check=True)


def test_is_compiled_once(load, make_compiler, tmp_path):
    make_compiler(f'echo run >> {tmp_path}/log; exec {COMPILER} "$@" -O0')
    for _ in range(2):
        loaded = load()
        assert loaded.forward_float and loaded.backward_double
    assert (tmp_path / 'log').read_text() == 'run\n'
    assert [path.suffix for path in cached(tmp_path)] == ['.so']


def test_other_sources_are_compiled_again(load, make_compiler, monkeypatch, tmp_path):
    make_compiler(f'exec {COMPILER} "$@" -O0')
    load()
    sources = shutil.copytree(library.SOURCES, tmp_path / 'csrc')
    with open(sources / 'sums.h', 'a') as file:
        file.write('// changed\n')
    monkeypatch.setattr(library, 'SOURCES', sources)
    load()
    assert len(cached(tmp_path)) == 2


def test_failure_is_said_and_leaves_nothing(load, make_compiler, messages, tmp_path):
    make_compiler('echo "no such flag" >&2; exit 1')
    assert load() is None
    assert 'no such flag' in messages[-1]
    assert cached(tmp_path) == []


def test_result_that_is_no_library(load, make_compiler, messages, tmp_path):
    make_compiler('while [ "$1" != -o ]; do shift; done; echo text > "$2"')
    assert load() is None
    assert 'cannot be compiled or loaded' in messages[-1] and cached(tmp_path) == []


def test_damaged_library_is_made_again(load, make_compiler, tmp_path):
    make_compiler(f'exec {COMPILER} "$@" -O0')
    load()
    (path,) = cached(tmp_path)
    path.unlink()
    path.write_text('text')
    path.chmod(0o700)
    assert load().forward_float


@pytest.mark.parametrize('place', ['file', 'folder'])
def test_library_that_others_can_write_is_not_loaded(
    place, load, make_compiler, messages, tmp_path
):
    make_compiler(f'exec {COMPILER} "$@" -O0')
    load()
    (path,) = cached(tmp_path)
    for made in (path, path.parent):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700
    (path if place == 'file' else path.parent).chmod(0o770)
    assert load() is None
    assert 'can be written by' in messages[-1]


def test_compiler_that_does_not_exist(load, monkeypatch, messages):
    monkeypatch.setenv('CXX', 'no-such-compiler -O2')
    assert load() is None
    assert 'no compiler no-such-compiler' in messages[-1]


def test_messages_in_another_encoding(load, make_compiler, messages):
    make_compiler("printf '\\377' >&2; exit 1")
    assert load() is None
    assert 'failed' in messages[-1]


def test_no_compiler(load, monkeypatch, messages):
    monkeypatch.setenv('PATH', '')
    monkeypatch.delenv('CXX', raising=False)
    assert load() is None
    assert len(messages) == 1 and 'no C++ compiler' in messages[0]


def test_folder_that_cannot_be_written(load, tmp_path):
    (tmp_path / 'cache').write_text('a file')
    assert load() is None


def test_can_be_switched_off(load, monkeypatch, tmp_path):
    monkeypatch.setenv(library.SWITCH, '0')
    assert load() is None
    assert not (tmp_path / 'cache').exists()
