"""Backbones."""

from .ghostnetv2 import GhostNetV2
from .ghostnetv3 import GhostNetV3

__all__ = ['GhostNetV2', 'GhostNetV3']
