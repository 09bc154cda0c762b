"""A frozen network beside a model: where it comes from, when it is built, how it is asked."""

import copy
import os
from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.dist import broadcast
from mmengine.hub import get_config
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader
from mmpretrain.registry import MODELS
from torch import Tensor, nn


class Teacher:
    """A trained classifier that is asked for its logits.

    It is no ``nn.Module``, so that a model that has it as an attribute does not own its weights:
    they are in none of the model's parameters, state dicts, averages and data-parallel buckets.
    It is built when it is first needed. Deep copies share the network and leave it on its device;
    a pickle holds the arguments without the network, which the unpickled teacher builds anew.

    Args:
        num_classes: Number of classes of the student.
        config: Config of a mmpretrain classifier: a file, or the name of one that mmpretrain
            brings along, such as ``'mmpretrain::resnet/resnet101_8xb32_in1k.py'``.
        model: Instead of it, the config of the classifier itself, a dict.
        timm: Instead of both, the name of a timm model. It becomes mmpretrain's
            ``TimmClassifier`` (its ``TIMMBackbone`` has no head and therefore no logits).
        checkpoint: The teacher's weights: a file, a URL or what else mmengine's loader knows; for
            timm models ``.safetensors`` too.
        random_init: Instead of a checkpoint: the teacher shall have random weights. It teaches
            nothing, so this is for tests and for measuring speed.
        data_preprocessor: ``mean``, ``std`` and ``to_rgb`` of the teacher's input, like those of
            mmpretrain's ``ClsDataPreprocessor``. None: those of the teacher's config, or of the
            timm model; an inline ``model`` without any has to be given them here.
        input_size: Side, or height and width, in pixels, to which images are resized for it
            (bilinear, with antialiasing). None: as they are.

    Raises:
        ValueError: If the arguments do not name one teacher with one source of weights, or its
            config has another number of classes.
    """

    def __init__(
        self,
        num_classes: int,
        config: str | None = None,
        model: dict | None = None,
        timm: str | None = None,
        checkpoint: str | None = None,
        random_init: bool = False,
        data_preprocessor: dict | None = None,
        input_size: int | Sequence[int] | None = None,
    ) -> None:
        if sum(source is not None for source in (config, model, timm)) != 1:
            raise ValueError(
                'A teacher is named by one of config (a mmpretrain config), model (a dict) and '
                f'timm (a name), got config={config!r}, model={model!r}, timm={timm!r}.'
            )
        if config is not None and '::' in config and not config.startswith('mmpretrain::'):
            raise ValueError(f'A teacher is a classifier of mmpretrain, got config={config!r}.')
        kind = model and model.get('type')
        self.name = config or timm or getattr(kind, '__name__', kind)
        if bool(checkpoint) == bool(random_init):
            raise ValueError(
                f'The teacher {self.name} '
                + ('has both a checkpoint and random_init.' if checkpoint else 'has no weights.')
                + ' Give teacher.checkpoint, or teacher.random_init=True if a teacher with random '
                'weights, which teaches nothing, is meant.'
            )
        self.num_classes = num_classes
        self.checkpoint = checkpoint
        self.settings = dict(
            config=config,
            model=model,
            timm=timm,
            checkpoint=checkpoint,
            random_init=random_init,
            data_preprocessor=data_preprocessor,
            input_size=input_size,
        )
        self._input_size = _size(input_size)
        self._is_copy = False
        # Deep copies have the same list: whoever builds the network builds it for all.
        self._built: list[nn.Module] = []
        # Evaluation on a machine without the teacher's config is no fault; training is, see check.
        if config is None or '::' in config or os.path.isfile(config):
            self._check_num_classes()

    @classmethod
    def from_config(cls, teacher: dict, num_classes: int) -> 'Teacher':
        """Make a teacher from the dict in a config.

        Args:
            teacher: The arguments.
            num_classes: Number of classes of the student.

        Raises:
            ValueError: If it is no dict or has unknown keys; otherwise see the class.
        """
        known = [key for key in signature(cls).parameters if key != 'num_classes']
        if not isinstance(teacher, dict) or set(teacher) - set(known):
            raise ValueError(
                f'A teacher is a dict with keys among {", ".join(known)}, got {teacher!r}.'
            )
        return cls(num_classes, **teacher)

    def check(self) -> None:
        """Look whether what the teacher is made of is there, without building it.

        Raises:
            FileNotFoundError: If its config or its checkpoint is missing.
        """
        config, path = self.settings['config'], os.path.expanduser(self.checkpoint or '')
        if config and '::' not in config and not os.path.isfile(config):
            raise FileNotFoundError(f'There is no config {os.path.abspath(config)} of the teacher.')
        if path and '://' not in path and not os.path.isfile(path):
            raise FileNotFoundError(
                f'The checkpoint {os.path.abspath(path)} of the teacher {self.name} is missing. '
                'Put it there, or name another one: --cfg-options model.teacher.checkpoint=PATH. '
                'teacher.random_init=True, without a checkpoint, takes a teacher that knows '
                'nothing.'
            )

    def build(
        self, device: torch.device | str = 'cpu', dtype: torch.dtype = torch.float32
    ) -> nn.Module:
        """Build the network and load its weights; the second time, do nothing.

        Args:
            device: Where it shall be.
            dtype: Type of its weights.

        Returns:
            The frozen network in eval mode.

        Raises:
            FileNotFoundError: If its config or its checkpoint is missing.
            ValueError: If the checkpoint is corrupt or another network's.
        """
        if not self._built:
            self.check()
            # What the student draws afterwards shall not depend on having a teacher.
            with (
                torch.random.fork_rng(devices=[]),
                DefaultScope.overwrite_default_scope('mmpretrain'),
            ):
                network = MODELS.build(self._model_config())
                if self.checkpoint:
                    _load(network, self.checkpoint, self.name)
                else:
                    network.init_weights()
                    # A runner synchronises the student's random weights, and no others.
                    for value in network.state_dict().values():
                        broadcast(value)
            network.eval().requires_grad_(False)
            self._built.append(network.to(device, dtype))
        return self._built[0]

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the network, if it is built and this is no deep copy that shares it.

        Args:
            device: Where it shall be.
            dtype: Type of its weights.
        """
        if self._built and not self._is_copy:
            self._built[0].to(device, dtype)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Ask the teacher.

        Args:
            images: Pixels as the data set has them: its range of values, its channel order, shape
                (N, 3, H, W).

        Returns:
            Logits of shape (N, num_classes), on the teacher's device.

        Raises:
            ValueError: If the teacher returns anything else.
        """
        network = self.build()
        if self._input_size and tuple(images.shape[-2:]) != self._input_size:
            images = F.interpolate(
                images, self._input_size, mode='bilinear', align_corners=False, antialias=True
            )
        images = network.data_preprocessor(dict(inputs=images))['inputs']
        logits = network(images.to(next(network.parameters()).dtype))
        shape = getattr(logits, 'shape', None)
        if shape != (len(images), self.num_classes):
            raise ValueError(
                f'The teacher {self.name} answers {len(images)} images with '
                f'{type(logits).__name__} of shape {shape and tuple(shape)}, where the student has '
                f'{self.num_classes} classes. A teacher is a classifier with the same classes.'
            )
        return logits

    def _check_num_classes(self) -> None:
        if self.settings['timm']:
            return  # it is built with the student's number of classes
        model = self._model_config()
        num_classes = model.get('num_classes', (model.get('head') or {}).get('num_classes'))
        if num_classes not in (None, self.num_classes):
            raise ValueError(
                f'The teacher {self.name} has {num_classes} classes, the student '
                f'{self.num_classes}. A teacher has the same classes in the same order.'
            )

    def _model_config(self) -> dict[str, Any]:
        """Config of the network, its own preprocessor included."""
        settings = self.settings
        if settings['config']:
            config = settings['config']
            config = get_config(config) if '::' in config else Config.fromfile(config)
            model = copy.deepcopy(config.model)
            model.setdefault('data_preprocessor', config.get('data_preprocessor'))
        elif settings['model']:
            model = copy.deepcopy(settings['model'])
        else:
            model = dict(
                type='TimmClassifier', model_name=settings['timm'], num_classes=self.num_classes
            )
            model['data_preprocessor'] = settings['data_preprocessor'] or _timm_normalisation(
                settings['timm']
            )
        if settings['data_preprocessor']:
            model['data_preprocessor'] = copy.deepcopy(settings['data_preprocessor'])
        if not model.get('data_preprocessor'):
            raise ValueError(
                f'Nothing says how the teacher {self.name} wants its images. Give '
                'teacher.data_preprocessor=dict(mean=[...], std=[...], to_rgb=...).'
            )
        # Batch augmentations have been applied when the images come here.
        model.pop('train_cfg', None)
        return model

    def __deepcopy__(self, memo: dict[int, Any]) -> 'Teacher':
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__, _is_copy=True)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_built': [], '_is_copy': False}

    def __repr__(self) -> str:
        return f'Teacher({self.name}, checkpoint={self.checkpoint})'


def _size(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or any(not isinstance(side, int) or side < 1 for side in sides):
        raise ValueError(f'input_size is a side or (height, width) in pixels, got {size!r}.')
    return sides


def _timm_normalisation(name: str) -> dict[str, Any]:
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name)
    if config is None:
        raise ValueError(
            f'timm does not say how {name!r} wants its images, if it has such a model. Names are '
            'listed by timm.list_models(); the normalisation can be given as '
            'teacher.data_preprocessor=dict(mean=[...], std=[...], to_rgb=True).'
        )
    # timm's images are RGB with values from 0 to 1.
    scaled = {key: [255 * value for value in getattr(config, key)] for key in ('mean', 'std')}
    return dict(**scaled, to_rgb=True)


def _load(network: nn.Module, path: str, name: str) -> None:
    try:
        if path.endswith('.safetensors'):
            from safetensors.torch import load_file

            weights = load_file(path)
        else:
            weights = CheckpointLoader.load_checkpoint(path, map_location='cpu', logger='silent')
    except Exception as error:
        # What torch raises depends on the byte at which a file ends.
        raise ValueError(
            f'The checkpoint {path} of the teacher {name} cannot be read: it is no checkpoint, or '
            f'was cut off when it was written or copied ({type(error).__name__}: {error}).'
        ) from error
    for key in ('state_dict', 'model'):
        weights = weights.get(key, weights) if isinstance(weights, dict) else {}
    weights = {key.removeprefix('module.'): value for key, value in weights.items()}
    # Counters and index tables follow from the config, and not every version saves them.
    own = {k: v for k, v in network.state_dict().items() if not v.is_floating_point()}
    try:
        network.load_state_dict({**own, **weights})
    except RuntimeError as error:
        raise ValueError(
            f'The checkpoint {path} does not fit the teacher {name}, whose weights it is to hold. '
            f'{error}'
        ) from error
