import functools

import pytest
import torch
from mmengine.config import Config

from mmgnv3.apis import flags, run
from mmgnv3.apis.parts import build_model
from tests.test_apis.tiny import write_classification, write_detection

WRITERS = dict(mmdet=write_detection, mmpretrain=write_classification)


class _Planned(Exception):
    """Raised in place of running, with the config that would have been run."""


@pytest.fixture(scope='module', params=WRITERS)
def host(request):
    return request.param


@pytest.fixture(scope='module')
def configs(tmp_path_factory):
    return {host: str(write(tmp_path_factory.mktemp(host))) for host, write in WRITERS.items()}


@pytest.fixture
def config(configs, host):
    return configs[host]


@pytest.fixture(scope='module')
def checkpoints(configs, tmp_path_factory):
    paths = {host: str(tmp_path_factory.mktemp(host) / 'weights.pth') for host in configs}
    for host, path in paths.items():
        model = build_model(Config.fromfile(configs[host]))
        torch.save(dict(state_dict=model.state_dict()), path)
    return paths


@pytest.fixture
def checkpoint(checkpoints, host):
    return checkpoints[host]


@pytest.fixture
def plan(monkeypatch):
    """Calls ``train`` or ``test`` and returns the config that would have been run."""

    def build(cfg):
        raise _Planned(cfg)

    monkeypatch.setattr(run, '_build_runner', build)

    def call(function, *args, **options) -> Config:
        with pytest.raises(_Planned) as planned:
            function(*args, **options)
        return planned.value.args[0]

    return call


def test_default_train(plan, config, host):
    cfg = plan(run.train, config)
    assert cfg.work_dir == 'work_dirs/' + config.rpartition('/')[2].removesuffix('.py')
    assert cfg.launcher == 'none'
    assert cfg.val_dataloader is not None
    # mmpretrain's scripts fill these in, mmdet's do not.
    for key in ('pin_memory', 'collate_fn'):
        assert (key in cfg.train_dataloader) == (host == 'mmpretrain')


def test_work_dir(plan, config):
    options = dict(work_dir='b')
    assert plan(run.train, config, cfg_options=options).work_dir == 'b'
    assert plan(run.train, config, cfg_options=options, work_dir='c').work_dir == 'c'


def test_loader_flags(plan, config):
    options = {'train_dataloader.num_workers': 2, 'train_dataloader.persistent_workers': True}
    loader = plan(run.train, config, cfg_options=options).train_dataloader
    assert loader.persistent_workers
    cfg = plan(
        run.train, config, cfg_options=options, no_persistent_workers=True, no_pin_memory=True
    )
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert not loader.persistent_workers
        assert not loader.pin_memory


def test_no_workers_cannot_persist(plan, config):
    options = {'train_dataloader.persistent_workers': True}
    assert not plan(run.train, config, cfg_options=options).train_dataloader.persistent_workers


def test_no_validate(plan, config):
    cfg = plan(run.train, config, no_validate=True)
    assert cfg.val_cfg is cfg.val_dataloader is cfg.val_evaluator is None


def test_amp(plan, config, monkeypatch):
    monkeypatch.setattr(flags, 'get_device', lambda: 'cuda')
    wrapper = plan(run.train, config, amp=True).optim_wrapper
    assert (wrapper.type, wrapper.loss_scale) == ('AmpOptimWrapper', 'dynamic')


def test_amp_needs_an_accelerator(config, checkpoint, monkeypatch):
    monkeypatch.setattr(flags, 'get_device', lambda: 'cpu')
    for call in (run.train, functools.partial(run.test, checkpoint=checkpoint)):
        with pytest.raises(ValueError, match='--amp needs a GPU'):
            call(config, amp=True)


@pytest.mark.parametrize('launcher', ['pytorch', 'slurm', 'mpi'])
def test_a_launcher_that_has_not_launched(config, monkeypatch, launcher):
    for variable in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_LOCAL_RANK'):
        monkeypatch.delenv(variable, raising=False)
    message = f'^--launcher {launcher} is for processes that .* is not set'
    with pytest.raises(ValueError, match=message):
        run.train(config, launcher=launcher)


def test_auto_scale_lr(plan, config):
    options = {'auto_scale_lr.base_batch_size': 64}
    assert plan(run.train, config, cfg_options=options, auto_scale_lr=True).auto_scale_lr.enable


def test_auto_scale_lr_without_a_batch_size(configs):
    with pytest.raises(ValueError, match='auto_scale_lr=dict'):
        run.train(configs['mmpretrain'], auto_scale_lr=True)


def test_resume_of_nothing_starts_anew(plan, config, tmp_path):
    cfg = plan(run.train, config, resume='auto', work_dir=str(tmp_path))
    assert cfg.resume is True
    assert cfg.load_from is None


def test_resume_of_a_file(plan, config, checkpoint, tmp_path):
    path = str(tmp_path / 'epoch_1.pth')
    torch.save(dict(torch.load(checkpoint), meta={}, message_hub=dict(runtime_info={})), path)
    cfg = plan(run.train, config, resume=path)
    assert (cfg.resume, cfg.load_from) == (True, path)
    (tmp_path / 'last_checkpoint').write_text(path)
    assert plan(run.train, config, resume='auto', work_dir=str(tmp_path)).load_from is None


def test_resume_of_a_missing_file(config):
    with pytest.raises(FileNotFoundError, match=r'no checkpoint /gone\.pth'):
        run.train(config, resume='/gone.pth')


def test_resume_of_a_last_checkpoint_that_is_gone(config, tmp_path):
    (tmp_path / 'last_checkpoint').write_text('/gone.pth')
    with pytest.raises(FileNotFoundError, match=r'no checkpoint /gone\.pth'):
        run.train(config, resume='auto', work_dir=str(tmp_path))


def test_resume_of_weights(config, checkpoint):
    with pytest.raises(ValueError, match='nothing can be resumed.*load_from'):
        run.train(config, resume=checkpoint)


def test_load_from_is_checked(plan, config, checkpoint):
    assert plan(run.train, config, cfg_options=dict(load_from=checkpoint)).load_from == checkpoint
    with pytest.raises(FileNotFoundError, match=r'no checkpoint /gone\.pth'):
        run.train(config, cfg_options=dict(load_from='/gone.pth'))


def test_test_flags(plan, config, checkpoint, host, monkeypatch):
    monkeypatch.setattr(flags, 'get_device', lambda: 'cuda')
    cfg = plan(
        run.test, config, checkpoint, amp=True, show=True, show_dir='d', wait_time=0.5, interval=3
    )
    assert cfg.load_from == checkpoint
    assert cfg.test_cfg.fp16
    names = dict(mmdet=('draw', 'test_out_dir'), mmpretrain=('enable', 'out_dir'))
    draw, folder = names[host]
    hook = cfg.default_hooks.visualization
    assert (hook[draw], hook[folder], hook.show, hook.wait_time) == (True, 'd', True, 0.5)
    assert hook.interval == 3


def test_show_without_a_hook(config, checkpoint):
    options = {'default_hooks.visualization': None}
    with pytest.raises(ValueError, match='no visualization hook'):
        run.test(config, checkpoint, show_dir='x', cfg_options=options)


def test_tta_by_default_flips(plan, config, checkpoint, host):
    cfg = plan(run.test, config, checkpoint, tta=True)
    wrapper = dict(mmdet='DetTTAModel', mmpretrain='AverageClsScoreTTA')[host]
    assert cfg.model.type == wrapper
    assert cfg.model.module.backbone.type == 'mmgnv3.GhostNetV3'
    *rest, last = cfg.test_dataloader.dataset.pipeline
    assert [t.type for t in rest] == [t.type for t in cfg.pipeline[:-1]]
    assert last.type == 'TestTimeAug'
    assert [t.prob for t in last.transforms[0]] == [1.0, 0.0]


def test_tta_of_the_config(plan, configs, checkpoints):
    tta = dict(type='DetTTAModel', tta_cfg=dict(max_per_img=7))
    own = dict(tta_model=tta, tta_pipeline=[dict(type='Own')])
    cfg = plan(run.test, configs['mmdet'], checkpoints['mmdet'], tta=True, cfg_options=own)
    assert cfg.model.tta_cfg.max_per_img == 7
    assert cfg.test_dataloader.dataset.pipeline == own['tta_pipeline']


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(out='p.json'), r'pred are written to .* \.pkl or \.pickle'),
        (dict(out='m.txt', out_item='metrics'), r'metrics are written to .* \.json'),
        (dict(out_item='metrics'), '--out must say where'),
    ],
)
def test_wrong_out(config, checkpoint, options, message):
    with pytest.raises(ValueError, match=message):
        run.test(config, checkpoint, **options)


@pytest.mark.parametrize('out', ['file/p.pkl', 'file/new/p.pkl', 'folder.pkl', 'locked/new/p.pkl'])
def test_out_that_cannot_be_written(config, checkpoint, tmp_path, monkeypatch, out):
    (tmp_path / 'file').touch()
    for folder in ('folder.pkl', 'locked'):
        (tmp_path / folder).mkdir()
    # Whoever runs the tests may be allowed everything.
    monkeypatch.setattr(flags.os, 'access', lambda path, mode: path.name != 'locked')
    with pytest.raises(ValueError, match='^--out .*: no file can be written there'):
        run.test(config, checkpoint, out=str(tmp_path / out))


def test_test_without_a_test_set(config, checkpoint):
    with pytest.raises(ValueError, match='no test_dataloader'):
        run.test(config, checkpoint, cfg_options=dict(test_dataloader=None))


def test_missing_checkpoint(config):
    with pytest.raises(FileNotFoundError, match=r'no checkpoint /gone\.pth'):
        run.test(config, '/gone.pth')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a = (', 'is not a valid config: SyntaxError'),
        ('a = 1', 'has no model'),
        ('model = dict()', 'has no model'),
        ("model = dict(type='A')", 'default_scope=None'),
    ],
)
def test_unusable_config(tmp_path, text, message):
    path = tmp_path / 'bad.py'
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        run.train(str(path))


@pytest.mark.parametrize(('value', 'root'), [('', None), (None, 'data/x'), ('/y', '/y')])
def test_environment_variables_of_a_config(tmp_path, monkeypatch, value, root):
    path = tmp_path / 'config.py'
    path.write_text("root = '{{$OWN_ROOT:data/x}}'\nmodel = dict(type='A')")
    if value is None:
        monkeypatch.delenv('OWN_ROOT', raising=False)
    else:
        monkeypatch.setenv('OWN_ROOT', value)
    if root is None:
        with pytest.raises(ValueError, match='environment variable OWN_ROOT, .* is empty: unset'):
            run.read_config(str(path))
    else:
        assert run.read_config(str(path)).root == root


def test_missing_config(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf'no config {tmp_path}/gone\.py'):
        run.train(str(tmp_path / 'gone.py'))


def test_runner_type_of_the_config(config, tmp_path):
    options = dict(runner_type='NoSuchRunner')
    with pytest.raises(KeyError, match='NoSuchRunner'):
        run.train(config, work_dir=str(tmp_path), cfg_options=options)
