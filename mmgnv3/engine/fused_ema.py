"""The exponential moving average of a network, all tensors at once."""

import weakref
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.model import ExponentialMovingAverage
from torch import Tensor, nn

# A dict of a module's tensors, and the name of one of them.
_Place = tuple[dict[str, Tensor | None], str]


class FusedEMA(ExponentialMovingAverage):
    r"""Exponential moving average of parameters and buffers, updated by a few fused operations.

    With :math:`t` updates done before, the next one is

    .. math::

        \bar x_{t+1} = (1 - m_t) \bar x_t + m_t x, \qquad m_t = \max(m, \gamma / (\gamma + t))

    and the first one copies. Buffers of floating point, such as running statistics of norms, are
    averaged as parameters are; others, such as counters, are copied.

    Args:
        model: The network; it is copied.
        momentum: :math:`m`, between 0 and 1: one minus what is called the decay elsewhere.
        gamma: :math:`\gamma`, warm-up of the momentum in updates, as in mmengine's
            ``MomentumAnnealingEMA``; 0 means none.
        interval: Every how many calls of :meth:`update_parameters` the average moves.
    """

    def __init__(
        self, model: nn.Module, momentum: float = 1e-4, gamma: int = 0, interval: int = 1
    ) -> None:
        super().__init__(model, momentum=momentum, interval=interval, update_buffers=True)
        self.gamma = gamma
        self._pairs: tuple[weakref.ref, list[list[tuple[_Place, _Place]]]] | None = None

    @property
    def current_momentum(self) -> float:
        """Weight of the network's own values in the next update, 1 in the first."""
        steps = self.steps.item()
        if steps == 0:
            return 1.0
        return max(self.momentum, self.gamma / (self.gamma + steps))

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards a network of the same structure.

        Args:
            model: The network that is trained.
        """
        momentum = self.current_momentum
        if momentum == 1:
            self.copy_from(model)
        elif self.steps % self.interval == 0:
            for averages, values in self._groups(model):
                if averages[0].is_floating_point():
                    torch._foreach_lerp_(averages, values, momentum)
                else:
                    torch._foreach_copy_(averages, values)
        self.steps += 1

    @torch.no_grad()
    def copy_from(self, model: nn.Module) -> None:
        """Make the average equal to a network, without counting it as an update."""
        for averages, values in self._groups(model):
            torch._foreach_copy_(averages, values)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the values of the average and of a network, in place."""
        for averages, values in self._groups(model):
            kept = [average.clone() for average in averages]
            torch._foreach_copy_(averages, values)
            torch._foreach_copy_(values, kept)

    def __getstate__(self) -> dict[str, Any]:
        # A copy has tensors of its own.
        return {**self.__dict__, '_pairs': None}

    def _groups(self, model: nn.Module) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Tensors of the average and of a network in pairs, those of one kind together.

        Fused operations are fast on lists of one dtype and device only. Walking through two
        networks takes as long as averaging them, and so is done once. What is kept are the places
        of the tensors: a move to another device or type replaces buffers, and loading by
        assignment all tensors.
        """
        if self._pairs is None or self._pairs[0]() is not model:
            groups: dict[tuple, list[tuple[_Place, _Place]]] = defaultdict(list)
            for pair in zip(_places(self.module), _places(model), strict=True):
                average = _at(pair[0])
                groups[average.dtype, average.device].append(pair)
            self._pairs = weakref.ref(model), list(groups.values())
        for pairs in self._pairs[1]:
            yield [_at(average) for average, _ in pairs], [_at(value) for _, value in pairs]


def _at(place: _Place) -> Tensor:
    tensors, name = place
    return tensors[name]


def _places(model: nn.Module) -> Iterator[_Place]:
    """Where the parameters and buffers of a network stand, each tensor once."""
    seen = set()
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield tensors, name
