"""Training curves from mmengine's log."""

import json
import os
from pathlib import Path

from matplotlib.figure import Figure

from .figure import save_figure

_LOSSES = {'loss': 'total', 'loss_cls': 'classification', 'loss_bbox': 'boxes'}
_METRICS = {'coco/bbox_mAP': 'mAP', 'coco/bbox_mAP_50': 'AP50', 'coco/bbox_mAP_75': 'AP75'}


def draw_curves(scalars: str | os.PathLike, path: str | os.PathLike, title: str = '') -> None:
    """Draw losses and box metrics of a run over its training steps.

    Args:
        scalars: The run's ``vis_data/scalars.json``, one JSON object a line.
        path: Picture to write; its suffix sets the format.
        title: Line above both panels.

    Raises:
        ValueError: If the file holds no losses.
    """
    steps: list[int] = []
    losses: dict[str, list[float]] = {key: [] for key in _LOSSES}
    metrics: dict[str, list[tuple[int, float]]] = {key: [] for key in _METRICS}
    for line in Path(scalars).read_text().splitlines():
        record = json.loads(line)
        if 'loss' in record:
            steps.append(record['step'])
            for key, values in losses.items():
                values.append(record.get(key, float('nan')))
        for key, points in metrics.items():
            if key in record:
                # A validation record counts epochs; its place is where training stood.
                points.append((steps[-1] if steps else 0, record[key]))
    if not steps:
        raise ValueError(f'{scalars} holds no training losses to draw')

    figure = Figure(figsize=(10, 4), dpi=120, layout='constrained')
    left, right = figure.subplots(1, 2)
    for key, label in _LOSSES.items():
        left.plot(steps, losses[key], label=label, linewidth=2 if key == 'loss' else 1.3)
    left.set(title='training loss', xlabel='step')
    left.set_ylim(bottom=0)
    for key, label in _METRICS.items():
        if points := metrics[key]:
            # The last value stands in the legend: beside the lines close ones would overlap.
            name = f'{label}  {points[-1][1]:.3f}'
            right.plot(*zip(*points, strict=True), marker='o', markersize=4, label=name)
    right.set(title='validation', xlabel='step', ylim=(0, 1))
    right.margins(x=0.12)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[['top', 'right']].set_visible(False)
        if axes.lines:
            axes.legend(frameon=False)
    figure.suptitle(title)
    save_figure(figure, path)
