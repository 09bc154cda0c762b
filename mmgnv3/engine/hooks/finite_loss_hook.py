"""Stopping a run whose loss is no longer a number."""

from mmengine.hooks import Hook
from mmengine.runner import Runner, find_latest_checkpoint
from torch import Tensor, isfinite

from mmgnv3.registry import HOOKS


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Ends training at the first loss that is not finite, before anything is made of it.

    mmengine's ``CheckInvalidLossHook`` looks at every fiftieth loss, after checkpoints are written,
    and does not say which it was. This one comes before the average of the weights is updated, and
    keeps weights that are not finite out of every checkpoint, so that the last one stays good.
    Looking at every loss costs nothing more: mmengine's log has read its value by then.

    Raises:
        RuntimeError: If the loss or a weight that is to be saved is not finite.
    """

    priority = 'ABOVE_NORMAL'

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | tuple | list | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Look at the loss."""
        loss = (outputs or {}).get('loss')
        if isinstance(loss, Tensor) and not isfinite(loss).all():
            parts = ', '.join(
                f'{name} {value.item():g}'
                for name, value in outputs.items()
                if isinstance(value, Tensor) and value.numel() == 1
            )
            raise RuntimeError(
                f'The loss is not finite at iteration {runner.iter + 1}, in epoch '
                f'{runner.epoch + 1}: {parts}. {_remedy(runner)}'
            )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Look at the weights: a finite loss can have had gradients that were not."""
        for name, value in checkpoint['state_dict'].items():
            if value.is_floating_point() and not isfinite(value).all():
                raise RuntimeError(
                    f'{name} is not finite after iteration {checkpoint["meta"]["iter"]}; the '
                    f'checkpoint is not written. {_remedy(runner)}'
                )


def _remedy(runner: Runner) -> str:
    last = find_latest_checkpoint(runner.work_dir)
    kept = f'The last good checkpoint is {last}. ' if last else 'No checkpoint was written before. '
    return kept + (
        'A learning rate that is too large is the usual cause; a smaller one, a longer warm-up or '
        'optim_wrapper.clip_grad=dict(max_norm=...) helps.'
    )
