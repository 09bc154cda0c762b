"""What every floor above may use."""

from .checkpoints import read_checkpoint
from .files import replacing, sha256, write_json

__all__ = ['read_checkpoint', 'replacing', 'sha256', 'write_json']
