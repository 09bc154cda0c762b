"""Layers: the multi-branch convolution and the ghost blocks built from it."""

from .ghost import DFCGate, GhostBottleneck, GhostModule
from .multi_branch_conv import BranchConfig, MultiBranchConv2d
from .norms import fuse_conv_norm, is_foldable_norm
from .training_forms import TRAINING_FORMS, describe_forms, set_training_form, use_training_form

__all__ = [
    'TRAINING_FORMS',
    'BranchConfig',
    'DFCGate',
    'GhostBottleneck',
    'GhostModule',
    'MultiBranchConv2d',
    'describe_forms',
    'fuse_conv_norm',
    'is_foldable_norm',
    'set_training_form',
    'use_training_form',
]
