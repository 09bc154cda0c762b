"""Runs of an experiment side by side."""

import os
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Protocol

from matplotlib import colormaps
from matplotlib.figure import Figure

from .figure import save_figure


class Run(Protocol):
    """What is drawn of a run: accuracies in percent, of averaged and of raw weights."""

    top1: float
    top1_raw: float
    curve: Sequence[tuple[int, float, float]]


def draw_ablation(
    groups: Mapping[str, Sequence[Run]], path: str | os.PathLike, title: str = ''
) -> None:
    """Draw the final accuracies of groups of runs, and their way there.

    On the left every run is a dot, filled for the averaged weights and hollow for the raw ones, and
    a line is the mean of its group. On the right are the means of the averaged weights over epochs.

    Args:
        groups: Runs by name; those of a group differ in their seed.
        path: Picture to write; its suffix sets the format.
        title: Line above both panels.
    """
    figure = Figure(figsize=(11, 4), dpi=120, layout='constrained')
    left, right = figure.subplots(1, 2)
    for place, (name, runs) in enumerate(groups.items()):
        color = colormaps['tab10'](place % 10)
        for offset, key, face in ((-0.13, 'top1_raw', 'none'), (0.13, 'top1', color)):
            values = [getattr(run, key) for run in runs]
            x = place + offset
            left.plot([x] * len(values), values, 'o', color=color, markerfacecolor=face)
            left.hlines(fmean(values), x - 0.11, x + 0.11, color=color, linewidth=2)
        epochs = [epoch for epoch, *_ in runs[0].curve]
        curves = zip(*(run.curve for run in runs), strict=True)
        means = [fmean(point[1] for point in points) for points in curves]
        right.plot(epochs, means, color=color, marker='o', markersize=4, label=name)
    left.set(title='after training: raw (hollow) and averaged weights', ylabel='top-1, %')
    left.set_xticks(range(len(groups)), [name.replace(', ', ',\n') for name in groups], fontsize=8)
    right.set(title='averaged weights, mean of the seeds', xlabel='epoch', ylabel='top-1, %')
    right.xaxis.get_major_locator().set_params(integer=True)
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)
