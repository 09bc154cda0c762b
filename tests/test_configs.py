import argparse
import ast
import copy
import re
from functools import cache
from pathlib import Path

import mmengine
import numpy as np
import pytest
import torch
from mmcv.transforms import RandomApply
from mmdet.registry import MODELS
from mmengine.config import Config, DictAction
from mmengine.registry import HOOKS, OPTIMIZERS, PARAM_SCHEDULERS, TRANSFORMS, DefaultScope
from mmengine.runner import Runner
from torch import nn

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(p for p in (ROOT / 'configs').rglob('*.py') if '_base_' not in p.parts)
CLASSIFIERS = [path for path in CONFIGS if path.parent.name in ('ghostnetv3', 'cifar10')]
DETECTORS = [path for path in CONFIGS if path.parent.name == 'configs']
WIDTHS = {'0x5': 0.5, '1x0': 1.0, '1x3': 1.3, '1x6': 1.6}
RECIPES = ('8xb256-kd-600e', '8xb256-600e', '8xb128-450e')


read_once = cache(Config.fromfile)


def read(name: str, options: dict | None = None) -> Config:
    (path,) = (path for path in CONFIGS if path.stem == name)
    cfg = copy.deepcopy(read_once(path))
    cfg.merge_from_dict(options or {})
    return cfg


def build_classifier(cfg: Config) -> nn.Module:
    """Build a model as a runner does, without memory for its weights."""
    model = {'data_preprocessor': cfg.data_preprocessor, **cfg.model}
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
        return MODELS.build(model)


def levels(path: Path) -> int:
    """How deep the bases of a config go; one of a framework counts as one level."""
    assigned = [
        ast.literal_eval(node.value)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign) and node.targets[0].id == '_base_'
    ]
    bases = [base for value in assigned for base in ([value] if isinstance(value, str) else value)]
    below = [1 if '::' in base else 1 + levels(path.parent / base) for base in bases]
    return max(below, default=0)


def by_name(paths):
    return pytest.mark.parametrize('path', paths, ids=lambda path: path.stem)


def test_basenames_are_unique_and_plain():
    """Mim finds configs by basename and splits names at dots."""
    names = [path.stem for path in CONFIGS]
    assert 'retinanet_gnv3' in names
    assert len(set(names)) == len(names)
    assert not any('.' in name or name != name.lower() for name in names)


def test_bases_have_three_levels_at_most():
    depths = {path.stem: levels(path) for path in CONFIGS}
    assert max(depths.values()) == 3, depths


@by_name(DETECTORS)
def test_model_builds_from_any_directory(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(path)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    assert type(model.backbone).__module__.startswith('mmgnv3.')
    assert list(model.backbone.out_channels) == cfg.model.neck.in_channels
    assert model.bbox_head.num_classes == cfg.model.bbox_head.num_classes


@by_name(CLASSIFIERS)
def test_classifier_builds_from_any_directory(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = copy.deepcopy(read_once(path))
    assert cfg.default_scope == 'mmpretrain'
    model = build_classifier(cfg)
    assert model.backbone.out_channels == (model.head.in_channels,)
    assert model.head.num_classes == cfg.data_preprocessor.num_classes
    assert hasattr(model, 'teacher') == ('-kd-' in path.stem)
    assert model.data_preprocessor.num_classes == model.head.num_classes
    assert bool(model.data_preprocessor.batch_augments) == ('-mix-' in path.stem)


@by_name(CLASSIFIERS)
def test_parts_of_a_training_exist(path):
    cfg = copy.deepcopy(read_once(path))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            for transform in loader.dataset.pipeline:
                TRANSFORMS.build(transform)
        hooks = [type(HOOKS.build(hook)).__name__ for hook in cfg.custom_hooks]
        assert HOOKS.get(cfg.default_hooks.checkpoint.type)
        assert OPTIMIZERS.get(cfg.optim_wrapper.optimizer.type)
        assert all(PARAM_SCHEDULERS.get(scheduler.type) for scheduler in cfg.param_scheduler)
    assert hooks == ['EMAHook', 'ReparamHook', 'ExactResumeHook', 'FiniteLossHook']
    # The name says how long the training is and for which batch its learning rate is meant.
    gpus, batch, epochs = map(int, re.search(r'_(\d)xb(\d+)-(?:.+-)?(\d+)e_', path.stem).groups())
    assert cfg.train_dataloader.batch_size == batch
    assert cfg.auto_scale_lr.base_batch_size == gpus * batch
    assert cfg.train_cfg.max_epochs == epochs
    assert cfg.param_scheduler[-1].get('end', cfg.train_cfg.max_epochs) == cfg.train_cfg.max_epochs


@pytest.mark.parametrize('recipe', RECIPES)
def test_widths_of_a_recipe_differ_in_nothing_else(recipe):
    reference = read(f'ghostnetv3-1x0_{recipe}_in1k')
    for name, width in WIDTHS.items():
        cfg = read(f'ghostnetv3-{name}_{recipe}_in1k')
        assert cfg.model.backbone.widen_factor == width
        cfg.model.backbone.widen_factor = 1.0
        cfg.model.head.in_channels = 960
        assert cfg.to_dict() == reference.to_dict()


def test_distillation_changes_the_model_and_nothing_else():
    student, taught = (read(f'ghostnetv3-1x0_8xb256-{x}600e_in1k') for x in ('', 'kd-'))
    assert taught.model.type == 'mmgnv3.KDClassifier'
    assert 'beitv2' in taught.model.teacher.config
    for key in student.keys() - {'model'}:
        assert taught[key] == student[key], key


@pytest.mark.parametrize('teacher', ['deit-base', 'resnet101'])
def test_teachers_differ_in_nothing_else(teacher):
    cfg, reference = (read(f'ghostnetv3-1x0_8xb256-kd-{x}600e_in1k') for x in (f'{teacher}-', ''))
    assert teacher in cfg.model.teacher.config
    for a_config in (cfg, reference):
        a_config.pop('teacher')
        a_config.model.pop('teacher')
    assert cfg.to_dict() == reference.to_dict()


def test_loss_of_the_public_code():
    loss = build_classifier(read('ghostnetv3-1x0_8xb256-kd-publiccode-600e_in1k')).head.loss_module
    logits, teacher = torch.randn(2, 4, 1000, generator=torch.Generator().manual_seed(0)).double()
    labels = torch.tensor([1, 2, 3, 999])
    losses = loss(logits, labels, teacher_score=teacher)
    hard = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    soft = nn.functional.cross_entropy(logits, teacher.softmax(1))
    torch.testing.assert_close(losses['loss_cls'], hard)
    torch.testing.assert_close(losses['loss_kd'], soft)


def test_steps_of_the_ordinary_training():
    """0.973 every 2.4 epochs, in whole epochs."""
    warmup, steps = read('ghostnetv3-1x0_8xb128-450e_in1k').param_scheduler
    for epoch in range(warmup.end, 450):
        assert sum(step <= epoch for step in steps.milestones) == int(epoch / 2.4 + 1e-9)


@pytest.mark.parametrize(
    ('name', 'params'),
    [('ghostnetv3-small-1x0', 48), ('ghostnetv3-small-2x8', 242), ('ghostnetv3-1x0', 686)],
)
def test_cifar_networks_are_of_the_published_size(name, params):
    model = build_classifier(read(f'{name}_1xb128-200e_cifar10'))
    assert sum(p.numel() for p in model.parameters()) // 10_000 == params
    assert model.backbone.out_strides == ((4,) if 'small' in name else (16,))


@pytest.mark.parametrize('name', ['ghostnetv3-small-1x0', 'ghostnetv3-1x0'])
def test_cifar_network_without_branches(name):
    branches, plain = (
        build_classifier(read(f'{name}_1xb128-{variant}200e_cifar10')) for variant in ('', 'plain-')
    )
    assert plain.backbone.out_channels == branches.backbone.out_channels
    convs = [m for m in plain.backbone.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) < len([m for m in branches.backbone.modules() if isinstance(m, nn.Conv2d)])


def test_model_index_is_true():
    (metafile,) = mmengine.load(ROOT / 'model-index.yml')['Import']
    content = mmengine.load(ROOT / metafile)
    (collection,) = content['Collections']
    assert (ROOT / collection['README']).is_file()
    assert content['Models']
    for entry in content['Models']:
        assert entry['In Collection'] == collection['Name']
        assert (ROOT / entry['Config']).is_file()
        model = build_classifier(read(Path(entry['Config']).stem))
        params = sum(parameter.numel() for parameter in model.parameters())
        assert params == entry['Metadata']['Parameters']
        # Text such as 167M is nothing that `mim search --condition` can compare.
        assert isinstance(entry['Metadata']['FLOPs'], int)
        assert entry['Weights'].endswith('.pth.tar')


# Grids of the paper, as files: what differs from the recipe, and what becomes of it.
def num_branches(model: nn.Module) -> tuple[int, bool]:
    unit = model.backbone.stages[0][0].ghost1.cheap
    return len(unit.branches), unit.scale is not None


def read_ablation(name: str, *changed: str) -> Config:
    """Read the config of an ablation, which is the recipe's but for some parts."""
    cfg = read(f'ghostnetv3-1x0_8xb256-{name}-600e_in1k')
    distilled = 'kd-' if name.startswith('kd-') else ''
    recipe = read(f'ghostnetv3-1x0_8xb256-{distilled}600e_in1k')
    differing = {key for key in cfg.keys() | recipe.keys() if cfg.get(key) != recipe.get(key)}
    # The part itself is listed beside what is made of it.
    assert differing - {'mixup_cutmix'} == set(changed)
    return cfg


def train_transforms(cfg: Config) -> list:
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return [TRANSFORMS.build(t) for t in cfg.train_dataloader.dataset.pipeline]


def test_every_ablation_is_tested():
    names = {path.stem for path in CONFIGS if path.parent.name == 'ablations'}
    tested = [*BRANCHES, *(f'kd-{name}' for name in BRANCHES), *DECAYS, *AUGMENTATIONS]
    assert names == {f'ghostnetv3-1x0_8xb256-{name}-600e_in1k' for name in tested}


BRANCHES = dict(n1=(1, True), n2=(2, True), n4=(4, True), n5=(5, True), no1x1=(3, False))


@pytest.mark.parametrize('name', BRANCHES)
@pytest.mark.parametrize('distilled', ['', 'kd-'])
def test_ablation_of_branches(name, distilled):
    model = build_classifier(read_ablation(distilled + name, 'model'))
    assert num_branches(model) == BRANCHES[name]
    assert hasattr(model, 'teacher') == bool(distilled)


DECAYS = dict(noema=None, ema999=0.999, ema9995=0.9995, ema99995=0.99995, ema99999=0.99999)


@pytest.mark.parametrize('name', DECAYS)
def test_ablation_of_averages(name):
    hooks = read_ablation(name, 'custom_hooks').custom_hooks
    decays = [1 - hook.momentum for hook in hooks if hook.type == 'mmgnv3.EMAHook']
    assert decays == ([] if name == 'noema' else [pytest.approx(DECAYS[name], abs=1e-9)])
    assert len(hooks) == 3 + len(decays)


AUGMENTATIONS = dict(
    noaug=[],
    autoaugment=['AutoAugment'],
    randaugment=['RandAugment'],
    erasing=['RandomErasing'],
    mixup=['Mixup'],
    cutmix=['CutMix'],
)


@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_ablation_of_augmentations(name):
    in_batches = ['model'] if name in ('mixup', 'cutmix') else []
    cfg = read_ablation(name, 'train_dataloader', *in_batches)
    load, crop, flip, *added, pack = train_transforms(cfg)
    kinds = [type(transform).__name__ for transform in (load, crop, flip, pack)]
    assert kinds == ['LoadImageFromFile', 'RandomResizedCrop', 'RandomFlip', 'PackInputs']
    found = [t.transforms.transforms[0] if isinstance(t, RandomApply) else t for t in added]
    if in_batches:
        found += build_classifier(cfg).data_preprocessor.batch_augments.augments
    assert [type(part).__name__ for part in found] == AUGMENTATIONS[name]


# The same and more by options of the two recipes: what an option does to the built parts.


def test_grid_of_branches():
    options = {'model.backbone.num_branches': 5, 'model.backbone.with_scale': False}
    model = build_classifier(read('ghostnetv3-1x0_8xb256-kd-600e_in1k', options))
    assert num_branches(model) == (5, False)


def test_grid_of_averages():
    options = {'custom_hooks.0.momentum': 5e-5}
    hook, *others = read('ghostnetv3-1x0_8xb256-600e_in1k', options).custom_hooks
    assert hook.momentum == 5e-5 and len(others) == 3


@pytest.mark.parametrize(
    ('options', 'kinds'),
    [
        ({}, ['RandAugment', 'RandomErasing']),
        ({'prob': 0.0}, ['RandomErasing']),
        ({'transforms': dict(_delete_=True, type='AutoAugment', policies='imagenet')}, None),
    ],
)
def test_grid_of_augmentations(options, kinds):
    options = {f'train_dataloader.dataset.pipeline.3.{k}': v for k, v in options.items()}
    cfg = read('ghostnetv3-1x0_8xb256-600e_in1k', options)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        applied, erasing = (TRANSFORMS.build(t) for t in cfg.train_dataloader.dataset.pipeline[3:5])
    found = [type(t).__name__ for t in applied.transforms] if applied.prob else []
    assert [*found, type(erasing).__name__] == (kinds or ['AutoAugment', 'RandomErasing'])


def test_grid_without_random_erasing():
    # As the README has it, since its reader's shell hands over text: a plain 0 is refused.
    option = 'train_dataloader.dataset.pipeline.4.erase_prob=0.0'
    assert f'`{option}`' in (ROOT / 'README.md').read_text(encoding='utf-8')
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    options = parser.parse_args(['--cfg-options', option]).cfg_options
    cfg = read('ghostnetv3-1x0_8xb256-600e_in1k', options)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        assert TRANSFORMS.build(cfg.train_dataloader.dataset.pipeline[4]).erase_prob == 0


@pytest.mark.parametrize('kind', ['Mixup', 'CutMix'])
def test_grid_of_batch_augmentations(kind):
    options = {'model.train_cfg.augments.type': kind, 'model.train_cfg.augments.alpha': 0.8}
    model = build_classifier(read('ghostnetv3-1x0_8xb256-kd-600e_in1k', options))
    (augment,) = model.data_preprocessor.batch_augments.augments
    assert type(augment).__name__ == kind


def test_front_door_is_the_1x_setting_of_mmdet(tmp_path):
    (tmp_path / 'r50.py').write_text("_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'\n")
    reference = Config.fromfile(tmp_path / 'r50.py')
    cfg = Config.fromfile(ROOT / 'configs' / 'retinanet_gnv3.py')
    for key in ('train_dataloader', 'val_dataloader', 'param_scheduler', 'optim_wrapper'):
        assert cfg[key] == reference[key], key
    assert cfg.model.bbox_head == reference.model.bbox_head


def test_data_root_of_the_own_data_example_is_one_variable(monkeypatch):
    path = ROOT / 'configs' / 'retinanet-light_ghostnetv3-0x5_1xb4_bccd.py'
    monkeypatch.delenv('BCCD_ROOT', raising=False)
    assert Config.fromfile(path).train_dataloader.dataset.data_root == 'data/bccd'
    monkeypatch.setenv('BCCD_ROOT', '/somewhere/else')
    cfg = Config.fromfile(path)
    for split in ('train', 'val', 'test'):
        assert cfg[f'{split}_dataloader'].dataset.data_root == '/somewhere/else'
        assert cfg[f'{split}_dataloader'].dataset.ann_file == f'{split}.json'
    assert cfg.val_evaluator.ann_file == '/somewhere/else/val.json'
    assert cfg.test_evaluator.ann_file == '/somewhere/else/test.json'


@pytest.mark.parametrize('name', ['bccd', 'toyshapes'])
def test_light_detectors_train_to_the_end_of_their_cosine(name, tmp_path):
    cfg = Config.fromfile(ROOT / f'configs/retinanet-light_ghostnetv3-0x5_1xb4_{name}.py')
    runner = Runner(
        nn.Linear(1, 1),
        str(tmp_path),
        train_dataloader=dict(
            dataset=[0] * 7, batch_size=1, sampler=dict(type='DefaultSampler', shuffle=True)
        ),
        train_cfg=cfg.train_cfg,
        optim_wrapper=cfg.optim_wrapper,
        param_scheduler=cfg.param_scheduler,
        experiment_name=name,
    )
    # What a run does first.
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    _, cosine = runner.build_param_scheduler(runner.param_schedulers)
    assert (cosine.T_max, cosine.by_epoch) == (7 * cfg.train_cfg.max_epochs, False)


def test_own_data_are_named_in_one_place():
    cfg = Config.fromfile(ROOT / 'configs/retinanet-light_ghostnetv3-0x5_1xb4_bccd.py')
    assert cfg.model.bbox_head.num_classes == len(cfg.metainfo.classes) == 3


def test_imagenet_is_one_variable(monkeypatch):
    monkeypatch.delenv('IMAGENET_ROOT', raising=False)
    for expected in ('data/imagenet', '/somewhere/else'):
        cfg = Config.fromfile(ROOT / 'configs/ghostnetv3/ghostnetv3-1x3_8xb256-kd-600e_in1k.py')
        for split in ('train', 'val', 'test'):
            assert cfg[f'{split}_dataloader'].dataset.data_root == expected
        monkeypatch.setenv('IMAGENET_ROOT', '/somewhere/else')


def test_cifar10_as_given_out_and_as_a_folder(monkeypatch):
    path = ROOT / 'configs/cifar10/ghostnetv3-small-1x0_1xb128-200e_cifar10.py'
    monkeypatch.delenv('CIFAR10_ROOT', raising=False)
    cfg = Config.fromfile(path)
    sets = [cfg[f'{split}_dataloader'].dataset for split in ('train', 'val')]
    assert [(s.type, s.split) for s in sets] == [('CIFAR10', 'train'), ('CIFAR10', 'test')]
    assert not cfg.data_preprocessor.to_rgb
    monkeypatch.setenv('CIFAR10_ROOT', '/somewhere/else')
    cfg = Config.fromfile(path)
    sets = [cfg[f'{split}_dataloader'].dataset for split in ('train', 'val')]
    assert [s.data_root for s in sets] == ['/somewhere/else'] * 2
    assert [s.data_prefix for s in sets] == ['train', 'test']
    assert all(s.pipeline[0].type == 'LoadImageFromFile' for s in sets)
    assert cfg.data_preprocessor.to_rgb


@pytest.mark.parametrize('root', ['data/cifar10', '/somewhere/else'])
def test_options_of_the_readme_for_either_form_of_cifar10(root, monkeypatch):
    monkeypatch.setenv('CIFAR10_ROOT', root)
    found = r'tools/cifar_ablation.py .*?--cfg-options (.*?)\n\n'
    options = re.search(found, (ROOT / 'README.md').read_text(encoding='utf-8'), re.DOTALL)[1]
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    options = parser.parse_args(['--cfg-options', *options.replace('\\', '').split()]).cfg_options
    cfg = Config.fromfile(ROOT / 'configs/cifar10/ghostnetv3-small-1x0_1xb128-200e_cifar10.py')
    cfg.merge_from_dict(options)
    assert cfg.train_dataloader.batch_size == 64 and cfg.train_cfg.val_interval == 2
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        first, *others = map(TRANSFORMS.build, cfg.train_dataloader.dataset.pipeline)
    sample = dict(img=np.zeros((32, 32, 3), np.uint8), gt_label=3)
    if root == 'data/cifar10':
        sample = first(sample)
    for transform in others:
        sample = transform(sample)
    assert sample['inputs'].shape == (3, 24, 24) and sample['data_samples'].gt_label == 3


def test_teacher_on_cifar10_is_what_its_config_trains(monkeypatch):
    monkeypatch.setenv('CIFAR10_TEACHER', '/mine.pth')
    path = ROOT / 'configs/cifar10/ghostnetv3-1x0_1xb128-kd-200e_cifar10.py'
    teacher = Config.fromfile(path).model.teacher
    assert teacher.checkpoint == '/mine.pth'
    assert Config.fromfile(teacher.config).model.backbone.widen_factor == 2.8
