"""What every floor above may use."""

from .files import replacing, sha256

__all__ = ['replacing', 'sha256']
