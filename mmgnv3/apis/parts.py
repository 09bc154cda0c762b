"""Checks of what a config builds, made before a runner makes a folder for it."""

import copy
from typing import Any

from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS


def check_parts(cfg: Config, resumed: dict[str, Any] | None = None) -> None:
    """Build the network and the hooks of a training run once, on trial.

    An argument that they refuse, a teacher that is missing or corrupt, and a checkpoint that
    cannot be resumed with them are known then while nothing has been written.

    Args:
        cfg: The whole config.
        resumed: Content of the checkpoint that the run is resumed from, if it is.

    Raises:
        FileNotFoundError: If the teacher of a distilled run is missing.
        ValueError: If its checkpoint is corrupt or another network's, or the run has other settings
            than the resumed one. What a network or hook refuses is its own to raise.
    """
    scope = cfg.get('default_scope', 'mmengine')
    with MODELS.switch_scope_and_registry(scope) as registry:
        # Some networks write into their config.
        model = registry.build(copy.deepcopy(cfg.model))
    teacher = getattr(model, 'teacher', None)
    if hasattr(teacher, 'check'):
        teacher.check()
        # Downloads are left to the run, whose processes take turns.
        if teacher.checkpoint and '://' not in teacher.checkpoint:
            teacher.build()
    with HOOKS.switch_scope_and_registry(scope) as registry:
        hooks = [
            # The priority is for the runner, not for the hook.
            registry.build({k: copy.deepcopy(v) for k, v in hook.items() if k != 'priority'})
            if isinstance(hook, dict)
            else hook
            for hook in cfg.get('custom_hooks') or []
        ]
    if resumed is not None:
        for hook in hooks:
            if hasattr(hook, 'check_resume'):
                hook.check_resume(resumed, model, hooks)
