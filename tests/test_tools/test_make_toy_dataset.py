import json
import runpy
import sys
from pathlib import Path

import pytest

TOOL = str(Path(__file__).parents[2] / 'tools' / 'make_toy_dataset.py')
SMALL = ('--num-train', '2', '--num-val', '1', '--width', '64', '--height', '80')


def run_tool(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', [TOOL, *map(str, arguments)])
    runpy.run_path(TOOL, run_name='__main__')


def test_writes_what_was_asked_for(tmp_path, monkeypatch, capsys):
    root = tmp_path / 'data'
    run_tool(monkeypatch, root, *SMALL, '--seed', '3')
    assert f'{root}: 2 training and 1 validation pictures of starfish' in capsys.readouterr().out
    for split, count in (('train', 2), ('val', 1)):
        images = json.loads((root / f'annotations/{split}.json').read_text())['images']
        assert [(image['width'], image['height']) for image in images] == [(64, 80)] * count
        assert len(list((root / split).iterdir())) == count
    assert json.loads((root / 'toy_shapes.json').read_text())['seed'] == 3


@pytest.mark.parametrize(
    ('root', 'arguments', 'message'),
    [
        ('data', ['--num-train', '0'], 'num_train must lie in 1'),
        ('mine', [], 'mine holds something else'),
        ('mine/file/data', SMALL, 'mine/file.*: (Not a directory|File exists)'),
    ],
)
def test_bad_input(tmp_path, monkeypatch, root, arguments, message):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/file').write_text('mine')
    with pytest.raises(SystemExit, match=f'^error: .*{message}'):
        run_tool(monkeypatch, tmp_path / root, *arguments)
    assert {path.name for path in tmp_path.rglob('*')} == {'mine', 'file'}
