"""Folding with proof that nothing was lost."""

import contextlib
import copy
from typing import Any, TypeVar

from torch import Tensor, nn

from .fold import fold
from .verify import part_differences

ModelType = TypeVar('ModelType', bound=nn.Module)

# Rounding of float32 over the depth of a network; a wrong fold is off by far more.
TOLERANCE = 1e-4


def fold_and_check(
    model: ModelType, images: Tensor, samples: Any = None, tolerance: float = TOLERANCE
) -> tuple[ModelType, float | None]:
    """Fold a copy of a model and check that it computes the same.

    Args:
        model: The model; its weights are not touched, but it is left in eval mode.
        images: A preprocessed batch of shape (B, 3, H, W).
        samples: What the model's ``forward`` takes beside it.
        tolerance: Largest difference that is allowed, relative to the scale of the outputs.

    Returns:
        The folded copy, and the largest difference between the outputs of both forms relative to
        their scale. None: there was nothing to fold.

    Raises:
        RuntimeError: If the outputs of a part differ by more.
    """
    folded = fold(model)
    differences = part_differences(model, folded, images, samples)
    if differences and not max(differences.values()) <= tolerance:
        # A network that has hardly been trained can magnify rounding that far; float64 decides.
        # Where an operator has no float64 kernels, the verdict of float32 stands.
        exact = copy.deepcopy(model).double()
        with contextlib.suppress(RuntimeError):
            differences = part_differences(exact, fold(exact), images.double(), samples)
    if not differences:
        return folded, None
    part = max(differences, key=differences.__getitem__)
    if not differences[part] <= tolerance:
        raise RuntimeError(
            f'Folding changes the outputs of {part} by {differences[part]:.1e} of their scale; '
            f'{tolerance:.0e} is allowed. Nothing is written. Weights that are not finite or a '
            'norm variance near zero are the likely cause.'
        )
    return folded, differences[part]
