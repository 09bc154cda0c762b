"""GhostNetV3 as a plugin for the OpenMMLab ecosystem.

Importing the package costs nothing: the public names are looked up on first use, so that neither
torch nor mmcv is loaded before it is needed.
"""

from importlib import import_module
from typing import Any

__version__ = '0.1.0'

# public name -> module that defines it
_LAZY = {
    'CheckedRunner': 'mmgnv3.engine.runners',
    'CheckpointHook': 'mmgnv3.engine.hooks',
    'EMAHook': 'mmgnv3.engine.hooks',
    'ExactResumeHook': 'mmgnv3.engine.hooks',
    'FiniteLossHook': 'mmgnv3.engine.hooks',
    'GhostNetV2': 'mmgnv3.models',
    'GhostNetV3': 'mmgnv3.models',
    'KDClassifier': 'mmgnv3.models',
    'KDClsHead': 'mmgnv3.models',
    'KDLoss': 'mmgnv3.models',
    'Lamb': 'mmgnv3.engine.optimizers',
    'ReparamHook': 'mmgnv3.engine.hooks',
}

__all__ = ['__version__', *_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
