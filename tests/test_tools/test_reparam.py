import os
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from mmgnv3.apis.deploy import fold_checkpoint
from mmgnv3.reparam import checked_fold, fold, is_deployed_checkpoint
from mmgnv3.utils.checkpoints import read_checkpoint
from tests.test_apis.tiny import write_classification, write_detection
from tests.utils import randomize_norms

REPOSITORY = Path(__file__).parents[2]

_TWO_STAGES = """
default_scope = 'mmdet'
anchors = dict(type='AnchorGenerator', scales=[4], ratios=[1.0], strides=[16])
coder = dict(type='DeltaXYWHBBoxCoder')
nms = dict(type='nms', iou_threshold=0.5)
model = dict(
    type='FasterRCNN',
    backbone=dict(type='mmgnv3.GhostNetV3', widen_factor=0.5, out_indices=(3,)),
    rpn_head=dict(
        type='RPNHead', in_channels=56, feat_channels=8, anchor_generator=anchors, bbox_coder=coder
    ),
    roi_head=dict(
        type='StandardRoIHead',
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor', out_channels=56, featmap_strides=[16],
            roi_layer=dict(type='RoIAlign', output_size=3, sampling_ratio=0),
        ),
        bbox_head=dict(
            type='Shared4Conv1FCBBoxHead', in_channels=56, conv_out_channels=8, roi_feat_size=3,
            fc_out_channels=16, num_classes=2, bbox_coder=coder, norm_cfg=dict(type='BN'),
        ),
    ),
    train_cfg=dict(rpn=None, rcnn=None),
    test_cfg=dict(
        rpn=dict(nms_pre=20, max_per_img=10, nms=nms, min_bbox_size=0),
        rcnn=dict(score_thr=0.0, nms=nms, max_per_img=10),
    ),
)
"""


def write_two_stages(folder):
    config = folder / 'two_stages.py'
    config.write_text(_TWO_STAGES)
    return config


def build(config, options=None):
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(options or {})
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        return randomize_norms(registry.build(cfg.model))


@pytest.fixture(
    params=[write_detection, write_two_stages, write_classification],
    ids=['one stage', 'two stages', 'classifier'],
)
def case(request, tmp_path):
    """Config and checkpoint of a network, as a training run leaves them."""
    return save(request.param(tmp_path))


@pytest.fixture
def detector(tmp_path):
    return save(write_detection(tmp_path))


def save(config, options=None):
    model = build(config, options)
    # What mmengine saves also holds arrays and the like, which plain loading refuses.
    data = dict(classes=('a', 'b'), palette=[(1, 2, 3)], colors=np.zeros(2))
    meta = dict(epoch=3, dataset_meta=data, iter=np.float64(7))
    checkpoint = dict(
        meta=meta,
        state_dict=model.state_dict(),
        optimizer=dict(state={}),
        message_hub={},
    )
    path = config.with_name('trained.pth')
    torch.save(checkpoint, path)
    return str(config), str(path)


def test_fold(case, tmp_path):
    config, checkpoint = case
    out = tmp_path / 'new' / 'folded.pth'
    report = fold_checkpoint(config, checkpoint, str(out))

    model = build(config)
    model.load_state_dict(torch.load(checkpoint, weights_only=False)['state_dict'])
    folded = fold(model)
    assert report.num_params == sum(p.numel() for p in model.parameters())
    assert report.num_folded_params == sum(p.numel() for p in folded.parameters())
    assert 0 < report.difference < 1e-4

    saved = torch.load(out, weights_only=True)
    assert saved.keys() == {'meta', 'state_dict'}
    assert saved['meta']['epoch'] == 3
    assert 'iter' not in saved['meta']
    assert saved['meta']['dataset_meta'] == dict(classes=('a', 'b'), palette=[(1, 2, 3)])
    assert is_deployed_checkpoint(saved)
    for name, value in folded.state_dict().items():
        torch.testing.assert_close(saved['state_dict'][name], value)
    assert saved['state_dict'].keys() == folded.state_dict().keys()


@pytest.mark.parametrize('part', ['backbone', 'roi_head.bbox_head'])
def test_a_wrong_fold_is_not_written(tmp_path, monkeypatch, part):
    config, checkpoint = save(write_two_stages(tmp_path))

    def wrong_fold(model):
        folded = fold(model)
        with torch.no_grad():
            for parameter in folded.get_submodule(part).parameters():
                parameter.mul_(1.01)
        return folded

    monkeypatch.setattr(checked_fold, 'fold', wrong_fold)
    out = tmp_path / 'folded.pth'
    with pytest.raises(RuntimeError, match=rf'outputs of {part} by \d.*Nothing is written'):
        fold_checkpoint(config, checkpoint, str(out))
    assert not out.exists()


def test_weights_that_are_not_finite_are_not_written(detector, tmp_path):
    config, checkpoint = detector
    saved = torch.load(checkpoint, weights_only=False)
    saved['state_dict']['backbone.stem.0.branches.0.norm.running_var'][0] = float('nan')
    torch.save(saved, checkpoint)
    with pytest.raises(RuntimeError, match='backbone by inf.*not finite'):
        fold_checkpoint(config, checkpoint, str(tmp_path / 'folded.pth'))
    assert not (tmp_path / 'folded.pth').exists()


def test_pretrained_weights_are_not_fetched(detector, tmp_path):
    config, checkpoint = detector
    options = {
        'model.backbone.init_cfg': dict(type='Pretrained', checkpoint='http://gone.invalid/x.pth')
    }
    fold_checkpoint(config, checkpoint, str(tmp_path / 'folded.pth'), cfg_options=options)


def test_folding_twice(detector, tmp_path):
    config, checkpoint = detector
    once, twice = str(tmp_path / 'once.pth'), str(tmp_path / 'twice.pth')
    fold_checkpoint(config, checkpoint, once)
    with pytest.raises(ValueError, match=r'once\.pth is folded already'):
        fold_checkpoint(config, once, twice)
    assert not os.path.exists(twice)


def test_the_checkpoint_is_not_overwritten(detector, tmp_path):
    config, checkpoint = detector
    link = tmp_path / 'link.pth'
    link.symlink_to(checkpoint)
    before = Path(checkpoint).read_bytes()
    for out in (checkpoint, str(link)):
        with pytest.raises(ValueError, match='is the checkpoint itself'):
            fold_checkpoint(config, checkpoint, out)
    assert Path(checkpoint).read_bytes() == before


def test_checkpoint_of_another_width(detector, tmp_path):
    config, checkpoint = detector
    options = {'model.backbone.widen_factor': 1.0, 'model.neck.in_channels': [40, 112, 160]}
    with pytest.raises(ValueError, match='does not fit the network of the config'):
        fold_checkpoint(config, checkpoint, str(tmp_path / 'folded.pth'), cfg_options=options)


def test_checkpoint_of_another_network(detector, tmp_path):
    config, checkpoint = detector
    options = {'model.bbox_head.stacked_convs': 2}
    with pytest.raises(ValueError, match=r'lacks bbox_head\.cls_convs\.1'):
        fold_checkpoint(config, checkpoint, str(tmp_path / 'folded.pth'), cfg_options=options)


def test_a_network_without_norms(tmp_path):
    config, checkpoint = save(write_classification(tmp_path), {'model.backbone.deploy': True})
    with pytest.raises(ValueError, match='nothing to fold'):
        fold_checkpoint(
            config,
            checkpoint,
            str(tmp_path / 'folded.pth'),
            cfg_options={'model.backbone.deploy': True},
        )


@pytest.fixture
def averaged(detector):
    """Config and checkpoint of a run with an EMA hook: the raw weights differ from the average."""
    config, checkpoint = detector
    saved = torch.load(checkpoint, weights_only=False)
    raw = {name: 1.5 * value for name, value in saved['state_dict'].items()}
    saved['ema_state_dict'] = {f'module.{name}': value for name, value in raw.items()}
    saved['ema_state_dict']['steps'] = torch.tensor(3)
    torch.save(saved, checkpoint)
    return config, checkpoint, dict(ema=saved['state_dict'], raw=raw)


@pytest.mark.parametrize('flags', [[], ['--ema'], ['--raw']], ids=str)
def test_average_or_raw_weights(averaged, tmp_path, monkeypatch, flags):
    config, checkpoint, weights = averaged
    out = str(tmp_path / 'folded.pth')
    tool = str(REPOSITORY / 'tools' / 'reparam.py')
    monkeypatch.setattr(sys, 'argv', [tool, config, checkpoint, out, *flags])
    runpy.run_path(tool, run_name='__main__')
    saved = torch.load(out, weights_only=True)
    assert saved.keys() == {'meta', 'state_dict'}
    model = build(config)
    model.load_state_dict(weights['raw' if flags == ['--raw'] else 'ema'])
    for name, value in fold(model).state_dict().items():
        torch.testing.assert_close(saved['state_dict'][name], value)


def test_both_flags_at_once(monkeypatch, capsys):
    tool = str(REPOSITORY / 'tools' / 'reparam.py')
    monkeypatch.setattr(sys, 'argv', [tool, 'a.py', 'a.pth', 'b.pth', '--ema', '--raw'])
    with pytest.raises(SystemExit):
        runpy.run_path(tool, run_name='__main__')
    assert 'not allowed with argument' in capsys.readouterr().err


def test_command_line(detector, tmp_path, monkeypatch, capsys):
    out = str(tmp_path / 'folded.pth')
    tool = str(REPOSITORY / 'tools' / 'reparam.py')
    monkeypatch.setattr(sys, 'argv', [tool, *detector, out])
    runpy.run_path(tool, run_name='__main__')
    assert re.match(rf'{out}: 1,\d{{3}},\d{{3}} parameters folded into \d', capsys.readouterr().out)
    assert is_deployed_checkpoint(read_checkpoint(out))

    monkeypatch.setattr(sys, 'argv', [tool, detector[0], out, str(tmp_path / 'again.pth')])
    with pytest.raises(SystemExit, match='^error: .*is folded already'):
        runpy.run_path(tool, run_name='__main__')
