"""What branches, distillation, Mixup with CutMix and the moving average do on CIFAR-10."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DATASETS, DefaultScope

from mmgnv3.utils.files import replacing, sha256, write_json
from mmgnv3.utils.machine import describe_machine
from mmgnv3.visualization import draw_ablation

from .ablation_results import (
    CELLS,
    TEACHER,
    Result,
    Settings,
    describe,
    format_table,
    label,
    read_result,
)
from .preflight import check_data
from .run import read_config, train

_CONFIG = '{network}_1xb128-{variant}200e_cifar10.py'


def run_ablation(
    config_dir: str | os.PathLike,
    work_dir: str | os.PathLike,
    settings: Settings,
    *,
    cells: Sequence[str] = tuple(CELLS),
    seeds: Sequence[int] = (0, 1, 2),
    teacher: str | None = None,
) -> str:
    """Train every cell with every seed, then write table, picture and figures.

    A finished run leaves ``results/<cell>-seed<n>.json`` and is not repeated; an interrupted one
    is resumed. A distilled run's result counts for the teacher's checkpoint that it had, and no
    other.

    Args:
        config_dir: Folder of the configs.
        work_dir: Folder of everything that is written.
        settings: What the runs have in common.
        cells: Names among ``CELLS``.
        seeds: One run of every cell for each.
        teacher: Checkpoint of the teacher for distillation. None: it is trained first, with the
            same settings and seed 0.

    Returns:
        The Markdown table, which is in ``table.md`` too, beside ``ablation.png``.

    Raises:
        FileNotFoundError: If data or the teacher are missing.
        ValueError: If a name is unknown, more images are asked for than there are, or ``work_dir``
            holds results of other settings or of another teacher.
    """
    unknown = sorted(set(cells) - set(CELLS))
    if unknown or not cells or not seeds:
        raise ValueError(
            f'Cells are among {", ".join(CELLS)}, at least one, with at least one seed; '
            f'got cells {list(cells)} and seeds {list(seeds)}.'
        )
    if teacher and not os.path.isfile(teacher):
        raise FileNotFoundError(f"There is no teacher's checkpoint {os.path.abspath(teacher)}.")
    config_dir, work_dir = Path(config_dir), Path(work_dir)
    runs = [(cell, seed) for seed in seeds for cell in cells]
    if 'kd' in cells and not teacher:
        runs.insert(0, ('teacher', 0))
    # Refused before anything is trained, not after hours of it.
    taught = dict(kd=_digest(teacher or _last_checkpoint(_run_dir(work_dir, 'teacher', 0))))
    found = {
        run: read_result(_result_path(work_dir, *run), settings, taught.get(run[0])) for run in runs
    }

    for index, (cell, seed) in enumerate(runs, start=1):
        if found[cell, seed]:
            continue
        print(f'[{index}/{len(runs)}] {cell}, seed {seed}', flush=True)
        network = TEACHER if cell == 'teacher' else settings.network
        variant = CELLS.get(cell, ('',))[0]
        config = config_dir / _CONFIG.format(network=network, variant=variant)
        options, digest = {}, None
        if cell == 'kd':
            checkpoint = teacher or _last_checkpoint(_run_dir(work_dir, 'teacher', 0))
            options['model.teacher.checkpoint'] = checkpoint
            digest = _digest(checkpoint)
        result = _run(config, work_dir, cell, seed, settings, options)
        result.teacher = digest
        write_json(asdict(result), _result_path(work_dir, cell, seed))
        found[cell, seed] = result

    results = list(found.values())
    table = format_table(results)
    with replacing(work_dir / 'table.md') as temporary:
        temporary.write_text(table)
    draw_ablation(
        {label(cell): [r for r in results if r.cell == cell] for cell in dict(runs)},
        work_dir / 'ablation.png',
        title=describe(results[0]),
    )
    return table


def _run(
    config: Path,
    work_dir: Path,
    cell: str,
    seed: int,
    settings: Settings,
    options: dict[str, Any],
) -> Result:
    options = {
        'runner_type': 'mmgnv3.ChannelsLastRunner',
        # mmengine tells the runs of one process apart by this name.
        'experiment_name': f'{cell}_seed{seed}_{time.time_ns()}',
        'randomness.seed': seed,
        'default_hooks.checkpoint.max_keep_ckpts': 1,
        'default_hooks.checkpoint.save_best': None,
        **options,
        **(settings.cfg_options or {}),
    }
    cfg = read_config(str(config), options)
    check_data(cfg, ('train', 'val'))
    epochs = settings.epochs or cfg.train_cfg.max_epochs
    options |= _schedule(cfg, epochs)
    sizes = {}
    for split, wanted in (('train', settings.num_train), ('val', settings.num_test)):
        labels = _read_labels(cfg[f'{split}_dataloader'].dataset)
        total = len(labels)
        sizes[split] = wanted or total
        if sizes[split] > total:
            raise ValueError(f'{wanted:,} images are asked for, the {split} set has {total:,}.')
        if wanted:
            options[f'{split}_dataloader.dataset.indices'] = _spread(labels, wanted)

    run_dir = _run_dir(work_dir, cell, seed)
    start = time.monotonic()
    train(
        str(config),
        work_dir=str(run_dir),
        resume='auto' if run_dir.exists() else None,
        no_pin_memory=get_device() == 'cpu',
        cfg_options=options,
    )
    curve = _read_curve(run_dir)
    _, top1, top1_raw = curve[-1]
    return Result(
        cell=cell,
        seed=seed,
        top1=top1,
        top1_raw=top1_raw,
        curve=curve,
        seconds=time.monotonic() - start,
        num_train=sizes['train'],
        num_test=sizes['val'],
        epochs=epochs,
        machine=describe_machine(get_device()),
        settings=asdict(settings),
    )


def _schedule(cfg: Config, epochs: int) -> dict[str, int]:
    warmup, cosine = cfg.param_scheduler
    warmup_epochs = max(1, round(warmup.end * epochs / cfg.train_cfg.max_epochs))
    assert (warmup.type, cosine.type) == ('LinearLR', 'CosineAnnealingLR')
    return {
        'train_cfg.max_epochs': epochs,
        'param_scheduler.0.end': warmup_epochs,
        'param_scheduler.1.begin': warmup_epochs,
        'param_scheduler.1.end': epochs,
        'param_scheduler.1.T_max': epochs - warmup_epochs,
    }


def _read_labels(dataset: dict) -> np.ndarray:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return DATASETS.build({**dataset, 'pipeline': []}).get_gt_labels()


def _spread(labels: np.ndarray, wanted: int) -> list[int]:
    """Choose images by even steps through the classes, which take as many of each."""
    steps = [index * len(labels) // wanted for index in range(wanted)]
    return np.argsort(labels, kind='stable')[steps].tolist()


def _read_curve(run_dir: Path) -> list[tuple[int, float, float]]:
    """Read the validations of a run, whose logs are as many as its starts."""
    points = {}
    for path in sorted(run_dir.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            if 'accuracy/top1_raw' in record:
                top1, raw = record['accuracy/top1'], record['accuracy/top1_raw']
                points[record['step']] = (record['step'], top1, raw)
    return [points[epoch] for epoch in sorted(points)]


def _result_path(work_dir: Path, cell: str, seed: int) -> Path:
    return work_dir / 'results' / f'{cell}-seed{seed}.json'


def _run_dir(work_dir: Path, cell: str, seed: int) -> Path:
    return work_dir / 'runs' / f'{cell}-seed{seed}'


def _last_checkpoint(run_dir: Path) -> str | None:
    pointer = run_dir / 'last_checkpoint'
    return pointer.read_text().strip() if pointer.is_file() else None


def _digest(checkpoint: str | None) -> str | None:
    return sha256(checkpoint) if checkpoint and os.path.isfile(checkpoint) else None
