"""Training with an exponential moving average of the weights."""

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
from mmengine.hooks import EMAHook as BaseEMAHook
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import BaseLoop, IterBasedTrainLoop, Runner
from torch import Tensor, nn

from mmgnv3.engine.evaluation import evaluate_silently
from mmgnv3.engine.fused_ema import FusedEMA
from mmgnv3.registry import HOOKS
from mmgnv3.utils.wrappers import unwrap_wholly

# Key of a checkpoint's ``meta`` under which the settings of its average stand.
_META = 'mmgnv3_ema'
# Behind the names of metrics of the raw weights, where the average's are beside them.
RAW_SUFFIX = '_raw'


@HOOKS.register_module()
class EMAHook(BaseEMAHook):
    r"""Keeps an exponential moving average of the trained network and evaluates both.

    Parameters and buffers of floating point are averaged by a few fused operations, see
    :class:`mmgnv3.engine.fused_ema.FusedEMA`. The average is made of the network that is trained
    and nothing else: a teacher outside of its modules is neither copied nor averaged.

    What the keys of a saved checkpoint mean, as with mmengine's hook:

    - ``state_dict``: the **average**, under the names of the network. Whatever loads a checkpoint
      without asking gets the average: a test, ``load_from``, ``init_cfg``, ``tools/reparam.py``.
    - ``ema_state_dict``: the **raw** weights, those the optimizer works on, under the names of the
      network with ``module.`` in front, and the number of updates as ``steps``.
    - ``meta['mmgnv3_ema']``: the settings of this hook, with which a resumed run must agree.

    Resuming puts both where they belong, so that the run goes on exactly. Every other start, from
    scratch or by ``load_from``, begins the average with the weights that training begins with,
    whatever of them came from a file; ``ema_state_dict`` of that file is not looked at. A test
    evaluates the average of its file; where the config says that the run is resumed, as the one
    that a resumed run has written, both.

    Evaluating both, metrics of the average have their names, and those of the raw weights have
    ``_raw`` behind them: ``accuracy/top1`` and ``accuracy/top1_raw``. Either can be ``save_best``
    of the checkpoint hook. The best checkpoint of the average holds both weights, as every other;
    the best one of the raw weights, where :class:`CheckpointHook` writes it, holds these alone,
    as ``state_dict``.

    Args:
        momentum: Weight of the newest values, one minus the decay. 0.0001 (a decay of 0.9999) is
            the paper's (recalled, to be checked).
        gamma: Warm-up of the momentum: update :math:`t` uses
            ``max(momentum, gamma / (gamma + t))``. 0 means none.
        interval: Every how many iterations the average moves; the number of accumulated
            gradients, where there are.
        begin_iter: Iteration from which on values are averaged. Before it, the average equals the
            weights.
        begin_epoch: The same in epochs, instead.
        evaluate_on_ema: Whether the average is evaluated.
        evaluate_on_origin: Whether the raw weights are. Alone, they have the plain names.

    Raises:
        ValueError: If an argument makes no average, or nothing would be evaluated; when a run is
            resumed from a checkpoint that has no average or one made with other settings, or ends
            before the average begins.
    """

    def __init__(
        self,
        momentum: float = 1e-4,
        gamma: int = 0,
        interval: int = 1,
        begin_iter: int = 0,
        begin_epoch: int = 0,
        evaluate_on_ema: bool = True,
        evaluate_on_origin: bool = True,
    ) -> None:
        if not 0 < momentum < 1:
            raise ValueError(
                f'momentum must be between 0 and 1, got {momentum}. It is one minus the decay.'
            )
        if gamma < 0 or interval < 1:
            raise ValueError(
                f'gamma must be at least 0 and interval at least 1, got {gamma} and {interval}.'
            )
        if begin_iter < 0 or begin_epoch < 0 or (begin_iter and begin_epoch):
            raise ValueError(
                'begin_iter and begin_epoch must be at least 0 and not both be given, got '
                f'{begin_iter} and {begin_epoch}.'
            )
        if not (evaluate_on_ema or evaluate_on_origin):
            raise ValueError(
                'evaluate_on_ema and evaluate_on_origin cannot both be off. To evaluate nothing, '
                'leave out val_cfg, val_dataloader and val_evaluator.'
            )
        average = dict(momentum=momentum, gamma=gamma, interval=interval)
        super().__init__(begin_iter=begin_iter, begin_epoch=begin_epoch, **average)
        self.ema_cfg = average
        self.evaluate_on_ema = evaluate_on_ema
        self.evaluate_on_origin = evaluate_on_origin
        self.ema_model: FusedEMA | None = None
        self.src_model: nn.Module | None = None
        self._resumed_state: dict[str, Tensor] | None = None
        self._raw_metrics: dict[str, Any] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """What must stay the same for a resumed run to be the same run."""
        return dict(self.ema_cfg, begin_iter=self.begin_iter, begin_epoch=self.begin_epoch)

    def check_resume(
        self, checkpoint: dict[str, Any], model: nn.Module, hooks: Iterable[Hook]
    ) -> None:
        """Check that a run with this hook can go on from a checkpoint.

        Args:
            checkpoint: The content of the file.
            model: The network that is to be trained.
            hooks: The hooks of the run.

        Raises:
            ValueError: If it has no average, or one made with other settings.
        """
        if 'ema_state_dict' not in checkpoint:
            raise ValueError(
                'The checkpoint has no average of the weights: it is the best one of the raw '
                'weights, or was written without an EMAHook. Resume the last one of the run, or '
                'without the hook, or start averaging from its weights with load_from.'
            )
        saved = checkpoint['meta'].get(_META)
        if saved is None:
            print_log(
                'The average in the checkpoint comes from another hook; whether its settings were '
                'the same is not known.',
                'current',
                logging.WARNING,
            )
        elif saved != self.settings:
            changes = ', '.join(
                f'{key}={saved.get(key)!r} became {value!r}'
                for key, value in self.settings.items()
                if saved.get(key) != value
            )
            raise ValueError(
                f'The average of the weights was made with other settings: {changes}. Resume with '
                'the old ones, or start a new run from the weights with load_from.'
            )

    def before_run(self, runner: Runner) -> None:
        """Remember the network. Its average is made when its weights are there."""
        self.src_model = unwrap_wholly(runner.model)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Put the raw weights where the runner loads from, if the run is resumed."""
        if not runner._resume:
            return
        self.check_resume(checkpoint, runner.model, runner.hooks)
        self._swap_ema_state_dict(checkpoint)
        self._resumed_state = checkpoint['ema_state_dict']

    def before_train(self, runner: Runner) -> None:
        """Make the average: the resumed one, or the weights that training begins with."""
        self._check_begin(runner)
        self._make_average()
        self._resumed_state = None

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | tuple | list | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Update the average."""
        if self._ema_started(runner):
            self.ema_model.update_parameters(self.src_model)
        else:
            self.ema_model.copy_from(self.src_model)

    def before_val_epoch(self, runner: Runner) -> None:
        """Evaluate the raw weights, then put the average into the network."""
        self._before_evaluation(runner, runner.val_loop)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        """Put the raw weights back and add their metrics."""
        self._after_evaluation(runner, metrics, 'val')

    def before_test_epoch(self, runner: Runner) -> None:
        """Do as before validation, if the run was trained or resumed before."""
        self._before_evaluation(runner, runner.test_loop)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        """Do as after validation."""
        self._after_evaluation(runner, metrics, 'test')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the average and the settings; see the class for what the keys mean."""
        if self.ema_model is None:
            return
        checkpoint['meta'][_META] = self.settings
        # On the CPU as the rest, so that a machine without a GPU reads the file.
        state = {name: value.cpu() for name, value in self.ema_model.state_dict().items()}
        checkpoint['ema_state_dict'] = state
        self._swap_ema_state_dict(checkpoint)

    def _check_begin(self, runner: Runner) -> None:
        name, begin, last, unit = 'begin_iter', self.begin_iter, runner.max_iters, 'iterations'
        if self.enabled_by_epoch:
            name, begin, last, unit = 'begin_epoch', self.begin_epoch, runner.max_epochs, 'epochs'
        if begin <= last:
            return
        end, remedy = f'{last} {unit}', 'a smaller one'
        if self.enabled_by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
            end, remedy = 'no epochs', 'begin_iter instead'
        raise ValueError(
            f'EMAHook({name}={begin}) would never begin: the run has {end}. Give {remedy}.'
        )

    def _make_average(self) -> None:
        self.ema_model = FusedEMA(self.src_model, **self.ema_cfg)
        if self._resumed_state is not None:
            self.ema_model.load_state_dict(self._resumed_state)

    def _evaluates_average(self) -> bool:
        # A test that resumes has the raw weights in the network, and shall take the average as
        # every other test. The state is kept for training.
        resumed = self._resumed_state is not None
        return self.ema_model is not None and (self.evaluate_on_ema or resumed)

    def _before_evaluation(self, runner: Runner, loop: BaseLoop) -> None:
        if self.ema_model is None and self._resumed_state is not None:
            self._make_average()
        if not self._evaluates_average():
            return
        if self.evaluate_on_origin:
            # First, so that what hooks draw and log afterwards is the average's.
            self._raw_metrics = evaluate_silently(runner, loop)
        self.ema_model.swap(self.src_model)

    def _after_evaluation(self, runner: Runner, metrics: dict[str, Any] | None, split: str) -> None:
        if not self._evaluates_average():
            return
        self.ema_model.swap(self.src_model)
        for name, value in self._raw_metrics.items():
            if metrics is not None:
                metrics[name + RAW_SUFFIX] = value
            if isinstance(value, int | float | np.number):
                # mmengine's own hook, which does this, comes earlier.
                runner.message_hub.update_scalar(f'{split}/{name}{RAW_SUFFIX}', value)
        self._raw_metrics = {}
