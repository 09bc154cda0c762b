"""Files of weights that the modules of a network start from."""

from collections.abc import Iterator

from mmengine.model import PretrainedInit
from torch import nn


def pretrained_files(model: nn.Module) -> Iterator[tuple[nn.Module, str, str | None, str]]:
    """Walk what the modules of a network name as ``init_cfg=dict(type='Pretrained')``.

    Args:
        model: The network.

    Yields:
        The module, the address of its checkpoint, the prefix of the weights that it takes, None for
        all, and what messages call the checkpoint.
    """
    for name, module in model.named_modules():
        inits = getattr(module, 'init_cfg', None) or []
        for init in [inits] if isinstance(inits, dict) else inits:
            if init['type'] in ('Pretrained', PretrainedInit):
                path, owner = init['checkpoint'], f'model.{name}' if name else 'model'
                label = f'The checkpoint {path} of {owner}.init_cfg'
                yield module, path, init.get('prefix'), label
