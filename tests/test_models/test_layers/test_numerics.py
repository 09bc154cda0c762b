import pytest
import torch

from mmgnv3.models.layers.numerics import channel_statistics


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    'shape', [(2, 3, 64, 64), (2, 12, 7, 5), (3, 36, 48, 30), (5, 24, 35, 35), (9, 120, 16, 16)]
)
@pytest.mark.parametrize(('mean', 'limit'), [(0, 1e-5), (1000, 1e-4)])
def test_statistics_of_channels(mean, limit, shape, memory_format):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + mean
    x = x.to(memory_format=memory_format)
    found = channel_statistics(x)
    expected = torch.var_mean(x.double(), (0, 2, 3), correction=0)[::-1]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours, theirs, rtol=limit, atol=1e-6)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_statistics_of_half_precision(dtype):
    x = torch.randn(2, 12, 48, 48, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = channel_statistics(x.to(memory_format=torch.channels_last))
    expected = torch.var_mean(x.double(), (0, 2, 3), correction=0)[::-1]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
