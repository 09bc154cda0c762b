import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook

from mmgnv3.apis.parts import build_model
from mmgnv3.utils.distillation import check_distillation, describe_distillation
from tests.test_engine.runs import (
    EMA,
    EXACT,
    InterruptHook,
    Interruption,
    assert_equal_weights,
    load,
    make_runner,
    write_teacher,
)

REPOSITORY = Path(__file__).parents[3]


def assert_same_end(run, other):
    """Weights, their average and the state of the optimizer, bit by bit."""
    ends = [load(f'{name}/epoch_3.pth') for name in (run, other)]
    for key in ('state_dict', 'ema_state_dict'):
        assert_equal_weights(*(end[key] for end in ends))
    momenta, others = (end['optimizer']['state'] for end in ends)
    assert momenta.keys() == others.keys()
    for name, state in momenta.items():
        assert state['momentum_buffer'].equal(others[name]['momentum_buffer'])


def train_in_two(config, work_dir, hooks, iteration, **options):
    """Interrupt a run after an iteration and resume it."""
    runner = make_runner(config, work_dir, [*hooks, InterruptHook(iteration)], **options)
    with pytest.raises(Interruption):
        runner.train()
    # Another seed would show wherever the run's own is not used.
    options['randomness'] = dict(seed=None)
    return make_runner(config, work_dir, hooks, resume=True, **options).train()


@pytest.mark.parametrize('config', ['plain.py', 'distilled.py'])
def test_an_interrupted_run_ends_as_a_straight_one(folder, config):
    make_runner(folder / config, 'straight', [EMA, EXACT]).train()
    train_in_two(folder / config, 'resumed', [EMA, EXACT], iteration=7)
    assert_same_end('resumed', 'straight')


def test_without_the_hook_it_does_not(folder):
    make_runner(folder / 'plain.py', 'straight', [EMA]).train()
    train_in_two(folder / 'plain.py', 'resumed', [EMA], iteration=7)
    with pytest.raises(AssertionError):
        assert_same_end('resumed', 'straight')


@pytest.mark.slow
@pytest.mark.parametrize('persistent', [False, True])
def test_workers_of_the_data_loader(folder, persistent):
    workers = dict(train_dataloader__num_workers=2, train_dataloader__persistent_workers=persistent)
    make_runner(folder / 'distilled.py', 'straight', [EMA, EXACT], **workers).train()
    train_in_two(folder / 'distilled.py', 'resumed', [EMA, EXACT], iteration=7, **workers)
    assert_same_end('resumed', 'straight')
    # What is random in the workers does differ between epochs.
    make_runner(folder / 'distilled.py', 'alone', [EMA, EXACT]).train()
    with pytest.raises(AssertionError):
        assert_same_end('alone', 'straight')


class Draws(Hook):
    """What a run draws from each generator at the beginning of every epoch."""

    priority = 'LOWEST'

    def __init__(self):
        self.draws = []

    def before_train_epoch(self, runner):
        state = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self.draws.append((random.random(), np.random.rand(), torch.rand(()).item()))
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])


def test_every_epoch_and_every_seed_draws_its_own_numbers(folder):
    all_draws = []
    for seed in (7, 8):
        draws = Draws()
        options = dict(randomness__seed=seed, train_cfg__max_epochs=2)
        make_runner(folder / 'plain.py', f'{seed}', [EXACT, draws], **options).train()
        all_draws += draws.draws
    for numbers in zip(*all_draws, strict=True):
        assert len(set(numbers)) == 4


# --- what is refused ---


@pytest.fixture
def saved(folder):
    """The checkpoint of the first epoch of a distilled run with an average."""
    options = dict(train_cfg__max_epochs=1)
    make_runner(folder / 'distilled.py', 'work', [EMA, EXACT], **options).train()
    return 'work/epoch_1.pth'


def resume(folder, checkpoint, hooks=(EMA, EXACT), config='distilled.py', **options):
    options.update(resume=True, load_from=str(checkpoint))
    return make_runner(folder / config, 'work', hooks, **options).train()


def refused(folder, checkpoint, message, **options):
    before = {path: path.read_bytes() for path in folder.glob('work/*.pth')}
    with pytest.raises(ValueError, match=message):
        resume(folder, checkpoint, **options)
    assert {path: path.read_bytes() for path in folder.glob('work/*.pth')} == before


def test_another_teacher(folder, saved):
    write_teacher(folder, seed=1)
    refused(folder, saved, r"teacher\.checkpoint='SHA-256 \w{64}' became 'SHA-256 \w{64}'\. Resume")


def test_the_same_teacher_elsewhere(folder, saved):
    (folder / 'elsewhere').mkdir()
    shutil.move('teacher.pth', 'elsewhere/t.pth')
    resume(folder, saved, model__teacher__checkpoint='elsewhere/t.pth')
    assert (folder / 'work/epoch_3.pth').exists()


def check_resume(saved, options):
    """Resume a distilled run of one config by another, as far as networks are looked at."""
    networks = []
    for changes in (saved, options):
        cfg = Config.fromfile('distilled.py')
        cfg.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
        networks.append(build_model(cfg))
    check_distillation(*map(describe_distillation, networks))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'teacher.input_size': 48}, 'teacher.input_size=None became 48'),
        ({'teacher.channel_order': 'RGB'}, "teacher.channel_order='BGR' became 'RGB'"),
        (
            {'teacher.data_preprocessor.std': [50, 50, 51]},
            'teacher.model.data_preprocessor.std.2=50.0 became 51',
        ),
        ({'channel_order': 'RGB'}, "otherwise: channel_order='BGR' became 'RGB'"),
        ({'head.loss.alpha': 0.7}, 'loss.alpha=0.5 became 0.7'),
        ({'head.loss.tau': 1}, 'loss.tau=2.0 became 1'),
        ({'head.loss.divergence': 'cross_entropy'}, "divergence='kl' became 'cross_entropy'"),
        ({'head.loss.label_smooth_val': 0.1}, 'loss.label_smooth_val=0.0 became 0.1'),
        ({'head.loss.loss_weight': 2.0}, 'loss.loss_weight=1.0 became 2.0'),
    ],
    ids=str,
)
def test_other_settings_of_the_distillation(folder, change, message):
    check_resume({}, {})
    with pytest.raises(ValueError, match=f'{re.escape(message)}. Resume'):
        check_resume({}, change)


def test_another_content_of_the_teacher_s_config(folder):
    """Its path says nothing."""
    model = Config.fromfile('distilled.py').teacher.model.to_dict()
    for name in ('teacher', 'moved'):
        Path(f'{name}.py').write_text(f'model = {model!r}')
    changed = dict(model, backbone=dict(model['backbone'], num_branches=3))
    Path('changed.py').write_text(f'model = {changed!r}')
    teacher, moved, changed = (
        {'teacher.model': None, 'teacher.config': f'{name}.py'}
        for name in ('teacher', 'moved', 'changed')
    )
    check_resume(teacher, moved)
    check_resume(teacher, {})
    with pytest.raises(ValueError, match=r'teacher\.model\.backbone\.num_branches=2 became 3'):
        check_resume(teacher, changed)


def test_what_is_saved_is_plain(folder, saved):
    said = load(saved)['message_hub']['runtime_info']['mmgnv3_distillation']
    assert said['loss.tau'] == 2.0
    assert {type(value) for value in said.values()} <= {bool, int, float, str, type(None)}


def test_without_the_teacher(folder, saved):
    refused(folder, saved, 'had a teacher, and this one has none', config='plain.py')


def test_with_a_teacher_that_there_was_not(folder):
    make_runner(folder / 'plain.py', 'work', [EMA, EXACT], train_cfg__max_epochs=1).train()
    refused(folder, 'work/epoch_1.pth', 'had no teacher, and this one has one')


def test_without_the_average(folder, saved):
    message = 'checkpoint was averaging its weights, and this one is not'
    refused(folder, saved, message, hooks=[EXACT])


def test_with_an_average_that_there_was_not(folder):
    make_runner(folder / 'plain.py', 'work', [EXACT], train_cfg__max_epochs=1).train()
    mmengine_hook = dict(type='mmengine.EMAHook')
    message = 'was not averaging its weights, and this one is'
    options = dict(config='plain.py', hooks=[mmengine_hook, EXACT])
    refused(folder, 'work/epoch_1.pth', message, **options)


def test_a_checkpoint_without_an_optimizer(folder, saved):
    checkpoint = load(saved)
    del checkpoint['optimizer']
    torch.save(checkpoint, saved)
    refused(folder, saved, 'no state of the optimizer')


def test_the_middle_of_an_epoch(folder):
    options = dict(
        train_cfg__max_epochs=1,
        default_hooks__checkpoint__by_epoch=False,
        default_hooks__checkpoint__interval=3,
    )
    make_runner(folder / 'distilled.py', 'work', [EMA, EXACT], **options).train()
    message = 'after 3 iterations and 0 epochs, of 4 iterations each: in the middle'
    refused(folder, 'work/iter_3.pth', message)


def test_another_batch_size(folder, saved):
    message = 'exactly: batch_size was 4 and is 2'
    refused(folder, saved, message, train_dataloader__batch_size=2)


def test_another_number_of_workers(folder, saved):
    """Each of them draws its own random numbers."""
    message = r'exactly: num_workers was 0 and is 1\. Resume as it was'
    refused(folder, saved, message, train_dataloader__num_workers=1)


def test_another_number_of_processes_with_as_many_images_in_all(folder, saved):
    """An epoch has the same iterations."""
    checkpoint = load(saved)
    loading = dict(batch_size=2, num_workers=0, processes=2)
    checkpoint['message_hub']['runtime_info']['mmgnv3_loading'] = loading
    torch.save(checkpoint, saved)
    refused(folder, saved, 'exactly: batch_size was 2 and is 4, processes was 2 and is 1')


def test_iteration_based_loop(folder):
    loop = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=4, val_interval=4)
    runner = make_runner(folder / 'plain.py', 'work', [EXACT], train_cfg=loop)
    with pytest.raises(ValueError, match='needs an EpochBasedTrainLoop, not IterBasedTrainLoop'):
        runner.train()


def test_accumulated_gradients_that_are_in_no_checkpoint(folder, caplog):
    for count, warned in ((2, False), (3, True)):
        caplog.clear()
        runner = make_runner(
            folder / 'plain.py',
            f'work{count}',
            [EXACT],
            optim_wrapper__accumulative_counts=count,
            train_cfg__max_epochs=1,
        )
        runner.logger.addHandler(caplog.handler)
        runner.train()
        assert ('will not be exact' in caplog.text) == warned


def test_a_checkpoint_written_without_the_hook_can_be_resumed(folder):
    make_runner(folder / 'distilled.py', 'work', [EMA], train_cfg__max_epochs=1).train()
    resume(folder, 'work/epoch_1.pth')
    assert (folder / 'work/epoch_3.pth').exists()


def test_nothing_of_it_matters_when_weights_are_only_loaded(folder, saved):
    write_teacher(folder, seed=1)
    make_runner(folder / 'distilled.py', 'new', [EXACT], load_from=saved).train()
    assert (folder / 'new/epoch_3.pth').exists()


# --- kill -9 ---

_RUN = """
_base_ = ['distilled.py']
custom_hooks = [
    dict(type='mmgnv3.EMAHook', momentum=0.3),
    dict(type='mmgnv3.ExactResumeHook'),
    dict(type='mmgnv3.FiniteLossHook'),
]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1, save_best='auto'))
"""
_AFTER_ITERATION = """
custom_hooks += [dict(type='InterruptHook', iteration=7, kill=True)]
custom_imports = dict(imports=['tests.test_engine.killed'])
"""
_WHILE_WRITING = """
custom_imports = dict(imports=['tests.test_engine.killed_writing'])
"""


def train(folder, config, work_dir, *arguments):
    command = [sys.executable, REPOSITORY / 'tools/train.py', config, '--work-dir', work_dir]
    env = {**os.environ, 'PYTHONPATH': str(REPOSITORY), 'OMP_NUM_THREADS': '1'}
    return subprocess.run(
        [*map(str, command), *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_kill_and_resume(folder):
    (folder / 'run.py').write_text(_RUN)
    straight = train(folder, 'run.py', 'straight')
    assert straight.returncode == 0, straight.stderr

    for moment, config in (('step', _AFTER_ITERATION), ('writing', _WHILE_WRITING)):
        (folder / f'{moment}.py').write_text(_RUN + config)
        killed = train(folder, f'{moment}.py', moment)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not (folder / moment / 'epoch_2.pth').exists()
        resumed = train(folder, 'run.py', moment, '--resume')
        assert resumed.returncode == 0, resumed.stderr
        assert 'resumed epoch: 1, iter: 4' in resumed.stdout + resumed.stderr
        assert_same_end(moment, 'straight')
