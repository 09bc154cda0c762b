"""Loading checkpoints into networks so that a wrong file is named before work is lost."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mmgnv3.utils.wrappers import unwrap_wholly


def load_weights(
    model: nn.Module, checkpoint: dict[str, Any], path: str, which: str | None = None
) -> None:
    """Load a checkpoint's weights, all of them and no others.

    Args:
        model: The network, possibly inside a data-parallel or test-time augmentation wrapper.
        checkpoint: As :func:`mmgnv3.utils.checkpoints.read_checkpoint` returns it.
        path: Where it came from, for the message.
        which: Which weights of a run with an EMA hook: ``'ema'`` (the average) or ``'raw'``. None:
            what stands under ``state_dict``, which is the average where there is one.

    Raises:
        ValueError: If the checkpoint belongs to another network, or has no weights to choose from.
    """
    model = unwrap_wholly(model)
    missing, unexpected = load_partly(model, weights_of(checkpoint, path, which), path)
    for names, fault in ((missing, 'lacks'), (unexpected, 'has weights that the network lacks:')):
        if names:
            raise ValueError(
                f'{path} does not fit the network of the config: it {fault} {names[0]} '
                f'{more(names)}. Give the config that the checkpoint was trained with.'
            )


def load_partly(
    model: nn.Module, weights: Mapping[str, Tensor], path: str
) -> tuple[list[str], list[str]]:
    """Load weights that may be too few or too many, but not of other shapes.

    Args:
        model: The network.
        weights: By the names of the network.
        path: Where they came from, for the message.

    Returns:
        Names that the network has and the weights lack, and the other way round.

    Raises:
        ValueError: If a shape differs, or the network refuses them.
    """
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        faults = [line.strip() for line in str(error).splitlines() if 'size mismatch' in line]
        cause = f'{faults[0]} {more(faults)}' if faults else str(error)
        raise ValueError(f'{path} does not fit the network of the config. {cause}') from error
    # Older checkpoints lack the counters, and nothing here depends on them.
    return [name for name in missing if not name.endswith('num_batches_tracked')], unexpected


def weights_of(
    checkpoint: dict[str, Any], path: str = '', which: str | None = None
) -> dict[str, Tensor]:
    """Take the weights out of a checkpoint, without the prefix that data-parallel training leaves.

    Args:
        checkpoint: As :func:`mmgnv3.utils.checkpoints.read_checkpoint` returns it.
        path: Where it came from, for the message.
        which: See :func:`load_weights`.

    Raises:
        ValueError: If there are no weights to choose from.
    """
    weights = _select_weights(checkpoint, which, path)
    return {name.removeprefix('module.'): value for name, value in weights.items()}


def more(names: Sequence[str]) -> str:
    """Say of how many names the first was given.

    Args:
        names: All of them, at least one.
    """
    return f'and {len(names) - 1} more' if len(names) > 1 else 'only'


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
