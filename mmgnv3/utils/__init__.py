"""What every floor above may use."""

from .checkpoints import read_checkpoint
from .files import replacing, sha256, write_json
from .parameters import count_params

__all__ = ['count_params', 'read_checkpoint', 'replacing', 'sha256', 'write_json']
