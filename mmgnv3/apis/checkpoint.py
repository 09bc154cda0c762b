"""Loading checkpoints into networks so that a wrong file is named before work is lost."""

from typing import Any

from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn


def load_weights(
    model: nn.Module, checkpoint: dict[str, Any], path: str, which: str | None = None
) -> None:
    """Load a checkpoint's weights, all of them and no others.

    Args:
        model: The network, possibly inside a data-parallel or test-time augmentation wrapper.
        checkpoint: As :func:`mmgnv3.utils.read_checkpoint` returns it.
        path: Where it came from, for the message.
        which: Which weights of a run with an EMA hook: ``'ema'`` (the average) or ``'raw'``. None:
            what stands under ``state_dict``, which is the average where there is one.

    Raises:
        ValueError: If the checkpoint belongs to another network, or has no weights to choose from.
    """
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    weights = _select_weights(checkpoint, which, path)
    weights = {name.removeprefix('module.'): value for name, value in weights.items()}
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        faults = [line.strip() for line in str(error).splitlines() if 'size mismatch' in line]
        cause = f'{faults[0]} {_more(faults)}' if faults else str(error)
        raise ValueError(f'{path} does not fit the network of the config. {cause}') from error
    # Older checkpoints lack the counters, and nothing here depends on them.
    missing = [name for name in missing if not name.endswith('num_batches_tracked')]
    for names, fault in ((missing, 'lacks'), (unexpected, 'holds, unknown to the network,')):
        if names:
            raise ValueError(
                f'{path} does not fit the network of the config: it {fault} {names[0]} '
                f'{_more(names)}. Give the config that the checkpoint was trained with.'
            )


def _select_weights(checkpoint: dict[str, Any], which: str | None, path: str) -> dict[str, Tensor]:
    if which is None:
        return checkpoint.get('state_dict', checkpoint)
    if 'ema_state_dict' not in checkpoint:
        raise ValueError(
            f'{path} holds one set of weights only, so that --{which} has nothing to choose from. '
            'Leave it out.'
        )
    # mmengine saves the average under state_dict, and the raw weights beside the number of updates.
    raw = checkpoint['ema_state_dict'].items()
    raw = {name: value for name, value in raw if name.startswith('module.')}
    return raw if which == 'raw' else checkpoint['state_dict']


def _more(names: list[str]) -> str:
    return f'and {len(names) - 1} more' if len(names) > 1 else 'only'
