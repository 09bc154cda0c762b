import subprocess
import sys

import pytest
from torch import nn

from mmgnv3.models.layers.norms import build_norm


class Shifted(nn.BatchNorm2d):
    """A batch norm of the user's own."""


@pytest.mark.parametrize(
    ('norm_cfg', 'kind'),
    [
        (dict(type='BN'), nn.BatchNorm2d),
        (dict(type='BN2d'), nn.BatchNorm2d),
        (dict(type='SyncBN'), nn.SyncBatchNorm),
        (dict(type=Shifted, eps=1e-3), Shifted),
    ],
    ids=str,
)
def test_batch_norms_of_maps_are_built(norm_cfg, kind):
    norm = build_norm(dict(norm_cfg, requires_grad=False), 8)
    assert isinstance(norm, kind) and norm.num_features == 8
    assert norm.eps == norm_cfg.get('eps', 1e-5)
    assert not norm.weight.requires_grad


@pytest.mark.parametrize(
    'norm_cfg',
    [
        # Eight channels do not make 32 groups: torch would say that, and not what is wrong.
        dict(type='GN', num_groups=32),
        dict(type='GN'),
        dict(type=nn.GroupNorm, num_groups=2),
        dict(type='IN'),
        dict(type='BN1d'),
        dict(type='BN3d'),
        dict(type='BN', track_running_stats=False),
        dict(type=None),
        dict(eps=1e-3),
        'BN',
    ],
    ids=str,
)
def test_what_cannot_be_folded_is_refused(norm_cfg):
    with pytest.raises(ValueError, match="cannot be folded into a convolution.*'BN' or 'SyncBN'"):
        build_norm(norm_cfg, 8)


def test_an_unknown_norm_is_called_so():
    with pytest.raises(ValueError, match="names the unknown norm 'NoSuchNorm'"):
        build_norm(dict(type='NoSuchNorm'), 8)


def test_the_norm_of_mmcv_is_found_where_nothing_has_imported_it():
    code = """
import sys
from torch import distributed
from mmgnv3.models.layers.norms import build_norm
assert 'mmcv.ops' not in sys.modules
distributed.init_process_group('gloo', store=distributed.HashStore(), rank=0, world_size=1)
print(type(build_norm(dict(type='MMSyncBN'), 8)))
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert 'SyncBatchNorm' in done.stdout, done.stderr
