import pytest
import torch
from torch import Tensor

from mmgnv3.models import KDLoss
from mmgnv3.registry import MODELS

PUBLIC = dict(alpha=0.5, loss_weight=2.0, divergence='cross_entropy', label_smooth_val=0.1)


def softmax(scores: Tensor) -> Tensor:
    powers = scores.exp()
    return powers / powers.sum(dim=1, keepdim=True)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Logits of both networks, labels, and the labels as Mixup makes them: 5 images, 7 classes."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)
    label = torch.tensor([3, 0, 6, 6, 2])
    one_hot = torch.eye(7, dtype=torch.float64)[label]
    return dict(
        student=student.requires_grad_(),
        teacher=teacher,
        label=label,
        one_hot=one_hot,
        mixed=0.7 * one_hot + 0.3 * one_hot.flip(0),
    )


@pytest.mark.parametrize('labels', ['label', 'mixed'])
@pytest.mark.parametrize(('alpha', 'tau'), [(0.0, 1.0), (0.3, 1.0), (0.5, 4.0), (1.0, 0.5)])
def test_equals_the_formula_and_its_gradient(batch, alpha, tau, labels):
    student, teacher, target = batch['student'], batch['teacher'], batch[labels]
    losses = KDLoss(alpha=alpha, tau=tau)(student, target, teacher)
    (gradient,) = torch.autograd.grad(sum(losses.values()), student)

    shares = batch['one_hot'] if labels == 'label' else target
    p, p_soft, t_soft = softmax(student), softmax(student / tau), softmax(teacher / tau)
    ce = -(shares * p.log()).sum() / 5
    kl = (t_soft * (t_soft / p_soft).log()).sum() / 5
    torch.testing.assert_close(losses['loss_cls'], (1 - alpha) * ce)
    torch.testing.assert_close(losses['loss_kd'], alpha * tau**2 * kl)
    expected = ((1 - alpha) * (p - shares) + alpha * tau * (p_soft - t_soft)) / 5
    torch.testing.assert_close(gradient, expected.detach())


@pytest.mark.parametrize('labels', ['label', 'mixed'])
def test_public_script_is_one_setting(batch, labels):
    student, teacher, target = batch['student'], batch['teacher'], batch[labels]
    losses = KDLoss(**PUBLIC)(student, target, teacher)
    shares = batch['one_hot'] if labels == 'label' else target
    log_p = softmax(student).log()
    smoothed = 0.9 * shares + 0.1 / 7
    torch.testing.assert_close(losses['loss_cls'], -(smoothed * log_p).sum() / 5)
    torch.testing.assert_close(losses['loss_kd'], -(softmax(teacher) * log_p).sum() / 5)


def test_both_divergences_have_one_gradient(batch):
    student, teacher, label = batch['student'], batch['teacher'], batch['label']
    gradients = []
    for divergence in ('kl', 'cross_entropy'):
        loss = KDLoss(tau=2.0, divergence=divergence)(student, label, teacher)['loss_kd']
        gradients += torch.autograd.grad(loss, student)
    torch.testing.assert_close(*gradients)


def test_a_student_that_equals_its_teacher_has_nothing_to_learn_from_it(batch):
    student = batch['student']
    loss = KDLoss(alpha=1.0, tau=3.0)(student, batch['label'], student.detach())['loss_kd']
    (gradient,) = torch.autograd.grad(loss, student)
    assert abs(loss.item()) < 1e-14
    assert gradient.abs().max() < 1e-14


def test_avg_factor_replaces_the_batch_size(batch):
    args = batch['student'], batch['label'], batch['teacher']
    losses = KDLoss()(*args)
    for key, value in KDLoss()(*args, avg_factor=20).items():
        torch.testing.assert_close(value, losses[key] / 4)


@pytest.mark.parametrize('options', [{}, PUBLIC], ids=['paper', 'public'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_logits_are_raised_before_the_softmax(batch, dtype, options):
    student, teacher = batch['student'].to(dtype), batch['teacher'].to(dtype)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = KDLoss(**options)(student, batch['mixed'].float(), teacher)
    exact = KDLoss(**options)(student.double(), batch['mixed'], teacher.double())
    for key, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), exact[key], rtol=1e-5, atol=0)


def test_extreme_logits_stay_finite():
    """A teacher that is sure of its answer gives the other classes a probability of 0."""
    student = torch.tensor([[-1e4, 1e4, 0.0]], requires_grad=True)
    losses = KDLoss(tau=0.5)(student, torch.tensor([0]), torch.tensor([[1e4, -1e4, 0.0]]))
    sum(losses.values()).backward()
    assert torch.stack(list(losses.values())).isfinite().all()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(alpha=-0.1), 'alpha'),
        (dict(alpha=1.1), 'alpha'),
        (dict(alpha=float('nan')), 'alpha'),
        (dict(tau=0), 'tau'),
        (dict(tau=-2.0), 'tau'),
        (dict(tau=float('nan')), 'tau'),
        (dict(tau=float('inf')), 'tau'),
        (dict(divergence='js'), 'divergence'),
        (dict(label_smooth_val=1.0), 'label_smooth_val'),
        (dict(label_smooth_val=-0.1), 'label_smooth_val'),
        (dict(loss_weight=-1), 'loss_weight'),
        (dict(loss_weight=0), 'loss_weight'),
        (dict(loss_weight=float('nan')), 'loss_weight'),
        (dict(alpha='0.5'), 'alpha'),
        (dict(tau='4'), 'tau'),
        (dict(label_smooth_val='0.1'), 'label_smooth_val'),
        (dict(loss_weight='2'), 'loss_weight'),
        (dict(alpha=True), 'alpha'),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=f'^{message} is'):
        MODELS.build(dict(type='mmgnv3.KDLoss', **options))
