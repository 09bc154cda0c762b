"""Writing checkpoints so that a kill at any moment leaves a good one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.hooks import CheckpointHook as BaseCheckpointHook
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmgnv3.registry import HOOKS
from mmgnv3.utils.files import replacing

from .ema_hook import RAW_SUFFIX, EMAHook

_BACKEND = 'mmgnv3.replacing'


class _ReplacingBackend(LocalBackend):
    """The local disk, on which a file appears under its name when it is complete."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        with replacing(filepath) as temporary:
            super().put(obj, temporary)


register_backend(_BACKEND, _ReplacingBackend, force=True)


@HOOKS.register_module()
class CheckpointHook(BaseCheckpointHook):
    """mmengine's checkpoint hook, with the same arguments, safe against being killed.

    mmengine writes checkpoints and ``last_checkpoint``, the file that ``--resume`` reads, in
    place, and removes old checkpoints and the best one before it writes new ones. A process that is
    killed in the middle of it can leave half a file and nothing else. This hook

    - writes every file beside its place and renames it (on a local disk);
    - makes ``last_checkpoint`` name a new checkpoint once that is complete;
    - removes what has become superfluous last.

    A kill between the last two steps leaves one checkpoint too many.

    A best checkpoint holds under ``state_dict`` the weights that were best: with
    ``save_best='accuracy/top1_raw'``, the raw ones of a run with an :class:`EMAHook`, and no
    average. As every best checkpoint it has no state of the optimizer to resume from.

    Raises:
        ValueError: If ``save_best`` is no metric of the validation; a checkpoint is saved first.
            Before training: if it is one of raw weights and nothing evaluates them.
    """

    _saves_raw = False

    def before_train(self, runner: Runner) -> None:
        """Prepare the folder as mmengine does, and choose how files are written."""
        raw = [key for key in self.save_best or () if key.endswith(RAW_SUFFIX)]
        if raw and not any(_evaluates_both(hook) for hook in runner.hooks):
            raise ValueError(
                f'save_best={raw[0]!r} of the checkpoint hook is for raw weights beside an average '
                "of them. Add dict(type='mmgnv3.EMAHook') to custom_hooks, with evaluate_on_ema "
                f'and evaluate_on_origin, or take {raw[0].removesuffix(RAW_SUFFIX)!r}.'
            )
        out_dir = self.out_dir or runner.work_dir
        is_plain = self.backend_args is None and self.file_client_args is None
        if is_plain and type(get_file_backend(out_dir)) is LocalBackend:
            self.backend_args = dict(backend=_BACKEND)
        super().before_train(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Leave nothing but the raw weights, which the EMA hook has put aside, where they won."""
        if self._saves_raw:
            raw = checkpoint.pop('ema_state_dict')
            for name in checkpoint['state_dict']:
                checkpoint['state_dict'][name] = raw[f'module.{name}']

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        outdated = self._keep(runner, step)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            with replacing(Path(runner.work_dir, 'last_checkpoint')) as temporary:
                temporary.write_text(self.last_ckpt)
        if outdated is not None:
            self._remove(self.file_backend.join_path(self.out_dir, outdated))

    def _keep(self, runner: Runner, step: int) -> str | None:
        """Count a checkpoint among those that are kept; name the one that is no longer."""
        # The checkpoint of an epoch is written again when it turns out to be the best one.
        if self.max_keep_ckpts <= 0 or (self.keep_ckpt_ids and self.keep_ckpt_ids[-1] == step):
            return None
        full = len(self.keep_ckpt_ids) == self.max_keep_ckpts
        outdated = self.filename_tmpl.format(self.keep_ckpt_ids.popleft()) if full else None
        self.keep_ckpt_ids.append(step)
        runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        return outdated

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        if not self.save_best:
            return
        unknown = [key for key in self.key_indicators if key not in metrics and key != 'auto']
        if unknown:
            step = runner.epoch if self.by_epoch else runner.iter
            meta = dict(epoch=runner.epoch, iter=runner.iter)
            self._save_checkpoint_with_step(runner, step, meta)
            raise ValueError(
                f'save_best={unknown[0]!r} of the checkpoint hook is no metric of the validation. '
                f'They are {", ".join(map(repr, metrics))}. Correct it, and go on from '
                f'{self.last_ckpt} with --resume.'
            )
        # mmengine removes the best checkpoint that it knows of before it writes a better one.
        previous = self._best_paths()
        self._set_best_paths(dict.fromkeys(previous))
        with self._each_as_it_was_best(runner):
            super()._save_best_checkpoint(runner, metrics)
        best = self._best_paths()
        self._set_best_paths({key: best[key] or path for key, path in previous.items()})
        for key, path in previous.items():
            if path and best[key] and path != best[key]:
                runner.logger.info(f'The previous best checkpoint {path} is removed')
                self._remove(path)

    @contextmanager
    def _each_as_it_was_best(self, runner: Runner) -> Iterator[None]:
        """Note of every file that mmengine writes whether it is a best one of raw weights."""
        save = runner.save_checkpoint
        raw = tuple(
            f'best_{key}_'.replace('/', '_')
            for key in self.key_indicators
            if key.endswith(RAW_SUFFIX)
        )

        def noting(out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
            self._saves_raw = filename.startswith(raw)
            save(out_dir, filename, *args, **kwargs)

        runner.save_checkpoint = noting
        try:
            yield
        finally:
            self._saves_raw = False
            del runner.save_checkpoint

    def _best_paths(self) -> dict[str, str | None]:
        if len(self.key_indicators) == 1:
            return {'': self.best_ckpt_path}
        return dict(self.best_ckpt_path_dict)

    def _set_best_paths(self, paths: dict[str, str | None]) -> None:
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = paths['']
        else:
            self.best_ckpt_path_dict.update(paths)

    def _remove(self, path: str) -> None:
        if not is_main_process():
            return
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):
            # DeepSpeed's checkpoints are folders.
            self.file_backend.rmtree(path)


def _evaluates_both(hook: Hook) -> bool:
    return isinstance(hook, EMAHook) and hook.evaluate_on_ema and hook.evaluate_on_origin
