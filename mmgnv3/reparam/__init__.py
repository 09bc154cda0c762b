"""Re-parameterization: folding a network and checking that both forms compute the same."""

from .checked_fold import fold_and_check
from .checkpoint import deployed_meta, is_deployed_checkpoint, save_deployed
from .fold import fold
from .verify import part_differences, relative_difference

__all__ = [
    'deployed_meta',
    'fold',
    'fold_and_check',
    'is_deployed_checkpoint',
    'part_differences',
    'relative_difference',
    'save_deployed',
]
