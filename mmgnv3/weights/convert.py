"""Converting public weights to a state dict of mmpretrain's ImageClassifier."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmgnv3.models import GhostNetV3
from mmgnv3.utils.checkpoints import read_checkpoint
from mmgnv3.utils.files import replacing

from .mapping import rename

# Its output channels tell the width.
_LAST_CONV = 'blocks.9.0.conv.weight'
_HIDDEN = 'head.layers.0.fc.weight'
_FOLDED_UNIT = re.compile(r'backbone\.(.+\.(?:primary|cheap|downsample))\.conv\.bias')
# Under which files hold weights: first the names of the reference code and timm, then those of
# scripts that follow DeiT's.
_PLAIN_KEYS = ('state_dict', 'model')
_AVERAGED_KEYS = ('state_dict_ema', 'model_ema')
# Names in an error message: enough to see what kind of file it is.
_NUM_LISTED = 20


@dataclass(frozen=True)
class ConvertedWeights:
    """Weights of a classifier and what is known of them.

    Args:
        state_dict: Of mmpretrain's ImageClassifier: ``backbone.`` (GhostNetV3) and ``head.``
            (StackedLinearClsHead).
        source: Whose file it was.
        ema: Whether they are the averaged weights.
        deployed: Whether they are folded, so that they fit ``deploy=True`` only.
        widen_factor: Width multiplier.
        num_branches: Of the training form; None if folded.
        num_classes: Classes of the head.
        num_params: Parameters.
    """

    state_dict: dict[str, Tensor]
    source: str
    ema: bool
    deployed: bool
    widen_factor: float
    num_branches: int | None
    num_classes: int
    num_params: int

    def checkpoint(self) -> dict[str, Any]:
        """Put them into the form of a checkpoint, with plain metadata."""
        meta = dict(
            source=self.source,
            ema=self.ema,
            widen_factor=self.widen_factor,
            num_classes=self.num_classes,
        )
        if self.deployed:
            # By it tools/test.py knows that the network has to be folded first.
            meta['deployed'] = True
        return dict(meta=meta, state_dict=self.state_dict)


def convert_file(
    path: str | os.PathLike, out: str | os.PathLike, ema: bool | None = None
) -> ConvertedWeights:
    """Convert a file.

    Args:
        path: The file, see :func:`mmgnv3.weights.locate` for those that are elsewhere.
        out: File to write, which ``torch.load(weights_only=True)`` reads. It appears under its name
            when it is complete.
        ema: See :func:`convert_checkpoint`.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If its weights cannot be converted, or ``out`` is the file itself.
    """
    if os.path.exists(path) and os.path.exists(out) and os.path.samefile(path, out):
        raise ValueError(f'{out} is the file to convert. Give the converted one another name.')
    checkpoint = read_checkpoint(path)
    try:
        converted = convert_checkpoint(checkpoint, ema)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
    with replacing(out) as temporary:
        torch.save(converted.checkpoint(), temporary)
    return converted


def convert_checkpoint(checkpoint: Mapping[str, Any], ema: bool | None = None) -> ConvertedWeights:
    """Convert the content of a file of the reference code or of timm.

    Which of the two it is, the form (training or folded), width and number of branches are read
    from the keys and shapes. A folded file of either leaves batch norms outside the multi-branch
    units; they are folded here, since this package's deployed form has none.

    Args:
        checkpoint: A state dict, or a dict that holds plain weights (``state_dict`` or ``model``),
            averaged ones (``state_dict_ema`` or ``model_ema``) or both.
        ema: Whether to take the averaged weights. None takes them where there are any: of the one
            public file, third parties measured 77.13 % top-1 on ImageNet for them and 76.93 % for
            the others.

    Returns:
        The weights, in float32 on the CPU.

    Raises:
        ValueError: If the wanted weights are not there, they are no GhostNetV3, or a key is left
            over on either side.
    """
    foreign, is_ema = _choose(checkpoint, ema)
    if _LAST_CONV not in foreign:
        raise ValueError(
            'These are not the weights of a GhostNetV3 as the reference code or timm writes them. '
            f'They hold {_listed(foreign)}.'
        )
    source = _read_source(foreign)
    backbone = _build_like(foreign)
    names = rename(foreign, [len(stage) for stage in backbone.stages[:-1]])
    weights = {name: foreign[key] for key, name in names.items() if name}
    modules = dict(backbone.named_modules())
    matches = filter(None, map(_FOLDED_UNIT.fullmatch, weights))
    folded_units = [modules[match[1]] for match in matches if match[1] in modules]
    for unit in folded_units:
        unit.switch_to_deploy()

    shapes = {f'backbone.{name}': value.shape for name, value in backbone.state_dict().items()}
    _add_what_may_be_absent(weights, shapes, source)
    _flatten_head(weights)
    shapes |= _head_shapes(weights, backbone.out_channels[-1])
    left_over = [key for key, name in names.items() if name not in shapes]
    _check(weights, shapes, left_over)

    backbone.to_empty(device='cpu').load_state_dict(
        {
            name.removeprefix('backbone.'): value
            for name, value in weights.items()
            if name.startswith('backbone.')
        }
    )
    if folded_units:
        # Folds what the file left unfolded.
        backbone.switch_to_deploy()
    head = {name: value.float() for name, value in weights.items() if name.startswith('head.')}
    return ConvertedWeights(
        state_dict={f'backbone.{k}': v for k, v in backbone.state_dict().items()} | head,
        source=source,
        ema=is_ema,
        deployed=bool(folded_units),
        widen_factor=backbone.widen_factor,
        num_branches=None if folded_units else _num_branches(foreign),
        num_classes=len(head['head.layers.1.fc.bias']),
        num_params=sum(p.numel() for p in [*backbone.parameters(), *head.values()]),
    )


def _choose(checkpoint: Mapping[str, Any], ema: bool | None) -> tuple[dict[str, Tensor], bool]:
    """Take one set of weights, without the prefix that data-parallel training leaves."""
    # Scripts that do not average write None for the average.
    plain, averaged = (
        next((key for key in keys if checkpoint.get(key) is not None), None)
        for keys in (_PLAIN_KEYS, _AVERAGED_KEYS)
    )
    if ema and not averaged:
        raise ValueError(
            f'There are no averaged weights here ({" or ".join(_AVERAGED_KEYS)}), only plain ones.'
        )
    if ema is None:
        ema = averaged is not None
    if not ema and averaged and not plain:
        raise ValueError(f'There are averaged weights only here ({averaged}), no plain ones.')
    key = averaged if ema else plain
    weights = checkpoint[key] if key else checkpoint
    if not isinstance(weights, Mapping):
        raise ValueError(f'{key} is a {type(weights).__name__}, not a dict of weights.')
    odd = [name for name, value in weights.items() if not isinstance(value, Tensor)]
    if odd:
        raise ValueError(f'A state dict holds tensors alone, this one also {_listed(odd)}.')
    # thop, a counter of operations, leaves its totals in the modules.
    counts = ('total_ops', 'total_params')
    weights = {
        name.removeprefix('module.'): value
        for name, value in weights.items()
        if name.rpartition('.')[2] not in counts
    }
    return weights, ema


def _read_source(foreign: Iterable[str]) -> str:
    matches = filter(None, (re.search(r'_rpr_.*\.(bn1?)\.', key) for key in foreign))
    norms = {match[1] for match in matches}
    if len(norms) == 1:
        return {'bn': 'reference code', 'bn1': 'timm'}[norms.pop()]
    # Folded, both write the same.
    return 'reference code or timm'


def _num_branches(foreign: Iterable[str]) -> int:
    branches = filter(None, (re.search(r'_rpr_conv\.(\d+)\.', key) for key in foreign))
    return 1 + max((int(match[1]) for match in branches), default=0)


def _build_like(foreign: Mapping[str, Tensor]) -> GhostNetV3:
    """Build the backbone that the weights belong to, in training form, without memory."""
    width = foreign[_LAST_CONV].shape[0] / GhostNetV3.arch_settings['base']['last_channels']
    with torch.device('meta'):
        return GhostNetV3(
            # Two digits are what widths are named with; the shapes are compared later.
            widen_factor=max(round(width, 2), 0.01),
            num_branches=_num_branches(foreign),
            with_scale=any('_rpr_scale.' in key for key in foreign),
        )


def _add_what_may_be_absent(
    weights: dict[str, Tensor], shapes: Mapping[str, torch.Size], source: str
) -> None:
    for name, shape in shapes.items():
        if name in weights:
            continue
        unit, _, leaf = name.rpartition('.')
        if leaf == 'num_batches_tracked':
            weights[name] = torch.tensor(0)
        elif source == 'timm' and unit.endswith('.primary.identity'):
            # timm's network lacks this branch; a norm that multiplies by 0 is the same.
            weights[name] = torch.full(shape, float(leaf == 'running_var'))


def _flatten_head(weights: dict[str, Tensor]) -> None:
    """Turn the 1 x 1 convolution behind the pooling into the linear layer that it is."""
    weight = weights.get(_HIDDEN)
    if weight is not None and weight.shape[2:] == (1, 1):
        weights[_HIDDEN] = weight.flatten(1)


def _head_shapes(weights: Mapping[str, Tensor], in_channels: int) -> dict[str, torch.Size]:
    shapes = {}
    for layer in ('head.layers.0.fc', 'head.layers.1.fc'):
        bias = weights.get(f'{layer}.bias')
        out_channels = 0 if bias is None else len(bias)
        shapes[f'{layer}.weight'] = torch.Size([out_channels, in_channels])
        shapes[f'{layer}.bias'] = torch.Size([out_channels])
        in_channels = out_channels
    return shapes


def _check(
    weights: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], left_over: list[str]
) -> None:
    """Raise an error that lists what is left over on either side."""
    faults = []
    if left_over:
        faults.append(f'no place in this network for {_listed(left_over)}')
    missing = [name for name in shapes if name not in weights]
    if missing:
        faults.append(f'nothing for {_listed(missing)}')
    other = [
        f'{name} {tuple(weights[name].shape)} in place of {tuple(shape)}'
        for name, shape in shapes.items()
        if name in weights and weights[name].shape != shape
    ]
    if other:
        faults.append(f'another shape of {_listed(other)}')
    if faults:
        raise ValueError(f'The weights do not fit GhostNetV3: {"; ".join(faults)}.')


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f' and {len(names) - _NUM_LISTED} more' if len(names) > _NUM_LISTED else ''
    return ', '.join(names[:_NUM_LISTED]) + more
