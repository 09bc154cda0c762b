import runpy
import sys
from pathlib import Path

import cv2
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from tests.test_apis.tiny import write_detection

TOOL = str(Path(__file__).parents[2] / 'tools' / 'draw_detections.py')


def run_tool(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', [TOOL, *map(str, arguments)])
    runpy.run_path(TOOL, run_name='__main__')


@pytest.fixture
def trained(tmp_path):
    config = write_detection(tmp_path)
    cfg = Config.fromfile(config)
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        model = registry.build(cfg.model)
    path = tmp_path / 'trained.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    return config, path


def test_draws(trained, tmp_path, monkeypatch):
    out = tmp_path / 'new' / 'out.png'
    run_tool(monkeypatch, *trained, out, '--split', 'val', '--num', '2', '--columns', '1')
    height, width = cv2.imread(str(out)).shape[:2]
    assert height > width


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['out.pgn'], r'out\.pgn does not say which kind of picture'),
        (['out.png', '--num', '0'], 'num and columns must be 1 or more'),
        (['out.png', '--cfg-options', 'val_dataloader.dataset.ann_file=gone'], 'gone is missing'),
        (
            ['out.png', '--cfg-options', 'default_scope=mmpretrain'],
            "'mmpretrain', and only detectors",
        ),
        (['out.png', '--cfg-options', 'val_dataloader=None'], 'has no val_dataloader'),
        (['trained.pth/out.png'], 'trained.pth.*: (Not a directory|File exists)'),
    ],
)
def test_bad_input(trained, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob('*'))
    with pytest.raises(SystemExit, match=f'^error: .*{message}'):
        run_tool(monkeypatch, *trained, *arguments, '--split', 'val')
    assert set(tmp_path.rglob('*')) == before
