"""Pictures of what the detector in a checkpoint sees."""

import os
from typing import Any

from mmengine.device import get_device
from mmengine.registry import DATASETS

from mmgnv3.reparam import fold, is_deployed_checkpoint
from mmgnv3.utils.checkpoints import read_checkpoint
from mmgnv3.visualization import draw_detections

from .checkpoint import load_weights
from .parts import build_model
from .preflight import check_data
from .run import read_config


def draw_checkpoint(
    config: str,
    checkpoint: str,
    out: str | os.PathLike,
    *,
    split: str = 'test',
    num: int = 6,
    columns: int = 3,
    score_thr: float = 0.4,
    cfg_options: dict[str, Any] | None = None,
) -> None:
    """Draw a grid of pictures with detections and annotations.

    Args:
        config: Config file that the checkpoint was trained with.
        checkpoint: Checkpoint of a detector of mmdet, in its training form or folded.
        out: Picture to write, see :func:`mmgnv3.visualization.draw_detections`.
        split: Whose pictures: ``'val'`` or ``'test'``.
        num: Number of pictures.
        columns: Pictures in a row.
        score_thr: Detections below this score are left out.
        cfg_options: Changes of the config, by dotted names.

    Raises:
        FileNotFoundError: If the config, the checkpoint or the data are missing.
        ValueError: If one of them is corrupt, they do not belong together, the config is none of a
            detector with such a split, or a number makes no picture.
    """
    cfg = read_config(config, cfg_options)
    scope = cfg.get('default_scope')
    if scope != 'mmdet':
        raise ValueError(
            f'{config} has default_scope={scope!r}, and only detectors of mmdet are drawn.'
        )
    if not cfg.get(f'{split}_dataloader'):
        raise ValueError(f'{config} has no {split}_dataloader: there is nothing to draw.')
    weights = read_checkpoint(checkpoint)
    check_data(cfg, (split,))
    model = build_model(cfg)
    if is_deployed_checkpoint(weights):
        model = fold(model)
    load_weights(model, weights, checkpoint)
    with DATASETS.switch_scope_and_registry(scope) as registry:
        dataset = registry.build(cfg[f'{split}_dataloader'].dataset)
    draw_detections(
        model.to(get_device()), dataset, out, num=num, columns=columns, score_thr=score_thr
    )
