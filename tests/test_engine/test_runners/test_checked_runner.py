"""What is resumed by the frameworks' own scripts, which ask mmengine for a runner."""

import pytest
from mmengine.config import Config
from mmengine.registry import RUNNERS

from tests.test_engine.runs import EMA, EXACT, load, write_teacher


def make_runner(folder, **options):
    """Make one as mmpretrain's script does with ``--resume``."""
    cfg = Config.fromfile(folder / 'distilled.py')
    names = dict(work_dir='work', experiment_name=f'{folder}-{sorted(options.items())}')
    cfg.merge_from_dict(dict(names, runner_type='mmgnv3.CheckedRunner', custom_hooks=[EMA, EXACT]))
    cfg.merge_from_dict(dict(resume=True, **options))
    return RUNNERS.build(cfg)


@pytest.fixture
def dumped(folder):
    """The config in the work dir of a distilled run, which had nothing to resume from."""
    make_runner(folder, **{'train_cfg.max_epochs': 1}).train()
    path = folder / 'work/distilled.py'
    path.write_text('# as it was')
    return path


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        ({'custom_hooks.0.momentum': 0.2}, ValueError, 'momentum'),
        ({'custom_hooks': []}, ValueError, 'was averaging its weights, and this one is not'),
        ({'load_from': 'work/epoch_1.pth'}, ValueError, 'SHA-256'),
        ({'load_from': 'half.pth'}, ValueError, 'half.pth cannot be read'),
        ({'load_from': 'gone.pth'}, FileNotFoundError, 'no checkpoint .*gone.pth'),
    ],
    ids=['another average', 'no average', 'another teacher', 'half a checkpoint', 'none'],
)
def test_refused_before_the_config_is_overwritten(folder, dumped, options, error, message):
    if message == 'SHA-256':
        write_teacher(folder, seed=1)
    (folder / 'half.pth').write_bytes((folder / 'work/epoch_1.pth').read_bytes()[:1000])
    with pytest.raises(error, match=message):
        make_runner(folder, **options)
    assert dumped.read_text() == '# as it was'


@pytest.mark.parametrize('name', ['half.pth', 'gone.pth'])
def test_a_backbone_to_start_from_is_named(folder, name):
    teacher = (folder / 'teacher.pth').read_bytes()
    (folder / 'half.pth').write_bytes(teacher[: len(teacher) // 2])
    init_cfg = dict(type='Pretrained', checkpoint=name)
    runner = make_runner(folder, **{'model.backbone.init_cfg': init_cfg})
    message = rf'The checkpoint {name} of model\.backbone\.init_cfg'
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        runner.train()


def test_resumed_as_it_was(folder, dumped, monkeypatch):
    text = property(lambda cfg: f'resume, load_from = {cfg.resume}, {cfg.load_from!r}')
    monkeypatch.setattr(Config, 'pretty_text', text)
    runner = make_runner(folder, load_from='work/epoch_1.pth')
    runner.train()
    # A test with the written config must load what it is given, and resume nothing.
    assert dumped.read_text() == 'resume, load_from = False, None'
    assert (runner.cfg.resume, runner.cfg.load_from) == (True, 'work/epoch_1.pth')
    assert load('work/epoch_3.pth')['meta']['epoch'] == 3
