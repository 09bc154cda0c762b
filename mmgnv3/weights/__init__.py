"""Public weights of GhostNetV3, the reference code's and timm's, in this package's form."""

from .address import load_address, parse_address
from .convert import ConvertedWeights, convert_checkpoint, convert_file
from .public import locate

__all__ = [
    'ConvertedWeights',
    'convert_checkpoint',
    'convert_file',
    'load_address',
    'locate',
    'parse_address',
]
