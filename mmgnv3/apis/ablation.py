"""What branches, distillation, Mixup with CutMix and the moving average do on CIFAR-10."""

import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import DATASETS, DefaultScope

from mmgnv3.utils import replacing, write_json
from mmgnv3.utils.machine import describe_machine
from mmgnv3.visualization import draw_ablation

from .preflight import check_data
from .run import read_config, train

# Name of a cell: what stands for it in the names of the configs, and in a table.
CELLS = dict(
    branches=('', 'branches'),
    plain=('plain-', 'no branches'),
    kd=('kd-', 'branches, distillation'),
    mix=('mix-', 'branches, Mixup and CutMix'),
)
NETWORKS = ('ghostnetv3-small-1x0', 'ghostnetv3-small-2x8', 'ghostnetv3-1x0')
TEACHER = 'ghostnetv3-small-2x8'
_CONFIG = '{network}_1xb128-{variant}200e_cifar10.py'


@dataclass(frozen=True)
class Settings:
    """What all runs of an ablation have in common.

    Args:
        network: One of ``NETWORKS``.
        epochs: Length of a run, 2 or more; warm-up and cosine are scaled to it. None: the config's.
        num_train: Training images, an even selection of all classes. None: all.
        num_test: Test images, the same.
        cfg_options: Further changes of every run's config, by dotted names.
    """

    network: str = NETWORKS[0]
    epochs: int | None = None
    num_train: int | None = None
    num_test: int | None = None
    cfg_options: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise ValueError(f'Unknown network {self.network!r}; known: {", ".join(NETWORKS)}.')
        # One epoch of warm-up, one of cosine.
        for name, least in (('epochs', 2), ('num_train', 1), ('num_test', 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f'{name} must be {least} or more, got {value}.')


@dataclass
class Result:
    """One finished run.

    Attributes:
        cell: One of ``CELLS``, or ``'teacher'``.
        seed: Of weights, order and augmentation.
        top1: Accuracy in percent of the averaged weights after the last epoch.
        top1_raw: Accuracy in percent of the trained weights themselves.
        curve: (epoch, top1, top1_raw) after every validation.
        seconds: Duration of the run, from its last start on if it was interrupted.
        num_train: Training images.
        num_test: Test images.
        epochs: Length of the run.
        machine: Where it ran.
        settings: The :class:`Settings`.
    """

    cell: str
    seed: int
    top1: float
    top1_raw: float
    curve: list[tuple[int, float, float]]
    seconds: float
    num_train: int
    num_test: int
    epochs: int
    machine: str
    settings: dict[str, Any]


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
    is resumed.

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
            holds results of other settings.
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
    found = {run: _read_result(_result_path(work_dir, *run), settings) for run in runs}

    for index, (cell, seed) in enumerate(runs, start=1):
        if found[cell, seed]:
            continue
        print(f'[{index}/{len(runs)}] {cell}, seed {seed}', flush=True)
        network = TEACHER if cell == 'teacher' else settings.network
        variant = CELLS.get(cell, ('',))[0]
        config = config_dir / _CONFIG.format(network=network, variant=variant)
        options = {}
        if cell == 'kd':
            options['model.teacher.checkpoint'] = str(
                teacher or _last_checkpoint(_run_dir(work_dir, 'teacher', 0))
            )
        result = _run(config, work_dir, cell, seed, settings, options)
        write_json(asdict(result), _result_path(work_dir, cell, seed))
        found[cell, seed] = result

    results = list(found.values())
    table = format_table(results)
    with replacing(work_dir / 'table.md') as temporary:
        temporary.write_text(table)
    draw_ablation(
        {_label(cell): [r for r in results if r.cell == cell] for cell in dict(runs)},
        work_dir / 'ablation.png',
        title=describe(results[0]),
    )
    return table


def format_table(results: Sequence[Result]) -> str:
    """Write mean and standard deviation over seeds as a Markdown table, with what it is of.

    Args:
        results: Of one ablation, at least one.
    """
    lines = [
        f'| {describe(results[0])} | seeds | top-1 | top-1, EMA |',
        '| --- | ---: | ---: | ---: |',
    ]
    for cell in dict.fromkeys(result.cell for result in results):
        runs = [result for result in results if result.cell == cell]
        raw = _mean_and_deviation([result.top1_raw for result in runs])
        averaged = _mean_and_deviation([result.top1 for result in runs])
        lines.append(f'| {_label(cell)} | {len(runs)} | {raw} | {averaged} |')
    machines = '; '.join(dict.fromkeys(result.machine for result in results))
    minutes = sum(result.seconds for result in results) / 60
    return '\n'.join(
        [*lines, '', f'Mean ± standard deviation over the seeds, in percent; {minutes:.1f} min of '
         f'training on {machines}.', '']
    )  # fmt: skip


def describe(result: Result) -> str:
    """Say what the figures of a run are of, a part of CIFAR-10 being called that."""
    images = f'{result.num_train:,} training and {result.num_test:,} test images'
    if (result.num_train, result.num_test) != (50_000, 10_000):
        images = f'a subset, {images}'
    return f'CIFAR-10, {result.settings["network"]}, {images}, {result.epochs} epochs'


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
        total = _num_images(cfg[f'{split}_dataloader'].dataset)
        sizes[split] = wanted or total
        if sizes[split] > total:
            raise ValueError(f'{wanted:,} images are asked for, the {split} set has {total:,}.')
        if wanted:
            # Folders are read class by class: even steps take as many of each.
            indices = [index * total // wanted for index in range(wanted)]
            options[f'{split}_dataloader.dataset.indices'] = indices

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


def _num_images(dataset: dict) -> int:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return len(DATASETS.build({**dataset, 'pipeline': []}))


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


def _last_checkpoint(run_dir: Path) -> Path:
    return Path((run_dir / 'last_checkpoint').read_text().strip())


def _read_result(path: Path, settings: Settings) -> Result | None:
    if not path.is_file():
        return None
    result = Result(**json.loads(path.read_text()))
    if result.settings != json.loads(json.dumps(asdict(settings))):
        raise ValueError(
            f'{path} is of other settings ({result.settings}). Give these another --work-dir, or '
            'remove the folder.'
        )
    return result


def _label(cell: str) -> str:
    return CELLS[cell][1] if cell in CELLS else f'teacher, {TEACHER}'


def _mean_and_deviation(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    return f'{mean:.2f}' + (f' ± {statistics.stdev(values):.2f}' if len(values) > 1 else '')
