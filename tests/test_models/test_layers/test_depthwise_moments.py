import threading

import pytest
import torch
from torch.nn import functional as F

from mmgnv3.models.layers import depthwise_correlation as correlation
from mmgnv3.models.layers import depthwise_moments as module
from mmgnv3.models.layers import numerics
from mmgnv3.models.layers.depthwise_moments import depthwise_moments
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
SIZES = [(1, 1), (1, 4), (4, 1), (2, 2), (2, 3), (7, 7), (5, 8), (12, 6)]


def run(branches, with_identity=True, eps=EPS, group=None):
    x, kernels, scale, gammas, betas = branches
    return depthwise_moments(x, kernels, scale, with_identity, gammas, betas, eps, group)


def compare(branches, with_identity=True, eps=EPS):
    return differences(lambda b: run(b, with_identity, eps), branches, with_identity, eps)


@pytest.mark.parametrize('memory_format', FORMATS)
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize(
    ('num_branches', 'with_scale', 'with_identity'),
    [(1, False, False), (2, True, False), (1, False, True), (3, True, True)],
)
def test_equals_branches(num_branches, with_scale, with_identity, size, memory_format):
    branches = make_branches(
        (3, 4, *size), 3, num_branches, with_scale, with_identity, memory_format=memory_format
    )
    assert_close(compare(branches, with_identity), 1e-9, 1e-7)


def test_equals_branches_for_one_image_and_one_channel():
    assert_close(compare(make_branches((1, 1, 6, 5), with_identity=True)), 1e-9, 1e-7)


@pytest.mark.parametrize('mean', [0, 10, 100])
@pytest.mark.parametrize('memory_format', FORMATS)
@pytest.mark.parametrize('size', [(7, 7), (1, 9), (24, 40)])
def test_single_precision(size, memory_format, mean):
    """A mean of 100 standard deviations costs no digits, though the borders are padded with 0."""
    branches = make_branches(
        (4, 12, *size), 3, 3, True, True, torch.float32, memory_format, mean=mean
    )
    assert_close(compare(branches), 2e-5, 1e-4)


@pytest.mark.parametrize(('dtype', 'limit'), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_half_precision(dtype, limit):
    branches = make_branches((4, 8, 9, 9), with_identity=True, dtype=dtype)
    result = compare(branches)
    assert_close(result, limit)
    # The statistics are taken in single precision.
    assert max(result['mean'], result['var']) < 1e-5


def test_half_precision_input_with_single_precision_parameters():
    branches = make_branches((4, 8, 9, 9), with_identity=True, dtype=torch.float32)
    branches = branches._replace(x=branches.x.detach().bfloat16().requires_grad_())
    out = run(branches)[0]
    out.float().square().sum().backward()
    assert out.dtype == branches.x.grad.dtype == torch.bfloat16
    assert all(tensor.grad.dtype == tensor.dtype for tensor in branches.tensors())


@pytest.mark.parametrize('memory_format', FORMATS)
def test_keeps_the_memory_format(memory_format):
    branches = make_branches((2, 4, 6, 5), with_identity=True, memory_format=memory_format)
    out = run(branches)[0]
    (grad,) = torch.autograd.grad(out.sum(), branches.x)
    assert out.is_contiguous(memory_format=memory_format)
    assert grad.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize('memory_format', FORMATS)
def test_output_can_be_changed_in_place(memory_format):
    branches = make_branches((2, 4, 6, 5), with_identity=True, memory_format=memory_format)
    (expected,) = torch.autograd.grad(run(branches)[0].relu().sum(), branches.x)
    (grad,) = torch.autograd.grad(run(branches)[0].relu_().sum(), branches.x)
    assert torch.equal(grad, expected)


def test_input_that_is_a_slice():
    branches = make_branches((3, 8, 9, 9), with_identity=True)
    part = branches._replace(x=branches.x.detach()[:, :, 2:8, 1:].requires_grad_())
    assert_close(compare(part), 1e-9, 1e-7)


@pytest.mark.parametrize('frozen', ['x', 'kernels', 'scale', 'gammas', 'betas'])
def test_frozen_tensors(frozen):
    branches = make_branches((2, 4, 5, 5), with_identity=True)
    out, _, _ = run(branches)
    expected = torch.autograd.grad(out.square().sum(), branches.tensors())
    tensors = getattr(branches, frozen)
    for tensor in tensors if frozen == 'kernels' else [tensors]:
        tensor.requires_grad_(False)
    run(branches)[0].square().sum().backward()
    for tensor, grad in zip(branches.tensors(), expected, strict=True):
        assert (tensor.grad is None) is (not tensor.requires_grad)
        assert tensor.grad is None or torch.equal(tensor.grad, grad)


def test_nothing_is_differentiated_twice():
    branches = make_branches((2, 4, 5, 5), with_identity=True)
    (grad,) = torch.autograd.grad(run(branches)[0].square().sum(), branches.x, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        grad.sum().backward()


def test_gradcheck():
    branches = make_branches((2, 2, 3, 4), 3, 2, True, True)

    def out(x, first, second, scale, gammas, betas):
        return run(Branches(x, (first, second), scale, gammas, betas), eps=1e-2)[0]

    assert torch.autograd.gradcheck(out, branches.tensors())


def test_keeps_the_input_and_nothing_else_of_its_size():
    branches = make_branches((4, 4, 12, 12), with_identity=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        run(branches)
    large = [tensor for tensor in kept if tensor.numel() >= branches.x.numel()]
    assert [tensor.data_ptr() for tensor in large] == [branches.x.data_ptr()]


def smooth_map(mean: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 4, 5, 5, generator=generator, dtype=torch.float64)
    x = F.interpolate(x, (40, 40), mode='bicubic', align_corners=True)
    # Without a border of its own, where the padding would be all that a Laplacian sees.
    window = torch.hann_window(40, periodic=False, dtype=torch.float64)
    return (x + mean) * window[:, None] * window


def laplacians(x: torch.Tensor) -> Branches:
    branches = make_branches((1, 4, 1, 1), 3, 2, True, True, torch.float32)
    kernel = torch.tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float32)
    kernels = (kernel.expand(4, 1, 3, 3).clone().requires_grad_(), branches.kernels[1])
    return branches._replace(x=x.float().requires_grad_(), kernels=kernels)


@pytest.mark.parametrize('mean', [0, 3])
def test_kernel_that_takes_out_nearly_all(mean, monkeypatch):
    branches = laplacians(smooth_map(mean))
    result = compare(branches)
    assert_close(result, 5e-5, 1e-4)
    # The measure of it is needed: without, the variance is off by far more.
    monkeypatch.setattr(module, 'MEASURE_BELOW', 0)
    assert compare(branches)['out'] > 20 * result['out']


def test_large_mean_needs_the_centre(monkeypatch):
    branches = make_branches((2, 8, 20, 20), with_identity=True, dtype=torch.float32, mean=100)
    monkeypatch.setattr(module, 'CENTRE_BELOW', 0)
    monkeypatch.setattr(module, 'MEASURE_BELOW', 0)
    assert compare(branches)['out'] > 1e-3


def test_large_mean_on_gpus(monkeypatch):
    """Where nothing may be looked at, sums are taken about the mean always."""
    monkeypatch.setattr(module, 'can_look', lambda x: False)
    branches = make_branches((2, 8, 20, 20), with_identity=True, dtype=torch.float32, mean=100)
    assert_close(compare(branches), 2e-5, 1e-4)


@pytest.mark.parametrize('value', [0.0, 1e-3, 5.0, 100.0])
def test_constant_channels(value):
    branches = make_branches((2, 4, 6, 6), with_identity=True, dtype=torch.float32)
    with torch.no_grad():
        branches.x[:, :2] = value
    out, mean, var = run(branches)
    expected = run_plain(to_double(branches), True, EPS)
    assert var.min() >= 0
    assert var[-1, 0] <= 1e-9 * max(value, 1) ** 2
    torch.testing.assert_close(mean, expected[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.double(), expected[0], rtol=1e-4, atol=1e-4 * max(value, 1))
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), branches.tensors()))


def test_long_sums_are_split(monkeypatch):
    """200,000 positive numbers in single precision: without pieces ten times the error."""
    branches = make_branches((16, 8, 112, 112), 3, 1, False, False, torch.float32, mean=1)
    exact = run_plain(to_double(branches), False, EPS)[2]

    def error():
        with torch.no_grad():
            return ((run(branches, False)[2] - exact) / exact).abs().max().item()

    split = error()
    assert split < 2e-5
    monkeypatch.setattr(correlation, 'MAX_PIXELS_PER_SUM', 10**9)
    assert error() > 2 * split


@pytest.mark.parametrize('max_pixels', [1, 30, 60, 130])
def test_pieces_add_up(max_pixels, monkeypatch):
    """Bands of rows in an image, whole images, and an incomplete last piece."""
    monkeypatch.setattr(correlation, 'MAX_PIXELS_PER_SUM', max_pixels)
    branches = make_branches((3, 4, 7, 8), with_identity=True, dtype=torch.float32)
    assert_close(compare(branches), 1e-5, 1e-4)


@pytest.mark.parametrize('may_look', [True, False])
@pytest.mark.parametrize(('mean', 'first'), [(0, 2), (100, 2), (0, 0)])
def test_statistics_over_several_processes(mean, first, may_look, monkeypatch):
    """Two threads play two processes; together they must equal the whole batch."""
    monkeypatch.setattr(module, 'can_look', lambda x: may_look)
    whole = make_branches((5, 4, 6, 7), with_identity=True, mean=mean)
    weight = torch.randn(whole.x.shape, generator=torch.Generator().manual_seed(1)).double()
    barrier, messages, results = threading.Barrier(2, timeout=60), {}, {}

    def all_reduce(tensor, group):
        messages[group] = tensor.clone()
        barrier.wait()
        total = messages[0] + messages[1]
        barrier.wait()
        tensor.copy_(total)

    def process(rank, part):
        tensors = to_double(whole)
        tensors = tensors._replace(x=whole.x.detach()[part].clone().requires_grad_())
        out, mean, var = run(tensors, group=rank)
        grads = torch.autograd.grad((out * weight[part]).sum(), tensors.tensors())
        results[rank] = out, mean, var, grads

    monkeypatch.setattr(numerics, 'all_reduce', all_reduce)
    parts = slice(0, first), slice(first, 5)
    threads = [threading.Thread(target=process, args=item) for item in enumerate(parts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    out, mean, var = run(whole)
    grads = torch.autograd.grad((out * weight).sum(), whole.tensors())
    close = dict(rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(torch.cat([results[r][0] for r in (0, 1)]), out, **close)
    torch.testing.assert_close(torch.cat([results[r][3][0] for r in (0, 1)]), grads[0], **close)
    for rank in (0, 1):
        torch.testing.assert_close(results[rank][1:3], (mean, var), **close)
    for first, second, both in zip(results[0][3][1:], results[1][3][1:], grads[1:], strict=True):
        torch.testing.assert_close(first + second, both, **close)
