"""Building what a config describes, on trial before a runner makes a folder for it."""

import copy
from collections.abc import Iterator
from inspect import isclass
from typing import Any

from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.registry import HOOKS, MODELS, Registry
from torch import nn

from mmgnv3.engine.resume import check_resume

from .start import check_pretrained, check_start


def build_model(cfg: Config) -> nn.Module:
    """Build the network of a config, among the parts of its framework.

    Weights that it names are read by ``init_weights()``, which is not called.

    Args:
        cfg: The whole config, which stays as it is.
    """
    # Some networks write into their config.
    model = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        # As a runner does.
        model.setdefault('data_preprocessor', copy.deepcopy(cfg.data_preprocessor))
    with MODELS.switch_scope_and_registry(cfg.get('default_scope', 'mmengine')) as registry:
        return registry.build(model)


def check_parts(cfg: Config, start: tuple[str, dict[str, Any]] | None = None) -> None:
    """Build the network and the hooks of a training run once, on trial.

    An argument that they refuse, weights or a teacher that are missing or corrupt, and a checkpoint
    that they cannot start from are known then while nothing has been written.

    Args:
        cfg: The whole config.
        start: Name and content of the checkpoint that the run starts from, if it does: it is
            resumed from it if the config says so.

    Raises:
        FileNotFoundError: If weights of the network or of the teacher of a distilled run are
            missing.
        ValueError: If they are corrupt or another network's, a resumed run has other settings than
            it had, or what follows the backbone expects other channels than it returns. What a
            network or hook refuses is its own to raise.
    """
    model = build_model(cfg)
    _check_channels(cfg.model, getattr(getattr(model, 'backbone', None), 'out_channels', None))
    if hasattr(model, 'check_teacher'):
        model.check_teacher()
        teacher = model.teacher
        # Downloads are left to the run, whose processes take turns.
        if teacher.checkpoint and '://' not in teacher.checkpoint:
            teacher.build()
    check_pretrained(model)
    scope = cfg.get('default_scope', 'mmengine')
    with HOOKS.switch_scope_and_registry(scope) as registry:
        hooks = [
            # The priority is for the runner, not for the hook.
            registry.build({k: copy.deepcopy(v) for k, v in hook.items() if k != 'priority'})
            if isinstance(hook, dict)
            else hook
            for hook in [*(cfg.get('custom_hooks') or []), *_default_hooks(cfg, registry)]
        ]
    if start is None:
        return
    path, checkpoint = start
    if cfg.get('resume'):
        check_resume(checkpoint, model, hooks)
    check_start(cfg, model, path, checkpoint)


def _default_hooks(cfg: Config, registry: Registry) -> Iterator[dict]:
    """Those that a resumed run is asked about. Others need a runner's surroundings."""
    for hook in (cfg.get('default_hooks') or {}).values():
        kind = hook and hook['type']
        kind = registry.get(kind) if isinstance(kind, str) else kind
        if isclass(kind) and (issubclass(kind, EMAHook) or hasattr(kind, 'check_resume')):
            yield hook


def _check_channels(model: dict, channels: Any) -> None:
    """Compare the channels that a backbone returns, if it lists them, with its successor's."""
    if not isinstance(channels, list | tuple):
        return
    needed: list[int] | int = list(channels)
    head = model.get('head') or {}
    neck, entry = model.get('neck') or {}, 'model.neck'
    if not isinstance(neck, dict):
        # The first of several.
        neck, entry = neck[0], 'model.neck.0'
    if isinstance(neck.get('in_channels'), list | tuple):
        expected = list(neck['in_channels'])
        # Some count from the top of the pyramid.
        fits = expected in (needed, needed[::-1])
    elif str(neck.get('type', 'Pooling')).endswith('Pooling') and 'in_channels' in head:
        entry, expected, needed = 'model.head', head['in_channels'], needed[-1]
        fits = expected == needed
    else:
        return
    if not fits:
        needed = str(needed).replace(' ', '')
        raise ValueError(
            f'The backbone of the config returns maps of {", ".join(map(str, channels))} channels, '
            f'and {entry}.in_channels is {expected}. Set {entry}.in_channels={needed}'
        )
