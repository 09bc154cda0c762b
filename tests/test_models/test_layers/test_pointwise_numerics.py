"""Float32 where it is hardest: large means, constant channels, kernels that cancel, long sums."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmgnv3.models.layers import pointwise_algebra
from mmgnv3.models.layers import pointwise_moments as pointwise_moments_module
from mmgnv3.models.layers.pointwise_moments import pointwise_moments
from mmgnv3.models.layers.stacked_branches import stacked_branches

EPS = 1e-5


def plain(
    x: Tensor, kernels: list[Tensor], gammas: Tensor, betas: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    branches = [F.conv2d(x, kernel) for kernel in kernels]
    norms = [
        F.batch_norm(z, None, None, gamma, beta, True, 0.0, EPS)
        for z, gamma, beta in zip(branches, gammas, betas, strict=True)
    ]
    means = torch.stack([z.mean((0, 2, 3)) for z in branches])
    variances = torch.stack([z.var((0, 2, 3), unbiased=False) for z in branches])
    return sum(norms), means, variances


def moments(x: Tensor, kernels: list[Tensor], gammas: Tensor, betas: Tensor) -> tuple:
    return pointwise_moments(x, kernels, False, gammas, betas, EPS)


def stacked(x: Tensor, kernels: list[Tensor], gammas: Tensor, betas: Tensor) -> tuple:
    return stacked_branches(x, kernels, (1, 1), gammas, betas, EPS)


def run(form, x: Tensor, kernels: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Output, means, variances and all gradients, in float64."""
    generator = torch.Generator().manual_seed(3)
    affine = torch.rand(2, len(kernels), len(kernels[0]), generator=generator)
    leaves = [t.to(dtype, copy=True).requires_grad_() for t in (x, *kernels, *(affine + 0.5))]
    out, means, variances = form(leaves[0], leaves[1:-2], *leaves[-2:])
    out.backward(torch.randn(out.shape, generator=generator).to(dtype))
    return [t.detach().double() for t in (out, means, variances, *(leaf.grad for leaf in leaves))]


def errors(actual: list[Tensor], expected: list[Tensor]) -> list[float]:
    return [
        ((a - b).abs().max() / b.abs().max().clamp_min(1e-12)).item()
        for a, b in zip(actual, expected, strict=True)
    ]


def make(channels: int, outputs: int, size: int = 24) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, channels, size, size, generator=generator)
    kernels = [torch.randn(outputs, channels, 1, 1, generator=generator) for _ in range(3)]
    return x, kernels


@pytest.mark.parametrize('form', [moments, stacked])
@pytest.mark.parametrize('may_look', [True, False])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_means_a_hundred_times_the_deviation(form, may_look, memory_format, monkeypatch):
    monkeypatch.setattr(pointwise_moments_module, 'can_look', lambda x: may_look)
    x, kernels = make(12, 16)
    x = (x + 100).to(memory_format=memory_format)
    exact = run(plain, x, kernels, torch.float64)
    limits = [max(1e-4, 3 * error) for error in errors(run(plain, x, kernels, x.dtype), exact)]
    found = errors(run(form, x, kernels, x.dtype), exact)
    assert all(e < limit for e, limit in zip(found, limits, strict=True)), found
    # The variances themselves are safe: float32 squares would leave two digits of them.
    assert found[2] < 1e-5


@pytest.mark.parametrize('form', [moments, stacked])
@pytest.mark.parametrize('value', [0.0, 0.3, -7.7])
def test_constant_channels(form, value):
    x, kernels = make(6, 9)
    x[:, :5] = value
    # These outputs see nothing but the constant channels.
    for kernel in kernels:
        kernel[:4, 5] = 0
    exact = run(plain, x, kernels, torch.float64)
    found = run(form, x, kernels, torch.float32)
    assert found[2].min() >= 0
    assert all(torch.isfinite(t).all() for t in found)
    torch.testing.assert_close(found[2], exact[2], rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(found[0][:, 4:], exact[0][:, 4:], rtol=1e-3, atol=1e-3)


def test_constant_map():
    x, kernels = make(6, 9)
    x = torch.full_like(x, 3.3)
    exact = run(plain, x, kernels, torch.float64)
    out, means, variances = run(moments, x, kernels, torch.float32)[:3]
    assert variances.min() >= 0 and variances.max() < 1e-6
    torch.testing.assert_close(means, exact[1], rtol=1e-5, atol=1e-5)
    assert torch.isfinite(out).all()


def test_kernels_that_cancel_are_measured_in_float64():
    """Channels that are nearly the same and kernels that take their difference."""
    x, kernels = make(6, 9)
    x[:, 1:] = x[:, :1] + 1e-3 * x[:, 1:]
    kernels = [kernel - kernel.mean(1, keepdim=True) for kernel in kernels]
    exact = run(plain, x, kernels, torch.float64)
    found = errors(run(moments, x, kernels, torch.float32), exact)
    assert found[2] < 1e-4
    assert found[0] < 1e-3


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_long_sums_are_taken_in_pieces(monkeypatch, memory_format):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 70, 50, generator=generator).to(memory_format=memory_format)
    whole = pointwise_algebra.outer_product(x, x[:, :2])
    lengths = []
    product = torch.Tensor.__matmul__

    def record(a: Tensor, b: Tensor) -> Tensor:
        lengths.append(a.shape[-1])
        return product(a, b)

    monkeypatch.setattr(torch.Tensor, '__matmul__', record)
    monkeypatch.setattr(pointwise_algebra, 'MAX_PIXELS_PER_SUM', 1000)
    pieces = pointwise_algebra.outer_product(x, x[:, :2])
    assert lengths and max(lengths) <= 1000
    assert pieces.dtype == torch.float64
    torch.testing.assert_close(pieces, whole, rtol=1e-6, atol=0)
    exact = torch.einsum('bchw,bdhw->cd', x.double(), x[:, :2].double())
    torch.testing.assert_close(pieces, exact, rtol=1e-6, atol=0)
