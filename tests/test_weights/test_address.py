"""``ghostnetv3://`` in configs and loaders."""

import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader
from mmpretrain.registry import MODELS

from mmgnv3.utils.checkpoints import read_checkpoint
from mmgnv3.utils.files import sha256
from mmgnv3.weights import convert_checkpoint, load_address
from tests.test_weights.foreign import timm_network, weights_of, write_reference_file
from tests.utils import classifier_config


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    return write_reference_file(tmp_path_factory.mktemp('weights') / 'reference.pth.tar')


@pytest.fixture
def expected(source):
    def convert(ema=None):
        return convert_checkpoint(read_checkpoint(source), ema).state_dict

    return convert


def assert_same_weights(state_dict, expected):
    assert state_dict.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in state_dict.items())


@pytest.mark.parametrize(
    ('options', 'ema'), [('', True), ('#', True), ('#ema', True), ('#raw', False)]
)
def test_loader(source, expected, options, ema):
    checkpoint = CheckpointLoader.load_checkpoint(f'ghostnetv3://{source}{options}', 'cpu')
    assert_same_weights(checkpoint['state_dict'], expected(ema))
    assert checkpoint['meta']['ema'] == ema


def test_digest(source):
    address = f'ghostnetv3://{source}#raw&sha256={sha256(source).upper()}'
    assert load_address(address)['meta']['ema'] is False
    with pytest.raises(ValueError, match='not the expected file'):
        load_address(f'ghostnetv3://{source}#sha256={"0" * 64}')


def test_device(source):
    weights = load_address(f'ghostnetv3://{source}', 'meta')['state_dict']
    assert {value.device.type for value in weights.values()} == {'meta'}


@pytest.mark.parametrize(
    ('address', 'message'),
    [
        ('ghostnetv3://1.3x', r'no public weights of GhostNetV3 1\.3x.*ghostnetv3://1\.0x'),
        ('ghostnetv3://', r'names no file.*ghostnetv3://1\.0x'),
        ('ghostnetv3://1.0x#average', r"unknown option 'average'.*ema, raw"),
        ('ghostnetv3://1.0x#sha256=12', "unknown option 'sha256=12'"),
    ],
)
def test_wrong_address(address, message):
    with pytest.raises(ValueError, match=message):
        load_address(address)


def test_unusable_file(tmp_path):
    torch.save({'conv1.weight': torch.zeros(3)}, tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=r'ghostnetv3://\S+other\.pth: .*conv1\.weight'):
        load_address(f'ghostnetv3://{tmp_path / "other.pth"}')


def test_unreadable_file(tmp_path):
    (tmp_path / 'cut.pth').write_bytes(b'PK')
    with pytest.raises(ValueError, match='cannot be read') as error:
        load_address(f'ghostnetv3://{tmp_path}/cut.pth')
    assert str(error.value).count('cut.pth') == 1


def test_unreadable_file_of_another_name(tmp_path):
    path = tmp_path / 'a b.pth'
    path.write_bytes(b'PK')
    with pytest.raises(ValueError, match=rf'^ghostnetv3://file:\S+ \(in {path}\) cannot be read'):
        load_address(f'ghostnetv3://{path.as_uri()}')


def test_whole_classifier(source, expected):
    init_cfg = dict(type='Pretrained', checkpoint=f'ghostnetv3://{source}')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        config = classifier_config(0.5, num_classes=10)
        classifier = MODELS.build(dict(config, init_cfg=init_cfg))
    classifier.init_weights()
    assert_same_weights(classifier.state_dict(), expected())


@pytest.mark.parametrize('prefix', ['backbone.', 'backbone'])
def test_bare_backbone(source, expected, prefix):
    init_cfg = dict(type='Pretrained', checkpoint=f'ghostnetv3://{source}', prefix=prefix)
    backbone = MMENGINE_MODELS.build(
        dict(type='mmgnv3.GhostNetV3', widen_factor=0.5, out_indices=(2, 3), init_cfg=init_cfg)
    )
    backbone.init_weights()
    wanted = {f'backbone.{name}': value for name, value in backbone.state_dict().items()}
    assert wanted
    whole = expected()
    assert_same_weights(wanted, {name: whole[name] for name in wanted})


def test_another_width_is_refused(source):
    init_cfg = dict(type='Pretrained', checkpoint=f'ghostnetv3://{source}', prefix='backbone.')
    backbone = MMENGINE_MODELS.build(
        dict(type='mmgnv3.GhostNetV3', widen_factor=1.0, init_cfg=init_cfg)
    )
    with pytest.raises(RuntimeError, match='8 stem channels.*16 stem channels'):
        backbone.init_weights()


def test_safetensors(tmp_path):
    from safetensors.torch import save_file

    weights = weights_of(timm_network(0.5, num_classes=10), 'timm')
    save_file(weights, tmp_path / 'model.safetensors')
    checkpoint = load_address(f'ghostnetv3://{tmp_path / "model.safetensors"}')
    assert_same_weights(checkpoint['state_dict'], convert_checkpoint(weights).state_dict)


def test_nothing_has_to_be_imported(source, tmp_path):
    """A config that names a type of this package is enough."""
    config = Config(
        dict(
            backbone=dict(
                type='mmgnv3.GhostNetV3',
                widen_factor=0.5,
                init_cfg=dict(
                    type='Pretrained', checkpoint=f'ghostnetv3://{source}', prefix='backbone.'
                ),
            )
        )
    )
    config.dump(tmp_path / 'config.py')
    code = (
        'import sys; from mmengine.config import Config; from mmengine.registry import MODELS;'
        'backbone = MODELS.build(Config.fromfile(sys.argv[1]).backbone); backbone.init_weights();'
        'print(backbone.stem[0].branches[0].conv.weight.double().sum().item())'
    )
    run = subprocess.run(
        [sys.executable, '-c', code, str(tmp_path / 'config.py')],
        capture_output=True,
        text=True,
        check=True,
    )
    weight = convert_checkpoint(read_checkpoint(source)).state_dict[
        'backbone.stem.0.branches.0.conv.weight'
    ]
    assert float(run.stdout.split()[-1]) == weight.double().sum().item()
