"""Folding the network during a run."""

import copy
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import EMAHook as BaseEMAHook
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor, nn

from mmgnv3.engine.evaluation import evaluate_silently
from mmgnv3.registry import HOOKS
from mmgnv3.reparam import deployed_meta, fold, fold_and_check, save_deployed
from mmgnv3.utils.wrappers import replace_model, unwrap, unwrap_wholly

# Of a batch, so many images are enough to see whether both forms compute the same.
_MAX_IMAGES = 8


@HOOKS.register_module()
class ReparamHook(Hook):
    """Writes the network in its deployed form, and tests it in that form.

    When training ends, and every so many epochs on demand, a copy of the weights that will be used
    is folded: the average where an EMA hook keeps one, the trained weights otherwise. The outputs
    of the folded copy are compared with the unfolded one's on images of the last batch, and a
    checkpoint of tensors and plain metadata is written, see :func:`mmgnv3.reparam.save_deployed`:
    ``deployed_epoch_N.pth`` in the work dir, or ``deployed_iter_N.pth``. The model that is trained
    is not touched.

    In a test, the model under test is folded for as long as the test takes, so that the scripts of
    any framework evaluate the deployed form, and checked on the first batch.

    Args:
        interval: Every how many epochs the network is folded too. -1: at the end only.
        by_epoch: Whether ``interval`` counts epochs; otherwise iterations, as where a run has no
            epochs.
        evaluate: Whether every network that is folded in training is evaluated; what comes out is
            logged, with ``_deployed`` behind the names of the metrics.
        filename_tmpl: Name of the file with the number of the epoch or iteration as ``{}``. None:
            ``deployed_epoch_{}.pth`` or ``deployed_iter_{}.pth``.

    Raises:
        ValueError: When training starts: if there is nothing to fold or nothing to evaluate on, or
            ``interval`` counts epochs and there are none.
        RuntimeError: If the folded network computes something else; the message says how far off.
    """

    # Behind the EMA hooks, which put the weights of a test into the model, and behind the
    # checkpoint hook, so that a check that fails finds the weights saved.
    priority = 'LOWEST'

    def __init__(
        self,
        interval: int = -1,
        by_epoch: bool = True,
        evaluate: bool = False,
        filename_tmpl: str | None = None,
    ) -> None:
        self.interval = interval
        self.by_epoch = by_epoch
        self.evaluate = evaluate
        self.filename_tmpl = filename_tmpl
        self._batch: Any = None
        self._folded_iter: int | None = None
        self._unfolded: nn.Module | None = None

    def before_train(self, runner: Runner) -> None:
        """Look whether what is asked for can be done."""
        model = unwrap(runner.model)
        if fold(model).state_dict().keys() == model.state_dict().keys():
            raise ValueError(
                'ReparamHook: there is nothing to fold in this network. Take the hook out of '
                'custom_hooks.'
            )
        if self.evaluate and runner.val_loop is None:
            raise ValueError(
                'ReparamHook(evaluate=True) evaluates on the validation data, and there are none. '
                'Give val_cfg, val_dataloader and val_evaluator, or leave evaluate out.'
            )
        if self.by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
            if self.interval > 0:
                raise ValueError(
                    f'ReparamHook: interval={self.interval} counts epochs, and this run has '
                    'iterations only. Give it in iterations, with by_epoch=False.'
                )
            self.by_epoch = False
        if self.filename_tmpl is None:
            unit = 'epoch' if self.by_epoch else 'iter'
            self.filename_tmpl = f'deployed_{unit}_{{}}.pth'

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | tuple | list | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Remember the batch; fold if it is time to."""
        self._batch = data_batch
        if not self.by_epoch and self.every_n_train_iters(runner, self.interval):
            self._fold(runner, epoch=runner.epoch, iteration=runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        """Fold if it is time to."""
        if self.by_epoch and self.every_n_epochs(runner, self.interval):
            self._fold(runner, epoch=runner.epoch + 1, iteration=runner.iter)

    def after_train(self, runner: Runner) -> None:
        """Fold what training has come to."""
        if self._folded_iter != runner.iter:
            self._fold(runner, epoch=runner.epoch, iteration=runner.iter)

    def before_test_epoch(self, runner: Runner) -> None:
        """Put a folded copy in the place of the model under test."""
        self._unfolded = unwrap(runner.model)
        replace_model(runner, fold(self._unfolded))

    def before_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | tuple | list | None = None
    ) -> None:
        """Compare both forms on the first batch."""
        if batch_idx == 0:
            if isinstance(self._unfolded, BaseTTAModel):
                data_batch = _first_form(data_batch)
            model = copy.deepcopy(unwrap_wholly(self._unfolded))
            _, difference = fold_and_check(model, *_inputs(model, data_batch))
            runner.logger.info(
                'The network holds nothing to fold and is tested as it is.'
                if difference is None
                else f'The folded network is tested. {_in_words(difference)}'
            )

    def after_test_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        """Put the model itself back."""
        replace_model(runner, self._unfolded)
        self._unfolded = None

    def _fold(self, runner: Runner, epoch: int, iteration: int) -> None:
        if self._batch is None:
            # A run that had ended already was resumed.
            self._batch = next(iter(runner.train_dataloader))
        model = _copy_of_weights_in_use(runner)
        folded, difference = fold_and_check(model, *_inputs(model, self._batch))
        step = epoch if self.by_epoch else iteration
        path = Path(runner.work_dir, self.filename_tmpl.format(step))
        if is_main_process():
            meta = dict(epoch=epoch, iter=iteration, cfg=runner.cfg.pretty_text)
            meta['dataset_meta'] = getattr(runner.train_dataloader.dataset, 'metainfo', None)
            save_deployed(folded, path, deployed_meta(meta))
        runner.logger.info(f'The folded network is saved to {path}. {_in_words(difference)}')
        self._folded_iter = iteration
        if self.evaluate:
            metrics = evaluate_silently(runner, runner.val_loop, folded)
            metrics = {f'{name}_deployed': value for name, value in metrics.items()}
            runner.logger.info(f'Folded network, iteration {iteration}: {metrics}')
            scalars = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
            runner.visualizer.add_scalars(scalars, step=step)


def _copy_of_weights_in_use(runner: Runner) -> nn.Module:
    for hook in runner.hooks:
        if isinstance(hook, BaseEMAHook) and getattr(hook, 'ema_model', None) is not None:
            return copy.deepcopy(hook.ema_model.module)
    return copy.deepcopy(unwrap(runner.model))


def _inputs(model: nn.Module, batch: Any) -> tuple[Tensor, Any]:
    """Preprocess the first images of a batch as for prediction."""
    data = model.data_preprocessor(copy.deepcopy(_head(batch)), training=False)
    return data['inputs'], data.get('data_samples')


def _first_form(batch: Any) -> Any:
    """Take, of every image's forms in test-time augmentation, the first."""
    if isinstance(batch, dict):
        return {key: forms[0] for key, forms in batch.items()}
    return [forms[0] for forms in batch]


def _head(batch: Any) -> Any:
    if isinstance(batch, dict):
        return {key: _head(value) for key, value in batch.items()}
    return batch[:_MAX_IMAGES] if isinstance(batch, Tensor | list | tuple) else batch


def _in_words(difference: float) -> str:
    return f'Its outputs differ from the unfolded one by {difference:.1e} of their scale.'
