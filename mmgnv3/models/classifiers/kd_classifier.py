"""A classifier that learns from a teacher."""

from collections.abc import Callable
from typing import Any

import torch
from mmengine.logging import MessageHub
from mmpretrain.models import ClsDataPreprocessor, ImageClassifier
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mmgnv3.models.heads import KDClsHead
from mmgnv3.registry import MODELS
from mmgnv3.utils.distillation import DISTILLATION, check_distillation, describe_distillation

from .teacher import Teacher
from .teacher_config import channel_order


@MODELS.register_module()
class KDClassifier(ImageClassifier):
    """mmpretrain's ``ImageClassifier``, trained under a frozen teacher.

    The classifier is the student and nothing else: the teacher is beside it, not in it, so that
    optimizers, averages, data-parallel wrappers and checkpoints see an ordinary classifier, and a
    checkpoint loads into ``ImageClassifier`` with ``StackedLinearClsHead``. For each batch of
    training the teacher is asked once, for the images that the student sees, with all
    augmentations, Mixup and CutMix included. Evaluation neither needs nor builds it.

    The state of a run, in its checkpoints, says what it learns from: the teacher's network, the
    SHA-256 of its checkpoint, wherever either file lies, the form in which it gets the images, and
    the loss. A run that is resumed with another distillation ends at its first batch, unless
    :func:`mmgnv3.engine.resume.check_resume` has refused it before.

    Args:
        backbone: Config of the student's backbone.
        teacher: The arguments of :class:`Teacher`, ``num_classes`` left out.
        neck: Config of its neck.
        head: Config of its head, a ``mmgnv3.KDClsHead``.
        pretrained: Weights that the student starts from.
        train_cfg: Batch augmentations, see ``ImageClassifier``.
        data_preprocessor: Config of the student's preprocessor, a ``ClsDataPreprocessor``.
        init_cfg: Initialisation config.
        channel_order: ``'RGB'`` or ``'BGR'``: the order in which the student gets the channels,
            after its preprocessor; the teacher gets them in its own. It has to be said for
            training where ``to_rgb`` of the preprocessor is not set, since that leaves the order
            of the data: RGB for mmpretrain's CIFAR-10, BGR for files. None: RGB.

    Attributes:
        teacher (Teacher): The teacher. A deep copy of the classifier shares it.

    Raises:
        ValueError: If the head knows no teacher, the preprocessor is of another kind, or the
            teacher is described badly or has other classes.

    Examples:
        >>> from mmengine.registry import init_default_scope
        >>> init_default_scope('mmpretrain')
        >>> model = KDClassifier(
        ...     backbone=dict(type='mmgnv3.GhostNetV3'),
        ...     neck=dict(type='GlobalAveragePooling'),
        ...     head=dict(
        ...         type='mmgnv3.KDClsHead', num_classes=1000, in_channels=960,
        ...         mid_channels=[1280], loss=dict(type='mmgnv3.KDLoss', alpha=0.5, tau=1.0)),
        ...     teacher=dict(
        ...         config='mmpretrain::resnet/resnet101_8xb32_in1k.py',
        ...         checkpoint='checkpoints/resnet101.pth'))
    """

    def __init__(
        self,
        backbone: dict,
        teacher: dict,
        neck: dict | None = None,
        head: dict | None = None,
        pretrained: str | None = None,
        train_cfg: dict | None = None,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | list[dict] | None = None,
        channel_order: str | None = None,
    ) -> None:
        super().__init__(
            backbone=backbone,
            neck=neck,
            head=head,
            pretrained=pretrained,
            train_cfg=train_cfg,
            data_preprocessor=data_preprocessor,
            init_cfg=init_cfg,
        )
        if not isinstance(self.head, KDClsHead):
            raise ValueError(
                f'The head of KDClassifier is mmgnv3.KDClsHead, got {type(self.head).__name__}, '
                'which takes no teacher.'
            )
        if not isinstance(self.data_preprocessor, ClsDataPreprocessor):
            raise ValueError(
                'KDClassifier gives the teacher the images of the batch in its own normalisation, '
                'for which the data_preprocessor has to be a ClsDataPreprocessor, got '
                f'{type(self.data_preprocessor).__name__}.'
            )
        self.teacher = Teacher.from_config(teacher, self.head.num_classes)
        self.channel_order = channel_order
        self._unchecked: dict[str, Any] | None = None

    def init_weights(self) -> None:
        """Initialise the student and build the teacher.

        A runner calls this when training starts, before the first batch, also when it resumes.

        Raises:
            FileNotFoundError, ValueError: See :meth:`check_teacher`.
            ValueError: If the teacher's checkpoint is corrupt or another network's.
        """
        self.check_teacher()
        super().init_weights()
        self._build_teacher()
        # A run that is resumed replaces this by what stands in its checkpoint.
        self._unchecked = describe_distillation(self)
        MessageHub.get_current_instance().update_info(DISTILLATION, self._unchecked)

    def check_teacher(self) -> None:
        """Look whether the teacher can be built and asked, without building it.

        Raises:
            FileNotFoundError: If its config or checkpoint is missing.
            ValueError: If its config or name is none of a teacher, or nothing says in which order
                the student gets the channels.
        """
        self._channel_order()
        self.teacher.check()

    def loss(self, inputs: Tensor, data_samples: list[DataSample]) -> dict[str, Tensor]:
        """Compute the student's losses.

        Args:
            inputs: Images as the student's preprocessor made them, shape (N, 3, H, W).
            data_samples: N samples with labels, or with shares of classes.

        Returns:
            ``loss_cls`` and ``loss_kd``, see :class:`~mmgnv3.models.losses.KDLoss`.

        Raises:
            ValueError: If the run was resumed with another distillation.
        """
        self._check_resumed()
        # The teacher first: its activations are gone before the student's are kept.
        self._build_teacher()
        images = self._undo_normalisation(inputs)
        teacher_score = self.teacher(images, self._channel_order()).to(inputs.device)
        return self.head.loss(self.extract_feat(inputs), data_samples, teacher_score=teacher_score)

    def describe_distillation(self) -> dict[str, Any]:
        """Say what the student learns from: the teacher, the images, and the loss.

        A resumed run must have the same. Classes and other objects stand in it as they are in the
        config.
        """
        return dict(
            teacher=self.teacher.describe(),
            channel_order=self._channel_order(),
            loss=self.head.loss_module.settings,
        )

    def _check_resumed(self) -> None:
        own, self._unchecked = self._unchecked, None
        if own is not None:
            check_distillation(MessageHub.get_current_instance().get_info(DISTILLATION, own), own)

    def _channel_order(self) -> str:
        return channel_order(
            self.channel_order, self.data_preprocessor.to_rgb, 'The student, a KDClassifier,'
        )

    def _build_teacher(self) -> None:
        weight = next(self.parameters())
        self.teacher.build(weight.device, weight.dtype)

    @torch.no_grad()
    def _undo_normalisation(self, inputs: Tensor) -> Tensor:
        """Bring a batch back to the pixel values of the data set.

        Mixup and CutMix act after normalisation. They weigh pixels with weights that sum to one,
        so they are kept when a map of single pixels is undone.
        """
        preprocessor = self.data_preprocessor
        if preprocessor._enable_normalize:
            inputs = inputs * preprocessor.std + preprocessor.mean
        return inputs

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> 'KDClassifier':
        super()._apply(fn, recurse)
        weight = next(self.parameters())
        self.teacher.to(weight.device, weight.dtype)
        return self
