"""The network's classification head, for a student."""

from typing import Any

from mmpretrain.models import StackedLinearClsHead
from mmpretrain.structures import DataSample
from torch import Tensor

from mmgnv3.models.losses import KDLoss
from mmgnv3.registry import MODELS


@MODELS.register_module()
class KDClsHead(StackedLinearClsHead):
    """mmpretrain's ``StackedLinearClsHead`` whose loss hears the teacher as well.

    Layers, names of weights and predictions are the parent's; what it trains loads into the parent.

    Args:
        num_classes: Number of classes.
        in_channels: Channels of the features.
        mid_channels: Widths of the hidden layers, ``[1280]`` for GhostNetV3.
        loss: Config of a :class:`~mmgnv3.models.losses.KDLoss`, or one. None means
            ``dict(type='mmgnv3.KDLoss')``.
        **kwargs: The parent's further arguments, such as ``dropout_rate``.

    Raises:
        ValueError: If the loss is of another kind.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        mid_channels: list[int],
        loss: dict | KDLoss | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_classes,
            in_channels,
            mid_channels,
            loss=dict(type='mmgnv3.KDLoss') if loss is None else loss,
            **kwargs,
        )
        if not isinstance(self.loss_module, KDLoss):
            raise ValueError(
                f'The loss of KDClsHead is mmgnv3.KDLoss, got {type(self.loss_module).__name__}, '
                'which takes no teacher. A config that inherits another loss replaces it by '
                "loss=dict(_delete_=True, type='mmgnv3.KDLoss', ...)."
            )

    def loss(
        self,
        feats: tuple[Tensor, ...],
        data_samples: list[DataSample],
        teacher_score: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch.

        Args:
            feats: Features, of which the last is used, shape (N, in_channels).
            data_samples: N samples with labels, or with shares of classes.
            teacher_score: The teacher's logits, shape (N, num_classes).
            **kwargs: Further arguments of the loss.

        Returns:
            ``loss_cls`` and ``loss_kd``; accuracies too, if the head is to compute them.

        Raises:
            ValueError: If there are no logits of a teacher.
        """
        if teacher_score is None:
            raise ValueError(
                'KDClsHead trains under a teacher only. Put it into a model of type '
                'mmgnv3.KDClassifier, or take StackedLinearClsHead, which is the same without one.'
            )
        losses = super().loss(feats, data_samples, teacher_score=teacher_score, **kwargs)
        # The parent files what its loss returns under one name; here these are two losses.
        return {**losses.pop('loss'), **losses}
