"""The loss of a student that learns from labels and from a teacher."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgnv3.registry import MODELS
from mmgnv3.utils.arguments import is_real


@MODELS.register_module()
class KDLoss(nn.Module):
    r"""Cross entropy to the labels and divergence from the teacher.

    .. math::
        L = (1 - \alpha) \, CE(y, s) + \alpha \tau^2 \, KL(p_\tau(t) \,\|\, p_\tau(s)), \qquad
        p_\tau(z) = softmax(z / \tau)

    with the student's logits s, the teacher's t and the labels y, both terms averaged over the
    images of a batch (``batchmean``; an average over the classes as well would weaken the teacher
    by their number). The factor :math:`\tau^2` keeps the teacher's gradient at one scale for every
    temperature (Hinton et al., arXiv 1503.02531, section 2). The labels' term is not softened.

    Two settings are in use for GhostNetV3:

    - the paper's (arXiv 2404.11202), as it is recalled and to be checked, is the formula above.
      Its alpha and tau are not known; the defaults are this package's choice;
    - the public training script's: label-smoothed cross entropy plus soft cross entropy to the
      teacher, each with weight 1, is ``alpha=0.5, loss_weight=2.0, divergence='cross_entropy',
      label_smooth_val=0.1``.

    Args:
        alpha: Share of the teacher, between 0 (labels alone) and 1 (teacher alone).
        tau: Temperature, above 0, by which both networks' logits are divided.
        divergence: ``'kl'``, or ``'cross_entropy'``: it exceeds the former by the entropy of the
            teacher's answers, has the same gradient and does not go to 0.
        label_smooth_val: Share of the labels that is spread evenly over all classes, in [0, 1).
        loss_weight: Factor of both terms, above 0.

    Raises:
        ValueError: If an argument is no number, or lies outside its range.

    Examples:
        >>> import torch
        >>> loss = KDLoss(alpha=0.5, tau=2.0)
        >>> student, teacher, label = torch.randn(4, 10), torch.randn(4, 10), torch.arange(4)
        >>> sorted(loss(student, label, teacher))
        ['loss_cls', 'loss_kd']
    """

    def __init__(
        self,
        alpha: float = 0.5,
        tau: float = 1.0,
        divergence: str = 'kl',
        label_smooth_val: float = 0.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not (is_real(alpha) and 0 <= alpha <= 1):
            raise ValueError(
                f'alpha is the share of the teacher in the loss, from 0 to 1, got {alpha!r}.'
            )
        if not (is_real(tau) and tau > 0):
            raise ValueError(f'tau is a temperature: a number above 0, got {tau!r}.')
        if divergence not in ('kl', 'cross_entropy'):
            raise ValueError(f"divergence is 'kl' or 'cross_entropy', got {divergence!r}.")
        if not (is_real(label_smooth_val) and 0 <= label_smooth_val < 1):
            raise ValueError(
                'label_smooth_val is the share of the labels that is spread over all classes: a '
                f'number from 0, less than 1, got {label_smooth_val!r}.'
            )
        if not (is_real(loss_weight) and loss_weight > 0):
            raise ValueError(
                f'loss_weight is the factor of both terms: a number above 0, got {loss_weight!r}.'
            )
        self.alpha = alpha
        self.tau = tau
        self.divergence = divergence
        self.label_smooth_val = label_smooth_val
        self.loss_weight = loss_weight

    def forward(
        self,
        cls_score: Tensor,
        target: Tensor,
        teacher_score: Tensor,
        avg_factor: float | None = None,
    ) -> dict[str, Tensor]:
        """Compute both terms, weighted.

        Args:
            cls_score: The student's logits, shape (N, C).
            target: Labels: class indices of shape (N,), or shares of the classes of shape (N, C)
                as Mixup and CutMix make them.
            teacher_score: The teacher's logits, shape (N, C).
            avg_factor: What the sums over the batch are divided by. None: N.

        Returns:
            ``loss_cls`` and ``loss_kd``, two scalars whose sum is the loss. Both are computed in
            float32 at least, whatever autocast made of the logits.
        """
        cls_score, teacher_score = _float32(cls_score), _float32(teacher_score)
        count = cls_score.shape[0] if avg_factor is None else avg_factor
        if target.is_floating_point():
            target = target.to(cls_score.dtype)
        cls = F.cross_entropy(
            cls_score, target, reduction='sum', label_smoothing=self.label_smooth_val
        )
        student = F.log_softmax(cls_score / self.tau, dim=1)
        teacher = F.log_softmax(teacher_score / self.tau, dim=1)
        if self.divergence == 'kl':
            kd = F.kl_div(student, teacher, reduction='sum', log_target=True)
        else:
            kd = -(teacher.exp() * student).sum()
        weight = self.loss_weight / count
        return dict(
            loss_cls=weight * (1 - self.alpha) * cls,
            loss_kd=weight * self.alpha * self.tau**2 * kd,
        )

    @property
    def settings(self) -> dict[str, float | str]:
        """The arguments, by which a resumed run knows whether it has the same loss."""
        return dict(
            alpha=self.alpha,
            tau=self.tau,
            divergence=self.divergence,
            label_smooth_val=self.label_smooth_val,
            loss_weight=self.loss_weight,
        )

    def extra_repr(self) -> str:
        """Name the settings when the model is printed."""
        return ', '.join(f'{name}={value!r}' for name, value in self.settings.items())


def _float32(score: Tensor) -> Tensor:
    """Raise half precision to float32; float64 stays."""
    return score.to(torch.promote_types(score.dtype, torch.float32))
