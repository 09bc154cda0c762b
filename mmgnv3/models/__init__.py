"""Networks and their parts; importing this module registers them."""

from .backbones import GhostNetV3
from .layers import MultiBranchConv2d

__all__ = ['GhostNetV3', 'MultiBranchConv2d']
