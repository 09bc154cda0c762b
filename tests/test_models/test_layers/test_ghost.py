import pytest
import torch

from mmgnv3.models.layers import DFCGate, ghost, is_foldable_norm


def in_eval_mode(gate: DFCGate) -> None:
    gate.eval()


def with_norms_in_eval_mode(gate: DFCGate) -> None:
    for module in gate.modules():
        if is_foldable_norm(module):
            module.eval()


def folded(gate: DFCGate) -> None:
    for unit in gate.convs:
        unit.switch_to_deploy()


def as_it_is(gate: DFCGate) -> None:
    pass


@pytest.mark.parametrize(
    ('change', 'shape'),
    [
        (in_eval_mode, (1, 4, 3, 3)),
        (with_norms_in_eval_mode, (1, 4, 2, 2)),
        (folded, (1, 4, 2, 3)),
        (as_it_is, (2, 4, 2, 2)),
        (as_it_is, (1, 4, 2, 4)),
    ],
    ids=lambda value: getattr(value, '__name__', str(value)),
)
def test_smallest_maps_of_the_gate(change, shape):
    gate = DFCGate(4, 6)
    change(gate)
    out = gate(torch.rand(shape))
    assert out.shape == (shape[0], 6, shape[2] // 2, shape[3] // 2)
    assert ((out > 0) & (out < 1)).all()


@pytest.mark.parametrize('norm', ['BN', 'SyncBN'])
@pytest.mark.parametrize('size', [(2, 2), (3, 2), (3, 3)])
def test_one_value_has_no_variance(norm, size):
    gate = DFCGate(4, 6, norm_cfg=dict(type=norm))
    with pytest.raises(ValueError, match='batch is one image.*two images or more.*eval mode'):
        gate(torch.rand(1, 4, *size))


def test_other_ranks_have_values_too(monkeypatch):
    monkeypatch.setattr(ghost, 'process_group', lambda norms: object())
    with pytest.raises(ValueError) as raised:
        DFCGate(4, 6)(torch.rand(1, 4, 2, 2))
    assert 'DFC gate' not in str(raised.value)


@pytest.mark.parametrize('size', [(1, 4), (4, 1)])
def test_map_that_pooling_leaves_nothing_of(size):
    with pytest.raises(ValueError, match='Use larger images'):
        DFCGate(4, 6).eval()(torch.rand(2, 4, *size))


def test_hooks_see_the_output_of_the_second_ghost_module():
    block = ghost.GhostBottleneck(8, 16, 8)
    x, seen = torch.rand(2, 8, 6, 6), []
    expected = block(x)
    block.ghost2.register_forward_hook(lambda module, args, out: seen.append((out, out.clone())))
    block.ghost2.register_full_backward_hook(lambda module, grads, _: None)
    out = block(x)
    out.mean().backward()
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(*seen[0])
    assert not torch.equal(seen[0][0], out)
