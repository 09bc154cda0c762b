"""Layers: the multi-branch convolution and the ghost blocks built from it."""

from .ghost import DFCGate, GhostBottleneck, GhostModule
from .multi_branch_conv import BranchConfig, MultiBranchConv2d, fuse_conv_norm, is_foldable_norm

__all__ = [
    'BranchConfig',
    'DFCGate',
    'GhostBottleneck',
    'GhostModule',
    'MultiBranchConv2d',
    'fuse_conv_norm',
    'is_foldable_norm',
]
