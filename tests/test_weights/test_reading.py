import argparse
import os
import sys
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file

from mmgnv3.weights import read_foreign

WEIGHTS = {'conv.weight': torch.arange(6.0).view(2, 3)}


class Evil:
    """Pickled as a call of a function, here of one that would leave a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize('name', ['weights.safetensors', 'weights.pth', 'weights'])
def test_safetensors_whatever_its_name(name, tmp_path):
    save_file(WEIGHTS, tmp_path / name)
    assert torch.equal(read_foreign(tmp_path / name)['conv.weight'], WEIGHTS['conv.weight'])


@pytest.mark.parametrize('zipped', [True, False])
def test_torch_file_with_arguments(zipped, tmp_path):
    path = tmp_path / 'weights.pth.tar'
    args = argparse.Namespace(lr=0.1, decay=[1, 2], name='x')
    content = OrderedDict(epoch=3, args=args, state_dict=WEIGHTS)
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    found = read_foreign(str(path))
    assert found['args'] == args
    assert torch.equal(found['state_dict']['conv.weight'], WEIGHTS['conv.weight'])
    # Known for this file alone.
    with pytest.raises(Exception, match=r'argparse\.Namespace'):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize('zipped', [True, False])
def test_any_other_class_is_refused_by_name(zipped, tmp_path):
    path, trace = tmp_path / 'weights.pth', tmp_path / 'trace'
    content = dict(state_dict=WEIGHTS, extra=Evil(str(trace)))
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"object of posix\.mkdir\..*'state_dict' alone"):
        read_foreign(path)
    assert not trace.exists()


@pytest.mark.parametrize('save', [torch.save, save_file], ids=['torch', 'safetensors'])
@pytest.mark.parametrize('share', [0.0, 0.5, 0.95])
def test_cut_off(save, share, tmp_path):
    path = tmp_path / 'weights.pth'
    save({'weight': torch.ones(1000)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r'weights\.pth cannot be read.*cut off'):
        read_foreign(path)


def test_not_a_dict(tmp_path):
    torch.save(torch.zeros(2), tmp_path / 'weights.pth')
    with pytest.raises(ValueError, match='holds a Tensor, not a dict'):
        read_foreign(tmp_path / 'weights.pth')


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'There is no file \S+gone\.pth'):
        read_foreign(tmp_path / 'gone.pth')


def test_without_safetensors(tmp_path, monkeypatch):
    save_file(WEIGHTS, tmp_path / 'weights.safetensors')
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    with pytest.raises(RuntimeError, match='pip install safetensors'):
        read_foreign(tmp_path / 'weights.safetensors')
