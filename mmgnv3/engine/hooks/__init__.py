"""Hooks of mmengine's runner, for every framework built on it."""

from .checkpoint_hook import CheckpointHook
from .ema_hook import EMAHook
from .exact_resume_hook import ExactResumeHook
from .finite_loss_hook import FiniteLossHook
from .reparam_hook import ReparamHook

__all__ = ['CheckpointHook', 'EMAHook', 'ExactResumeHook', 'FiniteLossHook', 'ReparamHook']
