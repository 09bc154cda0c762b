import json

import pytest
import torch
from mmengine.config import Config

from mmgnv3.apis import run
from mmgnv3.apis.parts import build_model, check_parts
from mmgnv3.utils.distillation import DISTILLATION, describe_distillation
from tests.test_apis.tiny import write_detection
from tests.test_engine.runs import EMA, EXACT, write_configs, write_teacher


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(write_configs(tmp_path))
    write_teacher(tmp_path)
    return tmp_path


@pytest.fixture
def cfg(folder):
    config = Config.fromfile('distilled.py')
    config.custom_hooks = [dict(EMA), dict(EXACT)]
    config.resume = True
    return config


@pytest.fixture
def resumed(folder):
    """What a checkpoint of the run has to hold beside its weights."""
    from mmgnv3.engine.hooks import EMAHook

    model = build_model(Config.fromfile('distilled.py'))
    return dict(
        meta=dict(mmgnv3_ema=EMAHook(momentum=0.3).settings),
        optimizer={},
        ema_state_dict={},
        message_hub=dict(runtime_info={DISTILLATION: describe_distillation(model)}),
        state_dict=model.state_dict(),
    )


def test_a_sound_config_is_left_as_it_is(cfg, resumed):
    before = cfg.to_dict()
    check_parts(cfg)
    check_parts(cfg, ('epoch_1.pth', resumed))
    assert cfg.to_dict() == before


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        ({'model.backbone.widen_factor': -1}, ValueError, 'widen_factor must be'),
        ({'model.teacher.checkpoint': 'gone.pth'}, FileNotFoundError, r'gone\.pth of the teacher'),
        ({'model.head.loss.alpha': 2}, ValueError, 'alpha'),
        ({'model.channel_order': None}, ValueError, 'student.* channel_order=None'),
        ({'custom_hooks.0.momentum': 2}, ValueError, 'momentum must be'),
        ({'model.backbone.arch.last_channels': 24}, ValueError, 'Set model.head.in_channels=24'),
    ],
)
def test_what_is_refused(cfg, change, error, message):
    cfg.merge_from_dict(change)
    with pytest.raises(error, match=message):
        check_parts(cfg)


@pytest.mark.parametrize(
    ('change', 'entry', 'channels'),
    [
        ({'widen_factor': 1.3}, 'model.neck', '[52,144,208]'),
        ({'out_indices': (2, 3)}, 'model.neck.0', '[20,56]'),
    ],
)
def test_a_neck_for_other_channels(tmp_path, change, entry, channels):
    cfg = Config.fromfile(write_detection(tmp_path))
    if entry.endswith('0'):
        cfg.model.neck = [cfg.model.neck]
    check_parts(cfg)
    cfg.model.backbone.update(change)
    with pytest.raises(ValueError, match=r'is \[20, 56, 80\]\. Set') as raised:
        check_parts(cfg)
    assert str(raised.value).endswith(f'Set {entry}.in_channels={channels}')
    cfg.merge_from_dict({f'{entry}.in_channels': json.loads(channels)[::-1]})
    check_parts(cfg)


def test_the_preprocessor_beside_the_model_is_the_model_s(cfg):
    cfg.merge_from_dict({'model.channel_order': None, 'data_preprocessor.to_rgb': True})
    check_parts(cfg)


def test_a_teacher_that_was_cut_off(cfg, folder):
    path = folder / 'teacher.pth'
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r'teacher\.pth of the teacher .* cut off'):
        check_parts(cfg)


def test_a_teacher_that_is_fetched_is_left_to_the_run(cfg):
    cfg.model.teacher.checkpoint = 'http://gone.invalid/teacher.pth'
    check_parts(cfg)


def test_resuming_with_another_average(cfg, resumed):
    cfg.custom_hooks[0].momentum = 0.2
    check_parts(cfg)
    with pytest.raises(ValueError, match=r'momentum=0\.3 became 0\.2'):
        check_parts(cfg, ('epoch_1.pth', resumed))


def test_resuming_without_the_average_or_the_teacher(cfg, resumed):
    """Whatever hooks there are."""
    cfg.custom_hooks = []
    with pytest.raises(ValueError, match='was averaging its weights, and this one is not'):
        check_parts(cfg, ('epoch_1.pth', resumed))
    plain = Config.fromfile('plain.py')
    plain.update(custom_hooks=[dict(EMA)], resume=True)
    with pytest.raises(ValueError, match='had a teacher, and this one has none'):
        check_parts(plain, ('epoch_1.pth', resumed))


def test_an_average_among_the_default_hooks(cfg, resumed):
    cfg.default_hooks.ema = cfg.custom_hooks.pop(0)
    check_parts(cfg, ('epoch_1.pth', resumed))
    cfg.default_hooks.ema.momentum = 0.2
    with pytest.raises(ValueError, match=r'momentum=0\.3 became 0\.2'):
        check_parts(cfg, ('epoch_1.pth', resumed))


@pytest.mark.parametrize('hooks', [[EMA, EXACT], [EMA]], ids=['exact', 'inexact'])
def test_resuming_with_another_teacher(cfg, resumed, folder, hooks):
    cfg.custom_hooks = [dict(hook) for hook in hooks]
    write_teacher(folder, seed=1)
    with pytest.raises(ValueError, match=r'teacher\.checkpoint=.* became'):
        check_parts(cfg, ('epoch_1.pth', resumed))


def test_a_refused_run_leaves_nothing_behind(folder, resumed):
    options = {'custom_hooks': [dict(EMA, gamma=5), dict(EXACT)]}
    torch.save(resumed, 'epoch_1.pth')
    files = set(folder.rglob('*'))
    with pytest.raises(ValueError, match='gamma=0 became 5'):
        run.train('distilled.py', resume='epoch_1.pth', cfg_options=options)
    with pytest.raises(FileNotFoundError, match='teacher'):
        run.train('distilled.py', cfg_options={'model.teacher.checkpoint': 'gone.pth'})
    assert set(folder.rglob('*')) == files


def test_a_hook_may_have_a_priority(cfg):
    cfg.custom_hooks[0].priority = 'ABOVE_NORMAL'
    check_parts(cfg)
    assert cfg.custom_hooks[0].priority == 'ABOVE_NORMAL'
