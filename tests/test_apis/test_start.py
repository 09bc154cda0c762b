"""Weights that a run starts from and that do not fit: refused before anything is written."""

import pytest
import torch
from mmengine.config import Config

from mmgnv3.apis import run
from mmgnv3.apis.parts import build_model
from mmgnv3.apis.start import check_pretrained
from tests.test_engine.runs import make_runner, write_configs
from tests.test_weights.foreign import write_reference_file
from tests.utils import classifier_config

OTHER_ARCH = {'model.backbone.arch.stem_channels': 16}
OTHER_FORM = {'model.backbone.num_branches': 1}
OTHER_HEAD = {'model.head.mid_channels': [4]}
PRETRAINED = dict(type='Pretrained', checkpoint='whole.pth', prefix='backbone.')


def optimizer(kind, **wrapper):
    own = dict(_delete_=True, type=kind, lr=0.1, weight_decay=0.1)
    return {'optim_wrapper': dict(optimizer=own, **wrapper)}


class _Planned(Exception):
    """Raised in place of running."""


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """Folder with a config, a checkpoint of a run, and weights of its whole and its backbone."""
    folder = write_configs(tmp_path_factory.mktemp('start'))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_runner('plain.py', 'work', train_cfg=dict(max_epochs=1)).train()
        saved = torch.load('work/epoch_1.pth', weights_only=False)['state_dict']
        torch.save(dict(state_dict=saved), 'whole.pth')
        own = build_model(Config.fromfile('plain.py')).backbone.state_dict()
        torch.save({name: saved[f'backbone.{name}'] for name in own}, 'backbone.pth')
        torch.save({'conv1.weight': torch.zeros(2)}, 'foreign.pth')
        head = {name: value for name, value in saved.items() if name.startswith('head.')}
        torch.save(head, 'head.pth')
        torch.save(list(saved), 'list.pth')
        (folder / 'cut.pth').write_bytes((folder / 'whole.pth').read_bytes()[:-1000])
    return folder


@pytest.fixture
def start(source, monkeypatch):
    """Starts a run, which ends where the runner would be made; nothing may be written by then."""
    monkeypatch.chdir(source)

    def build(cfg):
        raise _Planned

    monkeypatch.setattr(run, '_build_runner', build)

    def call(options, **arguments):
        before = set(source.rglob('*'))
        try:
            run.train('plain.py', work_dir='new', cfg_options=options, **arguments)
        finally:
            assert set(source.rglob('*')) == before

    return call


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(OTHER_HEAD), r'size mismatch for head\.\S+'),
        (dict(OTHER_ARCH), 'stem channels|another arch'),
        (dict(OTHER_FORM), 'another GhostNetV3'),
        ({'model.head.mid_channels': [8, 8]}, r'size mismatch|lacks head\.\S+'),
        (optimizer('AdamW'), "the optimizer of the config: the run that wrote it kept no 'step'"),
        (optimizer('mmgnv3.Lamb'), 'the optimizer of the config: .* had no .*betas'),
        (optimizer('SGD', paramwise_cfg=dict(norm_decay_mult=0.0)), 'parameter groups'),
    ],
    ids=str,
)
def test_resume_of_another_run(start, options, message):
    with pytest.raises(ValueError, match=rf'work/epoch_1\.pth .*({message})'):
        start(options, resume='work/epoch_1.pth')


def test_resume_of_the_same_run(start):
    with pytest.raises(_Planned):
        start({}, resume='work/epoch_1.pth')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(OTHER_ARCH, load_from='whole.pth'), 'stem channels|another arch'),
        (dict(OTHER_FORM, load_from='whole.pth'), 'another GhostNetV3'),
        (dict(load_from='backbone.pth'), r"a backbone alone.*init_cfg=dict\(type='Pretrained'"),
        (dict(load_from='foreign.pth'), r'its first weight is conv1\.weight'),
        (dict(load_from='head.pth'), r'backbone of the config: it lacks stem\.'),
        (dict(load_from='cut.pth'), 'cut off'),
    ],
    ids=str,
)
def test_load_from_another_network(start, options, message):
    with pytest.raises(ValueError, match=rf'^{options["load_from"]} .*({message})'):
        start(options)


@pytest.mark.parametrize('options', [{}, OTHER_HEAD], ids=['same', 'other head'])
def test_load_from_another_head_is_said_once(start, options, monkeypatch):
    warnings = []
    monkeypatch.setattr('mmgnv3.apis.start.print_log', lambda text, *args: warnings.append(text))
    with pytest.raises(_Planned):
        start(dict(options, load_from='whole.pth'))
    assert len(warnings) == bool(options)
    assert all('whole.pth has nothing that fits head.' in warning for warning in warnings)


@pytest.mark.parametrize(
    ('init', 'options', 'error', 'message'),
    [
        (dict(checkpoint='gone.pth'), {}, FileNotFoundError, r'is missing: .*/gone\.pth'),
        (dict(checkpoint='cut.pth'), {}, ValueError, 'cut off'),
        (dict(checkpoint='list.pth'), {}, ValueError, 'holds a list'),
        (dict(prefix='student.'), {}, ValueError, r"the prefix 'student\.'; its first is"),
        (dict(prefix=None), {}, ValueError, 'whole model'),
        (dict(checkpoint='foreign.pth', prefix=None), {}, ValueError, r'conv1\.weight'),
        ({}, OTHER_ARCH, ValueError, 'stem channels|another arch'),
        ({}, OTHER_FORM, ValueError, 'another GhostNetV3'),
    ],
    ids=str,
)
def test_pretrained_that_does_not_fit(start, init, options, error, message):
    init = {**PRETRAINED, **init}
    with pytest.raises(
        error, match=rf'{init["checkpoint"]} of model\.backbone\.init_cfg.*{message}'
    ):
        start({**options, 'model.backbone.init_cfg': init})


@pytest.mark.parametrize('init', [{}, dict(checkpoint='backbone.pth', prefix=None)], ids=str)
def test_pretrained_that_fits(start, init):
    with pytest.raises(_Planned):
        start({**OTHER_HEAD, 'model.backbone.init_cfg': [{**PRETRAINED, **init}]})


def test_pretrained_of_a_whole_network(start):
    options = {'model.init_cfg': {**PRETRAINED, 'prefix': None}}
    with pytest.raises(_Planned):
        start({**OTHER_HEAD, **options})
    with pytest.raises(ValueError, match=r'whole\.pth of model\.init_cfg .*another GhostNetV3'):
        start({**OTHER_FORM, **options})


def test_public_weights_of_another_head(tmp_path):
    """A classifier that is to have them does not start with a part of them."""
    file = write_reference_file(tmp_path / 'reference.pth.tar', num_classes=10)
    init = dict(type='Pretrained', checkpoint=f'ghostnetv3://{file}')

    def check(num_classes):
        model = dict(classifier_config(0.5, num_classes), init_cfg=init)
        check_pretrained(build_model(Config(dict(default_scope='mmpretrain', model=model))))

    check(10)
    message = r'of model\.init_cfg .*fits head\.layers\.1\.fc\.weight and 1 more.*backbone alone'
    with pytest.raises(ValueError, match=message):
        check(7)


def test_pretrained_from_a_model_zoo_is_left_to_the_run(start):
    init = dict(type='Pretrained', checkpoint='torchvision://no_such_model')
    with pytest.raises(_Planned):
        start({'model.backbone.init_cfg': init})


@pytest.mark.parametrize('name', ['whole.pth', 'backbone.pth', 'cut.pth'])
def test_a_test_of_another_checkpoint_writes_nothing(source, name, monkeypatch):
    monkeypatch.chdir(source)
    before = set(source.rglob('*'))
    with pytest.raises(ValueError, match=rf'^{name} '):
        run.test('plain.py', name, work_dir='new', cfg_options=dict(OTHER_ARCH))
    assert set(source.rglob('*')) == before
