from pathlib import Path

import pytest
from mmengine.fileio import LocalBackend

from tests.test_engine.runs import Interruption, load, make_runner, mean_score


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
