"""Architecture tables: the rows of bottlenecks that a GhostNetV3 is built from."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmgnv3.utils.arguments import is_integer, is_real


class Row(NamedTuple):
    """One bottleneck of an architecture table, at width 1.0."""

    kernel_size: int
    hidden_channels: int
    out_channels: int
    se_ratio: float
    stride: int


def read_arch(arch: str | dict, known: Mapping[str, dict]) -> dict[str, Any]:
    """Read an architecture.

    Args:
        arch: Name of a known one, or a table: what it leaves out is as in ``'base'``.
        known: Tables by name.

    Returns:
        The whole table; its ``rows`` are :class:`Row`.

    Raises:
        ValueError: If the name is unknown, or the table makes no network.
    """
    base = known['base']
    if isinstance(arch, str):
        if arch not in known:
            raise ValueError(
                f'Unknown arch {arch!r}. Known are {", ".join(map(repr, known))}; '
                'a dict makes another one.'
            )
        arch = known[arch]
    elif not isinstance(arch, dict) or set(arch) - set(base):
        raise ValueError(
            f'An arch is a name or a dict with keys among {", ".join(base)}, got {arch!r}.'
        )
    table = {**base, **arch}
    for key in ('stem_channels', 'stem_stride', 'last_channels'):
        if not is_integer(table[key]) or table[key] < 1:
            raise ValueError(f'arch: {key} must be a positive integer, got {table[key]!r}.')
    if not _is_list(table['rows']) or not table['rows']:
        raise ValueError(
            f'arch: rows must list at least one block, ({", ".join(Row._fields)}), got '
            f'{table["rows"]!r}.'
        )
    table['rows'] = [_read_row(row) for row in table['rows']]
    return table


def _read_row(values: Any) -> Row:
    if not _is_list(values) or len(values) != len(Row._fields):
        raise ValueError(f'arch: a row is ({", ".join(Row._fields)}), got {values!r}.')
    row = Row(*values)
    sizes = (row.kernel_size, row.hidden_channels, row.out_channels, row.stride)
    if not all(is_integer(size) and size > 0 for size in sizes):
        raise ValueError(f'arch: sizes, channels and strides are positive integers, got {row}.')
    if not is_real(row.se_ratio) or row.se_ratio < 0:
        raise ValueError(f'arch: an SE ratio is a number, 0 for no SE, got {row}.')
    return row


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def split_into_stages(rows: Sequence[Row]) -> list[list[Row]]:
    """Begin a new stage with every block that is strided."""
    stages: list[list[Row]] = [[]]
    for row in rows:
        if row.stride > 1 and stages[-1]:
            stages.append([])
        stages[-1].append(row)
    return stages
