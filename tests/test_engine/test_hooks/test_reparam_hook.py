import logging

import pytest
import torch
from mmengine.hooks import Hook
from torch.nn.modules.batchnorm import _BatchNorm

from mmgnv3.reparam import checked_fold, fold, is_deployed_checkpoint
from tests.test_apis.tiny import write_detection
from tests.test_engine.runs import (
    EMA,
    assert_equal_weights,
    by_iterations,
    load,
    make_runner,
    mean_score,
    raw_weights,
    weights_of,
)

REPARAM = dict(type='mmgnv3.ReparamHook')
ONE_EPOCH = dict(train_cfg__max_epochs=1)


def folded(model, weights):
    """Weights of the folded form of a network that has some weights."""
    model.load_state_dict(weights)
    return fold(model).state_dict()


@pytest.mark.parametrize('config', ['plain.py', 'distilled.py'])
@pytest.mark.parametrize('hooks', [[REPARAM], [EMA, REPARAM], [REPARAM, EMA]], ids=len)
def test_the_weights_in_use_are_folded(folder, config, hooks):
    runner = make_runner(folder / config, 'work', custom_hooks=hooks, **ONE_EPOCH)
    runner.train()
    saved = load('work/epoch_1.pth')
    raw = raw_weights(saved) if 'ema_state_dict' in saved else saved['state_dict']
    assert_equal_weights(weights_of(runner.model), raw)

    path = folder / 'work/deployed_epoch_1.pth'
    deployed = torch.load(path, weights_only=True)
    assert is_deployed_checkpoint(deployed)
    assert deployed.keys() == {'meta', 'state_dict'}
    assert deployed['meta']['epoch'] == 1
    assert deployed['meta']['iter'] == 4
    assert deployed['meta']['dataset_meta'] == dict(classes=('ant', 'bee'))
    assert_equal_weights(deployed['state_dict'], folded(runner.model, saved['state_dict']))


@pytest.mark.parametrize('options', [dict(), dict(interval=1, evaluate=True)], ids=str)
def test_training_is_not_touched(folder, options):
    hooks = [dict(EMA, evaluate_on_origin=False)]
    without = make_runner(folder / 'distilled.py', 'a', custom_hooks=hooks).train()
    hooks.append(dict(REPARAM, **options))
    with_hook = make_runner(folder / 'distilled.py', 'b', custom_hooks=hooks).train()
    assert_equal_weights(weights_of(with_hook), weights_of(without))
    assert_equal_weights(*(load(f'{run}/epoch_3.pth')['state_dict'] for run in 'ab'))


@pytest.mark.parametrize(
    ('options', 'names'),
    [
        (dict(interval=2), ['deployed_epoch_2.pth', 'deployed_epoch_3.pth']),
        (dict(interval=3), ['deployed_epoch_3.pth']),
        (
            dict(interval=5, by_epoch=False),
            ['deployed_iter_10.pth', 'deployed_iter_12.pth', 'deployed_iter_5.pth'],
        ),
        (dict(filename_tmpl='net_{}.pth'), ['net_3.pth']),
    ],
    ids=str,
)
def test_when_and_where(folder, options, names, monkeypatch):
    folds = []
    monkeypatch.setattr(
        'mmgnv3.engine.hooks.reparam_hook.fold_and_check',
        lambda *inputs: folds.append(1) or checked_fold.fold_and_check(*inputs),
    )
    hooks = [dict(REPARAM, **options)]
    make_runner(folder / 'plain.py', 'work', custom_hooks=hooks).train()
    assert sorted(p.name for p in folder.glob('work/*.pth') if 'epoch_' not in p.name[:6]) == names
    assert len(folds) == len(names)


@pytest.mark.parametrize(
    ('options', 'names'),
    [
        (dict(), ['deployed_iter_6.pth']),
        (dict(interval=4, by_epoch=False), ['deployed_iter_4.pth', 'deployed_iter_6.pth']),
    ],
    ids=str,
)
def test_when_and_where_without_epochs(folder, options, names):
    hooks = [dict(REPARAM, **options)]
    make_runner(folder / 'plain.py', 'work', custom_hooks=hooks, **by_iterations(6)).train()
    assert sorted(path.name for path in folder.glob('work/deployed_*')) == names


def test_what_is_folded_is_evaluated(folder, caplog):
    hooks = [dict(EMA, evaluate_on_origin=False), dict(REPARAM, evaluate=True)]
    options = dict(ONE_EPOCH, train_cfg__val_interval=1, **mean_score())
    runner = make_runner(folder / 'plain.py', 'work', custom_hooks=hooks, **options)
    scalars = []
    runner.visualizer.add_scalars = lambda values, **_: scalars.append(values)
    runner.train()
    values = {name: value for line in scalars for name, value in line.items()}
    assert values['score_deployed'] == pytest.approx(values['score'], rel=1e-5)


def _wrong_fold(model):
    wrong = fold(model)
    with torch.no_grad():
        for parameter in wrong.backbone.parameters():
            parameter.mul_(1.01)
    return wrong


def test_a_wrong_fold_is_an_error(folder, monkeypatch):
    monkeypatch.setattr(checked_fold, 'fold', _wrong_fold)
    runner = make_runner(folder / 'plain.py', 'work', custom_hooks=[EMA, REPARAM], **ONE_EPOCH)
    with pytest.raises(RuntimeError, match=r'outputs of backbone by \d\.\de-0\d of their scale'):
        runner.train()
    assert {path.name for path in folder.glob('work/*.pth')} == {'epoch_1.pth'}


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(model__backbone__deploy=True), 'nothing to fold in this network'),
        (
            dict(val_cfg=None, val_dataloader=None, val_evaluator=None),
            'evaluates on the validation data',
        ),
        (by_iterations(6), 'interval=2 counts epochs.* by_epoch=False'),
    ],
)
def test_what_cannot_be_done_is_said_before_training(folder, options, message):
    hooks = [dict(REPARAM, evaluate=True, interval=2)]
    runner = make_runner(folder / 'plain.py', 'work', custom_hooks=hooks, **options)
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert runner.iter == 0


def test_a_run_that_had_ended_is_folded_when_it_is_resumed(folder):
    make_runner(folder / 'plain.py', 'work', custom_hooks=[EMA], **ONE_EPOCH).train()
    options = dict(ONE_EPOCH, resume=True, custom_hooks=[EMA, REPARAM])
    make_runner(folder / 'plain.py', 'work', **options).train()
    assert is_deployed_checkpoint(load('work/deployed_epoch_1.pth'))


class Spy(Hook):
    """Looks at the model under test."""

    priority = 'LOWEST'

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.norms = [m for m in runner.model.modules() if isinstance(m, _BatchNorm)]


@pytest.fixture
def trained(folder):
    options = dict(ONE_EPOCH, custom_hooks=[EMA, REPARAM], **mean_score())
    runner = make_runner(folder / 'plain.py', 'work', **options)
    runner.train()
    return runner


def test_a_test_takes_the_folded_average(folder, trained):
    """In the process that trained it, and from the file as a framework's own script does."""
    raw = weights_of(trained.model)
    options = dict(load_from='work/epoch_1.pth', **mean_score())
    unfolded = make_runner(folder / 'plain.py', 'unfolded', **options).test()['score']

    spy = Spy()
    tester = make_runner(folder / 'plain.py', 'test', custom_hooks=[EMA, REPARAM, spy], **options)
    assert tester.test()['score'] == pytest.approx(unfolded, rel=1e-5)
    assert not spy.norms
    assert_equal_weights(weights_of(tester.model), load('work/epoch_1.pth')['state_dict'])

    trained.register_hook(spy)
    spy.norms = None
    metrics = trained.test()
    assert spy.norms == []
    assert metrics['score'] == pytest.approx(unfolded, rel=1e-5)
    assert_equal_weights(weights_of(trained.model), raw)


@pytest.mark.parametrize('config', ['plain.py', 'tta.py'])
def test_a_wrong_fold_is_an_error_in_a_test(folder, trained, monkeypatch, config):
    monkeypatch.setattr(checked_fold, 'fold', _wrong_fold)
    options = dict(load_from='work/epoch_1.pth', custom_hooks=[REPARAM])
    tester = make_runner(folder / config, 'test', **options)
    with pytest.raises(RuntimeError, match=r'outputs of backbone by \d'):
        tester.test()


def test_a_network_without_norms_is_tested_as_it_is(folder, caplog):
    tester = make_runner(
        folder / 'plain.py', 'test', custom_hooks=[REPARAM], model__backbone__deploy=True
    )
    weights = weights_of(tester.model)
    tester.logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO)
    tester.test()
    assert 'holds nothing to fold' in caplog.text
    assert_equal_weights(weights_of(tester.model), weights)


@pytest.mark.slow
def test_a_detector(tmp_path):
    """Trained, folded and tested folded; its neck and head have norms too."""
    spy = Spy()
    config = write_detection(tmp_path)
    hooks = [EMA, REPARAM, spy]
    runner = make_runner(config, tmp_path / 'work', custom_hooks=hooks)
    runner.train()
    deployed = torch.load(tmp_path / 'work/deployed_epoch_1.pth', weights_only=True)
    assert not any('running_mean' in name for name in deployed['state_dict'])
    saved = load(tmp_path / 'work/epoch_1.pth')['state_dict']
    assert_equal_weights(deployed['state_dict'], folded(runner.model, saved))
    runner.test()
    assert not spy.norms


def test_few_images_are_enough():
    from mmgnv3.engine.hooks.reparam_hook import _head

    batch = dict(inputs=torch.zeros(20, 3, 4, 4), data_samples=list(range(20)), name='x')
    head = _head(dict(a=batch, b=[1] * 9))
    assert head['a']['inputs'].shape == (8, 3, 4, 4)
    assert head['a']['data_samples'] == list(range(8))
    assert (head['a']['name'], head['b']) == ('x', [1] * 8)
