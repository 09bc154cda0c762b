"""Resuming a run so that it ends with the weights it would have had without interruption."""

import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce_params, broadcast_object_list, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from mmgnv3.engine.resume import check_same_run
from mmgnv3.registry import HOOKS

# Where the seed stands in the message hub, and how the data were loaded.
_SEED = 'mmgnv3_seed'
_LOADING = 'mmgnv3_loading'


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
      batch as before; other numbers are refused.
    - Persistent workers start anew with every epoch.
    - With several processes, statistics of norms that are not synchronised are averaged over the
      processes at the end of every epoch: only one of them writes checkpoints.
    - Random numbers that data sets or hooks keep to themselves are beyond reach, and on a GPU so
      are operations whose sums have no fixed order (``randomness=dict(deterministic=True)``).

    It also refuses to go on where :func:`mmgnv3.engine.resume.check_same_run` does, as
    ``tools/train.py`` and :class:`mmgnv3.CheckedRunner` do for every run. Other settings of the
    average are :class:`EMAHook`'s to refuse.

    Raises:
        ValueError: If a run cannot be resumed exactly.
    """

    priority = 'LOW'

    def __init__(self) -> None:
        self._seed = 0
        self._init_worker: Callable[[int], None] | None = None

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
        if _SEED not in checkpoint['message_hub']['runtime_info']:
            print_log(
                'The checkpoint was written without an ExactResumeHook. Whether its run drew the '
                'same random numbers is not known.',
                'current',
                logging.WARNING,
            )

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check the checkpoint, if the run is resumed from it."""
        if runner._resume:
            self.check_resume(checkpoint, runner.model, runner.hooks)
            check_same_run(checkpoint, runner.model, runner.hooks)

    def before_train(self, runner: Runner) -> None:
        """Settle the seed, and look at where the run goes on."""
        loop = runner.train_loop
        if not isinstance(loop, EpochBasedTrainLoop):
            raise ValueError(
                f'ExactResumeHook needs an EpochBasedTrainLoop, not {type(loop).__name__}: where '
                'data are an endless stream, a resumed run draws other ones. Take it out of '
                'custom_hooks to train without exact resuming.'
            )
        loading = _describe_loading(loop.dataloader)
        # A resumed run has it, as the seed, from the checkpoint.
        saved = runner.message_hub.get_info(_LOADING, loading)
        runner.message_hub.update_info(_LOADING, loading)
        fault = ', '.join(
            f'{key} was {saved[key]} and is {value}'
            for key, value in loading.items()
            if saved[key] != value
        )
        if loop.iter != loop.epoch * len(loop.dataloader) and not fault:
            fault = (
                f'it was written after {loop.iter} iterations and {loop.epoch} epochs, of '
                f'{len(loop.dataloader)} iterations each: in the middle of an epoch, or with other '
                'data'
            )
        if fault:
            raise ValueError(
                f'The checkpoint cannot be resumed exactly: {fault}. Resume as it was, or take '
                'ExactResumeHook out of custom_hooks to go on from there inexactly.'
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
        seeds = [runner.message_hub.get_info(_SEED, runner.seed)]
        broadcast_object_list(seeds)
        self._seed = seeds[0]
        runner.message_hub.update_info(_SEED, self._seed)
        for sampler in _samplers(loop.dataloader):
            # The loader was built before the checkpoint was read.
            if hasattr(sampler, 'seed'):
                sampler.seed = self._seed
        self._init_worker = loop.dataloader.worker_init_fn

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


def _describe_loading(loader: DataLoader) -> dict[str, int]:
    return dict(
        batch_size=loader.batch_sampler.batch_size,
        num_workers=loader.num_workers,
        processes=get_world_size(),
    )


def _samplers(loader: DataLoader) -> Iterator[Any]:
    yield loader.sampler
    yield loader.batch_sampler
    yield getattr(loader.batch_sampler, 'sampler', None)
