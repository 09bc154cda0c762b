import argparse
import http.server
import os
import sys
import threading
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub
from mmengine.optim import OneCycleLR
from safetensors.torch import save_file

from mmgnv3.utils.checkpoints import read_checkpoint

WEIGHTS = {'conv.weight': torch.arange(6.0).view(2, 3)}


class Pickled:
    """Pickled as a call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'weights.pth'


@pytest.mark.parametrize('name', ['weights.safetensors', 'weights.pth', 'weights'])
def test_safetensors_whatever_its_name(name, tmp_path):
    save_file(WEIGHTS, tmp_path / name)
    assert torch.equal(read_checkpoint(tmp_path / name)['conv.weight'], WEIGHTS['conv.weight'])


@pytest.mark.parametrize('zipped', [True, False])
def test_torch_file_with_arguments(zipped, path):
    args = argparse.Namespace(lr=0.1, decay=[1, 2], name='x')
    content = OrderedDict(epoch=3, args=args, state_dict=WEIGHTS)
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    found = read_checkpoint(str(path))
    assert found['args'] == args
    assert torch.equal(found['state_dict']['conv.weight'], WEIGHTS['conv.weight'])
    # Known for this file alone.
    with pytest.raises(Exception, match=r'argparse\.Namespace'):
        torch.load(path, weights_only=True)


def test_state_of_a_training_run(path):
    """What mmengine saves: histories with NumPy's numbers, and methods by their names."""
    hub = MessageHub('test_state_of_a_training_run')
    hub.update_scalar('train/loss', 0.5)
    hub.update_scalar('train/loss', np.float32(1.5))
    hub.update_info('best', np.int64(3))
    optimizer = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1)
    schedule = OneCycleLR(optimizer, eta_max=0.1, total_steps=9)
    meta = dict(dataset_meta=ConfigDict(classes=('ant', 'bee')), mask=np.ones(3, bool))
    state = dict(message_hub=hub.state_dict(), param_schedulers=[schedule.state_dict()], meta=meta)
    torch.save(state, path)

    found = read_checkpoint(path)
    history = found['message_hub']['log_scalars']['train/loss']
    assert (history.mean(), history.statistics('max')) == (1.0, 1.5)
    assert found['message_hub']['runtime_info']['best'] == 3
    assert found['param_schedulers'][0]['anneal_func'](0.0, 1.0, 0.5) == pytest.approx(0.5)
    assert found['meta']['dataset_meta'].classes == ('ant', 'bee')
    assert found['meta']['mask'].all()


def test_numbers_of_either_numpy(path):
    """NumPy 2 reads the names of NumPy 1, and the other way round."""
    torch.save(dict(best=np.float64(0.5)), path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    old, new = b'numpy.core.multiarray', b'numpy._core.multiarray'
    assert (old in content) != (new in content)
    other = content.replace(new, old) if new in content else content.replace(old, new)
    path.write_bytes(other)
    assert read_checkpoint(path)['best'] == 0.5


@pytest.mark.parametrize('zipped', [True, False])
def test_any_other_class_is_refused_by_name(zipped, path, tmp_path):
    trace = tmp_path / 'trace'
    content = dict(state_dict=WEIGHTS, extra=Pickled(os.mkdir, str(trace)))
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"object of posix\.mkdir\..*'state_dict' alone"):
        read_checkpoint(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    ('owner', 'name'), [(argparse.Namespace, '__init__'), (np.ndarray, 'tofile'), ({}, 'update')]
)
def test_other_attributes_are_out_of_reach(owner, name, path):
    torch.save(dict(extra=Pickled(getattr, owner, name)), path)
    with pytest.raises(ValueError, match=rf'object of \S*\.{name}\.'):
        read_checkpoint(path)


@pytest.mark.parametrize('save', [torch.save, save_file], ids=['torch', 'safetensors'])
@pytest.mark.parametrize('share', [0.0, 0.5, 0.95])
def test_cut_off(save, share, path):
    save({'weight': torch.ones(1000)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r'weights\.pth cannot be read.*cut off'):
        read_checkpoint(path)


def test_something_else(path):
    path.write_text('hello')
    with pytest.raises(ValueError, match=r'^The teacher cannot be read.*no checkpoint'):
        read_checkpoint(path, 'The teacher')
    torch.save(torch.zeros(2), path)
    with pytest.raises(ValueError, match=r'weights\.pth is no checkpoint: it holds a Tensor'):
        read_checkpoint(path)


def test_torch_s_advice_to_open_it_unsafely_is_not_passed_on(path):
    path.write_bytes(b'not a pickle')
    with pytest.raises(Exception, match='weights_only'):
        torch.load(path, weights_only=True)
    with pytest.raises(ValueError) as error:
        read_checkpoint(path)
    assert 'weights_only' not in str(error.value)
    assert '(UnpicklingError)' in str(error.value)


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=f'no checkpoint {tmp_path}/gone.pth'):
        read_checkpoint(tmp_path / 'gone.pth')


def test_home(path, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    torch.save(WEIGHTS, path)
    assert read_checkpoint('~/weights.pth').keys() == WEIGHTS.keys()


def test_without_safetensors(path, monkeypatch):
    save_file(WEIGHTS, path)
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    with pytest.raises(RuntimeError, match='pip install safetensors'):
        read_checkpoint(path)


def test_with_a_torch_that_cannot_refuse(path, monkeypatch):
    monkeypatch.delattr(torch.serialization, 'safe_globals')
    with pytest.raises(RuntimeError, match=r'needs torch 2\.5'):
        read_checkpoint(path)


def test_address_says_itself_what_is_wrong():
    with pytest.raises(ValueError, match=r'^There are no public weights of GhostNetV3 0\.5x'):
        read_checkpoint('ghostnetv3://0.5x')


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """URL of a server of ``tmp_path``, and a download cache in it."""
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    monkeypatch.setattr(torch.hub, '_hub_dir', None)
    handler = partial(_Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()
        thread.join()


@pytest.mark.parametrize('save', [torch.save, save_file], ids=['torch', 'safetensors'])
def test_url(save, path, server):
    save(WEIGHTS, path)
    assert read_checkpoint(f'{server}/weights.pth').keys() == WEIGHTS.keys()
    # It is fetched once, to where mmengine's loader takes it from.
    path.unlink()
    assert read_checkpoint(f'{server}/weights.pth').keys() == WEIGHTS.keys()
    with pytest.raises(OSError, match=r'gone\.pth cannot be downloaded .*404'):
        read_checkpoint(f'{server}/gone.pth')


def test_url_of_a_file_that_runs_something(path, server, tmp_path):
    torch.save(dict(extra=Pickled(os.mkdir, str(tmp_path / 'trace'))), path)
    message = r'http\S+ \(in \S+home/hub/checkpoints/weights\.pth\) holds .* posix\.mkdir'
    with pytest.raises(ValueError, match=message):
        read_checkpoint(f'{server}/weights.pth')
    assert not (tmp_path / 'trace').exists()
