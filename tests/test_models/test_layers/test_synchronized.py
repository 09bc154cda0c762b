"""Statistics over several processes: two with half a batch each are one with all of it."""

import copy
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from mmgnv3.models.layers import MultiBranchConv2d
from mmgnv3.models.layers.training_forms import choose_form
from tests.utils import randomize_norms

UNITS = {
    'moments': dict(in_channels=6, out_channels=10, kernel_size=1, num_branches=3),
    'stacked': dict(in_channels=20, out_channels=4, kernel_size=1, num_branches=3),
    'depthwise': dict(
        in_channels=8,
        out_channels=8,
        kernel_size=3,
        groups=8,
        num_branches=3,
        with_scale=True,
        with_identity=True,
    ),
}
# A process's share of five images: not halves, and nothing at all.
CASES = list(product(UNITS, (2, 0)))


def make_unit(name: str, norm: str) -> MultiBranchConv2d:
    torch.manual_seed(0)
    unit = MultiBranchConv2d(**UNITS[name], norm_cfg=dict(type=norm))
    return randomize_norms(unit).double()


def step(unit: MultiBranchConv2d, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    out = unit(x)
    out.backward(grad)
    grads = {f'{key}.grad': p.grad for key, p in unit.named_parameters()}
    return dict(out=out.detach(), input=x.grad, **grads, **dict(unit.named_buffers()))


def make_batch(unit: MultiBranchConv2d) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    channels = (unit.in_channels, unit.out_channels)
    x, grad = (torch.randn(5, c, 6, 7, generator=generator, dtype=torch.float64) for c in channels)
    return x, grad


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f'file://{folder}/store'
    distributed.init_process_group('gloo', init_method=store, rank=rank, world_size=2)
    found = {}
    for name, first in CASES:
        mine = slice(0, first) if rank == 0 else slice(first, 5)
        unit = make_unit(name, 'SyncBN')
        x, grad = make_batch(unit)
        # Small batches, which one process would run plainly: the size of a process's own batch
        # must not decide, or processes could wait for different messages.
        assert choose_form(unit, x[mine]) == choose_form(unit, x.repeat(1, 1, 9, 9)) == name
        found[name, first] = step(unit, x[mine], grad[mine])
    torch.save(found, Path(folder) / f'{rank}.pth')
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not distributed.is_available(), reason='needs torch.distributed')
def test_two_processes_are_one_with_the_whole_batch(tmp_path):
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f'{rank}.pth') for rank in range(2)]
    for name, first in CASES:
        unit = make_unit(name, 'BN')
        expected = step(copy.deepcopy(unit), *make_batch(unit))
        for key, value in expected.items():
            parts = [rank[name, first][key] for rank in ranks]
            if key in ('out', 'input'):
                actual = torch.cat(parts)
            elif key.endswith('.grad'):
                # What a data-parallel wrapper adds up.
                actual = sum(parts)
            else:
                assert torch.equal(*parts), key
                actual = parts[0]
            tolerance = 1e-10 * max(1.0, value.abs().max().item())
            torch.testing.assert_close(actual, value, rtol=1e-9, atol=tolerance, msg=key)
