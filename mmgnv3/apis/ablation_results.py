"""What an ablation on CIFAR-10 is of, and what came out of it."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Name of a cell: what stands for it in the names of the configs, and in a table.
CELLS = dict(
    branches=('', 'branches'),
    plain=('plain-', 'no branches'),
    kd=('kd-', 'branches, distillation'),
    mix=('mix-', 'branches, Mixup and CutMix'),
)
NETWORKS = ('ghostnetv3-small-1x0', 'ghostnetv3-small-2x8', 'ghostnetv3-1x0')
TEACHER = 'ghostnetv3-small-2x8'


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
        teacher: SHA-256 of the checkpoint that a distilled run had for its teacher.
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
    teacher: str | None = None


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
        lines.append(f'| {label(cell)} | {len(runs)} | {raw} | {averaged} |')
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


def read_result(path: Path, settings: Settings, teacher: str | None) -> Result | None:
    """Read what a finished run left.

    Args:
        path: Its file.
        settings: What the run must have been of.
        teacher: SHA-256 of the checkpoint that it must have been distilled from, None for none.

    Returns:
        The result; None if there is no such file.

    Raises:
        ValueError: If it is a result of something else.
    """
    if not path.is_file():
        return None
    result = Result(**json.loads(path.read_text()))
    if result.settings != json.loads(json.dumps(asdict(settings))):
        raise ValueError(
            f'{path} is of other settings ({result.settings}). Give these another --work-dir, or '
            'remove the folder.'
        )
    if result.teacher != teacher:
        raise ValueError(
            f"{path} is of a run whose teacher's checkpoint had the SHA-256 {result.teacher}, and "
            f'that of these runs {f"has {teacher}" if teacher else "is yet to be made"}. Name the '
            'same one by --teacher, or give these runs another --work-dir, or remove the file and '
            'the folder of its run.'
        )
    return result


def label(cell: str) -> str:
    """Name a cell, or the teacher, in a table."""
    return CELLS[cell][1] if cell in CELLS else f'teacher, {TEACHER}'


def _mean_and_deviation(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    return f'{mean:.2f}' + (f' ± {statistics.stdev(values):.2f}' if len(values) > 1 else '')
