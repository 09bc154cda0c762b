import pytest
import torch
from mmengine.model import BaseTTAModel
from torch import nn

from mmgnv3.apis.checkpoint import load_weights
from mmgnv3.models import GhostNetV3


class _Augmented(BaseTTAModel):
    def merge_preds(self, data_samples_list):
        raise NotImplementedError


class _Model(nn.Linear):
    def test_step(self, data):
        raise NotImplementedError


@pytest.mark.parametrize('wrap', [lambda model: model, _Augmented], ids=['bare', 'tta'])
@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_load(wrap, prefix):
    weights = nn.Linear(2, 3).state_dict()
    model = _Model(2, 3)
    load_weights(wrap(model), {prefix + name: value for name, value in weights.items()}, 'net.pth')
    for name, value in model.state_dict().items():
        assert value.equal(weights[name])


def test_counters_may_lack():
    weights = nn.BatchNorm2d(4).state_dict()
    del weights['num_batches_tracked']
    load_weights(nn.BatchNorm2d(4), dict(state_dict=weights), 'net.pth')


@pytest.mark.parametrize('which', [None, 'ema', 'raw'])
def test_average_or_raw_weights(which):
    average, raw, model = nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(2, 3)
    saved = {f'module.{name}': value for name, value in raw.state_dict().items()}
    saved['steps'] = torch.tensor(5)
    checkpoint = dict(state_dict=average.state_dict(), ema_state_dict=saved)
    load_weights(model, checkpoint, 'net.pth', which)
    assert model.weight.equal((raw if which == 'raw' else average).weight)


@pytest.mark.parametrize('which', ['ema', 'raw'])
def test_no_choice_of_weights(which):
    checkpoint = dict(state_dict=nn.Linear(2, 3).state_dict())
    with pytest.raises(ValueError, match=rf'net\.pth holds one set .* --{which} has nothing'):
        load_weights(nn.Linear(2, 3), checkpoint, 'net.pth', which)


@pytest.mark.parametrize(
    ('other', 'message'),
    [
        (nn.Linear(2, 4), 'size mismatch for weight.*and 1 more'),
        (nn.Linear(2, 3, bias=False), 'lacks bias only'),
        (nn.BatchNorm2d(3), 'size mismatch for weight'),
        (nn.Sequential(nn.Linear(2, 3)), 'lacks weight and 1 more'),
        (GhostNetV3(widen_factor=0.5), 'lacks weight and 1 more'),
    ],
)
def test_load_of_another_network(other, message):
    with pytest.raises(ValueError, match=rf'net\.pth does not fit.*{message}'):
        load_weights(nn.Linear(2, 3), dict(state_dict=other.state_dict()), 'net.pth')


def test_load_with_left_over_weights():
    weights = dict(nn.Linear(2, 3).state_dict(), extra=torch.zeros(1))
    with pytest.raises(ValueError, match='it has weights that the network lacks: extra only'):
        load_weights(nn.Linear(2, 3), weights, 'net.pth')


@pytest.mark.parametrize('options', [dict(widen_factor=1.0), dict(deploy=True)])
def test_load_of_another_backbone(options):
    other = GhostNetV3(**{'widen_factor': 0.5, **options}).state_dict()
    with pytest.raises(ValueError, match=r'net\.pth does not fit.*stem channels'):
        load_weights(GhostNetV3(widen_factor=0.5), dict(state_dict=other), 'net.pth')
