"""Folding a trained checkpoint into its deployed form."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.nn import functional as F

from mmgnv3.reparam import (
    deployed_meta,
    fold_and_check,
    is_deployed_checkpoint,
    save_deployed,
)
from mmgnv3.utils.checkpoints import read_checkpoint
from mmgnv3.utils.parameters import count_params

from .checkpoint import load_weights
from .parts import build_model
from .run import read_config

# Large enough for SSD's last maps and the deepest map of anything that ends at stride 64.
_IMAGE_SIZE = 320


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
    config: str,
    checkpoint: str,
    out: str,
    *,
    which: str | None = None,
    cfg_options: dict[str, Any] | None = None,
) -> FoldReport:
    """Fold the network of a checkpoint and write its deployed form.

    Args:
        config: Config file of the classifier or detector.
        checkpoint: Checkpoint of its training form.
        out: File to write, see :func:`mmgnv3.reparam.save_deployed`. It holds the folded network
            and neither other weights nor an optimizer.
        which: Which weights of a run with an EMA hook: ``'ema'`` (the average) or ``'raw'``.
            None: what stands under ``state_dict``, which is the average where there is one.
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
    if is_deployed_checkpoint(weights):
        raise ValueError(f'{checkpoint} is folded already: tools/test.py takes it as it is.')
    if os.path.exists(out) and os.path.samefile(checkpoint, out):
        raise ValueError(f'{out} is the checkpoint itself. Give the folded one another name.')
    model = build_model(cfg)
    load_weights(model, weights, checkpoint, which)

    folded, difference = fold_and_check(model, *_sample_inputs())
    if difference is None:
        raise ValueError(f'{config} describes a network in which there is nothing to fold.')
    save_deployed(folded, out, deployed_meta(weights.get('meta', {})))
    return FoldReport(count_params(model), count_params(folded), difference)


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
