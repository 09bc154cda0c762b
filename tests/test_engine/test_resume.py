"""What is refused whatever the hooks and the loop of a run."""

import pytest

from tests.test_engine.runs import make_runner, write_teacher


def train(folder, max_iters, **options):
    """Train with mmengine's own runner, by iterations and without hooks of this package."""
    loop = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=9)
    checkpoint = dict(_delete_=True, type='CheckpointHook', by_epoch=False, interval=2)
    options.update(train_cfg=loop, default_hooks__checkpoint=checkpoint)
    make_runner(folder / 'distilled.py', 'work', **options).train()


@pytest.mark.parametrize('is_same', [True, False], ids=['same teacher', 'another teacher'])
def test_a_distilled_run_by_iterations(folder, is_same):
    train(folder, 2)
    write_teacher(folder, seed=0 if is_same else 1)
    resumed = dict(resume=True, load_from='work/iter_2.pth')
    if is_same:
        train(folder, 4, **resumed)
    else:
        with pytest.raises(ValueError, match=r'teacher\.checkpoint=.* became .*\. Resume as it'):
            train(folder, 4, **resumed)
    assert (folder / 'work/iter_4.pth').exists() == is_same
