"""Tables, pictures and files of what was measured."""

import os
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from mmgnv3.visualization.figure import save_figure


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table, the first column to the left and the others to the right."""
    lines = [header, ('---', *['---:'] * (len(header) - 1)), *rows]
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)


def format_number(value: float | None, unit: str = '', digits: int = 1) -> str:
    """Write a number with its unit, '-' for one that was not measured."""
    return '-' if value is None else f'{value:.{digits}f}{unit and " " + unit}'


def draw_bars(
    columns: Mapping[str, Mapping[str, float | None]],
    path: str | os.PathLike,
    label: str,
    title: str,
) -> None:
    """Draw a bar for every network and column.

    Args:
        columns: Values by network, None for a missing bar, by the name of the column; the networks
            of all columns are the same.
        path: Picture to write.
        label: What the values are, with their unit.
        title: Line above the picture.
    """
    height, names = 0.8 / len(columns), list(next(iter(columns.values())))
    figure = Figure(figsize=(9, 1 + 0.5 * len(names)), dpi=120, layout='constrained')
    axes = figure.subplots()
    for index, (column, found) in enumerate(columns.items()):
        values = [found[name] for name in names]
        places = [place + (index - (len(columns) - 1) / 2) * height for place in range(len(names))]
        bars = axes.barh(places, [value or 0 for value in values], height, label=column)
        axes.bar_label(bars, [format_number(value, digits=0) for value in values], padding=3)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel(label)
    axes.set_title(title, fontsize='small')
    axes.spines[['top', 'right']].set_visible(False)
    if len(columns) > 1:
        axes.legend(frameon=False)
    save_figure(figure, path)
