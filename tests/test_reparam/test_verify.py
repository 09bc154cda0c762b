import math

import pytest
import torch
from torch import nn

from mmgnv3.reparam import relative_difference


class Scale(nn.Module):
    def __init__(self, factor: float, wrap=lambda x: x) -> None:
        super().__init__()
        self.factor = factor
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(x * self.factor)


@pytest.mark.parametrize('wrap', [lambda x: x, lambda x: (x, [x]), lambda x: dict(a=x, b=(x,))])
def test_largest_difference_over_the_scale(wrap):
    x = torch.tensor([1.0, -4.0])
    assert relative_difference(Scale(1, wrap), Scale(1.5, wrap), x) == 0.5
    assert relative_difference(Scale(1, wrap), Scale(1, wrap), x) == 0


def test_one_bad_tensor_among_many_is_found():
    x = torch.ones(3)
    model = Scale(1, lambda x: (100 * x, x))
    other = Scale(1, lambda x: (100 * x, 2 * x))
    assert relative_difference(model, other, x) == 1


def test_not_a_number_is_infinitely_far():
    assert relative_difference(Scale(1), Scale(math.nan), torch.ones(2)) == math.inf


@pytest.mark.parametrize('wrap', [lambda x: (x, x), lambda x: x[:1], lambda x: ()])
def test_other_shapes_are_refused(wrap):
    with pytest.raises(ValueError, match='do not return the same tensors'):
        relative_difference(Scale(1), Scale(1, wrap), torch.ones(2))


def test_modes_are_restored():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()).train()
    model[0].eval()
    assert relative_difference(model, model, torch.rand(3, 2)) == 0
    assert [m.training for m in model.modules()] == [True, False, True]
