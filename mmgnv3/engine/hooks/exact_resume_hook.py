"""Resuming a run so that it ends with the weights it would have had without interruption."""

import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce_params, broadcast_object_list, get_rank, get_world_size
from mmengine.hooks import EMAHook as BaseEMAHook
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from mmgnv3.registry import HOOKS
from mmgnv3.utils.wrappers import unwrap

# Where the seed stands in the message hub, and what is learnt from a teacher in a checkpoint's
# ``meta``.
_SEED = 'mmgnv3_seed'
_META = 'mmgnv3_distillation'


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Makes an interrupted and resumed run equal an uninterrupted one, bit by bit on a CPU.

    mmengine seeds once, at the start, and saves no random state, so that a resumed run draws
    other orders, augmentations and dropout masks. This hook seeds anew before every epoch, from
    the seed of the run, the number of the epoch, the rank and, in the workers of the data loader,
    the number of the worker. The state at the beginning of an epoch is then known without being
    saved. The seed goes into the checkpoints; a resumed run takes it from there.

    What follows from it:

    - Runs go by epochs; an iteration-based loop is refused, since its workers cannot be brought
      back to where they were.
    - A run goes on at the beginning of an epoch, with as many workers, processes and images a
      batch as before.
    - Persistent workers start anew with every epoch.
    - With several processes, statistics of norms that are not synchronised are averaged over the
      processes at the end of every epoch: only one of them writes checkpoints.
    - Random numbers that data sets or hooks keep to themselves are beyond reach, and on a GPU so
      are operations whose sums have no fixed order (``randomness=dict(deterministic=True)``).

    It also refuses to go on where the result would silently be another run's: with or without an
    average of the weights where it was the other way round, or with another distillation: the
    teacher's network, the SHA-256 of its checkpoint, wherever either file lies, the form in which
    it gets the images, and the loss. Other settings of the average are :class:`EMAHook`'s to
    refuse.

    Raises:
        ValueError: If a run cannot be resumed exactly.
    """

    priority = 'LOW'

    def __init__(self) -> None:
        self._seed = 0
        self._init_worker: Callable[[int], None] | None = None
        self._distillation: dict[str, Any] | None = None

    def check_resume(
        self, checkpoint: dict[str, Any], model: nn.Module, hooks: Iterable[Hook]
    ) -> None:
        """Check that a run can go on exactly from a checkpoint.

        Args:
            checkpoint: The content of the file.
            model: The network that is to be trained.
            hooks: The hooks of the run.

        Raises:
            ValueError: If it cannot.
        """
        if 'optimizer' not in checkpoint:
            raise ValueError(
                'The checkpoint has no state of the optimizer, as those of the best epochs: it is '
                'no point to resume from. Take the last one of the run, epoch_N.pth.'
            )
        had, has = 'ema_state_dict' in checkpoint, any(isinstance(h, BaseEMAHook) for h in hooks)
        if had != has:
            raise ValueError(
                f'The run that wrote the checkpoint was {"" if had else "not "}averaging its '
                f'weights, and this one is {"" if has else "not "}. Resume with custom_hooks as '
                'they were, or start a new run from its weights with load_from.'
            )
        if _META not in checkpoint['meta']:
            print_log(
                'The checkpoint was written without an ExactResumeHook. Whether its run had the '
                'same teacher and drew the same random numbers is not known.',
                'current',
                logging.WARNING,
            )
            return
        saved, own = checkpoint['meta'][_META], describe_distillation(model)
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

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check the checkpoint, if the run is resumed from it."""
        if runner._resume:
            self.check_resume(checkpoint, runner.model, runner.hooks)

    def before_train(self, runner: Runner) -> None:
        """Settle the seed, and look at where the run goes on."""
        loop = runner.train_loop
        if not isinstance(loop, EpochBasedTrainLoop):
            raise ValueError(
                f'ExactResumeHook needs an EpochBasedTrainLoop, not {type(loop).__name__}: where '
                'data are an endless stream, a resumed run draws other ones. Take it out of '
                'custom_hooks to train without exact resuming.'
            )
        if loop.iter != loop.epoch * len(loop.dataloader):
            raise ValueError(
                f'The checkpoint was written after {loop.iter} iterations and {loop.epoch} epochs, '
                f'of {len(loop.dataloader)} iterations each: in the middle of an epoch, or with '
                'other data, another batch size or another number of processes. Resume as it was, '
                'or take ExactResumeHook out of custom_hooks to go on from there inexactly.'
            )
        accumulated = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        if len(loop.dataloader) % accumulated:
            print_log(
                f'Gradients are accumulated over {accumulated} iterations and an epoch has '
                f'{len(loop.dataloader)}: those left over at its end are in no checkpoint, so that '
                'a resumed run will not be exact.',
                'current',
                logging.WARNING,
            )
        # A resumed run has it from the checkpoint.
        seeds = [runner.message_hub.get_info(_SEED, runner.seed)]
        broadcast_object_list(seeds)
        self._seed = seeds[0]
        runner.message_hub.update_info(_SEED, self._seed)
        for sampler in _samplers(loop.dataloader):
            # The loader was built before the checkpoint was read.
            if hasattr(sampler, 'seed'):
                sampler.seed = self._seed
        self._init_worker = loop.dataloader.worker_init_fn
        self._distillation = describe_distillation(runner.model)

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed this process and the workers that the epoch will start."""
        key = (self._seed, runner.epoch, get_rank())
        _seed_everything(*key)
        loader = runner.train_loop.dataloader
        loader.worker_init_fn = partial(_start_worker, init=self._init_worker, key=key)
        if loader.persistent_workers:
            # mmdet's YOLOXModeSwitchHook does the same to reach them.
            loader._iterator = None

    def after_train_epoch(self, runner: Runner) -> None:
        """Make all processes agree on the buffers that one of them will save."""
        if get_world_size() == 1:
            return
        averages = [getattr(hook, 'ema_model', None) for hook in runner.hooks]
        for model in (runner.model, *filter(None, averages)):
            buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
            if buffers:
                all_reduce_params(buffers, op='mean')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save what the teacher and its loss were."""
        checkpoint['meta'][_META] = self._distillation


def _seed_everything(*key: int) -> None:
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _start_worker(worker: int, init: Callable[[int], None] | None, key: Sequence[int]) -> None:
    if init is not None:
        init(worker)
    # A seed sequence does not tell a trailing zero from nothing.
    _seed_everything(*key, worker + 1)


def _samplers(loader: DataLoader) -> Iterator[Any]:
    yield loader.sampler
    yield loader.batch_sampler
    yield getattr(loader.batch_sampler, 'sampler', None)


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
