import pytest
import torch

from mmgnv3.models.layers import depthwise_correlation as correlation
from mmgnv3.models.layers import depthwise_strided as module
from mmgnv3.models.layers.depthwise_strided import depthwise_strided
from tests.test_models.test_layers.depthwise import (
    Branches,
    assert_close,
    differences,
    make_branches,
    run_plain,
    to_double,
)

EPS = 1e-5
FORMATS = [torch.contiguous_format, torch.channels_last]
SIZES = [(1, 2), (2, 1), (1, 7), (5, 1), (2, 2), (3, 3), (7, 8), (12, 9)]


def run(branches, eps=EPS, stride=(2, 2)):
    x, kernels, scale, gammas, betas = branches
    return depthwise_strided(x, kernels, scale, stride, gammas, betas, eps)


def compare(branches, eps=EPS, stride=(2, 2)):
    return differences(lambda b: run(b, eps, stride), branches, False, eps, stride)


@pytest.mark.parametrize('memory_format', FORMATS)
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('kernel_size', [3, 5])
@pytest.mark.parametrize(('num_branches', 'with_scale'), [(1, False), (2, True), (3, True)])
def test_equals_branches(num_branches, with_scale, kernel_size, size, memory_format):
    branches = make_branches(
        (3, 4, *size), kernel_size, num_branches, with_scale, memory_format=memory_format
    )
    assert_close(compare(branches), 1e-9, 1e-7)


@pytest.mark.parametrize(
    ('kernel_size', 'stride'), [(3, (1, 2)), (5, (2, 1)), (3, (3, 3)), (7, (2, 2))]
)
def test_other_strides_and_kernels(kernel_size, stride):
    branches = make_branches((2, 3, 9, 10), kernel_size)
    assert_close(compare(branches, stride=stride), 1e-9, 1e-7)


@pytest.mark.parametrize('mean', [0, 30, 1000])
@pytest.mark.parametrize('memory_format', FORMATS)
@pytest.mark.parametrize('kernel_size', [3, 5])
@pytest.mark.parametrize('size', [(7, 7), (1, 9), (24, 40)])
def test_single_precision(size, kernel_size, memory_format, mean):
    branches = make_branches(
        (4, 12, *size), kernel_size, 3, True, False, torch.float32, memory_format, mean=mean
    )
    assert_close(compare(branches), 2e-5)


@pytest.mark.parametrize(('dtype', 'limit'), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_half_precision(dtype, limit):
    branches = make_branches((4, 8, 9, 9), dtype=dtype)
    result = compare(branches)
    assert_close(result, limit)
    assert max(result['mean'], result['var']) < 1e-5


@pytest.mark.parametrize('max_bytes', [1, 4 * 9 * 8 * 4 * 2])
@pytest.mark.parametrize('kernel_size', [3, 5])
def test_images_come_in_parts(kernel_size, max_bytes, monkeypatch):
    """Parts of one image, of two, an incomplete last one; for weight gradients too."""
    monkeypatch.setattr(correlation, 'MAX_BYTES', max_bytes)
    monkeypatch.setattr(module, 'MAX_PIXELS_PER_SUM', 45)
    branches = make_branches((5, 4, 9, 8), kernel_size, dtype=torch.float32)
    x, kernels = module._prepare(branches.x), branches.kernels
    parts = module._run_branches(x, kernels, x.new_zeros(len(kernels), 4), (2, 2))
    assert [len(part[0]) for part in parts] == ([1] * 5 if max_bytes == 1 else [2, 2, 1])
    assert_close(compare(branches), 1e-5, 1e-4)


@pytest.mark.parametrize('memory_format', FORMATS)
def test_keeps_the_memory_format(memory_format):
    branches = make_branches((2, 4, 6, 5), memory_format=memory_format)
    out = run(branches)[0]
    (grad,) = torch.autograd.grad(out.sum(), branches.x)
    assert out.is_contiguous(memory_format=memory_format)
    assert grad.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize('memory_format', FORMATS)
def test_output_can_be_changed_in_place(memory_format):
    branches = make_branches((2, 4, 6, 5), memory_format=memory_format)
    (expected,) = torch.autograd.grad(run(branches)[0].relu().sum(), branches.x)
    (grad,) = torch.autograd.grad(run(branches)[0].relu_().sum(), branches.x)
    assert torch.equal(grad, expected)


def test_input_that_is_a_slice():
    branches = make_branches((3, 8, 9, 9))
    part = branches._replace(x=branches.x.detach()[:, :, 2:8, 1:].requires_grad_())
    assert_close(compare(part), 1e-9, 1e-7)


@pytest.mark.parametrize('kernel_size', [3, 5])
@pytest.mark.parametrize('frozen', ['x', 'kernels', 'scale', 'gammas', 'betas'])
def test_frozen_tensors(frozen, kernel_size):
    branches = make_branches((2, 4, 5, 5), kernel_size)
    expected = torch.autograd.grad(run(branches)[0].square().sum(), branches.tensors())
    tensors = getattr(branches, frozen)
    for tensor in tensors if frozen == 'kernels' else [tensors]:
        tensor.requires_grad_(False)
    run(branches)[0].square().sum().backward()
    for tensor, grad in zip(branches.tensors(), expected, strict=True):
        assert (tensor.grad is None) is (not tensor.requires_grad)
        assert tensor.grad is None or torch.allclose(tensor.grad, grad, rtol=1e-12, atol=1e-12)


def test_weight_of_zero():
    """A 1 x 1 branch that starts at zero gets its gradient, although it divides by nothing."""
    branches = make_branches((2, 4, 6, 6))
    with torch.no_grad():
        branches.scale.zero_()
    assert_close(compare(branches), 1e-9, 1e-7)


def test_nothing_is_differentiated_twice():
    branches = make_branches((2, 4, 5, 5))
    (grad,) = torch.autograd.grad(run(branches)[0].square().sum(), branches.x, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        grad.sum().backward()


def test_gradcheck():
    branches = make_branches((2, 2, 4, 3), 3, 2)

    def out(x, first, second, scale, gammas, betas):
        return run(Branches(x, (first, second), scale, gammas, betas), eps=1e-2)[0]

    assert torch.autograd.gradcheck(out, branches.tensors())


def test_keeps_the_input_and_nothing_else_of_the_size_of_a_map():
    branches = make_branches((4, 4, 12, 12))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        run(branches)
    large = [tensor for tensor in kept if tensor.numel() >= 4 * 4 * 36]
    assert [tensor.data_ptr() for tensor in large] == [branches.x.data_ptr()]


@pytest.mark.parametrize('value', [0.0, 1e-3, 5.0, 100.0])
def test_constant_channels(value):
    branches = make_branches((2, 4, 6, 6), dtype=torch.float32)
    with torch.no_grad():
        branches.x[:, :2] = value
    out, mean, var = run(branches)
    expected = run_plain(to_double(branches), False, EPS, 2)
    assert var.min() >= 0
    assert var[-1, 0] <= 1e-9 * max(value, 1) ** 2
    torch.testing.assert_close(mean, expected[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.double(), expected[0], rtol=1e-4, atol=1e-4 * max(value, 1))
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), branches.tensors()))
