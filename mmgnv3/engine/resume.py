"""What must be as it was for a resumed run to be the same run, whatever its hooks."""

from collections.abc import Iterable
from typing import Any

from mmengine.hooks import EMAHook as BaseEMAHook
from mmengine.hooks import Hook
from torch import nn

from mmgnv3.utils.distillation import (
    DISTILLATION,
    check_distillation,
    describe_distillation,
)


def check_resume(checkpoint: dict[str, Any], model: nn.Module, hooks: Iterable[Hook]) -> None:
    """Check that a run can go on from a checkpoint, and ask its hooks for more.

    Args:
        checkpoint: The content of the file.
        model: The network that is to be trained.
        hooks: The hooks of the run. Those that have a method ``check_resume`` with the same
            arguments can refuse.

    Raises:
        ValueError: If the result would silently be another run's.
    """
    hooks = list(hooks)
    for hook in hooks:
        if hasattr(hook, 'check_resume'):
            hook.check_resume(checkpoint, model, hooks)
    check_same_run(checkpoint, model, hooks)


def check_same_run(checkpoint: dict[str, Any], model: nn.Module, hooks: Iterable[Hook]) -> None:
    """Check what needs no hook: that there is an average or none, and the distillation.

    Args:
        checkpoint: See :func:`check_resume`.
        model: See :func:`check_resume`.
        hooks: See :func:`check_resume`.

    Raises:
        ValueError: If weights were averaged and would no longer be, or the other way round, or if
            the distillation is another one, see :class:`mmgnv3.models.KDClassifier`.
    """
    had, has = 'ema_state_dict' in checkpoint, any(isinstance(h, BaseEMAHook) for h in hooks)
    if had != has:
        raise ValueError(
            f'The run that wrote the checkpoint was {"" if had else "not "}averaging its '
            f'weights, and this one is {"" if has else "not "}. Resume with custom_hooks as '
            'they were, or start a new run from its weights with load_from.'
        )
    noted = checkpoint.get('message_hub', {}).get('runtime_info', {})
    check_distillation(noted.get(DISTILLATION), describe_distillation(model))
