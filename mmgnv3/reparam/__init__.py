"""Re-parameterization: folding a network and checking that both forms compute the same."""

from .checkpoint import is_deployed_checkpoint, save_deployed
from .fold import fold
from .verify import part_differences, relative_difference

__all__ = [
    'fold',
    'is_deployed_checkpoint',
    'part_differences',
    'relative_difference',
    'save_deployed',
]
