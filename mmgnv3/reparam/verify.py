"""Comparing two networks that are to compute the same."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def relative_difference(model: nn.Module, other: nn.Module, *inputs: Any) -> float:
    """Largest difference of two models' outputs in eval mode, relative to the outputs' scale.

    Args:
        model: The reference, called with ``inputs``; its modules' modes are restored afterwards.
        other: The model to compare, called with the same inputs.
        *inputs: Arguments of both models' ``forward``.

    Returns:
        ``max |a - b| / max |a|``, the largest over all tensors that the models return; infinite if
        the other's outputs are not finite.

    Raises:
        ValueError: If the models return different numbers or shapes of tensors, or none at all.
    """
    outputs = []
    for network in (model, other):
        modes = {module: module.training for module in network.modules()}
        network.eval()
        outputs.append(list(_tensors(network(*inputs))))
        for module, training in modes.items():
            module.training = training
    shapes, other_shapes = ([tuple(t.shape) for t in tensors] for tensors in outputs)
    if not shapes or shapes != other_shapes:
        raise ValueError(
            f'The models do not return the same tensors: shapes {shapes} and {other_shapes}.'
        )
    largest = 0.0
    for expected, actual in zip(*outputs, strict=True):
        scale = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
        difference = ((expected - actual).abs().max() / scale).item()
        largest = max(largest, difference if difference == difference else float('inf'))
    return largest


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, dict):
        for value in outputs.values():
            yield from _tensors(value)
    elif isinstance(outputs, list | tuple):
        for value in outputs:
            yield from _tensors(value)
