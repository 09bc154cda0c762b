"""What a detector sees, beside what is there."""

import os
from collections.abc import Sequence

import mmcv
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.structures import InstanceData
from torch import nn

from .figure import check_picture, save_figure

_TILE_INCHES = 3.2
_TRUTH = dict(
    edgecolor='white',
    linewidth=1.1,
    linestyle=(0, (3, 2)),
    # Without a dark rim white is lost on bright photographs.
    path_effects=[withStroke(linewidth=2.2, foreground='0.2')],
)


def draw_detections(
    model: nn.Module,
    dataset: BaseDataset,
    path: str | os.PathLike,
    num: int = 6,
    columns: int = 3,
    score_thr: float = 0.4,
) -> None:
    """Draw a grid of pictures with detections and annotations.

    The pictures are taken at even steps from the data set, so that the choice flatters nobody.
    Detections have solid boxes in their class's color with name and score, annotations have
    dashed white ones.

    Args:
        model: A detector of mmdet, on the device where it is to run.
        dataset: A detection data set in test mode, with class names in its metainfo.
        path: Picture to write; its suffix sets the format.
        num: Number of pictures.
        columns: Pictures in a row.
        score_thr: Detections below this score are left out.

    Raises:
        ValueError: If ``num`` or ``columns`` is below 1, the data set is empty or ``path`` names no
            picture.
    """
    check_picture(path)
    if num < 1 or columns < 1:
        raise ValueError(f'num and columns must be 1 or more, got {num} and {columns}')
    if not len(dataset):
        raise ValueError('The data set holds no pictures to draw')
    names = dataset.metainfo['classes']
    colors = _colors(dataset.metainfo.get('palette'), len(names))
    chosen = np.unique(np.linspace(0, len(dataset) - 1, num).round().astype(int))
    columns = min(columns, len(chosen))
    rows = -(-len(chosen) // columns)

    model.eval()
    figure = Figure(layout='constrained')
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)
    grid = figure.subplots(rows, columns, squeeze=False)
    aspect = 0.0
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, index in zip(grid.flat, chosen, strict=False):
        info = dataset.get_data_info(int(index))
        image = mmcv.imread(info['img_path'], channel_order='rgb')
        aspect = max(aspect, image.shape[0] / image.shape[1])
        axes.imshow(image, interpolation='bicubic')
        for instance in info['instances']:
            axes.add_patch(_box(instance['bbox'], fill=False, **_TRUTH))
        sample = model.test_step(pseudo_collate([dataset[int(index)]]))[0]
        found = sample.pred_instances.cpu()
        _draw_instances(axes, found[found.scores >= score_thr], names, colors)
    figure.set_size_inches(_TILE_INCHES * columns, _TILE_INCHES * aspect * rows + 0.3)
    figure.set_dpi(150)
    _draw_legend(figure, score_thr)
    save_figure(figure, path)


def _draw_instances(
    axes: Axes, found: InstanceData, names: Sequence[str], colors: Sequence[tuple]
) -> None:
    # The surest last, so that its name is on top.
    for i in found.scores.argsort().tolist():
        color, label = colors[found.labels[i]], names[found.labels[i]]
        box = found.bboxes[i].tolist()
        axes.add_patch(_box(box, fill=False, edgecolor=color, linewidth=1.8))
        axes.annotate(
            f'{label} {found.scores[i]:.2f}',
            (max(box[0], 0), max(box[1], 0)),
            (1, -1),
            textcoords='offset points',
            va='top',
            fontsize=6.5,
            color='white',
            bbox=dict(facecolor=color, edgecolor='none', pad=1, alpha=0.85),
        )


def _draw_legend(figure: Figure, score_thr: float) -> None:
    truth = Line2D([], [], color='0.25', linewidth=1.1, linestyle=_TRUTH['linestyle'])
    detection = Line2D([], [], color='tab:orange', linewidth=1.8)
    figure.legend(
        [truth, detection],
        ['annotation', f'detection, class and score (from {score_thr:g})'],
        loc='outside lower center',
        ncols=2,
        frameon=False,
        fontsize=8,
    )


def _box(corners: Sequence[float], **style) -> Rectangle:
    x1, y1, x2, y2 = corners
    return Rectangle((x1, y1), x2 - x1, y2 - y1, **style)


def _colors(palette: Sequence[tuple] | None, num: int) -> list[tuple]:
    if palette is not None and len(palette) == num:
        return [tuple(channel / 255 for channel in color) for color in palette]
    from matplotlib import colormaps

    return [colormaps['tab10'](i % 10) for i in range(num)]
