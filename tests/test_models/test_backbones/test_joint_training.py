"""The whole network with joint branches against the same network branch by branch."""

import pytest
import torch
from torch import Tensor, nn

from mmgnv3.models import GhostNetV3
from mmgnv3.models.layers import MultiBranchConv2d, training_forms
from tests.utils import needs_compiled_ops, randomize_norms

# Every kind of unit in little: identity of the primary convolution (8 -> 8), 5 x 5 and 3 x 3 of
# stride 2, gates, squeeze-and-excitation.
ARCH = dict(
    stem_channels=8,
    rows=(
        (3, 16, 16, 0, 1),
        (3, 24, 12, 0, 2),
        (3, 32, 12, 0.25, 1),
        (5, 40, 20, 0.25, 2),
    ),
    last_channels=40,
)


@pytest.fixture(autouse=True, params=[pytest.param('fused', marks=needs_compiled_ops), 'depthwise'])
def depthwise_form(request, monkeypatch):
    """How depthwise units are computed, with compiled code or without; joint however small."""
    if request.param == 'depthwise':
        monkeypatch.setattr(training_forms, 'can_fuse', lambda *_: False)
    monkeypatch.setattr(training_forms, 'MIN_PIXELS', 2)
    monkeypatch.setattr(training_forms, 'MIN_DEPTHWISE_NUMBERS', 2)
    monkeypatch.setattr(training_forms, 'MIN_DEPTHWISE_NUMBERS_IN_EIGHTS', 2)
    return request.param


def make_pair(**kwargs) -> list[GhostNetV3]:
    pair = []
    for form in ('auto', 'plain'):
        torch.manual_seed(0)
        settings = dict(arch=ARCH, out_indices=(0, 1, 2, 3), training_form=form)
        pair.append(randomize_norms(GhostNetV3(**{**settings, **kwargs})).double().train())
    return pair


def test_pair_differs_in_its_forms(depthwise_form):
    forms = []
    for backbone in make_pair():
        chosen = set()
        for unit in (m for m in backbone.modules() if isinstance(m, MultiBranchConv2d)):
            x = torch.zeros(2, unit.in_channels, 9, 9, dtype=torch.float64)
            chosen |= {training_forms.choose_form(unit, x)}
        forms.append(chosen)
    # Units of one branch are plain in both.
    assert forms == [{'plain', 'moments', 'stacked', depthwise_form}, {'plain'}]


@pytest.mark.parametrize(
    ('kwargs', 'momenta'),
    [(dict(), {}), (dict(with_cp=True), {}), (dict(with_cp=True), {1: 0.3, 2: None})],
    ids=['plain', 'recomputed', 'recomputed, momenta differ'],
)
def test_step_equals_plain_step(kwargs, momenta):
    joint, plain = make_pair(**kwargs)
    for backbone in (joint, plain):
        for unit in (m for m in backbone.modules() if isinstance(m, MultiBranchConv2d)):
            for index, branch in enumerate(unit.branches):
                branch[-1].momentum = momenta.get(index, branch[-1].momentum)
    x = torch.randn(3, 3, 37, 41, dtype=torch.float64)
    outs = [backbone(x) for backbone in (joint, plain)]
    for ours, theirs in zip(*outs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for out in outs:
        sum(feature.square().mean() for feature in out).backward()
    scale = max(p.grad.abs().max() for p in plain.parameters())
    for (name, ours), theirs in zip(joint.named_parameters(), plain.parameters(), strict=True):
        limit = 1e-8 * scale.item()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=limit, msg=name)
    for (name, ours), theirs in zip(joint.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12, msg=name)


def train(backbone: GhostNetV3, steps: int, order: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Losses and final weights of a run on random patterns, its images in a given order."""
    torch.manual_seed(1)
    head = nn.Linear(40, 4).double()
    generator = torch.Generator().manual_seed(2)
    patterns = torch.randn(4, 3, 20, 20, generator=generator, dtype=torch.float64)
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=1e-4)
    losses = []
    for _ in range(steps):
        labels = torch.randint(4, (8,), generator=generator)
        noise = torch.randn(8, 3, 20, 20, generator=generator, dtype=torch.float64)
        images = patterns[labels] + 0.5 * noise
        logits = head(backbone(images[order])[-1].mean((2, 3)))
        loss = nn.functional.cross_entropy(logits, labels[order])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses), [p.detach() for p in backbone.parameters()]


@pytest.mark.slow
def test_two_hundred_steps_stay_with_the_plain_form():
    """Two runs drift apart by rounding, here no further than by another order of the images."""
    straight, shuffled = torch.arange(8), torch.arange(8).flip(0)
    joint, plain = make_pair(out_indices=(3,))
    _, reordered = make_pair(out_indices=(3,))
    losses, weights = train(joint, 200, straight)
    expected_losses, expected_weights = train(plain, 200, straight)
    other_losses, other_weights = train(reordered, 200, shuffled)
    assert expected_losses[-20:].mean() < 0.5 * expected_losses[:20].mean()

    def distance(a: list[Tensor], b: list[Tensor]) -> float:
        return max(((p - q).abs().max() / q.abs().max()).item() for p, q in zip(a, b, strict=True))

    drift = distance([other_losses], [expected_losses]), distance(other_weights, expected_weights)
    found = distance([losses], [expected_losses]), distance(weights, expected_weights)
    # The joint forms round at other places, too, hence the room.
    assert found[0] < max(1e-8, 1000 * drift[0]), (found, drift)
    assert found[1] < max(1e-7, 1000 * drift[1]), (found, drift)
    assert found[0] < 1e-4 and found[1] < 1e-3, (found, drift)
