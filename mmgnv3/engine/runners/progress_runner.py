"""Runs that are watched on a screen."""

import logging
import sys
from typing import Any

from mmengine.logging import MMLogger
from mmengine.runner import Runner

from mmgnv3.registry import RUNNERS


@RUNNERS.register_module()
class ProgressRunner(Runner):
    """A runner that shows progress and warnings; what else it has to say is in its log file."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build the logger as every runner does, and restrict what reaches the screen."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setStream(sys.__stdout__)
                handler.addFilter(_is_progress_or_warning)
        return logger


def _is_progress_or_warning(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    # mmdet and mmengine warn each other of names that are on their way out.
    is_warning = record.levelno >= logging.WARNING and 'deprecated in future' not in message
    return is_warning or message.startswith('Epoch(')
