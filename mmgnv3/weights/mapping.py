"""How the reference code and timm call a weight, and how this package does.

Both write ``blocks.<stage>.<index>.`` where this package writes ``stages.<stage>.<index>.``, but
number their stages otherwise: a block's place in the order is what counts. Inside the branches the
reference code writes ``bn`` and timm ``bn1``; all else is the same.
"""

import re
from collections.abc import Iterable

_PAIR = ('conv', 'norm')

# Of a module's name outside the blocks.
_OUTER_NAMES = {
    'conv_stem': 'backbone.stem.0.branches.0.conv',
    'bn1': 'backbone.stem.0.branches.0.norm',
    'conv_head': 'head.layers.0.fc',
    'classifier': 'head.layers.1.fc',
}

# Of the last block, the 1 x 1 convolution.
_LAST_NAMES = {'conv': 'branches.0.conv', 'bn1': 'branches.0.norm'}

# Of a bottleneck: pattern of the foreign name and this package's.
_BOTTLENECK_NAMES = [
    (r'(ghost[12]\.primary|ghost[12]\.cheap)_rpr_conv\.(\d+)\.conv', r'\1.branches.\2.conv'),
    (r'(ghost[12]\.primary|ghost[12]\.cheap)_rpr_conv\.(\d+)\.bn1?', r'\1.branches.\2.norm'),
    (r'(ghost[12]\.cheap)_rpr_scale\.conv', r'\1.scale.conv'),
    (r'(ghost[12]\.cheap)_rpr_scale\.bn1?', r'\1.scale.norm'),
    (r'(ghost[12]\.primary|ghost[12]\.cheap)_rpr_skip', r'\1.identity'),
    (r'dw_rpr_conv\.(\d+)\.conv', r'downsample.branches.\1.conv'),
    (r'dw_rpr_conv\.(\d+)\.bn1?', r'downsample.branches.\1.norm'),
    (r'dw_rpr_scale\.conv', r'downsample.scale.conv'),
    (r'dw_rpr_scale\.bn1?', r'downsample.scale.norm'),
    (r'se\.conv_(reduce|expand)', r'se.\1'),
    # What the branches are folded into, there and here.
    (r'(ghost[12])\.primary_conv\.0', r'\1.primary.conv'),
    (r'(ghost[12])\.cheap_operation\.0', r'\1.cheap.conv'),
    (r'conv_dw', r'downsample.conv'),
    # They write convolution, norm, convolution, norm, ... flat; here every pair is one unit.
    *(
        (rf'(ghost[12])\.short_conv\.{i}', rf'\1.gate.convs.{i // 2}.branches.0.{_PAIR[i % 2]}')
        for i in range(6)
    ),
    *((rf'shortcut\.{i}', rf'shortcut.{i // 2}.branches.0.{_PAIR[i % 2]}') for i in range(4)),
]


def rename(keys: Iterable[str], blocks_per_stage: list[int]) -> dict[str, str | None]:
    """Find this package's names of foreign weights.

    Args:
        keys: Keys of the reference code's or timm's state dict, training form or folded.
        blocks_per_stage: Bottlenecks of this package's stages; the last 1 x 1 convolution, a stage
            of its own, is left out.

    Returns:
        Foreign key -> key of mmpretrain's ImageClassifier on :class:`mmgnv3.GhostNetV3` with a
        StackedLinearClsHead; None for a key that no rule knows.
    """
    keys = list(keys)
    found = filter(None, (re.match(r'blocks\.(\d+)\.(\d+)\.', key) for key in keys))
    foreign_places = sorted({(int(match[1]), int(match[2])) for match in found})
    counts = [*blocks_per_stage, 1]
    places = [(stage, i) for stage, count in enumerate(counts) for i in range(count)]
    # A file of another number of blocks leaves some without a place.
    place_of = dict(zip(foreign_places, places, strict=False))

    names = {}
    for key in keys:
        module, _, leaf = key.rpartition('.')
        name = _OUTER_NAMES.get(module)
        match = re.fullmatch(r'blocks\.(\d+)\.(\d+)\.(.+)', module)
        if match:
            place = place_of.get((int(match[1]), int(match[2])))
            inner = match[3]
            inner = _LAST_NAMES.get(inner) if place == places[-1] else _rename_inner(inner)
            name = place and inner and f'backbone.stages.{place[0]}.{place[1]}.{inner}'
        names[key] = f'{name}.{leaf}' if name else None
    return names


def _rename_inner(module: str) -> str | None:
    for pattern, replacement in _BOTTLENECK_NAMES:
        match = re.fullmatch(pattern, module)
        if match:
            return match.expand(replacement)
    return None
