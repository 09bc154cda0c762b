"""Registries of mmgnv3.

Each one is a child of mmengine's registry of the same kind. Because ``scope`` is the package's
name and ``locations`` says where the modules live, ``type='mmgnv3.GhostNetV3'`` in a config of any
OpenMMLab package is found without ``custom_imports``.
"""

from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmgnv3', locations=['mmgnv3.models'])
TRANSFORMS = Registry(
    'transform', parent=MMENGINE_TRANSFORMS, scope='mmgnv3', locations=['mmgnv3.datasets']
)
