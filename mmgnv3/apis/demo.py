"""The whole way of a detector: drawn data, training, evaluation, folding, pictures."""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.logging import MMLogger
from mmengine.runner import find_latest_checkpoint

from mmgnv3.datasets import ToyShapes
from mmgnv3.utils.files import replacing
from mmgnv3.visualization import draw_curves

from .deploy import fold_checkpoint
from .draw import draw_checkpoint
from .run import read_config, test, train

# mmdet rounds its metrics to three digits, so that equal ones may differ by one in the last.
_TOLERANCE = 0.0011


def run_demo(
    config: str,
    work_dir: str | os.PathLike,
    data: ToyShapes,
    *,
    epochs: int | None = None,
    seed: int = 0,
    cfg_options: dict[str, Any] | None = None,
) -> None:
    """Draw data, train a detector on them, fold it, evaluate both forms and draw pictures.

    Prints what it does and what was reached.

    Args:
        config: Config of a detector for the embedded data set.
        work_dir: Folder of everything that is written.
        data: The data set to draw.
        epochs: Passes over the training pictures. None: as many as the config says.
        seed: Of weights, order and augmentation.
        cfg_options: Changes of the config, by dotted names.

    Raises:
        RuntimeError: If the folded detector's mAP is not the trained one's.
    """
    start = time.monotonic()
    work_dir = Path(work_dir)
    run_dir = work_dir / 'run'
    trained, deployed = work_dir / 'retinanet.pth', work_dir / 'retinanet_deploy.pth'

    _say('1/4', f'drawing {data.num_train} + {data.num_val} pictures, to train and to validate')
    os.environ['TOYSHAPES_ROOT'] = str(data.write(work_dir / 'data'))
    options = {
        'runner_type': 'mmgnv3.ProgressRunner',
        'randomness.seed': seed,
        # Nobody resumes the demo; without the optimizer's state the file is a third as large.
        'default_hooks.checkpoint.save_optimizer': False,
        'default_hooks.checkpoint.save_param_scheduler': False,
    }
    if epochs is not None:
        options |= {'train_cfg.max_epochs': epochs, 'param_scheduler.1.T_max': epochs}
    options |= cfg_options or {}
    # The config's own messages come before there is a runner.
    MMLogger.get_instance('demo', log_level='WARNING')
    epochs = read_config(config, options).train_cfg.max_epochs

    def settings(name: str) -> dict[str, Any]:
        # mmengine tells the runs of one process apart by these names.
        names = {'experiment_name': f'demo_{name}', 'visualizer.name': f'demo_{name}'}
        return dict(work_dir=str(run_dir / name), cfg_options=options | names)

    with _prints_kept(run_dir / 'printed.log'):
        _say('2/4', f'training for {epochs} epochs, from random weights')
        training_start = time.monotonic()
        train(config, **settings('train'))
        training_time = time.monotonic() - training_start
        _copy(find_latest_checkpoint(str(run_dir / 'train')), trained)

        _say('3/4', 'evaluating the checkpoint, folding it, evaluating the folded one')
        before = test(config, str(trained), **settings('test'))
        folding = fold_checkpoint(config, str(trained), str(deployed), cfg_options=options)
        after = test(config, str(deployed), **settings('test_deploy'))
        difference = abs(_metric(before, 'mAP') - _metric(after, 'mAP'))
        if not difference <= _TOLERANCE:
            raise RuntimeError(
                f'Folding changed the mAP by {difference:.3f}, but both forms must compute the '
                f'same. Please report this with the logs below {run_dir}.'
            )

        _say('4/4', 'drawing curves and detections')
        scalars = max((run_dir / 'train').glob('*/vis_data/scalars.json'))
        draw_curves(scalars, work_dir / 'curves.png')
        draw_checkpoint(
            config, str(deployed), work_dir / 'detections.png', split='val', cfg_options=options
        )

    print(
        f'\nReached on {data.num_val} validation pictures, after {_minutes(training_time)} of '
        f'training, {_minutes(time.monotonic() - start)} in all:\n'
        f'  trained  {_summary(before, folding.num_params)}\n'
        f'  folded   {_summary(after, folding.num_folded_params)}\n'
        f'Written to {work_dir}:\n'
        f'  {trained.name:<21} the trained detector\n'
        f'  {deployed.name:<21} the same, folded: no batch norm, no branches\n'
        f'  {"curves.png":<21} losses and validation over time\n'
        f'  {"detections.png":<21} what the folded detector sees',
        flush=True,
    )


@contextlib.contextmanager
def _prints_kept(path: Path) -> Iterator[None]:
    """Keep in a file what libraries print: pycocotools tells of every annotation file it reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('a') as file, contextlib.redirect_stdout(file):
        yield


def _say(step: str, what: str) -> None:
    print(f'[{step}] {what}', file=sys.__stdout__, flush=True)


def _copy(source: str, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def _metric(metrics: dict[str, float], name: str) -> float:
    # There are no metrics at all where nothing was detected.
    return metrics.get(f'coco/bbox_{name}', 0.0)


def _summary(metrics: dict[str, float], num_params: int) -> str:
    mean, at_50 = _metric(metrics, 'mAP'), _metric(metrics, 'mAP_50')
    return f'mAP {mean:.3f}, AP50 {at_50:.3f}, {num_params:,} parameters'


def _minutes(seconds: float) -> str:
    return f'{int(seconds) // 60} min {int(seconds) % 60:02d} s'
