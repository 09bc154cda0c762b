"""The registries of mmgnv3, and the scheme of its addresses of weights.

The registries are children of mmengine's. Because ``scope`` is the package's name and
``locations`` says where the modules live, ``type='mmgnv3.GhostNetV3'`` in a config of any OpenMMLab
package is found without ``custom_imports``. What has to be known by then is registered here too.
"""

from importlib import import_module
from typing import Any

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIMIZERS as MMENGINE_OPTIMIZERS
from mmengine.registry import RUNNERS as MMENGINE_RUNNERS
from mmengine.registry import Registry
from mmengine.runner import CheckpointLoader


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
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmgnv3', locations=['mmgnv3.engine.hooks'])
OPTIMIZERS = Registry(
    'optimizer',
    parent=MMENGINE_OPTIMIZERS,
    scope='mmgnv3',
    locations=['mmgnv3.engine.optimizers'],
)
RUNNERS = Registry(
    'runner', parent=MMENGINE_RUNNERS, scope='mmgnv3', locations=['mmgnv3.engine.runners']
)


@CheckpointLoader.register_scheme(prefixes='ghostnetv3://', force=True)
def load_from_ghostnetv3(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Load weights by an address, see :func:`mmgnv3.weights.load_address`.

    Args:
        filename: The address.
        map_location: As ``torch.load`` takes it.

    Returns:
        A checkpoint of mmpretrain's ImageClassifier.
    """
    # Networks ask for weights, so that the floor of weights lies above theirs.
    from mmgnv3.weights import load_address

    return load_address(filename, map_location)
