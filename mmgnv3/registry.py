"""The registry of mmgnv3's networks and layers.

It is a child of mmengine's registry of models. Because ``scope`` is the package's
name and ``locations`` says where the modules live, ``type='mmgnv3.GhostNetV3'`` in a config of any
OpenMMLab package is found without ``custom_imports``.
"""

from importlib import import_module

from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry


class _ModelRegistry(Registry):
    """Imports distillation when it is asked for: nothing else here needs mmpretrain."""

    def get(self, key: str) -> type | None:
        """Find a class by its name, with or without the scope."""
        if key.rpartition('.')[2] in ('KDClassifier', 'KDClsHead'):
            import_module('mmgnv3.models').load_distillation()
        return super().get(key)


MODELS = _ModelRegistry(
    'model', parent=MMENGINE_MODELS, scope='mmgnv3', locations=['mmgnv3.models']
)
