import json

import pytest
import torch
from mmengine.hooks import EMAHook as MMEngineEMAHook
from mmengine.hooks import Hook

from mmgnv3.engine.hooks import EMAHook
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


class Recorder(Hook):
    """Keeps the weights after every iteration, before any average is updated."""

    priority = 'HIGHEST'

    def __init__(self):
        self.weights = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.weights.append(weights_of(runner.model))


def expected_average(history, momentum):
    average = history[0]
    for weights in history[1:]:
        for name, value in weights.items():
            if value.is_floating_point():
                average[name] = (1 - momentum) * average[name] + momentum * value
            else:
                average[name] = value
    return average


@pytest.mark.parametrize('config', ['plain.py', 'distilled.py'])
def test_what_the_saved_keys_mean(folder, config):
    recorder = Recorder()
    runner = make_runner(
        folder / config, 'work', custom_hooks=[EMA, recorder], train_cfg__max_epochs=1
    )
    runner.train()
    saved = load('work/epoch_1.pth')
    assert_equal_weights(raw_weights(saved), recorder.weights[-1])
    assert_equal_weights(weights_of(runner.model), recorder.weights[-1])
    assert saved['ema_state_dict']['steps'] == len(recorder.weights) == 4
    expected = expected_average(recorder.weights, 0.3)
    assert saved['state_dict'].keys() == expected.keys()
    for name, value in saved['state_dict'].items():
        torch.testing.assert_close(value, expected[name])
    assert not any('teacher' in name for name in saved['state_dict'])


def test_a_teacher_is_shared_with_the_average(folder):
    hook = EMAHook(momentum=0.3)
    runner = make_runner(folder / 'distilled.py', 'work', custom_hooks=[hook])
    runner.train()
    teacher, shared = runner.model.teacher, hook.ema_model.module.teacher
    assert shared.build() is teacher.build()
    assert not {id(p) for p in teacher.build().parameters()} & {
        id(p) for p in hook.ema_model.parameters()
    }


def _scalars(folder):
    (path,) = folder.glob('work/*/vis_data/scalars.json')
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_both_are_evaluated_side_by_side(folder):
    options = mean_score()
    runner = make_runner(
        folder / 'plain.py',
        'work',
        custom_hooks=[EMA],
        default_hooks__checkpoint__save_best=['score', 'score_raw'],
        default_hooks__checkpoint__rule=['less', 'greater'],
        train_cfg__val_interval=1,
        **options,
    )
    runner.train()
    logged = [line for line in _scalars(folder) if 'score' in line]
    assert len(logged) == 3
    assert all({'score', 'score_raw'} <= line.keys() for line in logged)

    def evaluate(weights):
        tester = make_runner(folder / 'plain.py', 'test', **options)
        tester.model.load_state_dict(weights)
        return tester.test()['score']

    for epoch, line in enumerate(logged, 1):
        saved = load(f'work/epoch_{epoch}.pth')
        assert line['score'] == pytest.approx(evaluate(saved['state_dict']), rel=1e-6)
        assert line['score_raw'] == pytest.approx(evaluate(raw_weights(saved)), rel=1e-6)
        assert line['score'] != line['score_raw']

    best = min(range(3), key=lambda i: logged[i]['score']) + 1
    best_raw = max(range(3), key=lambda i: logged[i]['score_raw']) + 1
    assert {p.name for p in folder.glob('work/best_*')} == {
        f'best_score_epoch_{best}.pth',
        f'best_score_raw_epoch_{best_raw}.pth',
    }


@pytest.mark.parametrize(('ema', 'raw'), [(True, False), (False, True)])
def test_one_is_evaluated_alone(folder, ema, raw):
    hook = dict(EMA, evaluate_on_ema=ema, evaluate_on_origin=raw)
    options = mean_score()
    runner = make_runner(
        folder / 'plain.py', 'work', custom_hooks=[hook], train_cfg__max_epochs=1, **options
    )
    runner.train()
    (logged,) = (line for line in _scalars(folder) if 'score' in line)
    assert 'score_raw' not in logged
    saved = load('work/epoch_1.pth')
    tester = make_runner(folder / 'plain.py', 'test', **options)
    tester.model.load_state_dict(saved['state_dict'] if ema else raw_weights(saved))
    assert logged['score'] == pytest.approx(tester.test()['score'], rel=1e-6)


def test_what_is_evaluated_changes_nothing(folder):
    results = []
    for both in (True, False):
        hook = dict(EMA, evaluate_on_origin=both)
        runner = make_runner(folder / 'plain.py', f'work{both}', custom_hooks=[hook])
        results.append(weights_of(runner.train()))
    assert_equal_weights(*results)


def test_a_test_takes_the_average(folder):
    options = dict(custom_hooks=[EMA], train_cfg__max_epochs=1)
    options.update(mean_score())
    runner = make_runner(folder / 'plain.py', 'work', **options)
    runner.train()
    after_training = runner.test()
    assert after_training['score'] != after_training['score_raw']
    assert_equal_weights(weights_of(runner.model), raw_weights(load('work/epoch_1.pth')))

    options['load_from'] = 'work/epoch_1.pth'
    tester = make_runner(folder / 'plain.py', 'test', **options)
    assert tester.test() == dict(score=pytest.approx(after_training['score'], rel=1e-6))
    assert_equal_weights(weights_of(tester.model), load('work/epoch_1.pth')['state_dict'])


@pytest.mark.parametrize('begin', [dict(begin_epoch=2), dict(begin_iter=7)])
def test_before_it_begins_the_average_equals_the_weights(folder, begin):
    make_runner(
        folder / 'plain.py', 'work', custom_hooks=[dict(EMA, **begin)], train_cfg__max_epochs=2
    ).train()
    first, second = load('work/epoch_1.pth'), load('work/epoch_2.pth')
    assert first['ema_state_dict']['steps'] == 0
    assert_equal_weights(first['state_dict'], raw_weights(first))
    assert not second['state_dict']['backbone.stem.0.branches.0.conv.weight'].equal(
        raw_weights(second)['backbone.stem.0.branches.0.conv.weight']
    )


class StartRecorder(Hook):
    """Keeps the weights and their average before the first iteration."""

    priority = 'LOWEST'

    def before_train(self, runner):
        self.weights = weights_of(runner.model)
        (hook,) = (hook for hook in runner.hooks if isinstance(hook, EMAHook))
        self.average = weights_of(hook.ema_model.module)


@pytest.fixture
def checkpoint(folder):
    """Of a run without an average."""
    make_runner(folder / 'plain.py', 'plain', train_cfg__max_epochs=1).train()
    return 'plain/epoch_1.pth'


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_load_from_a_plain_checkpoint(folder, checkpoint, prefix):
    saved = load(checkpoint)['state_dict']
    torch.save(dict(state_dict={prefix + k: v for k, v in saved.items()}), 'start.pth')
    recorder = StartRecorder()
    hooks = [EMA, recorder]
    make_runner(folder / 'plain.py', 'work', custom_hooks=hooks, load_from='start.pth').train()
    assert_equal_weights(recorder.average, saved)
    assert_equal_weights(recorder.weights, saved)


def test_load_from_a_checkpoint_with_an_average_starts_from_that(folder):
    make_runner(folder / 'plain.py', 'first', custom_hooks=[EMA]).train()
    recorder = StartRecorder()
    options = dict(custom_hooks=[EMA, recorder], load_from='first/epoch_3.pth')
    make_runner(folder / 'plain.py', 'work', **options).train()
    assert_equal_weights(recorder.weights, load('first/epoch_3.pth')['state_dict'])
    assert_equal_weights(recorder.average, recorder.weights)


def test_load_from_a_checkpoint_with_other_classes(folder, checkpoint):
    recorder = StartRecorder()
    make_runner(
        folder / 'plain.py',
        'work',
        custom_hooks=[EMA, recorder],
        load_from=checkpoint,
        model__head__num_classes=3,
        train_cfg__max_epochs=1,
    ).train()
    expected = load(checkpoint)['state_dict']
    assert recorder.average['head.layers.1.fc.weight'].shape == (3, 8)
    other = {name for name, value in expected.items() if not value.equal(recorder.average[name])}
    assert other == {'head.layers.1.fc.weight', 'head.layers.1.fc.bias'}
    assert load('work/epoch_1.pth')['state_dict']['head.layers.1.fc.weight'].shape == (3, 8)


@pytest.fixture
def averaged(folder):
    """The checkpoint of an epoch with an average."""
    options = dict(custom_hooks=[EMA], train_cfg__max_epochs=1)
    make_runner(folder / 'plain.py', 'work', **options).train()
    return 'work/epoch_1.pth'


def test_resume_puts_both_back(folder, averaged):
    recorder = StartRecorder()
    make_runner(
        folder / 'plain.py', 'work', custom_hooks=[EMA, recorder], resume=True, load_from=averaged
    ).train()
    saved = load(averaged)
    assert_equal_weights(recorder.average, saved['state_dict'])
    assert_equal_weights(recorder.weights, raw_weights(saved))
    assert load('work/epoch_3.pth')['ema_state_dict']['steps'] == 12


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(momentum=0.2), r'momentum=0\.3 became 0\.2\. Resume with'),
        (dict(gamma=10), 'gamma=0 became 10'),
        (dict(begin_iter=3), 'begin_iter=0 became 3'),
    ],
)
def test_resume_with_other_settings(folder, averaged, change, message):
    runner = make_runner(
        folder / 'plain.py',
        'work',
        custom_hooks=[dict(EMA, **change)],
        resume=True,
        load_from=averaged,
    )
    before = (folder / averaged).read_bytes()
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert not (folder / 'work/epoch_2.pth').exists()
    assert (folder / averaged).read_bytes() == before


def test_resume_without_an_average(folder, checkpoint):
    runner = make_runner(
        folder / 'plain.py', 'work', custom_hooks=[EMA], resume=True, load_from=checkpoint
    )
    with pytest.raises(ValueError, match='no average of the weights.*load_from'):
        runner.train()


def test_resume_of_the_average_of_another_hook(folder):
    hook = MMEngineEMAHook(momentum=0.3, update_buffers=True)
    options = dict(train_cfg__max_epochs=1, custom_hooks=[hook])
    make_runner(folder / 'plain.py', 'other', **options).train()
    recorder = StartRecorder()
    options = dict(custom_hooks=[EMA, recorder], resume=True, load_from='other/epoch_1.pth')
    make_runner(folder / 'plain.py', 'work', **options).train()
    saved = load('other/epoch_1.pth')
    assert_equal_weights(recorder.average, saved['state_dict'])


@pytest.mark.parametrize(('config', 'on_ema'), [('plain.py', False), ('tta.py', True)])
def test_a_test_that_resumes_takes_the_average(folder, averaged, config, on_ema):
    """As mmpretrain's own script does with the config that a resumed run has written."""
    options = dict(load_from=averaged, **mean_score())
    expected = make_runner(folder / config, 'loaded', **options).test()['score']
    hooks = [dict(EMA, evaluate_on_ema=on_ema)]
    tester = make_runner(folder / config, 'test', custom_hooks=hooks, resume=True, **options)
    metrics = tester.test()
    assert metrics['score'] == pytest.approx(expected, rel=1e-6)
    assert metrics['score_raw'] != metrics['score']


def test_training_goes_on_exactly_after_a_test(folder, averaged):
    recorder = StartRecorder()
    options = dict(custom_hooks=[EMA, recorder], resume=True, load_from=averaged)
    runner = make_runner(folder / 'plain.py', 'again', **options)
    runner.test()
    runner.train()
    saved = load(averaged)
    assert_equal_weights(recorder.average, saved['state_dict'])
    assert_equal_weights(recorder.weights, raw_weights(saved))


def test_resume_of_nothing_starts_anew(folder):
    recorder = StartRecorder()
    make_runner(folder / 'plain.py', 'work', custom_hooks=[EMA, recorder], resume=True).train()
    assert_equal_weights(recorder.average, recorder.weights)


@pytest.mark.parametrize(
    ('begin', 'options', 'message'),
    [
        (dict(begin_epoch=4), {}, r'begin_epoch=4\) .* has 3 epochs'),
        (dict(begin_iter=13), {}, r'begin_iter=13\) .* has 12 iterations'),
        (dict(begin_iter=5), by_iterations(4), r'begin_iter=5\) .* has 4 iterations'),
        (dict(begin_epoch=2), by_iterations(4), r'begin_epoch=2\) .* no epochs. Give begin_iter'),
    ],
)
def test_an_average_that_would_never_begin(folder, begin, options, message):
    hooks = [dict(EMA, **begin)]
    runner = make_runner(folder / 'plain.py', 'work', custom_hooks=hooks, **options)
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert runner.iter == 0


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(momentum=0), 'momentum must be between 0 and 1, got 0'),
        (dict(momentum=1.0), 'one minus the decay'),
        (dict(gamma=-1), 'gamma must be'),
        (dict(interval=0), 'interval at least 1'),
        (dict(begin_iter=-1), 'begin_iter and begin_epoch must be'),
        (dict(begin_iter=1, begin_epoch=1), 'not both'),
        (dict(evaluate_on_ema=False, evaluate_on_origin=False), 'cannot both be off'),
    ],
)
def test_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        EMAHook(**options)
