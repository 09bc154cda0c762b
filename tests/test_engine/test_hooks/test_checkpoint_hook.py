from pathlib import Path

import pytest
from mmengine.fileio import LocalBackend

from tests.test_engine.runs import (
    EMA,
    Interruption,
    assert_equal_weights,
    load,
    make_runner,
    mean_score,
    raw_weights,
)


def files(folder):
    """Names of the checkpoints in the work dir, and the last one."""
    last = Path('work/last_checkpoint').read_text()
    return {path.name for path in folder.glob('work/*.pth')}, Path(last).name


def test_what_is_kept(folder):
    make_runner(
        folder / 'plain.py',
        'work',
        train_cfg__val_interval=1,
        default_hooks__checkpoint__max_keep_ckpts=2,
        default_hooks__checkpoint__save_best='score',
        default_hooks__checkpoint__rule='less',
        **mean_score(),
    ).train()
    names, last = files(folder)
    (best,) = (name for name in names if name.startswith('best'))
    assert names == {'epoch_2.pth', 'epoch_3.pth', best}
    assert last == 'epoch_3.pth'
    hub = load('work/epoch_3.pth')['message_hub']['runtime_info']
    assert Path(hub['best_ckpt']).name == best
    assert hub['keep_ckpt_ids'] == [2, 3]
    assert not list(folder.glob('work/.tmp.*'))


@pytest.fixture
def break_writing(monkeypatch):
    """Ends the run in the middle of the n-th file that is written to disk."""

    def install(number):
        count = 0

        def put(self, obj, filepath):
            nonlocal count
            count += 1
            Path(filepath).write_bytes(obj[: len(obj) // 2] if count == number else obj)
            if count == number:
                raise Interruption

        monkeypatch.setattr(LocalBackend, 'put', put)

    return install


def test_the_last_checkpoint_outlives_a_broken_one(folder, break_writing):
    runner = make_runner(folder / 'plain.py', 'work', default_hooks__checkpoint__max_keep_ckpts=1)
    break_writing(2)
    with pytest.raises(Interruption):
        runner.train()
    assert files(folder) == ({'epoch_1.pth'}, 'epoch_1.pth')
    assert load('work/epoch_1.pth')['meta']['epoch'] == 1


def test_the_best_checkpoint_outlives_a_broken_one(folder, break_writing, monkeypatch):
    scores = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(
        'tests.test_engine.runs.MeanScore.compute_metrics', lambda *_: dict(score=next(scores))
    )
    runner = make_runner(
        folder / 'plain.py',
        'work',
        train_cfg__val_interval=1,
        default_hooks__checkpoint__save_best='score',
        default_hooks__checkpoint__rule='greater',
        **mean_score(),
    )
    break_writing(5)  # epoch 1, its best, epoch 1 with the name of that, epoch 2, its best
    with pytest.raises(Interruption):
        runner.train()
    names, _ = files(folder)
    assert names == {'epoch_1.pth', 'epoch_2.pth', 'best_score_epoch_1.pth'}
    assert load('work/best_score_epoch_1.pth')['meta']['epoch'] == 1


def test_a_last_checkpoint_that_cannot_be_written_is_the_old_one(folder, monkeypatch):
    runner = make_runner(folder / 'plain.py', 'work')
    write_text = Path.write_text

    def broken(self, text):
        write_text(self, text[:3] if text.endswith('epoch_2.pth') else text)
        if text.endswith('epoch_2.pth'):
            raise Interruption

    monkeypatch.setattr(Path, 'write_text', broken)
    with pytest.raises(Interruption):
        runner.train()
    assert files(folder) == ({'epoch_1.pth', 'epoch_2.pth'}, 'epoch_1.pth')


def test_several_best_ones(folder, monkeypatch):
    metrics = iter([dict(a=1, b=1), dict(a=2, b=0), dict(a=1, b=3)])
    monkeypatch.setattr(
        'tests.test_engine.runs.MeanScore.compute_metrics', lambda *_: next(metrics)
    )
    make_runner(
        folder / 'plain.py',
        'work',
        train_cfg__val_interval=1,
        default_hooks__checkpoint__interval=-1,
        default_hooks__checkpoint__save_best=['a', 'b'],
        default_hooks__checkpoint__rule='greater',
        **mean_score(),
    ).train()
    names, _ = files(folder)
    assert names == {'epoch_3.pth', 'best_a_epoch_2.pth', 'best_b_epoch_3.pth'}


@pytest.mark.parametrize('names', [['top1_raw'], ['top1', 'top1_raw']], ids=len)
def test_a_best_checkpoint_has_the_weights_that_were_best(folder, names):
    make_runner(
        folder / 'plain.py',
        'work',
        custom_hooks=[EMA],
        train_cfg=dict(max_epochs=1, val_interval=1),
        default_hooks__checkpoint__save_best=[f'accuracy/{name}' for name in names],
        default_hooks__checkpoint__published_keys=['meta', 'state_dict'],
    ).train()
    last = load('work/epoch_1.pth')
    weights = dict(top1=last['state_dict'], top1_raw=raw_weights(last))
    assert not weights['top1']['head.layers.1.fc.bias'].equal(
        weights['top1_raw']['head.layers.1.fc.bias']
    )
    for name in names:
        path = f'work/best_accuracy_{name}_epoch_1.pth'
        assert_equal_weights(load(path)['state_dict'], weights[name])
        assert ('ema_state_dict' in load(path)) == (name == 'top1')
        (published,) = folder.glob(path.replace('.pth', '-*'))
        assert_equal_weights(load(published)['state_dict'], weights[name])


def test_a_metric_that_does_not_exist(folder):
    runner = make_runner(
        folder / 'plain.py',
        'work',
        custom_hooks=[EMA],
        train_cfg__val_interval=1,
        default_hooks__checkpoint__interval=-1,
        default_hooks__checkpoint__save_best=['score', 'scroe_raw'],
        default_hooks__checkpoint__rule='less',
        **mean_score(),
    )
    with pytest.raises(ValueError, match=r"'scroe_raw' .* are 'score', 'score_raw'\. Correct it"):
        runner.train()
    assert files(folder) == ({'epoch_1.pth'}, 'epoch_1.pth')


@pytest.mark.parametrize('hooks', [[], [dict(EMA, evaluate_on_origin=False)]], ids=len)
def test_raw_weights_that_nothing_evaluates(folder, hooks):
    runner = make_runner(
        folder / 'plain.py',
        'work',
        custom_hooks=hooks,
        default_hooks__checkpoint__save_best='accuracy/top1_raw',
    )
    with pytest.raises(ValueError, match='accuracy/top1_raw.*EMAHook'):
        runner.train()
    assert runner.iter == 0


def test_another_backend_is_left_alone(folder):
    runner = make_runner(
        folder / 'plain.py',
        'work',
        default_hooks__checkpoint__backend_args=dict(backend='local'),
        train_cfg__max_epochs=1,
    )
    runner.train()
    (hook,) = (hook for hook in runner.hooks if type(hook).__name__ == 'CheckpointHook')
    assert hook.backend_args == dict(backend='local')
