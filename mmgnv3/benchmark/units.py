"""Where the time of a training step with branches goes: its units, one at a time."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmgnv3.models.layers import MultiBranchConv2d
from mmgnv3.models.layers.training_forms import choose_form

from .timing import measure_interleaved


@dataclass
class UnitTimes:
    """What the units of one form take together in a training step, in milliseconds.

    Attributes:
        form: Their form, see :mod:`mmgnv3.models.layers.training_forms`.
        number: How many there are.
        joint: With all branches, in this form.
        plain: Branch by branch.
        single: With one branch, as in the network without branches.
    """

    form: str
    number: int = 0
    joint: float = 0.0
    plain: float = 0.0
    single: float = 0.0


def measure_units(model: nn.Module, images: Tensor, rounds: int) -> list[UnitTimes]:
    """Measure forward and backward pass of every unit with branches, outside its network.

    Args:
        model: A network in training mode that holds multi-branch convolutions, on the device and
            in the memory format of the images.
        images: Batch of shape (B, 3, H, W).
        rounds: The median of every unit is taken over them.

    Returns:
        Sums by form, the longest first.
    """
    sums: dict[str, UnitTimes] = {}
    for name, x in _record_inputs(model, images).items():
        unit = model.get_submodule(name)
        if len(unit.norms) == 1:
            continue
        form = choose_form(unit, x)
        if unit.groups > 1:
            kind = form if form == 'depthwise' else f'{form} depthwise'
            form = f'{kind}, stride {unit.stride[0]}'
        total = sums.setdefault(form, UnitTimes(form))
        plain = copy.deepcopy(unit)
        plain.training_form = 'plain'
        single = MultiBranchConv2d(
            unit.in_channels, unit.out_channels, unit.kernel_size, unit.stride, unit.groups
        ).to(x)
        steps = dict(joint=copy.deepcopy(unit), plain=plain, single=single)
        times = measure_interleaved(
            {key: _step(step.train(), x) for key, step in steps.items()}, rounds, x.device
        )
        total.number += 1
        total.joint += times['joint']
        total.plain += times['plain']
        total.single += times['single']
    return sorted(sums.values(), key=lambda total: -total.joint)


def _record_inputs(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Take a batch through a copy of the model and keep what its units get."""
    model, inputs = copy.deepcopy(model), {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda unit, args: inputs.update({name: args[0].clone()})

    for name, module in model.named_modules():
        if isinstance(module, MultiBranchConv2d):
            module.register_forward_pre_hook(note(name))
    with torch.no_grad():
        model(images)
    return inputs


def _step(unit: nn.Module, x: Tensor) -> Callable[[], object]:
    x = x.detach().requires_grad_()
    grad = torch.randn_like(unit(x))

    def step() -> None:
        torch.autograd.grad(unit(x), [x, *unit.parameters()], grad)

    return step
