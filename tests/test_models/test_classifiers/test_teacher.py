import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import DefaultScope
from mmpretrain.models import GlobalAveragePooling
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from mmgnv3.models.classifiers import Teacher
from tests.test_models.test_classifiers.small import (
    NETWORK,
    NUM_CLASSES,
    STUDENT,
    mirror,
    trained_network,
)

TEACHERS = Path(__file__).parents[3] / 'configs' / '_base_' / 'teachers'
INGREDIENTS = ['beitv2-base', 'deit-base', 'resnet101']
CONFIG = """
model = {model!r}
data_preprocessor = {preprocessor!r}
"""
KD_CONFIG = """
_base_ = [{base!r}]
default_scope = 'mmpretrain'
model = dict({student!r}, type='mmgnv3.KDClassifier', teacher=_base_.teacher)
model['head']['num_classes'] = 1000
"""


class _Foreign:
    """What no checkpoint should need."""


def pixels(images: int = 2, size: int | tuple[int, int] = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    sides = (size, size) if isinstance(size, int) else size
    return torch.randint(256, (images, 3, *sides), generator=generator).float()


def expected_logits(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return network(network.data_preprocessor(dict(inputs=images))['inputs'])


def save(network: nn.Module, path: Path) -> str:
    torch.save(dict(meta={}, state_dict=network.state_dict()), path)
    return str(path)


@pytest.fixture
def network() -> nn.Module:
    return trained_network(seed=1)


@pytest.fixture
def checkpoint(network, tmp_path) -> str:
    return save(network, tmp_path / 'teacher.pth')


class TestSources:
    """All ways to name a teacher lead to the same logits."""

    def test_inline_model(self, network, checkpoint):
        teacher = Teacher(NUM_CLASSES, model=NETWORK, checkpoint=checkpoint)
        images = pixels()
        torch.testing.assert_close(teacher(images, 'BGR'), expected_logits(network, images))

    def test_config_file(self, network, checkpoint, tmp_path):
        """Its preprocessor stands beside the model there."""
        model = copy.deepcopy(NETWORK)
        config = tmp_path / 'teacher.py'
        preprocessor = model.pop('data_preprocessor')
        config.write_text(CONFIG.format(model=model, preprocessor=preprocessor))
        teacher = Teacher(NUM_CLASSES, config=str(config), checkpoint=checkpoint)
        images = pixels()
        torch.testing.assert_close(teacher(images, 'BGR'), expected_logits(network, images))

    def test_config_of_mmpretrain(self):
        teacher = Teacher(
            10,
            config='mmpretrain::resnet/resnet18_8xb16_cifar10.py',
            random_init=True,
            channel_order='RGB',
        )
        network = teacher.build()
        assert network.data_preprocessor.mean.flatten().tolist() == pytest.approx(
            [125.307, 122.961, 113.8575]
        )
        images = pixels()
        torch.testing.assert_close(teacher(images, 'RGB'), expected_logits(network, images))

    @pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
    def test_timm(self, tmp_path, suffix):
        timm = pytest.importorskip('timm')
        torch.manual_seed(1)
        network = timm.create_model('test_resnet', num_classes=NUM_CLASSES).eval()
        path = str(tmp_path / f'teacher{suffix}')
        if suffix == '.pth':
            torch.save(network.state_dict(), path)
        else:
            pytest.importorskip('safetensors.torch').save_file(network.state_dict(), path)
        teacher = Teacher(NUM_CLASSES, timm='test_resnet', checkpoint=path)
        images = pixels(size=160)
        config = network.pretrained_cfg
        mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ('mean', 'std'))
        with torch.no_grad():
            expected = network((images.flip(1) / 255 - mean) / std)
        torch.testing.assert_close(teacher(images, 'BGR'), expected, rtol=1e-4, atol=1e-5)

    def test_own_normalisation_replaces_the_config_s(self, checkpoint):
        teacher = Teacher(
            NUM_CLASSES,
            model=NETWORK,
            checkpoint=checkpoint,
            data_preprocessor=dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0]),
            channel_order='BGR',
        )
        preprocessor = teacher.build().data_preprocessor
        assert preprocessor.mean.flatten().tolist() == [1, 2, 3]
        assert preprocessor.std.flatten().tolist() == [4, 5, 6]
        images = pixels()
        expected = expected_logits(teacher.build(), images)
        torch.testing.assert_close(teacher(images, 'BGR'), expected)

    def test_is_frozen_and_built_once(self, checkpoint):
        teacher = Teacher(NUM_CLASSES, model=NETWORK, checkpoint=checkpoint)
        network = teacher.build()
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert not teacher(pixels(), 'BGR').requires_grad
        assert teacher.build() is network


class TestResolution:
    VIT = dict(
        type='VisionTransformer',
        arch=dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=16),
    )
    # It does not keep its img_size.
    SWIN = dict(
        type='SwinTransformer',
        arch=dict(embed_dims=16, depths=[1, 1], num_heads=[2, 2]),
        window_size=4,
        out_indices=(1,),
    )
    TIMM = dict(type='TIMMBackbone', model_name='test_resnet')

    @staticmethod
    def shape_seen(images: Tensor, **options) -> tuple:
        teacher = Teacher(NUM_CLASSES, random_init=True, **options)
        shapes = []
        teacher.build().data_preprocessor.register_forward_hook(
            lambda *args: shapes.append(tuple(args[2]['inputs'].shape[2:]))
        )
        teacher(images, 'RGB')
        return shapes[0]

    @pytest.mark.parametrize(
        ('backbone', 'own'),
        [
            (dict(VIT, img_size=64), (64, 64)),
            (dict(VIT, img_size=(32, 64)), (32, 64)),
            (VIT, (224, 224)),
            (dict(SWIN, img_size=64), (64, 64)),
            (TIMM, (160, 160)),
            (NETWORK['backbone'], (32, 48)),
        ],
        ids=['side', 'sides', 'default', 'config', 'timm', 'any'],
    )
    def test_of_its_own(self, backbone, own):
        if backbone is self.TIMM:
            pytest.importorskip('timm')
        channels = dict(SwinTransformer=32, TIMMBackbone=96).get(backbone['type'], 16)
        head = dict(NETWORK['head'], in_channels=channels)
        neck = None if 'Vision' in backbone['type'] else NETWORK['neck']
        model = dict(NETWORK, backbone=backbone, neck=neck, head=head)
        assert self.shape_seen(pixels(size=(32, 48)), model=model) == own

    def test_of_timm(self):
        pytest.importorskip('timm')
        assert self.shape_seen(pixels(), timm='test_resnet') == (160, 160)

    @pytest.mark.parametrize(('input_size', 'seen'), [('as_is', (32, 32)), (48, (48, 48))])
    def test_as_is_said(self, input_size, seen):
        pytest.importorskip('timm')
        assert self.shape_seen(pixels(), timm='test_resnet', input_size=input_size) == seen


class TestIngredients:
    @pytest.mark.parametrize('name', INGREDIENTS)
    def test_names_a_config_and_its_normalisation(self, name, monkeypatch):
        variable = name.upper().replace('-', '_')
        monkeypatch.delenv(f'{variable}_CHECKPOINT', raising=False)
        cfg = Config.fromfile(TEACHERS / f'{name}.py').teacher
        assert cfg.checkpoint == f'checkpoints/{name}.pth'
        own = get_config(cfg.config).data_preprocessor
        assert cfg.data_preprocessor == {key: own[key] for key in ('mean', 'std', 'to_rgb')}
        Teacher.from_config(cfg, num_classes=1000)
        with pytest.raises(ValueError, match='has 1000 classes, the student 10'):
            Teacher.from_config(cfg, num_classes=10)
        monkeypatch.setenv(f'{variable}_CHECKPOINT', '/elsewhere/teacher.pth')
        assert Config.fromfile(TEACHERS / f'{name}.py').teacher.checkpoint == (
            '/elsewhere/teacher.pth'
        )

    def test_goes_into_a_config_as_it_is(self, tmp_path):
        config = tmp_path / 'kd.py'
        config.write_text(KD_CONFIG.format(base=str(TEACHERS / 'resnet101.py'), student=STUDENT))
        cfg = Config.fromfile(config)
        cfg.merge_from_dict({'model.teacher.checkpoint': 'elsewhere.pth'})
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(cfg.model)
        assert isinstance(model.neck, GlobalAveragePooling)
        assert model.teacher.settings['config'] == 'mmpretrain::resnet/resnet101_8xb32_in1k.py'
        assert model.teacher.checkpoint == 'elsewhere.pth'

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ('name', 'millions'), list(zip(INGREDIENTS, (86.5, 86.6, 44.5), strict=True))
    )
    def test_builds_loads_and_answers(self, name, millions, tmp_path):
        cfg = Config.fromfile(TEACHERS / f'{name}.py').teacher
        del cfg.checkpoint
        teacher = Teacher.from_config(dict(cfg, random_init=True), num_classes=1000)
        network = teacher.build()
        count = sum(parameter.numel() for parameter in network.parameters()) / 1e6
        assert count == pytest.approx(millions, abs=0.1)
        again = Teacher.from_config(
            dict(cfg, checkpoint=save(network, tmp_path / 'teacher.pth')), num_classes=1000
        )
        # Larger than what the teacher takes, on purpose.
        images = pixels(images=1, size=256)
        logits = teacher(images, 'BGR')
        assert logits.shape == (1, 1000)
        torch.testing.assert_close(again(images, 'BGR'), logits)


class TestBadInput:
    @pytest.mark.parametrize(
        ('options', 'message'),
        [
            (dict(random_init=True), 'named by one of config'),
            (dict(model=NETWORK, timm='resnet18', random_init=True), 'named by one of config'),
            (dict(config='mmdet::a.py', random_init=True), 'classifier of mmpretrain'),
            (dict(model=NETWORK), 'has no weights.*random_init=True'),
            (dict(model=NETWORK, checkpoint='a.pth', random_init=True), 'has both'),
            (dict(model=NETWORK, random_init=True, input_size=0), 'input_size'),
            (dict(model=NETWORK, random_init=True, input_size=(1, 2, 3)), 'input_size'),
            (dict(model=NETWORK, random_init=True, input_size='own'), "input_size.*'as_is'"),
            (dict(model=NETWORK, random_init=True, input_size=32.0), 'input_size'),
            (dict(model=dict(head=NETWORK['head']), random_init=True), 'dict with a type'),
            (dict(model='resnet', random_init=True), "no classifier: .* got 'resnet'"),
            (dict(model=NETWORK, random_init=True, channel_order='rgb'), "channel_order='rgb'"),
            (
                dict(config='mmpretrain::resnet/resnet18_8xb16_cifar10.py', random_init=True),
                r'cifar10\.py has channel_order=None .*CIFAR10 are RGB',
            ),
            (dict(model=NETWORK, weights='a.pth'), 'keys among config, model, timm, checkpoint'),
            (
                dict(model=dict(NETWORK, data_preprocessor=None), random_init=True),
                'wants its images',
            ),
        ],
        ids=[
            'none',
            'two',
            'package',
            'no-weights',
            'both',
            'size',
            'sides',
            'size-word',
            'size-real',
            'no-type',
            'no-dict',
            'order-word',
            'order',
            'unknown-key',
            'normalisation',
        ],
    )
    def test_arguments(self, options, message):
        with pytest.raises(ValueError, match=message):
            Teacher.from_config(options, 10 if 'config' in options else NUM_CLASSES)

    def test_a_config_of_something_else(self, tmp_path):
        (tmp_path / 'schedule.py').write_text('max_epochs = 3')
        with pytest.raises(ValueError, match=r'schedule\.py is no classifier: .*got None'):
            Teacher(NUM_CLASSES, config=str(tmp_path / 'schedule.py'), random_init=True)

    def test_no_dict(self):
        with pytest.raises(ValueError, match="keys among .*got 'resnet101'"):
            Teacher.from_config('resnet101', NUM_CLASSES)

    def test_other_classes_by_the_config(self):
        with pytest.raises(ValueError, match='ImageClassifier has 3 classes, the student 4'):
            Teacher(4, model=NETWORK, random_init=True)

    def test_other_classes_by_its_answers(self):
        """Not every config says how many there are."""
        teacher = Teacher(4, **mirror())
        with pytest.raises(ValueError, match=r'Mirror .* shape \(2, 3\).* 4 classes'):
            teacher(pixels(), 'BGR')

    @pytest.mark.parametrize('where', ['check', 'build'])
    def test_missing_checkpoint(self, where):
        teacher = Teacher(NUM_CLASSES, model=NETWORK, checkpoint='nowhere/teacher.pth')
        with pytest.raises(FileNotFoundError, match='nowhere/teacher.pth .* missing.*random_init'):
            getattr(teacher, where)()

    def test_addresses_are_not_looked_for_on_the_disk(self):
        Teacher(NUM_CLASSES, model=NETWORK, checkpoint='https://example.org/a.pth').check()

    def test_truncated_checkpoint(self, checkpoint):
        data = Path(checkpoint).read_bytes()
        Path(checkpoint).write_bytes(data[: len(data) // 2])
        with pytest.raises(ValueError, match='cannot be read.*cut off'):
            Teacher(NUM_CLASSES, model=NETWORK, checkpoint=checkpoint).build()

    def test_weights_of_another_network_are_listed(self, network, tmp_path):
        weights = network.state_dict()
        weights['head.fc.weight'] = torch.zeros(5, 16)
        weights['head.scale'] = torch.zeros(1)
        del weights['head.fc.bias']
        path = tmp_path / 'other.pth'
        torch.save(dict(state_dict=weights), path)
        with pytest.raises(ValueError, match='does not fit the teacher') as error:
            Teacher(NUM_CLASSES, model=NETWORK, checkpoint=str(path)).build()
        for name in ('head.fc.weight', 'head.fc.bias', 'head.scale'):
            assert name in str(error.value)

    def test_counters_may_be_missing(self, network, tmp_path):
        weights = {k: v for k, v in network.state_dict().items() if v.is_floating_point()}
        assert len(weights) < len(network.state_dict())
        torch.save(weights, tmp_path / 'floats.pth')
        teacher = Teacher(NUM_CLASSES, model=NETWORK, checkpoint=str(tmp_path / 'floats.pth'))
        images = pixels()
        torch.testing.assert_close(teacher(images, 'BGR'), expected_logits(network, images))

    @pytest.mark.parametrize('preprocessor', [None, NETWORK['data_preprocessor']])
    @pytest.mark.parametrize('where', ['check', 'build'])
    def test_unknown_timm_name(self, preprocessor, where):
        pytest.importorskip('timm')
        options = dict(random_init=True, data_preprocessor=preprocessor)
        teacher = Teacher(NUM_CLASSES, timm='resnet_of_nobody', **options)
        with pytest.raises(ValueError, match="no model 'resnet_of_nobody'"):
            getattr(teacher, where)()

    def test_a_checkpoint_that_runs_code_is_not_opened(self, network, tmp_path):
        path = tmp_path / 'teacher.pth'
        torch.save(dict(state_dict=network.state_dict(), optimizer=_Foreign()), path)
        with pytest.raises(ValueError, match=r'of the teacher ImageClassifier holds .*_Foreign'):
            Teacher(NUM_CLASSES, model=NETWORK, checkpoint=str(path)).build()
