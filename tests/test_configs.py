from pathlib import Path

import pytest
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(p for p in (ROOT / 'configs').rglob('*.py') if '_base_' not in p.parts)


def test_basenames_are_unique_and_plain():
    """Mim finds configs by basename and splits names at dots."""
    names = [path.stem for path in CONFIGS]
    assert 'retinanet_gnv3' in names
    assert len(set(names)) == len(names)
    assert not any('.' in name or name != name.lower() for name in names)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_model_builds_from_any_directory(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(path)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    assert type(model.backbone).__module__.startswith('mmgnv3.')
    assert list(model.backbone.out_channels) == cfg.model.neck.in_channels
    assert model.bbox_head.num_classes == cfg.model.bbox_head.num_classes


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
