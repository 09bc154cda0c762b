import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmgnv3.models.layers.gated_concat import gated_concat

SIZES = [((7, 5), (3, 2)), ((8, 6), (4, 3)), ((2, 3), (1, 1)), ((4, 4), (4, 4))]


def reference(primary: Tensor, cheap: Tensor, gate: Tensor) -> Tensor:
    out = torch.cat([primary, cheap], 1)
    return out * F.interpolate(gate, size=out.shape[2:], mode='nearest')


def make_inputs(sizes, channels=(3, 3), memory_format=torch.contiguous_format) -> list[Tensor]:
    torch.manual_seed(0)
    size, coarse = sizes
    shapes = [(2, channels[0], *size), (2, channels[1], *size), (2, sum(channels), *coarse)]
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    return [t.to(memory_format=memory_format).requires_grad_() for t in tensors]


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('channels', [(3, 3), (4, 3)])
@pytest.mark.parametrize('sizes', SIZES, ids=str)
def test_equals_the_operators_it_stands_for(sizes, channels, memory_format):
    inputs = make_inputs(sizes, channels, memory_format)
    out, expected = gated_concat(*inputs), reference(*inputs)
    assert torch.equal(out, expected)
    assert out.is_contiguous(memory_format=memory_format)
    grad = torch.randn_like(expected)
    grads = torch.autograd.grad(out, inputs, grad)
    torch.testing.assert_close(grads, torch.autograd.grad(expected, inputs, grad))


@pytest.mark.parametrize('wanted', [0, 1, 2])
def test_gradient_of_one_argument(wanted):
    inputs = [t.detach() for t in make_inputs(SIZES[0])]
    inputs[wanted].requires_grad_()
    (grad,) = torch.autograd.grad(gated_concat(*inputs).sum(), inputs[wanted])
    (expected,) = torch.autograd.grad(reference(*inputs).sum(), inputs[wanted])
    torch.testing.assert_close(grad, expected)


def test_keeps_nothing_but_its_arguments():
    inputs = make_inputs(SIZES[1])
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        gated_concat(*inputs)
    places = {t.untyped_storage().data_ptr() for t in inputs}
    assert len(kept) == 3 and {t.untyped_storage().data_ptr() for t in kept} == places
