"""What network a teacher is, and which images it takes."""

import copy
from typing import Any

from mmengine.config import Config
from mmengine.hub import get_config
from torch import nn

_ORDERS = ('RGB', 'BGR')


def channel_order(given: str | None, to_rgb: bool, network: str) -> str:
    """Find out in which order a network gets the channels of its images.

    mmpretrain's ``to_rgb`` says whether the order of the data is reversed, not what it was: files
    are read as BGR, while CIFAR-10 comes as RGB.

    Args:
        given: ``'RGB'``, ``'BGR'``, or None if nobody says: then it is RGB with ``to_rgb``.
        to_rgb: Of the network's preprocessor.
        network: What messages call it.

    Returns:
        ``'RGB'`` or ``'BGR'``.

    Raises:
        ValueError: If it is neither, or not known.
    """
    if given is None and to_rgb:
        return 'RGB'
    if given not in _ORDERS:
        raise ValueError(
            f"{network} has channel_order={given!r} where 'RGB' or 'BGR' is needed: the order in "
            'which it gets the channels, after its own preprocessing. Without to_rgb=True nothing '
            "else tells it. Data as mmpretrain's CIFAR10 are RGB, files are read as BGR; for grey "
            'images either will do.'
        )
    return given


def network_config(
    settings: dict[str, Any], num_classes: int, name: str | None
) -> tuple[dict[str, Any], str]:
    """Read the config of a teacher's network.

    Args:
        settings: The arguments of :class:`Teacher`.
        num_classes: Number of classes of the student.
        name: What messages call the teacher.

    Returns:
        The config, whose preprocessor normalises and leaves the channels as they come, and the
        order in which they have to come.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If it describes no classifier with the student's classes, or nothing says how
            it wants its images.
    """
    preprocessor = settings['data_preprocessor']
    if settings['timm']:
        preprocessor = _timm_preprocessor(settings['timm'], preprocessor)
        model = dict(type='TimmClassifier', model_name=settings['timm'], num_classes=num_classes)
    else:
        model, beside = settings['model'], None
        if settings['config']:
            config = settings['config']
            config = get_config(config) if '::' in config else Config.fromfile(config)
            model, beside = config.get('model'), config.get('data_preprocessor')
        if not isinstance(model, dict) or 'type' not in model:
            raise ValueError(
                f'The teacher {name} is no classifier: its model is to be a dict with a type, such '
                f"as dict(type='ImageClassifier', ...), got {model!r}."
            )
        model = copy.deepcopy(model)
        preprocessor = preprocessor or model.get('data_preprocessor') or beside
    if not preprocessor:
        raise ValueError(
            f'Nothing says how the teacher {name} wants its images. Give '
            'teacher.data_preprocessor=dict(mean=[...], std=[...], to_rgb=...).'
        )
    theirs = model.get('num_classes', (model.get('head') or {}).get('num_classes'))
    if theirs not in (None, num_classes):
        raise ValueError(
            f'The teacher {name} has {theirs} classes, the student {num_classes}. A teacher has '
            'the same classes in the same order.'
        )
    preprocessor = dict(copy.deepcopy(preprocessor))
    to_rgb = preprocessor.pop('to_rgb', False)
    order = channel_order(settings['channel_order'], to_rgb, f'The teacher {name}')
    # Batch augmentations have been applied when the images come to it.
    model.pop('train_cfg', None)
    model['data_preprocessor'] = preprocessor
    return model, order


def own_input_size(network: nn.Module, config: dict[str, Any]) -> Any:
    """Resolution that a network was made for.

    Args:
        network: A classifier of mmpretrain.
        config: Its config.

    Returns:
        A side, or height and width, in pixels; None where nothing tells it: most convolutional
        networks of mmpretrain take any.
    """
    backbone = getattr(network, 'backbone', None)
    # Of TimmClassifier and TIMMBackbone.
    timm = getattr(network, 'model', getattr(backbone, 'timm_model', None))
    if hasattr(timm, 'pretrained_cfg'):
        return timm.pretrained_cfg['input_size'][1:]
    # Not every transformer keeps it.
    return getattr(backbone, 'img_size', (config.get('backbone') or {}).get('img_size'))


def _timm_preprocessor(name: str, preprocessor: dict | None) -> dict[str, Any]:
    from timm.models import get_pretrained_cfg, is_model

    # Whether a hub has it is known when it is fetched.
    if not is_model(name) and not {':', '/'} & set(name):
        raise ValueError(
            f'timm has no model {name!r} for a teacher. timm.list_models() lists those it has.'
        )
    if preprocessor:
        return preprocessor
    config = get_pretrained_cfg(name)
    if config is None:
        raise ValueError(
            f'timm does not say how {name!r} wants its images. Give '
            'teacher.data_preprocessor=dict(mean=[...], std=[...], to_rgb=True).'
        )
    # timm's images are RGB with values from 0 to 1.
    scaled = {key: [255 * value for value in getattr(config, key)] for key in ('mean', 'std')}
    return dict(**scaled, to_rgb=True)
