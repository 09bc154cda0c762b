"""Checks of the weights that a run starts from, made before a runner makes a folder for it.

mmengine opens those files last, logs what does not fit, and goes on with random weights.
"""

import logging
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.optim import build_optim_wrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import find_latest_checkpoint
from torch import Tensor, nn

from mmgnv3.reparam import is_deployed_checkpoint
from mmgnv3.utils.checkpoints import read_checkpoint
from mmgnv3.utils.pretrained import pretrained_files
from mmgnv3.weights.public import SCHEME

from .checkpoint import load_partly, load_weights, more, weights_of

# Fetched once by this package. Other addresses are left to the run, whose processes take turns.
_FETCHED = (SCHEME, 'http://', 'https://')
# Their networks load what they are given. Some of mmdet's and others' rename it first.
_LOAD_AS_IT_IS = ('mmengine', 'mmgnv3', 'mmpretrain')


def read_start(cfg: Config) -> tuple[str, dict[str, Any]] | None:
    """Read the checkpoint that training starts from.

    Args:
        cfg: The whole config, with ``resume`` and ``load_from``.

    Returns:
        Its name and its content; None if training starts from scratch.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is corrupt, or is to be resumed and is not the state of a run.
    """
    path = cfg.get('load_from')
    if not path and cfg.get('resume'):
        path = find_latest_checkpoint(cfg.work_dir)
    if not path:
        return None
    checkpoint = read_checkpoint(path)
    if cfg.get('resume') and is_deployed_checkpoint(checkpoint):
        raise ValueError(
            f'{path} is folded, and a run is resumed from the training form: give the epoch_N.pth '
            'that it was folded from.'
        )
    if cfg.get('resume') and not {'meta', 'message_hub'} <= checkpoint.keys():
        raise ValueError(
            f'{path} holds weights without the state of a training run, so nothing can be '
            f'resumed. To start from its weights: --cfg-options load_from={path}'
        )
    return path, checkpoint


def check_start(cfg: Config, model: nn.Module, path: str, checkpoint: dict[str, Any]) -> None:
    """Check that a network can start from a checkpoint. It gets the weights.

    Args:
        cfg: The whole config. A resumed run needs every weight, and the same groups of parameters
            in the optimizer; ``load_from`` needs the backbone, and other heads start from scratch.
        model: The network.
        path: Name of the checkpoint.
        checkpoint: Its content.

    Raises:
        ValueError: If it is another network's or another optimizer's.
    """
    if not cfg.get('resume'):
        _warn(_check_partly(model, weights_of(checkpoint), path, whole_backbone=True), path)
        return
    load_weights(model, checkpoint, path)
    if 'param_groups' in checkpoint.get('optimizer', {}):
        _check_optimizer(cfg, model, path, checkpoint['optimizer'])


def check_pretrained(model: nn.Module) -> None:
    """Check the files that modules of a network name as ``init_cfg=dict(type='Pretrained')``.

    Args:
        model: The network. It gets the weights.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If it is corrupt, or has nothing for the module or what does not fit it. Public
            weights (``ghostnetv3://``) have to have something for all of it.
    """
    for module, path, prefix, label in pretrained_files(model):
        if '://' in path and not path.startswith(_FETCHED):
            continue
        weights = weights_of(read_checkpoint(path, label))
        if prefix:
            weights = _below(prefix, weights, label)
        if type(module).init_weights.__module__.split('.')[0] in _LOAD_AS_IT_IS:
            fresh = _check_partly(module, weights, label, whole_backbone=False)
            if fresh and path.startswith(SCHEME):
                raise ValueError(
                    f'{label} has nothing that fits {fresh[0]} {more(fresh)}. Give the head '
                    'that it was trained with, or take its backbone alone: model.backbone.'
                    f"init_cfg=dict(type='Pretrained', checkpoint='{path}', prefix='backbone.')"
                )
            _warn(fresh, label)


def _below(prefix: str, weights: Mapping[str, Tensor], label: str) -> dict[str, Tensor]:
    prefix = prefix if prefix.endswith('.') else f'{prefix}.'
    found = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    if not found:
        raise ValueError(
            f'{label} has no weight whose name begins with the prefix {prefix!r}; its first is '
            f'{_first(weights)}. Correct the prefix, or leave it out for a file of this part alone.'
        )
    return found


def _check_partly(
    module: nn.Module, weights: Mapping[str, Tensor], label: str, *, whole_backbone: bool
) -> list[str]:
    """Check weights that have to fit as mmengine loads them, outside the backbone if at all.

    Returns:
        Names of the module's weights for which there is nothing that fits.
    """
    own = module.state_dict()
    fitting = {k for k in weights if k in own and own[k].shape == getattr(weights[k], 'shape', 0)}
    backbone = getattr(module, 'backbone', None)
    if not weights.keys() & own.keys():
        remedy = 'Give a checkpoint of such a network.'
        if backbone is not None and weights.keys() & backbone.state_dict().keys():
            remedy = (
                'It holds a backbone alone, which is given as model.backbone.init_cfg='
                "dict(type='Pretrained', checkpoint=...)."
            )
        elif f'backbone.{_first(own)}' in weights:
            remedy = "It holds a whole model; its backbone is taken by prefix='backbone.'."
        raise ValueError(
            f'{label} has nothing for this network: its first weight is {_first(weights)}, the '
            f"network's {_first(own)}. {remedy}"
        )
    part, prefix = (module, '') if backbone is None else (backbone, 'backbone.')
    inside = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    missing, _ = load_partly(part, inside, label)
    if missing and backbone is not None and whole_backbone:
        raise ValueError(
            f'{label} does not fit the backbone of the config: it lacks {missing[0]} '
            f'{more(missing)}. Give the backbone that it was trained with.'
        )
    return [k for k in own if k not in fitting and not k.endswith('num_batches_tracked')]


def _warn(fresh: list[str], label: str) -> None:
    if fresh:
        print_log(
            f'{label} has nothing that fits {fresh[0]} {more(fresh)}: started from scratch, as a '
            'head for other classes has to be.',
            'current',
            logging.WARNING,
        )


def _first(weights: Mapping[str, Any]) -> str:
    return next(iter(weights), 'none')


def _check_optimizer(cfg: Config, model: nn.Module, path: str, saved: dict[str, Any]) -> None:
    # Mixed precision is left out: it needs a GPU, and changes none of the parameters' groups.
    keys = ('optimizer', 'paramwise_cfg', 'constructor')
    wrapper = {key: cfg.optim_wrapper[key] for key in keys if key in cfg.optim_wrapper}
    with OPTIM_WRAPPERS.switch_scope_and_registry(cfg.get('default_scope', 'mmengine')):
        optimizer = build_optim_wrapper(model, dict(wrapper, type='OptimWrapper')).optimizer
    try:
        optimizer.load_state_dict(saved)
        # What a newer torch has more is filled in by it.
        lacking = sorted(set(optimizer.defaults) - set(optimizer.param_groups[0]))
        cause = f'the run that wrote it had no {", ".join(lacking)}' if lacking else ''
    except ValueError as error:
        cause = str(error)
    except KeyError as error:
        cause = f'the run that wrote it kept no {error}'
    if cause:
        raise ValueError(
            f'{path} cannot be resumed with the optimizer of the config: {cause}. Give '
            'optim_wrapper as it was, or start a new run from its weights with load_from.'
        )
