"""The update of mmpretrain's Lamb, by fewer calls."""

import copy
import io
import math

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.optim.scheduler import CosineAnnealingLR
from mmpretrain.engine.optimizers import Lamb as PlainLamb
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import mmgnv3
from mmgnv3.engine.optimizers import Lamb, lamb
from mmgnv3.models import GhostNetV3

PARAMWISE = dict(norm_decay_mult=0.0, bias_decay_mult=0.0, bypass_duplicate=True)
SHAPES = [(3, 2), (1,), (7,), (4, 3), (8, 1, 3, 3), (5, 4, 1, 1), (1, 1, 5, 5), (200,)]


def make_params(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for shape in SHAPES
    ]


def groups_of(params):
    """Three groups, as paramwise_cfg makes them."""
    return [
        dict(params=params[:3], weight_decay=0.0),
        dict(params=params[3:6]),
        dict(params=params[6:], lr=0.02, weight_decay=0.1),
    ]


def set_gradients(params, step, scale=1.0, without=()):
    generator = torch.Generator().manual_seed(100 + step)
    for index, p in enumerate(params):
        grad = scale * torch.randn(p.shape, generator=generator, dtype=torch.float64)
        p.grad = None if index in without else grad.to(p)


@pytest.fixture(params=['one by one', 'flat'])
def last_step(request, monkeypatch):
    """Both ways of the last step; the one of GPUs is taken on the CPU."""
    if request.param == 'flat':
        monkeypatch.setattr(lamb, '_subtract_scaled', lamb._subtract_scaled_flat)


@pytest.fixture
def double():
    """mmpretrain's norm of all gradients has the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_same(params, others, tolerance=1e-12):
    for p, other in zip(params, others, strict=True):
        torch.testing.assert_close(p, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    'settings',
    [
        dict(),
        dict(bias_correction=False),
        dict(grad_averaging=False),
        dict(max_grad_norm=1e6),
        dict(max_grad_norm=1e-3),
        dict(trust_clip=True),
        dict(always_adapt=True),
        dict(weight_decay=0.0),
        dict(weight_decay=0.0, always_adapt=True, trust_clip=True, bias_correction=False),
        dict(betas=(0.5, 0.7), eps=1e-2),
    ],
    ids=str,
)
@pytest.mark.usefixtures('last_step', 'double')
def test_update_is_that_of_mmpretrain(settings):
    params, others = make_params(), make_params()
    with torch.no_grad():
        for each in (params, others):
            # A norm of zero: the factor is 1 then.
            each[3].zero_()
    settings = dict(dict(lr=0.01, weight_decay=0.05), **settings)
    optimizer, plain = Lamb(groups_of(params), **settings), PlainLamb(groups_of(others), **settings)
    for step in range(5):
        for each in (params, others):
            # Some parameters have no gradient at first or for a time.
            set_gradients(each, step, 10.0 ** (step - 3), without=(4, 6) if step == 0 else (2,))
            each[7].grad.mul_(0 if step < 2 else 1)
        optimizer.step()
        plain.step()
        assert_same(params, others)
    for p, other in zip(params, others, strict=True):
        state, expected = optimizer.state[p], plain.state[other]
        assert state.keys() == expected.keys()
        assert_same(state.values(), expected.values())


@pytest.mark.usefixtures('last_step')
def test_zero_update_leaves_a_parameter_alone():
    # Also one without dimensions, which mmpretrain's cannot update.
    still, moved = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(()))
    still.grad, moved.grad = torch.zeros(3), torch.ones(())
    Lamb([still, moved], lr=0.5, weight_decay=0.0, always_adapt=True).step()
    assert torch.equal(still, torch.ones(3))
    torch.testing.assert_close(moved, torch.tensor(0.5))


@pytest.mark.usefixtures('last_step')
def test_memory_formats():
    def strided(value):
        return nn.Parameter(value.contiguous(memory_format=torch.channels_last))

    values = [torch.randn(4, 3, 3, 3), torch.randn(6, 1, 3, 3), torch.randn(5, 4, 1, 1)]
    params, others = [nn.Parameter(v.clone()) for v in values], [strided(v) for v in values]
    # Neither dense nor in one piece.
    params.append(nn.Parameter(torch.arange(12.0).view(3, 4)[:, ::2].clone()))
    others.append(nn.Parameter(torch.arange(12.0).view(3, 4)[:, ::2]))
    optimizers = [Lamb(each, lr=0.1) for each in (params, others)]
    for step in range(2):
        set_gradients(params, step)
        set_gradients(others, step)
        for optimizer in optimizers:
            optimizer.step()
    assert_same(params, others, 1e-6)
    assert others[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(('first', 'second'), [(Lamb, PlainLamb), (PlainLamb, Lamb)])
@pytest.mark.usefixtures('double')
def test_state_is_exchangeable(first, second):
    params = make_params()
    optimizer = first(groups_of(params), lr=0.01)
    for step in range(3):
        set_gradients(params, step)
        optimizer.step()
    copied = copy.deepcopy(params)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = second(groups_of(copied), lr=1.0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert [group['step'] for group in other.param_groups] == [3, 3, 3]
    for step in range(3, 5):
        for each, stepped in ((params, optimizer), (copied, other)):
            set_gradients(each, step)
            stepped.step()
    assert_same(params, copied)


def test_gradient_norm_can_be_left_alone():
    params, others = make_params(), make_params()
    optimizer, other = Lamb(params, max_grad_norm=None), Lamb(others, max_grad_norm=1e9)
    for each in (params, others):
        set_gradients(each, 0, scale=100.0)
    before = [p.grad.clone() for p in params]
    optimizer.step()
    other.step()
    assert_same([p.grad for p in params], before, 0)
    assert_same(params, others)


def test_closure():
    params = [nn.Parameter(torch.ones(3))]
    optimizer = Lamb(params, lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = params[0].square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 3
    assert params[0].square().sum() < 3


def test_gradient_scaler():
    """Overflowing gradients skip the step; others are the unscaled ones."""
    params, others = make_params(torch.float32), make_params(torch.float32)
    optimizer, plain = Lamb(params, lr=0.01), PlainLamb(others, lr=0.01)
    scaler = torch.amp.GradScaler('cpu', init_scale=1024.0, growth_interval=1)
    for step in range(3):
        for each in (params, others):
            set_gradients(each, step)
        for p in params:
            p.grad *= scaler.scale(torch.ones(()))
        if step == 1:
            params[3].grad[0, 0] = math.inf
            before = copy.deepcopy(params)
        else:
            plain.step()
        scaler.step(optimizer)
        scaler.update()
        if step == 1:
            assert_same(params, before, 0)
    assert_same(params, others, 1e-5)


def test_sparse_gradients_are_refused():
    layer = nn.Embedding(4, 2, sparse=True)
    optimizer = Lamb(layer.parameters())
    layer(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match='sparse'):
        optimizer.step()


def test_nothing_to_do():
    params = [nn.Parameter(torch.ones(3))]
    optimizer = Lamb(params)
    optimizer.step()
    assert torch.equal(params[0], torch.ones(3))


def test_config_with_rules_for_parameters():
    backbone = GhostNetV3(widen_factor=0.5, out_indices=(1,))
    config = dict(
        optimizer=dict(type='mmgnv3.Lamb', lr=0.01, weight_decay=0.05),
        paramwise_cfg=PARAMWISE,
        accumulative_counts=2,
    )
    wrapper = build_optim_wrapper(backbone, config)
    assert type(wrapper.optimizer) is Lamb is mmgnv3.Lamb
    decays = {
        id(p): group['weight_decay']
        for group in wrapper.optimizer.param_groups
        for p in group['params']
    }
    for name, p in backbone.named_parameters():
        assert decays[id(p)] == (0.05 if p.ndim == 4 else 0.0), name
    before = copy.deepcopy(backbone.state_dict())
    for _ in range(2):
        with wrapper.optim_context(backbone):
            loss = backbone(torch.randn(2, 3, 32, 32))[0].square().mean()
        wrapper.update_params(loss)
    still = [n for n, p in backbone.named_parameters() if torch.equal(p, before[n])]
    assert not still


class Calls(TorchDispatchMode):
    """Counts the calls of torch that compute something."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += not func.is_view
        return func(*args, **(kwargs or {}))


def test_number_of_calls(monkeypatch):
    """It grows with the number of different settings, not of groups or parameters."""
    monkeypatch.setattr(lamb, '_subtract_scaled', lamb._subtract_scaled_flat)

    def count_calls(num_layers):
        layers = [nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)) for _ in range(num_layers)]
        network = nn.Sequential(*layers)
        config = dict(type='mmgnv3.Lamb', lr=0.01, weight_decay=0.05)
        config = dict(optimizer=config, paramwise_cfg=PARAMWISE)
        optimizer = build_optim_wrapper(network, config).optimizer
        assert len(optimizer.param_groups) == 4 * num_layers
        scheduler = CosineAnnealingLR(optimizer, T_max=10)
        for _ in range(2):
            for p in network.parameters():
                p.grad = torch.ones_like(p)
            with Calls() as calls:
                optimizer.step()
            scheduler.step()
        return calls.number

    assert count_calls(2) == count_calls(9) < 40


@pytest.mark.usefixtures('last_step', 'double')
def test_groups_that_differ_in_the_learning_rate_or_in_steps():
    params, others = make_params(), make_params()
    optimizers = []
    for each, optimizer_class in ((params, Lamb), (others, PlainLamb)):
        # Lists, as from a file; a rate that is a tensor.
        groups = [dict(params=[p], betas=[0.8, 0.9]) for p in each[:6]]
        groups[2]['lr'] = torch.tensor(0.2)
        optimizers.append(optimizer_class(groups, lr=0.01))
    for step in range(4):
        for each, optimizer in zip((params, others), optimizers, strict=True):
            if step == 1:
                optimizer.add_param_group(dict(params=each[6:], betas=[0.8, 0.9]))
            if step == 2:
                optimizer.param_groups[1]['lr'] = 0.1
            set_gradients(each, step)
            optimizer.step()
        assert_same(params, others)
    assert [group['step'] for group in optimizers[0].param_groups] == [4] * 6 + [3]


@pytest.mark.parametrize(
    ('name', 'values'),
    [
        ('lr', (-1, math.nan, math.inf, '1e-3', None, True, torch.tensor(-1.0), torch.ones(2))),
        ('eps', (-1e-8, '1e-6')),
        ('weight_decay', (-1, None)),
        ('betas', ((1.0, 0.9), (0.9, -0.1), (0.9,), (0.9, 0.99, 0.999), 0.9, ('0.9', 0.9))),
        ('max_grad_norm', (0, -1, '1', math.nan)),
    ],
)
def test_settings_out_of_range_are_refused(name, values):
    params = [nn.Parameter(torch.ones(3))]
    default = Lamb(params).defaults[name]
    for value in values:
        for common, own in ((value, default), (default, value)):
            with pytest.raises(ValueError, match=f'^{name} of Lamb must be .*, got '):
                Lamb([{'params': params, name: own}], **{name: common})


@pytest.mark.parametrize(
    'settings', [dict(lr=0), dict(eps=0), dict(betas=[0, 0]), dict(lr=torch.tensor(0.1))], ids=str
)
def test_settings_at_the_limit_are_accepted(settings):
    params = [nn.Parameter(torch.ones(3))]
    optimizer = Lamb(params, **settings)
    params[0].grad = torch.ones(3)
    optimizer.step()
    assert params[0].isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_no_waiting_for_the_gpu():
    params, others = make_params(torch.float32), make_params(torch.float32)
    params = [nn.Parameter(p.detach().cuda()) for p in params]
    optimizer, plain = Lamb(groups_of(params), lr=0.01), PlainLamb(groups_of(others), lr=0.01)
    for step in range(3):
        for each in (params, others):
            set_gradients(each, step)
        # The first step sets up what stays on the device.
        torch.cuda.set_sync_debug_mode('error' if step else 'default')
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode('default')
        plain.step()
    assert_same([p.cpu() for p in params], others, 1e-5)
