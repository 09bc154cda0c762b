"""Comparing two networks that are to compute the same."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mmgnv3.models.layers import use_training_form


@torch.no_grad()
def relative_difference(model: nn.Module, other: nn.Module, *inputs: Any, **options: Any) -> float:
    """Largest difference of two models' outputs in eval mode, relative to the outputs' scale.

    Multi-branch units run branch by branch: in eval mode they would otherwise fold themselves on
    the fly, and an error of the folding would be on both sides.

    Args:
        model: The reference, called with ``inputs``; its modules' modes are restored afterwards.
        other: The model to compare, called with the same inputs.
        *inputs: Arguments of both models' ``forward``.
        **options: Keyword arguments of both.

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
        with use_training_form('plain'):
            outputs.append(list(_tensors(network(*inputs, **options))))
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


def part_differences(model: nn.Module, folded: nn.Module, *inputs: Any) -> dict[str, float]:
    """Compare a model and its folded copy part by part: backbone, neck, heads.

    Both forms of a part get what the part gets in one pass of the whole model. Comparing the last
    outputs alone would not do: rounding reorders the proposals of a two-stage detector.

    Args:
        model: The model; it is left in eval mode.
        folded: Its copy, see :func:`mmgnv3.reparam.fold`.
        *inputs: Arguments of the model's ``forward``.

    Returns:
        :func:`relative_difference` of every outermost part that was folded, by its name, in the
        order in which they run.
    """
    calls: dict[str, tuple[tuple, dict]] = {}
    hooks = [
        module.register_forward_pre_hook(_recorder(calls, name), with_kwargs=True)
        for name, module in model.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            model.eval()(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    inner = {name for name in calls for outer in calls if name.startswith(f'{outer}.')}
    differences = {}
    for name in (name for name in calls if name not in inner):
        part, folded_part = model.get_submodule(name), folded.get_submodule(name)
        if part.state_dict().keys() != folded_part.state_dict().keys():
            args, kwargs = calls[name]
            differences[name] = relative_difference(part, folded_part, *args, **kwargs)
    return differences


def _recorder(calls: dict[str, tuple[tuple, dict]], name: str) -> Callable[..., None]:
    def record(module: nn.Module, args: tuple, kwargs: dict) -> None:
        calls[name] = args, kwargs

    return record


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, dict):
        for value in outputs.values():
            yield from _tensors(value)
    elif isinstance(outputs, list | tuple):
        for value in outputs:
            yield from _tensors(value)
