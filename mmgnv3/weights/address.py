"""Addresses of weights: ``ghostnetv3://1.0x`` and what else may stand behind the scheme."""

import re
from typing import Any

from mmgnv3.utils.checkpoints import read_checkpoint

from .convert import convert_checkpoint
from .public import SCHEME, locate, what_exists


def load_address(address: str, map_location: Any = None) -> dict[str, Any]:
    """Load public weights, converted in memory.

    An address is ``ghostnetv3://SOURCE`` or ``ghostnetv3://SOURCE#OPTION&OPTION``. SOURCE is what
    :func:`locate` takes; an option is

    - ``ema`` or ``raw``: the averaged weights or the others; by default the averaged ones where
      there are any, see :func:`mmgnv3.weights.convert_checkpoint`;
    - ``sha256=HEX``: digest that the file must have.

    Args:
        address: Such as ``ghostnetv3://1.0x`` or ``ghostnetv3:///path/to/file.pth.tar#raw``.
        map_location: Device, or its name, for the weights. None means the CPU.

    Returns:
        A checkpoint with ``meta`` and ``state_dict``, the latter with the keys of mmpretrain's
        ImageClassifier: ``prefix='backbone.'`` of mmengine's ``Pretrained`` takes the backbone.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it cannot be downloaded.
        ValueError: If the address is wrong, or the file is not what it should be.
    """
    source, ema, digest = parse_address(address)
    path = locate(source, digest)
    # A file from a cache has to be found to be removed.
    label = address if str(path) in address else f'{address} (in {path})'
    content = read_checkpoint(path, label)
    try:
        checkpoint = convert_checkpoint(content, ema).checkpoint()
    except ValueError as error:
        raise ValueError(f'{address}: {error}') from error
    if map_location is not None and not callable(map_location):
        weights = checkpoint['state_dict']
        checkpoint['state_dict'] = {k: v.to(map_location) for k, v in weights.items()}
    return checkpoint


def parse_address(address: str) -> tuple[str, bool | None, str | None]:
    """Take an address apart.

    Args:
        address: See :func:`load_address`.

    Returns:
        What :func:`locate` takes; whether the averaged weights are meant, None if it does not say;
        and the digest, None if it has none.

    Raises:
        ValueError: If it names no file or has an unknown option.
    """
    source, _, options = address.removeprefix(SCHEME).partition('#')
    ema = digest = None
    for option in filter(None, options.split('&')):
        name, _, value = option.partition('=')
        if option in ('ema', 'raw'):
            ema = option == 'ema'
        elif name == 'sha256' and re.fullmatch(r'[0-9a-fA-F]{64}', value):
            digest = value.lower()
        else:
            raise ValueError(
                f'{address}: unknown option {option!r}. There are ema, raw and sha256=HEX, joined '
                'by &.'
            )
    if not source:
        raise ValueError(f'{address} names no file. {what_exists()}')
    return source, ema, digest
