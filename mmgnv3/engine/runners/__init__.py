"""Runners: mmengine's, which a config changes by ``runner_type``."""

from .channels_last_runner import ChannelsLastRunner
from .checked_runner import CheckedRunner
from .progress_runner import ProgressRunner

__all__ = ['ChannelsLastRunner', 'CheckedRunner', 'ProgressRunner']
