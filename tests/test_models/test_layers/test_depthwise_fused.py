import ctypes

import pytest
import torch

from mmgnv3.models.layers.depthwise_fused import can_fuse, depthwise_fused
from tests.test_models.test_layers.depthwise import (
    Branches,
    assert_close,
    differences,
    make_branches,
    run_plain,
    to_double,
)
from tests.utils import needs_compiled_ops

EPS = 1e-5
FORMATS = [torch.contiguous_format, torch.channels_last]
SIZES = [(1, 1), (1, 2), (2, 1), (1, 7), (5, 1), (2, 2), (3, 3), (7, 8), (12, 9)]
# Kernel size, stride, whether the input is a branch.
GEOMETRIES = [(3, 1, True), (3, 1, False), (3, 2, False), (5, 2, False)]

pytestmark = needs_compiled_ops


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def run(branches, with_identity, stride, eps=EPS):
    x, kernels, scale, gammas, betas = branches
    return depthwise_fused(x, kernels, scale, with_identity, (stride, stride), gammas, betas, eps)


def compare(branches, with_identity, stride, eps=EPS):
    form = lambda b: run(b, with_identity, stride, eps)  # noqa: E731
    return differences(form, branches, with_identity, eps, stride)


@pytest.mark.parametrize('memory_format', FORMATS)
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('geometry', GEOMETRIES)
@pytest.mark.parametrize(('num_branches', 'with_scale'), [(1, False), (2, True), (3, True)])
def test_equals_branches(num_branches, with_scale, geometry, size, memory_format):
    kernel_size, stride, with_identity = geometry
    branches = make_branches(
        *((3, 4, *size), kernel_size, num_branches, with_scale, with_identity),
        memory_format=memory_format,
    )
    assert_close(compare(branches, with_identity, stride), 1e-9, 1e-7)


@pytest.mark.parametrize('batch', [1, 2, 5])
@pytest.mark.parametrize('channels', [1, 15, 16, 17, 31, 48, 71])
@pytest.mark.parametrize('geometry', [GEOMETRIES[0], GEOMETRIES[3]])
def test_channels_and_images_over_threads(geometry, channels, batch, threads):
    """Blocks of up to 16 channels, the last one not full; more threads than images, and fewer."""
    kernel_size, stride, with_identity = geometry
    branches = make_branches(
        *((batch, channels, 6, 7), kernel_size, 2, True, with_identity),
        memory_format=torch.channels_last,
    )
    assert_close(compare(branches, with_identity, stride), 1e-9, 1e-7)


@pytest.mark.parametrize('mean', [0, 30, 1000])
@pytest.mark.parametrize('memory_format', FORMATS)
@pytest.mark.parametrize('geometry', GEOMETRIES)
@pytest.mark.parametrize('size', [(7, 7), (1, 9), (24, 40)])
def test_single_precision(size, geometry, memory_format, mean):
    """A mean of 1000 standard deviations costs no digits, though the borders are padded with 0."""
    kernel_size, stride, with_identity = geometry
    branches = make_branches(
        *((4, 12, *size), kernel_size, 3, True, with_identity),
        *(torch.float32, memory_format, mean),
    )
    assert_close(compare(branches, with_identity, stride), 2e-5, 1e-4)


@pytest.mark.parametrize('geometry', [GEOMETRIES[0], GEOMETRIES[3]])
def test_mean_far_beyond_the_spread_beside_much_padding(geometry):
    """Rounding leaves a sum of gradients that is not zero, and padding must not multiply it."""
    kernel_size, stride, with_identity = geometry
    branches = make_branches(
        *((4, 12, 1, 9), kernel_size, 3, True, with_identity, torch.float32), mean=10_000
    )
    assert_close(compare(branches, with_identity, stride), 1e-4, 1e-3)


def test_long_sums_in_single_precision():
    """200,000 positive numbers a channel."""
    branches = make_branches((16, 8, 112, 112), 3, 1, False, False, torch.float32, mean=1)
    result = compare(branches, False, 1)
    assert_close(result, 5e-6)
    assert max(result['mean'], result['var'], result['gamma']) < 3e-7, result


def test_kernel_that_takes_out_nearly_all():
    """A Laplacian of a smooth map: its variance is a small difference of large products."""
    branches = make_branches((2, 4, 40, 40), 3, 2, True, True, torch.float32)
    ramp = torch.linspace(0, 1, 40).square()
    with torch.no_grad():
        branches.kernels[0].copy_(torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]))
        branches.x.copy_((ramp[:, None] * ramp).sin() + 0.001 * branches.x)
    assert_close(compare(branches, True, 1), 2e-5, 1e-4)


@pytest.mark.parametrize('memory_format', FORMATS)
@pytest.mark.parametrize('geometry', GEOMETRIES)
def test_keeps_the_memory_format(geometry, memory_format):
    kernel_size, stride, with_identity = geometry
    branches = make_branches(
        (2, 4, 6, 5), kernel_size, 3, True, with_identity, memory_format=memory_format
    )
    out = run(branches, with_identity, stride)[0]
    (grad,) = torch.autograd.grad(out.relu_().sum(), branches.x)
    assert out.is_contiguous(memory_format=memory_format)
    assert grad.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize('geometry', [GEOMETRIES[0], GEOMETRIES[2]])
def test_tensors_that_are_not_contiguous(geometry):
    kernel_size, stride, with_identity = geometry
    branches = make_branches((3, 8, 9, 9), kernel_size, 3, True, with_identity)

    def scattered(value):
        double = value.detach().repeat_interleave(2, dim=0)
        return double[::2].requires_grad_()

    part = branches._replace(
        x=branches.x.detach()[:, :, 2:8, 1:].requires_grad_(),
        kernels=tuple(map(scattered, branches.kernels)),
        scale=scattered(branches.scale),
        gammas=branches.gammas.detach().t().contiguous().t().requires_grad_(),
    )
    assert_close(compare(part, with_identity, stride), 1e-9, 1e-7)


@pytest.mark.parametrize('geometry', [GEOMETRIES[0], GEOMETRIES[2]])
def test_gradient_with_strides_of_zero(geometry):
    kernel_size, stride, with_identity = geometry
    branches = make_branches((3, 8, 9, 9), kernel_size, 3, True, with_identity)
    exact = to_double(branches)
    out = run(branches, with_identity, stride)[0]
    expected = run_plain(exact, with_identity, EPS, stride)[0]
    grad = torch.tensor([1.0, -2, 5], dtype=torch.float64).view(3, 1, 1, 1).expand_as(out)
    pairs = zip(
        torch.autograd.grad(out, branches.tensors(), grad),
        torch.autograd.grad(expected, exact.tensors(), grad),
        strict=True,
    )
    for ours, theirs in pairs:
        assert theirs.abs().max() > 1e-6
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize('geometry', [GEOMETRIES[0], GEOMETRIES[3]])
@pytest.mark.parametrize('frozen', ['x', 'kernels', 'scale', 'gammas', 'betas'])
def test_frozen_tensors(frozen, geometry):
    kernel_size, stride, with_identity = geometry
    branches = make_branches((2, 4, 5, 5), kernel_size, 3, True, with_identity)

    def loss():
        return run(branches, with_identity, stride)[0].square().sum()

    expected = torch.autograd.grad(loss(), branches.tensors())
    tensors = getattr(branches, frozen)
    for tensor in tensors if frozen == 'kernels' else [tensors]:
        tensor.requires_grad_(False)
    loss().backward()
    for tensor, grad in zip(branches.tensors(), expected, strict=True):
        assert (tensor.grad is None) is (not tensor.requires_grad)
        assert tensor.grad is None or torch.equal(tensor.grad, grad)


def test_weight_of_zero():
    """A 1 x 1 branch that starts at zero gets its gradient, although it divides by nothing."""
    branches = make_branches((2, 4, 6, 6), with_identity=True)
    with torch.no_grad():
        branches.scale.zero_()
    assert_close(compare(branches, True, 1), 1e-9, 1e-7)


def test_gradcheck():
    branches = make_branches((2, 2, 3, 4), 3, 2, True, True)

    def out(x, first, second, scale, gammas, betas):
        return run(Branches(x, (first, second), scale, gammas, betas), True, 1, eps=1e-2)[0]

    assert torch.autograd.gradcheck(out, branches.tensors())


def test_nothing_is_differentiated_twice():
    branches = make_branches((2, 4, 5, 5))
    loss = run(branches, False, 1)[0].square().sum()
    (grad,) = torch.autograd.grad(loss, branches.x, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        grad.sum().backward()


def test_keeps_the_input_and_nothing_else_of_its_size():
    branches = make_branches((4, 4, 12, 12), with_identity=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        run(branches, True, 1)
    large = [tensor for tensor in kept if tensor.numel() >= branches.x.numel()]
    assert [tensor.data_ptr() for tensor in large] == [branches.x.data_ptr()]


@pytest.mark.parametrize('geometry', GEOMETRIES)
@pytest.mark.parametrize('value', [0.0, 1e-3, 5.0, 100.0])
def test_constant_channels(value, geometry):
    kernel_size, stride, with_identity = geometry
    branches = make_branches((2, 4, 6, 6), kernel_size, 3, True, with_identity, torch.float32)
    with torch.no_grad():
        branches.x[:, :2] = value
    out, mean, var = run(branches, with_identity, stride)
    expected = run_plain(to_double(branches), with_identity, EPS, stride)
    assert var.min() >= 0
    assert var[-1, 0] <= 1e-9 * max(value, 1) ** 2
    torch.testing.assert_close(mean, expected[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.double(), expected[0], rtol=1e-4, atol=1e-4 * max(value, 1))
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), branches.tensors()))


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_what_is_not_finite_stays_in_its_channel(value):
    branches = make_branches((2, 20, 6, 6), with_identity=True)
    with torch.no_grad():
        # One of the pixels that the centre is taken from.
        branches.x[0, 3, 1, 1] = value
    out, mean, _ = run(branches, True, 1)
    (grad,) = torch.autograd.grad(out.sum(), branches.x)
    for tensor in (out.transpose(0, 1).flatten(1), mean.t(), grad.transpose(0, 1).flatten(1)):
        finite = tensor.isfinite().all(1)
        assert not finite[3] and finite.sum() == 19
    # Taken off itself, infinity would be no number.
    assert mean[-1, 3] == value or value != value


def test_same_numbers_with_the_same_threads(threads):
    branches = make_branches((5, 20, 9, 9), with_identity=True, dtype=torch.float32)
    first, second = (
        torch.autograd.grad(run(branches, True, 1)[0].square().sum(), branches.tensors())
        for _ in range(2)
    )
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    'change',
    [
        lambda b: b._replace(x=b.x[:, :3]),
        lambda b: b._replace(x=b.x[:0]),
        lambda b: b._replace(x=b.x.float()),
        lambda b: b._replace(x=b.x.to('meta')),
        lambda b: b._replace(scale=b.scale[:2]),
        lambda b: b._replace(gammas=b.gammas[:2]),
        lambda b: b._replace(kernels=(*b.kernels[:2], b.scale)),
        lambda b: b._replace(betas=b.betas[:, :2]),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change):
    with pytest.raises(ValueError, match='no compiled code'):
        run(change(make_branches((2, 4, 6, 6))), False, 1)


def test_geometry_without_code_is_refused():
    with pytest.raises(ValueError, match='no compiled code'):
        run(make_branches((2, 4, 6, 6), 5), False, 1)


def test_wide_maps_are_left_to_others():
    assert can_fuse(torch.empty(1, 1, 1, 4096)) and not can_fuse(torch.empty(1, 1, 1, 4097))


def test_exhausted_memory_is_an_error(monkeypatch):
    from mmgnv3.models.layers import depthwise_fused as module

    class Library:
        forward_double = staticmethod(lambda arguments: 1)

    monkeypatch.setattr(module, 'load_library', lambda: Library)
    with pytest.raises(MemoryError, match='no memory left'):
        run(make_branches((1, 2, 3, 3)), False, 1)


def test_arguments_are_those_of_the_sources():
    """Structures of both sides have the same fields in the same order."""
    from mmgnv3.models.layers.depthwise_fused import _Arguments, _Map
    from mmgnv3.ops.library import SOURCES

    source = ''.join(path.read_text() for path in SOURCES.iterdir())
    for name, structure in (('Tensor4', _Map), ('Arguments', _Arguments)):
        body = source.partition(f'struct {name} {{')[2].partition('};')[0]
        lines = [line.strip() for line in body.splitlines() if line.strip()[:2] != '//']
        declared = [
            field.strip(' *;')
            for line in filter(None, lines)
            for field in line.partition(' ')[2].split(',')
        ]
        assert declared == [field[0] for field in structure._fields_]
    assert ctypes.sizeof(_Arguments) == 8 * (12 + 4 * 5 + 2 + 10)
