import math

import pytest
import torch
from mmengine.hooks import Hook

from tests.test_engine.runs import EMA, load, make_runner

FINITE = dict(type='mmgnv3.FiniteLossHook')


class Poison(Hook):
    """Puts a value that is no number into a weight or a loss at an iteration."""

    priority = 'HIGH'

    def __init__(self, iteration, what, value=math.nan):
        self.iteration = iteration
        self.what = what
        self.value = value

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 != self.iteration:
            return
        if self.what == 'loss':
            outputs['loss'] = torch.tensor(self.value)
        else:
            with torch.no_grad():
                next(runner.model.parameters()).view(-1)[0] = self.value


def test_a_sound_run_ends(folder):
    make_runner(folder / 'plain.py', 'work', custom_hooks=[FINITE]).train()
    assert (folder / 'work/epoch_3.pth').exists()


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_the_iteration_is_named_and_the_last_checkpoint_kept(folder, value):
    hooks = [EMA, FINITE, Poison(8, 'loss', value)]
    runner = make_runner(folder / 'plain.py', 'work', custom_hooks=hooks)
    with pytest.raises(
        RuntimeError, match=rf'not finite at iteration 8, in epoch 2: loss {value}.*epoch_1\.pth'
    ):
        runner.train()
    assert {path.name for path in folder.glob('work/*.pth')} == {'epoch_1.pth'}
    saved = load('work/epoch_1.pth')
    for weights in (saved['state_dict'], saved['ema_state_dict']):
        assert all(value.isfinite().all() for value in weights.values())


def test_before_the_first_checkpoint(folder):
    hooks = [FINITE, Poison(2, 'loss')]
    runner = make_runner(folder / 'plain.py', 'work', custom_hooks=hooks)
    with pytest.raises(RuntimeError, match='at iteration 2.*No checkpoint was written before'):
        runner.train()


def test_a_learning_rate_that_is_too_large(folder):
    runner = make_runner(
        folder / 'plain.py', 'work', custom_hooks=[FINITE], optim_wrapper__optimizer__lr=1e30
    )
    with pytest.raises(RuntimeError, match=r'not finite (at|after) iteration \d'):
        runner.train()


def test_weights_that_are_not_finite_are_not_saved(folder):
    hooks = [EMA, FINITE, Poison(8, 'weight')]
    runner = make_runner(folder / 'plain.py', 'work', custom_hooks=hooks)
    with pytest.raises(
        RuntimeError, match=r'backbone\.stem\.\S+ is not finite after iteration 8;.*epoch_1\.pth'
    ):
        runner.train()
    assert not (folder / 'work/epoch_2.pth').exists()
