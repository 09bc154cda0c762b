"""What a network learns from beside labels, written down so that a resumed run can be compared."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from .wrappers import unwrap

# Where it stands in the message hub of a run, and by it in its checkpoints.
DISTILLATION = 'mmgnv3_distillation'


def describe_distillation(model: nn.Module) -> dict[str, Any] | None:
    """Say what a network learns from beside labels.

    Args:
        model: The network, possibly inside a data-parallel wrapper.

    Returns:
        Plain data under dotted names, as ``loss.alpha``; None for a network without a teacher.
    """
    model = unwrap(model)
    if not hasattr(model, 'describe_distillation'):
        return None
    return dict(_flatten(model.describe_distillation()))


def check_distillation(saved: dict[str, Any] | None, own: dict[str, Any] | None) -> None:
    """Compare what a run and the one that resumes it learn from.

    Args:
        saved: What :func:`describe_distillation` said of the run's network.
        own: What it says of the network that shall go on.

    Raises:
        ValueError: If they differ.
    """
    if (saved is None) != (own is None):
        raise ValueError(
            f'The run that wrote the checkpoint had {"no" if saved is None else "a"} teacher, '
            f'and this one has {"none" if own is None else "one"}. Resume with the model as it '
            'was, or start a new run from its weights with load_from.'
        )
    if saved != own:
        changes = ', '.join(
            f'{key}={saved.get(key)!r} became {own.get(key)!r}'
            for key in {**saved, **own}
            if saved.get(key) != own.get(key)
        )
        raise ValueError(
            f'The run that wrote the checkpoint learnt from its teacher otherwise: {changes}. '
            'Resume as it was, or start a new run from its weights with load_from.'
        )


def _flatten(value: Any, name: str = '') -> Iterator[tuple[str, Any]]:
    inner = None
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list | tuple):
        inner = enumerate(value)
    if inner:
        for key, item in inner:
            yield from _flatten(item, f'{name}.{key}' if name else str(key))
    elif value is None or isinstance(value, bool | int | float | str):
        yield name, value
    else:
        # A config may name classes and functions themselves; metadata shall be plain.
        yield name, getattr(value, '__qualname__', str(value))
