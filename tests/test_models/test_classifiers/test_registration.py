"""Distillation extends mmpretrain; the rest of the package works without it."""

import subprocess
import sys
from pathlib import Path

import mmengine.registry
import pytest

import mmgnv3

WITHOUT_MMPRETRAIN = """
import sys
sys.modules['mmpretrain'] = None  # what an import finds where it is not installed
from mmengine.registry import MODELS
import mmgnv3
assert MODELS.build(dict(type='mmgnv3.GhostNetV3', widen_factor=0.5)).out_channels == (480,)
assert MODELS.build(dict(type='mmgnv3.KDLoss')).alpha == 0.5
for ask in (
    lambda: MODELS.build(dict(type='mmgnv3.KDClassifier')),
    lambda: MODELS.build(dict(type='mmgnv3.KDClsHead')),
    lambda: mmgnv3.KDClassifier,
):
    try:
        ask()
    except ImportError as error:
        assert 'extend mmpretrain, which is not installed' in str(error), error
    else:
        raise AssertionError('nothing was said')
"""


@pytest.mark.parametrize('name', ['KDClassifier', 'KDClsHead', 'KDLoss'])
def test_one_class_by_all_its_names(name):
    kind = mmengine.registry.MODELS.get(f'mmgnv3.{name}')
    assert kind is getattr(mmgnv3, name) is getattr(mmgnv3.models, name)
    assert kind is mmgnv3.registry.MODELS.get(name)
    assert kind.__name__ == name


def test_works_without_mmpretrain():
    subprocess.run(
        [sys.executable, '-c', WITHOUT_MMPRETRAIN],
        check=True,
        cwd=Path(__file__).parents[3],
        timeout=300,
    )
