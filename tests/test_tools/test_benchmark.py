import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
TOOL = Path(__file__).parents[2] / 'tools' / 'benchmark.py'


@pytest.fixture
def run(monkeypatch):
    """Runs the tool as from the command line, in this process."""
    threads = torch.get_num_threads()

    def run(*args: str) -> None:
        monkeypatch.setattr(sys, 'argv', [TOOL.name, *args])
        runpy.run_path(str(TOOL), run_name='__main__')

    yield run
    torch.set_num_threads(threads)


def read_table(text: str) -> dict[str, list[str]]:
    """Cells of a Markdown table by the first one of their line."""
    lines = [line.strip('| ').split(' | ') for line in text.splitlines() if line.startswith('|')]
    return {line[0]: line[1:] for line in lines}


@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=needs_cuda)])
def test_infer(run, capsys, tmp_path, device):
    out = tmp_path / 'new' / 'infer.json'
    options = ['--widths', '0.5', '--rounds', '1', '--threads', '1', '--size', '64']
    run('infer', *options, '--device', device, '--out', str(out))
    printed = capsys.readouterr().out
    table = read_table(printed)
    columns = ['params', 'params folded', 'MACs', 'latency', 'latency folded']
    assert table.pop('network') == columns
    del table['---']
    assert list(table) == [
        'GhostNetV3 0.5x',
        'GhostNetV3 0.5x (timm)',
        'GhostNetV2 1x (timm)',
        'MobileNetV3-Large 1x (timm)',
    ]
    assert table['GhostNetV3 0.5x'][:2] == ['3.395M', '2.842M']
    # timm leaves 54 norms unfolded.
    assert table['GhostNetV3 0.5x (timm)'][:2] == ['3.395M', '2.853M']
    assert table['GhostNetV3 0.5x'][2] == table['GhostNetV3 0.5x (timm)'][2]
    assert all(cells[3].endswith(' ms') for cells in table.values())
    assert table['GhostNetV2 1x (timm)'][1::3] == ['-', '-']

    content = json.loads(out.read_text())
    assert content['settings']['machine'] in printed
    assert torch.__version__ in content['settings']['machine']
    assert 'threads: 1' in content['settings']['machine']
    assert [row['network'] for row in content['rows']] == list(table)
    assert all(row['latency_ms'] > 0 for row in content['rows'])
    assert [path.name for path in out.parent.iterdir()] == ['infer.json']


def test_width_that_timm_does_not_have(run, capsys):
    run('infer', '--widths', '0.3', '--rounds', '1', '--size', '33')
    assert [name for name in read_table(capsys.readouterr().out) if 'V3 0' in name] == [
        'GhostNetV3 0.3x'
    ]


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('--widths', '-1'), 'widen_factor'),
        (('--size', '32', '--widths', '0.5'), 'too small'),
    ],
    ids=str,
)
def test_refused(run, args, message, tmp_path):
    out = tmp_path / 'infer.json'
    with pytest.raises(SystemExit, match=message):
        run('infer', *args, '--out', str(out))
    assert not out.exists()


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ((), 'required'),
        (('infer', '--rounds', '0'), 'at least 1'),
        (('infer', '--threads', 'two'), 'two'),
        (('infer', '--device', 'toaster'), 'no device'),
        (('infer', '--device', 'cuda:99'), 'no cuda:99 here'),
    ],
    ids=str,
)
def test_refused_by_the_parser(run, args, message, capsys):
    with pytest.raises(SystemExit):
        run(*args)
    assert message in capsys.readouterr().err
