"""What the tests of the depthwise training forms compare with: branches run one by one."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Branches(NamedTuple):
    """Tensors of a depthwise unit, in the order that the training forms take them."""

    x: Tensor
    kernels: tuple[Tensor, ...]
    scale: Tensor | None
    gammas: Tensor
    betas: Tensor

    def tensors(self) -> list[Tensor]:
        """Those that can have a gradient."""
        scale = [] if self.scale is None else [self.scale]
        return [self.x, *self.kernels, *scale, self.gammas, self.betas]


def make_branches(
    shape: tuple[int, int, int, int],
    kernel_size: int = 3,
    num_branches: int = 3,
    with_scale: bool = True,
    with_identity: bool = False,
    dtype: torch.dtype = torch.float64,
    memory_format: torch.memory_format = torch.contiguous_format,
    mean: float = 0.0,
) -> Branches:
    """Random branches, the same ones for the same arguments; leaves that want gradients."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*size: int, spread: float = 1.0, centre: float = 0.0) -> Tensor:
        value = torch.randn(size, generator=generator, dtype=torch.float64) * spread + centre
        return value.to(dtype).requires_grad_()

    x = leaf(*shape, centre=mean).detach().to(memory_format=memory_format).requires_grad_()
    channels = shape[1]
    total = num_branches + with_scale + with_identity
    return Branches(
        x,
        tuple(leaf(channels, 1, kernel_size, kernel_size, spread=0.3) for _ in range(num_branches)),
        leaf(channels, 1, 1, 1) if with_scale else None,
        leaf(total, channels, spread=0.3, centre=1.0),
        leaf(total, channels),
    )


def run_plain(
    branches: Branches, with_identity: bool, eps: float, stride: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, means and biased variances of the branches run one by one, in float64."""
    x, kernels, scale, gammas, betas = branches
    channels = x.shape[1]
    outs = [F.conv2d(x, k, None, stride, k.shape[-1] // 2, 1, channels) for k in kernels]
    if scale is not None:
        outs.append(F.conv2d(x, scale, None, stride, 0, 1, channels))
    if with_identity:
        outs.append(x)
    stacked = torch.stack(outs)
    var, mean = torch.var_mean(stacked, (1, 3, 4), correction=0)
    normed = (stacked - mean[:, None, :, None, None]) / (var + eps).sqrt()[:, None, :, None, None]
    out = normed * gammas[:, None, :, None, None] + betas[:, None, :, None, None]
    return out.sum(0), mean, var


def to_double(branches: Branches) -> Branches:
    """The same values in float64, contiguous, as new leaves."""

    def double(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.detach().double().contiguous().requires_grad_()

    x, kernels, scale, gammas, betas = branches
    return Branches(
        double(x), tuple(map(double, kernels)), double(scale), double(gammas), double(betas)
    )


def differences(form, branches: Branches, with_identity: bool, eps: float, stride: int = 1) -> dict:
    """Largest difference of output, statistics and gradients, relative to the largest value.

    Args:
        form: Called with :class:`Branches`; returns output, means and variances.
        branches: Leaves.
        with_identity: Whether the input is a branch.
        eps: Of the norms.
        stride: Of the branches.

    Returns:
        By name: out, mean, var, x, kernel, scale, gamma, beta.
    """
    exact = to_double(branches)
    expected = run_plain(exact, with_identity, eps, stride)
    grad = torch.randn(
        expected[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).to(branches.x.dtype)
    got = form(branches)
    assert got[0].dtype == branches.x.dtype
    pairs = list(zip(('out', 'mean', 'var'), got, expected, strict=True))
    names = ['x', *['kernel'] * len(branches.kernels), 'scale', 'gamma', 'beta']
    if branches.scale is None:
        names.remove('scale')
    pairs += zip(
        names,
        torch.autograd.grad(got[0], branches.tensors(), grad),
        torch.autograd.grad(expected[0], exact.tensors(), grad.double()),
        strict=True,
    )
    result = {}
    for name, value, reference in pairs:
        assert value.shape == reference.shape
        scale = reference.abs().max().clamp_(min=1e-12)
        difference = ((value.double() - reference).abs().max() / scale).item()
        result[name] = max(result.get(name, 0.0), difference)
    return result


def assert_close(result: dict, limit: float, scale_limit: float | None = None) -> None:
    """No difference above the limit; the 1 x 1 branch's weight may have its own."""
    limits = {name: limit for name in result} | {'scale': scale_limit or limit}
    wrong = {name: value for name, value in result.items() if not value <= limits[name]}
    assert not wrong, wrong
