import runpy
import sys
from pathlib import Path

import pytest
import torch

from mmgnv3.utils.files import sha256
from mmgnv3.weights import convert_checkpoint
from tests.test_weights.foreign import timm_network, weights_of, write_reference_file

TOOL = str(Path(__file__).parents[2] / 'tools' / 'convert_weights.py')


def run_tool(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', [TOOL, *map(str, arguments)])
    runpy.run_path(TOOL, run_name='__main__')


@pytest.mark.parametrize(
    ('flags', 'seed', 'kind'),
    [([], 2, 'averaged'), (['--ema'], 2, 'averaged'), (['--raw'], 1, 'plain')],
)
def test_reference_file(flags, seed, kind, tmp_path, monkeypatch, capsys):
    source, out = write_reference_file(tmp_path / 'reference.pth.tar'), tmp_path / 'converted.pth'
    run_tool(monkeypatch, source, out, *flags)
    weights = weights_of(timm_network(0.5, 10, seed), 'reference')
    expected = convert_checkpoint(weights)
    saved = torch.load(out, weights_only=True)['state_dict']
    assert saved.keys() == expected.state_dict.keys()
    assert all(torch.equal(v, saved[k]) for k, v in expected.state_dict.items())
    printed = capsys.readouterr().out
    for fact in (
        'GhostNetV3 0.5x of the reference code',
        'training, 3 branches',
        kind,
        f'{expected.num_params:,}',
        sha256(source),
    ):
        assert fact in printed


def test_address(tmp_path, monkeypatch, capsys):
    source, out = write_reference_file(tmp_path / 'reference.pth.tar'), tmp_path / 'converted.pth'
    address = f'ghostnetv3://{source}#raw&sha256={sha256(source)}'
    run_tool(monkeypatch, address, out)
    assert torch.load(out, weights_only=True)['meta']['ema'] is False
    with pytest.raises(SystemExit):
        run_tool(monkeypatch, address, out, '--ema')
    assert f'{address} and --ema exclude each other' in capsys.readouterr().err


def test_folded_file(tmp_path, monkeypatch, capsys):
    source = tmp_path / 'timm.pth'
    torch.save(weights_of(timm_network(0.5), 'timm folded'), source)
    run_tool(monkeypatch, source, tmp_path / 'converted.pth')
    assert 'deployed' in capsys.readouterr().out


def test_refusal_is_one_line(tmp_path, monkeypatch):
    source = tmp_path / 'timm.pth'
    torch.save(weights_of(timm_network(0.5), 'timm'), source)
    for arguments, message in (
        ([source, source], 'the file to convert'),
        ([source, tmp_path / 'out.pth', '--ema'], 'no averaged weights'),
        (['0.5x', tmp_path / 'out.pth'], 'no public weights of GhostNetV3 0.5x'),
        ([tmp_path / 'gone.pth', tmp_path / 'out.pth'], 'There is no file'),
        ([f'ghostnetv3://{source}#sha256={"0" * 64}', tmp_path / 'out.pth'], 'not the expected'),
    ):
        with pytest.raises(SystemExit, match=f'error: .*{message}'):
            run_tool(monkeypatch, *arguments)
    assert not (tmp_path / 'out.pth').exists()
