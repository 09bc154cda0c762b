"""Training and testing of mmpretrain's classifiers and mmdet's detectors, by one pair of functions.

Their own scripts differ in a few names and defaults only; those are in ``_HOSTS``. Flags change the
config after ``cfg_options``.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mmengine
import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.dist import is_distributed, is_main_process
from mmengine.registry import METRICS, RUNNERS
from mmengine.runner import Runner
from torch import nn

from mmgnv3.reparam import fold, is_deployed_checkpoint
from mmgnv3.utils.checkpoints import read_checkpoint
from mmgnv3.utils.files import replacing
from mmgnv3.utils.wrappers import replace_model

from .checkpoint import load_weights
from .flags import check_amp, check_launcher, check_out
from .parts import build_model, check_parts
from .preflight import check_data, iter_datasets
from .start import read_start


@dataclass(frozen=True)
class _Host:
    """What a framework does in its own way.

    Args:
        dump_metric: The metric that writes predictions to a file.
        draw_key: Argument of its visualization hook that turns it on.
        show_dir_key: Argument of that hook that names a folder for the pictures.
        tta_model: Test-time augmentation for a config that has none.
        loader_defaults: What data loaders are given unless the config says otherwise.
    """

    dump_metric: str
    draw_key: str
    show_dir_key: str
    tta_model: dict
    loader_defaults: dict = field(default_factory=dict)


_HOSTS = dict(
    mmdet=_Host(
        dump_metric='DumpDetResults',
        draw_key='draw',
        show_dir_key='test_out_dir',
        tta_model=dict(
            type='DetTTAModel',
            tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
        ),
    ),
    mmpretrain=_Host(
        dump_metric='DumpResults',
        draw_key='enable',
        show_dir_key='out_dir',
        tta_model=dict(type='AverageClsScoreTTA'),
        loader_defaults=dict(
            pin_memory=True, persistent_workers=True, collate_fn=dict(type='default_collate')
        ),
    ),
)


def train(
    config: str,
    *,
    work_dir: str | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    resume: str | None = None,
    no_validate: bool = False,
    no_pin_memory: bool = False,
    no_persistent_workers: bool = False,
    cfg_options: dict[str, Any] | None = None,
    launcher: str = 'none',
) -> nn.Module:
    """Train what a config describes.

    Args:
        config: Config file of mmpretrain or mmdet, recognised by its ``default_scope``.
        work_dir: Folder of logs and checkpoints. None: the config's, or ``work_dirs/<name>``.
        amp: Automatic mixed precision.
        auto_scale_lr: Scale the learning rate to the actual batch size.
        resume: Checkpoint to go on from; ``'auto'`` for the last one in the work dir, if any.
        no_validate: Train without evaluating.
        no_pin_memory: Data loaders without page-locked memory.
        no_persistent_workers: Data loaders whose workers end with the epoch.
        cfg_options: Changes of the config, by dotted names.
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.

    Returns:
        The trained model.

    Raises:
        FileNotFoundError: If the config, a checkpoint or the data are missing.
        ValueError: If one of them is corrupt, a flag does not go with the config, or a resumed run
            has other settings than it had.
    """
    cfg, host = _load_config(config, work_dir, cfg_options, launcher)
    _set_loaders(cfg, host, no_pin_memory, no_persistent_workers)
    if no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if amp:
        check_amp()
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ValueError(
                f'--auto-scale-lr: {config} does not say for which batch size its learning rate '
                'is. Add auto_scale_lr=dict(base_batch_size=N).'
            )
        cfg.auto_scale_lr.enable = True
    if resume:
        cfg.resume = True
        cfg.load_from = None if resume == 'auto' else resume
    start = read_start(cfg)
    check_data(cfg, ('train', 'val'))
    check_parts(cfg, start)
    return _build_runner(cfg).train()


def test(
    config: str,
    checkpoint: str,
    *,
    work_dir: str | None = None,
    out: str | None = None,
    out_item: str | None = None,
    show: bool = False,
    show_dir: str | None = None,
    wait_time: float = 2.0,
    interval: int = 1,
    tta: bool = False,
    amp: bool = False,
    no_pin_memory: bool = False,
    no_persistent_workers: bool = False,
    cfg_options: dict[str, Any] | None = None,
    launcher: str = 'none',
) -> dict[str, float]:
    """Evaluate a checkpoint, in its training form or folded.

    Args:
        config: Config file that the checkpoint was trained with.
        checkpoint: Checkpoint file. A folded one (see :func:`mmgnv3.reparam.save_deployed`) needs
            no other config.
        work_dir: Folder of the log. None: the config's, or ``work_dirs/<name>``.
        out: File to write predictions or metrics to.
        out_item: ``'pred'`` (default; ``.pkl``) or ``'metrics'`` (``.json``, ``.yaml``, ``.pkl``).
        show: Show predictions in windows.
        show_dir: Folder for pictures of predictions, below the log's.
        wait_time: Seconds that a window stays.
        interval: Every how many images a picture is made.
        tta: Test-time augmentation: the config's, or flipping.
        amp: Automatic mixed precision.
        no_pin_memory: Data loaders without page-locked memory.
        no_persistent_workers: Data loaders whose workers end with the epoch.
        cfg_options: Changes of the config, by dotted names.
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.

    Returns:
        The metrics by name.

    Raises:
        FileNotFoundError: If the config, the checkpoint or the data are missing.
        ValueError: If one of them is corrupt, the checkpoint is another network's, or a flag does
            not go with the config.
    """
    check_out(out, out_item)
    cfg, host = _load_config(config, work_dir, cfg_options, launcher)
    if not cfg.get('test_dataloader'):
        raise ValueError(f'{config} has no test_dataloader: there is nothing to test on.')
    _set_loaders(cfg, host, no_pin_memory, no_persistent_workers)
    if show or show_dir:
        hook = cfg.get('default_hooks', {}).get('visualization')
        if not hook:
            raise ValueError(
                f'--show and --show-dir: {config} has no visualization hook. Add default_hooks='
                "dict(visualization=dict(type=...)) with the framework's own hook."
            )
        hook.update({host.draw_key: True, 'show': show, 'wait_time': wait_time})
        hook.update({host.show_dir_key: show_dir, 'interval': interval})
    if tta:
        _add_tta(cfg, host)
    if amp:
        check_amp()
        cfg.test_cfg.fp16 = True
    weights = read_checkpoint(checkpoint)
    cfg.load_from, cfg.resume = checkpoint, False
    check_data(cfg, ('test',))
    deployed = is_deployed_checkpoint(weights)
    # The runner would only log keys that do not fit, and evaluate random weights. On trial first,
    # while it has not made its folder.
    trial = build_model(cfg)
    load_weights(fold(trial) if deployed else trial, weights, checkpoint)
    del trial

    runner = _build_runner(cfg)
    if deployed:
        replace_model(runner, fold(runner.model))
    load_weights(runner.model, weights, checkpoint)
    if out and out_item != 'metrics':
        dump = dict(type=host.dump_metric, out_file_path=out)
        runner.test_evaluator.metrics.append(METRICS.build(dump))
    metrics = runner.test()
    if out and out_item == 'metrics' and is_main_process():
        _write(metrics, Path(out))
    return metrics


def _load_config(
    path: str, work_dir: str | None, options: dict[str, Any] | None, launcher: str
) -> tuple[Config, _Host]:
    check_launcher(launcher)
    cfg = read_config(path, options)
    scope = cfg.get('default_scope')
    if scope not in _HOSTS:
        raise ValueError(
            f'{path} has default_scope={scope!r}; these tools run configs of '
            f'{" and ".join(_HOSTS)}. Others are run by the scripts of their framework.'
        )
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get('work_dir') or os.path.join('work_dirs', Path(path).stem)
    return cfg, _HOSTS[scope]


def read_config(path: str, options: dict[str, Any] | None = None) -> Config:
    """Read a config file.

    Args:
        path: The file.
        options: Changes, by dotted names.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no config, none of a network, or names an environment variable that is
            set to nothing.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f'There is no config {os.path.abspath(path)}.')
    try:
        cfg = Config.fromfile(path)
    except Exception as error:
        # mmengine says that such a variable is not set.
        for name in re.findall(r'`(\w+)`', str(error)):
            if os.environ.get(name) == '':
                raise ValueError(
                    f'The environment variable {name}, which {path} reads, is empty: unset it, or '
                    'let it name a file or folder.'
                ) from error
        raise ValueError(
            f'{path} is not a valid config: {type(error).__name__}: {error}'
        ) from error
    cfg.merge_from_dict(options or {})
    if not cfg.get('model'):
        raise ValueError(f'{path} has no model: it is a part of a config, or of something else.')
    return cfg


def _set_loaders(cfg: Config, host: _Host, no_pin_memory: bool, no_persistent: bool) -> None:
    for split in ('train', 'val', 'test'):
        loader = cfg.get(f'{split}_dataloader')
        if not loader:
            continue
        for key, value in host.loader_defaults.items():
            loader.setdefault(key, value)
        if no_pin_memory:
            loader.pin_memory = False
        # PyTorch refuses persistent workers where there are no workers.
        if no_persistent or not loader.get('num_workers'):
            loader.persistent_workers = False


def _add_tta(cfg: Config, host: _Host) -> None:
    for _, dataset in iter_datasets(cfg.test_dataloader.dataset, ''):
        dataset.pipeline = cfg.get('tta_pipeline') or _flip_pipeline(dataset.pipeline)
    cfg.model = ConfigDict(**cfg.get('tta_model', host.tta_model), module=cfg.model)


def _flip_pipeline(pipeline: Sequence[dict]) -> list[dict]:
    *transforms, pack = pipeline
    # Configs list the meta keys that they need; the defaults of both frameworks include the flip.
    pack = {key: value for key, value in pack.items() if key != 'meta_keys'}
    flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
    return [*transforms, dict(type='TestTimeAug', transforms=[flips, [pack]])]


def _build_runner(cfg: Config) -> Runner:
    if cfg.launcher == 'pytorch' and get_device() == 'cpu':
        # mmengine's own launching and wrapping take a GPU for granted.
        if not is_distributed():
            torch.distributed.init_process_group('gloo')
        cfg.setdefault(
            'model_wrapper_cfg',
            dict(
                type='MMDistributedDataParallel',
                device_ids=None,
                broadcast_buffers=False,
                find_unused_parameters=cfg.get('find_unused_parameters', False),
            ),
        )
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def _write(metrics: dict[str, float], path: Path) -> None:
    with replacing(path) as temporary:
        mmengine.dump(metrics, temporary)
