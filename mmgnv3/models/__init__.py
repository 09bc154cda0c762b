"""Networks and their parts; importing this module registers them.

Distillation extends mmpretrain and is imported when it is asked for: everything else works beside
other frameworks without it, and sooner.
"""

from importlib import import_module
from typing import Any

from .backbones import GhostNetV2, GhostNetV3
from .layers import MultiBranchConv2d
from .losses import KDLoss

_DISTILLATION = {'KDClassifier': 'classifiers', 'KDClsHead': 'heads'}

__all__ = ['GhostNetV2', 'GhostNetV3', 'KDLoss', 'MultiBranchConv2d', *_DISTILLATION]


def load_distillation() -> dict[str, type]:
    """Import what extends mmpretrain, and register it.

    Returns:
        The classes by their names.

    Raises:
        ImportError: If mmpretrain is not installed.
    """
    try:
        return {
            name: getattr(import_module(f'{__name__}.{module}'), name)
            for name, module in _DISTILLATION.items()
        }
    except ModuleNotFoundError as error:
        if (error.name or '').partition('.')[0] != 'mmpretrain':
            raise
        raise ImportError(
            f'{" and ".join(_DISTILLATION)} of mmgnv3 extend mmpretrain, which is not installed. '
            'Install onedl-mmpretrain, or mmpretrain beside upstream OpenMMLab.'
        ) from error


def __getattr__(name: str) -> Any:
    if name not in _DISTILLATION:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return load_distillation()[name]
