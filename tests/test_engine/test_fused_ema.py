import copy

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.model.averaged_model import MomentumAnnealingEMA
from torch import nn

from mmgnv3.engine.fused_ema import FusedEMA


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2).double())


def train(model):
    """Change every parameter and buffer."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            change = torch.rand(tensor.shape, dtype=torch.float64) - 0.5
            tensor.copy_(tensor + change if tensor.is_floating_point() else tensor + 3)


@pytest.mark.parametrize('interval', [1, 2])
@pytest.mark.parametrize('gamma', [0, 5])
def test_equals_the_averages_of_mmengine(model, gamma, interval):
    options = dict(momentum=0.2, interval=interval)
    ours = FusedEMA(model, gamma=gamma, **options)
    if gamma:
        theirs = MomentumAnnealingEMA(model, gamma=gamma, update_buffers=True, **options)
    else:
        theirs = ExponentialMovingAverage(model, update_buffers=True, **options)
    for _ in range(7):
        train(model)
        ours.update_parameters(model)
        theirs.update_parameters(model)
    expected = theirs.state_dict()
    for name, value in ours.state_dict().items():
        if name.endswith('num_batches_tracked'):
            continue  # mmengine leaves it where it was at first
        torch.testing.assert_close(value, expected[name])
    assert ours.steps == 7


def test_counters_are_copied(model):
    average = FusedEMA(model, momentum=0.2)
    for _ in range(3):
        train(model)
        average.update_parameters(model)
        assert average.module[1].num_batches_tracked == model[1].num_batches_tracked > 0


def move(network):
    network.double()
    network.float()


def load_by_assignment(network):
    network.load_state_dict(copy.deepcopy(network.state_dict()), assign=True)


@pytest.mark.parametrize('replace', [move, load_by_assignment])
@pytest.mark.parametrize('side', ['average', 'network'])
def test_tensors_may_be_replaced(model, side, replace):
    model.float()
    average = FusedEMA(model, momentum=0.5)
    average.update_parameters(model)
    before = copy.deepcopy(model.state_dict())
    replace(average.module if side == 'average' else model)
    train(model)
    average.update_parameters(model)
    for name, value in average.module.state_dict().items():
        new = model.state_dict()[name]
        expected = (before[name] + new) / 2 if new.is_floating_point() else new
        torch.testing.assert_close(value, expected)


def test_the_model_is_left_alone(model):
    average = FusedEMA(model, momentum=0.5)
    train(model)
    before = copy.deepcopy(model.state_dict())
    average.update_parameters(model)
    train(average.module)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_copy_has_tensors_of_its_own(model):
    average = FusedEMA(model, momentum=0.5)
    average.update_parameters(model)
    copied = copy.deepcopy(average)
    before = copy.deepcopy(average.module.state_dict())
    train(model)
    copied.update_parameters(model)
    assert all(value.equal(before[name]) for name, value in average.module.state_dict().items())
    average.update_parameters(model)
    for name, value in average.module.state_dict().items():
        assert value.equal(copied.module.state_dict()[name])


def test_another_network_of_the_same_structure(model):
    average = FusedEMA(model, momentum=0.5)
    average.update_parameters(model)
    other = copy.deepcopy(model)
    train(other)
    average.copy_from(other)
    assert all(v.equal(other.state_dict()[k]) for k, v in average.module.state_dict().items())


def test_swap(model):
    average = FusedEMA(model, momentum=0.5)
    train(model)
    states = copy.deepcopy(average.module.state_dict()), copy.deepcopy(model.state_dict())
    average.swap(model)
    for network, expected in ((model, states[0]), (average.module, states[1])):
        assert all(value.equal(expected[name]) for name, value in network.state_dict().items())


def test_another_structure_is_refused(model):
    average = FusedEMA(model)
    with pytest.raises(ValueError, match='zip'):
        average.update_parameters(nn.Linear(2, 2))
