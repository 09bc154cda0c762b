"""The registry of mmgnv3's networks and layers.

It is a child of mmengine's registry of models. Because ``scope`` is the package's
name and ``locations`` says where the modules live, ``type='mmgnv3.GhostNetV3'`` in a config of any
OpenMMLab package is found without ``custom_imports``.
"""

from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmgnv3', locations=['mmgnv3.models'])
