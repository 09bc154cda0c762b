import argparse
import os
import re
import subprocess
import sys

import pytest

from mmgnv3.apis.cli import add_run_arguments, parse_run_arguments, plain_errors
from mmgnv3.apis.run import read_config


@pytest.fixture
def parse(monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '')

    def run(*arguments):
        monkeypatch.delenv('LOCAL_RANK')
        monkeypatch.setattr(sys, 'argv', ['tool', *arguments])
        parser = argparse.ArgumentParser()
        add_run_arguments(parser)
        return parse_run_arguments(parser)

    return run


def test_importing_the_command_line_is_cheap():
    code = (
        'import sys, mmgnv3.apis.cli; print([m for m in sys.modules if m in ("torch", "mmengine")])'
    )
    loaded = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == '[]'


@pytest.mark.parametrize('spelling', ['--local_rank', '--local-rank'])
def test_local_rank(parse, spelling):
    assert 'local_rank' not in parse('config.py', spelling, '3')
    assert os.environ['LOCAL_RANK'] == '3'


def test_cfg_options(parse):
    options = parse('config.py', '--cfg-options', 'a.b=1.5', 'c=[x,2]', 'd=(1,2)')['cfg_options']
    assert options == {'a.b': 1.5, 'c': ['x', 2], 'd': (1, 2)}


def test_cfg_options_without_a_value(parse, capsys):
    with pytest.raises(SystemExit):
        parse('config.py', '--cfg-options', 'model.depth')
    assert "expected KEY=VALUE, got 'model.depth'" in capsys.readouterr().err


def test_own_errors_become_messages():
    with (
        pytest.raises(SystemExit, match=r'^error: There is no config /gone\.py\.$'),
        plain_errors(),
    ):
        read_config('/gone.py')


@pytest.mark.parametrize(
    ('attempt', 'cause'),
    [
        (lambda file: os.makedirs(file, exist_ok=True), 'File exists'),
        (lambda file: (file / 'work').mkdir(), 'Not a directory'),
        (lambda file: os.replace(file, file.parent), 'Directory not empty'),
        (lambda file: (file.parent / 'gone').read_text(), 'No such file or directory'),
    ],
)
def test_paths_that_the_system_refuses_become_messages(tmp_path, attempt, cause):
    file = tmp_path / 'file'
    file.touch()
    expected = f'^error: {re.escape(str(tmp_path))}.*: {cause}. Name another path'
    with pytest.raises(SystemExit, match=expected), plain_errors():
        attempt(file)


def test_foreign_errors_keep_their_traceback():
    with pytest.raises(ValueError, match='invalid literal'), plain_errors():
        int('x')
    with pytest.raises(OSError, match='of no path'), plain_errors():
        raise OSError('of no path')
