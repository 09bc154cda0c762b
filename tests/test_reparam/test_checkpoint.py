import pytest
import torch

import mmgnv3
from mmgnv3.models import GhostNetV3
from mmgnv3.reparam import fold, is_deployed_checkpoint, save_deployed


def test_round_trip(tmp_path):
    folded = fold(GhostNetV3(widen_factor=0.5))
    path = tmp_path / 'new' / 'deployed.pth'
    save_deployed(folded, path, meta=dict(epoch=3))
    checkpoint = torch.load(path, weights_only=True)
    assert is_deployed_checkpoint(checkpoint)
    assert checkpoint['meta'] == dict(epoch=3, deployed=True, mmgnv3_version=mmgnv3.__version__)
    assert checkpoint.keys() == {'meta', 'state_dict'}
    other = GhostNetV3(widen_factor=0.5, deploy=True)
    other.load_state_dict(checkpoint['state_dict'], strict=True)
    assert [p.name for p in path.parent.iterdir()] == ['deployed.pth']


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'deployed.pth'
    path.write_bytes(b'old')

    def broken(obj, file):
        file.write_bytes(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(torch, 'save', broken)
    with pytest.raises(OSError, match='disk full'):
        save_deployed(GhostNetV3(widen_factor=0.5), path)
    assert path.read_bytes() == b'old'
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    'content',
    [
        dict(state_dict={}),
        dict(meta=dict(deployed=False), state_dict={}),
        dict(meta='deployed'),
        [1, 2],
    ],
    ids=str,
)
def test_other_checkpoints_are_not_deployed_ones(content):
    assert not is_deployed_checkpoint(content)
