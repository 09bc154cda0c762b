"""Folding a trained checkpoint into its deployed form."""

import contextlib
import copy
import os
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.nn import functional as F

from mmgnv3.reparam import fold, is_deployed_checkpoint, part_differences, save_deployed

from .checkpoint import load_weights, read_checkpoint
from .run import read_config

# Rounding of float32 over the depth of a network; a wrong fold is off by far more.
TOLERANCE = 1e-4
# Large enough for SSD's last maps and the deepest map of anything that ends at stride 64.
_IMAGE_SIZE = 320
# Of the metadata of a checkpoint, what still holds for its deployed form.
_KEPT_META = ('dataset_meta', 'epoch', 'iter', 'cfg')


@dataclass(frozen=True)
class FoldReport:
    """What folding a checkpoint did.

    Args:
        num_params: Parameters of the training form.
        num_folded_params: Parameters of the deployed form.
        difference: Largest difference between outputs before and after, relative to their scale.
    """

    num_params: int
    num_folded_params: int
    difference: float


def fold_checkpoint(
    config: str, checkpoint: str, out: str, *, cfg_options: dict[str, Any] | None = None
) -> FoldReport:
    """Fold the network of a checkpoint and write its deployed form.

    Args:
        config: Config file of the classifier or detector.
        checkpoint: Checkpoint of its training form.
        out: File to write, see :func:`mmgnv3.reparam.save_deployed`.
        cfg_options: Changes of the config, by dotted names.

    Returns:
        The sizes, and how exact the folding is.

    Raises:
        FileNotFoundError: If the config or the checkpoint is missing.
        ValueError: If one of them is unusable, they do not belong together, the checkpoint is
            folded already or has nothing to fold, or ``out`` is the checkpoint.
        RuntimeError: If the folded network computes something else. Nothing is written then.
    """
    cfg = read_config(config, cfg_options)
    weights = read_checkpoint(checkpoint)
    if is_deployed_checkpoint(checkpoint):
        raise ValueError(f'{checkpoint} is folded already: tools/test.py takes it as it is.')
    if os.path.exists(out) and os.path.samefile(checkpoint, out):
        raise ValueError(f'{out} is the checkpoint itself. Give the folded one another name.')
    with MODELS.switch_scope_and_registry(cfg.get('default_scope', 'mmengine')) as registry:
        # Pretrained weights are read by init_weights(), which is not called.
        model = registry.build(cfg.model)
    load_weights(model, weights, checkpoint)

    folded = fold(model)
    images, samples = _sample_inputs()
    differences = part_differences(model, folded, images, samples)
    if differences and not max(differences.values()) <= TOLERANCE:
        # A network that has hardly been trained can magnify rounding that far; float64 decides.
        # Where an operator has no float64 kernels, the verdict of float32 stands.
        exact = copy.deepcopy(model).double()
        with contextlib.suppress(RuntimeError):
            differences = part_differences(exact, fold(exact), images.double(), samples)
    if not differences:
        raise ValueError(f'{config} describes a network in which there is nothing to fold.')
    part = max(differences, key=differences.__getitem__)
    if not differences[part] <= TOLERANCE:
        raise RuntimeError(
            f'Folding changes the outputs of {part} by {differences[part]:.1e} of their scale; '
            f'{TOLERANCE:.0e} is allowed. {out} was not written. Weights that are not finite or '
            'a norm variance near zero are the likely cause.'
        )
    meta = _plain({key: weights.get('meta', {}).get(key) for key in _KEPT_META})
    save_deployed(folded, out, meta)
    return FoldReport(_num_params(model), _num_params(folded), differences[part])


def _sample_inputs() -> tuple[Tensor, list[BaseDataElement]]:
    """What a detector's or classifier's ``forward`` takes in tensor mode."""
    generator = torch.Generator().manual_seed(0)
    # Smooth as photographs are: white noise drives a network that has hardly been trained so far
    # out of its range that rounding alone changes the unfolded one's float32 outputs by a third.
    images = F.interpolate(
        torch.randn(1, 3, 4, 4, generator=generator), size=_IMAGE_SIZE, mode='bicubic'
    )
    size = tuple(images.shape[-2:])
    sizes = dict.fromkeys(('img_shape', 'pad_shape', 'ori_shape', 'batch_input_shape'), size)
    return images, [BaseDataElement(metainfo=dict(sizes, scale_factor=(1.0, 1.0)))]


def _num_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _plain(values: dict) -> dict:
    """What ``torch.load(weights_only=True)`` reads without help, at any depth of dicts."""
    values = {key: _plain(v) if isinstance(v, dict) else v for key, v in values.items()}
    return {key: value for key, value in values.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    # The very types: NumPy's float64 is a float too.
    return type(value) in (str, int, float, bool)
