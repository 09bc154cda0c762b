"""A frozen network beside a model: where it comes from, when it is built, how it is asked."""

import copy
import os
from collections.abc import Sequence
from functools import cached_property
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import broadcast
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from mmgnv3.utils.arguments import is_integer
from mmgnv3.utils.checkpoints import read_checkpoint
from mmgnv3.utils.files import sha256

from .teacher_config import network_config, own_input_size


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
        checkpoint: The teacher's weights: what
            :func:`mmgnv3.utils.checkpoints.read_checkpoint` takes, a file of torch's or of
            safetensors, a URL or what else mmengine's loader knows.
        random_init: Instead of a checkpoint: the teacher shall have random weights. It teaches
            nothing, so this is for tests and for measuring speed.
        data_preprocessor: ``mean``, ``std`` and ``to_rgb`` of the teacher's input, like those of
            mmpretrain's ``ClsDataPreprocessor``. None: those of the teacher's config, or of the
            timm model; an inline ``model`` without any has to be given them here.
        channel_order: ``'RGB'`` or ``'BGR'``: the order in which the network gets the channels,
            after its own preprocessing. It has to be said where ``to_rgb`` is not set, since that
            leaves the order of what the teacher was trained on: RGB for mmpretrain's CIFAR-10, BGR
            for files. None: RGB.
        input_size: Side, or height and width, in pixels, to which images are resized for it
            (bilinear, with antialiasing), or ``'as_is'``: they stay as the student sees them. None:
            the resolution that it was made for where that is known, from timm or as ``img_size``
            of a transformer of mmpretrain; other teachers see them as they are.

    Raises:
        ValueError: If the arguments do not name one teacher with one source of weights, or its
            config is no classifier's, has another number of classes, or leaves open which images
            the teacher takes.
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
        channel_order: str | None = None,
        input_size: int | Sequence[int] | str | None = None,
    ) -> None:
        if sum(source is not None for source in (config, model, timm)) != 1:
            raise ValueError(
                'A teacher is named by one of config (a mmpretrain config), model (a dict) and '
                f'timm (a name), got config={config!r}, model={model!r}, timm={timm!r}.'
            )
        if config is not None and '::' in config and not config.startswith('mmpretrain::'):
            raise ValueError(f'A teacher is a classifier of mmpretrain, got config={config!r}.')
        kind = model.get('type') if isinstance(model, dict) else None
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
            channel_order=channel_order,
            input_size=input_size,
        )
        self._input_size = None if input_size == 'as_is' else _size(input_size)
        self._is_copy = False
        # Deep copies have the same list: whoever builds the network builds it for all.
        self._built: list[nn.Module] = []
        # Evaluation without the teacher's config or timm is no fault; training is, see check.
        if not timm and (config is None or '::' in config or os.path.isfile(config)):
            _ = self._network_config

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
            ValueError: If its config or name is none of a teacher.
        """
        config, path = self.settings['config'], os.path.expanduser(self.checkpoint or '')
        if config and '::' not in config and not os.path.isfile(config):
            raise FileNotFoundError(f'There is no config {os.path.abspath(config)} of the teacher.')
        _ = self._network_config
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
                config, _ = self._network_config
                # mmpretrain fills in defaults in place.
                network = MODELS.build(copy.deepcopy(config))
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
    def __call__(self, images: Tensor, order: str) -> Tensor:
        """Ask the teacher.

        Args:
            images: Pixels in the range of values that data sets have, shape (N, 3, H, W).
            order: In which their channels are, ``'RGB'`` or ``'BGR'``.

        Returns:
            Logits of shape (N, num_classes), on the teacher's device.

        Raises:
            ValueError: If the teacher returns anything else.
        """
        network = self.build()
        config, own_order = self._network_config
        if order != own_order and images.shape[1] == 3:
            images = images.flip(1)
        size = self._input_size
        if self.settings['input_size'] is None:
            size = _size(own_input_size(network, config))
        if size and tuple(images.shape[-2:]) != size:
            images = F.interpolate(
                images, size, mode='bilinear', align_corners=False, antialias=True
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

    def describe(self) -> dict[str, Any]:
        """Say what the teacher is, wherever its files lie.

        Returns:
            The config of its network, the SHA-256 of its checkpoint in place of a path, and what
            it does with images.
        """
        config, order = self._network_config
        checkpoint = self.checkpoint
        path = os.path.expanduser(checkpoint or '')
        if os.path.isfile(path):
            checkpoint = f'SHA-256 {sha256(path)}'
        input_size = self.settings['input_size']
        return dict(model=config, checkpoint=checkpoint, channel_order=order, input_size=input_size)

    @cached_property
    def _network_config(self) -> tuple[dict[str, Any], str]:
        return network_config(self.settings, self.num_classes, self.name)

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
    sides = tuple(size) if isinstance(size, Sequence) else (size,) * 2
    if len(sides) != 2 or any(not is_integer(side) or side < 1 for side in sides):
        raise ValueError(
            f"input_size is a side or (height, width) in pixels, or 'as_is', got {size!r}."
        )
    return sides


def _load(network: nn.Module, path: str, name: str) -> None:
    weights = read_checkpoint(path, f'The checkpoint {path} of the teacher {name}')
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
