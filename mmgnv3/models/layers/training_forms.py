"""How the branches of a unit are computed: chosen by shape, here and nowhere else.

All forms give the output, the gradients and the running statistics of the branch-by-branch form up
to rounding; they differ in time and memory.

- ``plain``: every branch by itself. The definition, and what the other forms are tested against.
- ``folded``: norms in eval mode; one convolution with the folded kernel, trainable all the same.
- ``moments``: 1 x 1; one convolution, statistics from the mean and covariance of the input.
- ``stacked``: dense; one convolution with N times the output channels, norms and sum in one pass.
- ``fused``: depthwise, on CPUs with a compiler; all branches together, by compiled code.
- ``depthwise``: the same with PyTorch's operators; statistics from a few sums over the input
  (stride 1) or from branches that are not kept (stride 2).
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .depthwise_fused import DEPTHWISE_GEOMETRIES, can_fuse
from .norms import are_alike, process_group
from .numerics import is_channels_last

if TYPE_CHECKING:
    from .multi_branch_conv import MultiBranchConv2d

TRAINING_FORMS = ('auto', 'plain', 'moments', 'stacked', 'fused', 'depthwise')

# Below this many output pixels in a batch, the small matrices and the calls cost more than the
# branches (measured on two CPU cores, 1.0x, batches of 2 to 16).
MIN_PIXELS = 512

# The same for depthwise units of stride 1, in numbers of the input. oneDNN's batch norms are fast
# for channels in eights that lie side by side, and several times slower for others.
MIN_DEPTHWISE_NUMBERS = 50_000
MIN_DEPTHWISE_NUMBERS_IN_EIGHTS = 200_000

# What stands for the size of a batch that is spread over processes.
MANY_PIXELS = 1_000_000

_forced: str | None = None


def supported_forms(unit: 'MultiBranchConv2d') -> tuple[str, ...]:
    """Training forms that a unit's geometry allows, whether they pay or not."""
    forms = ['auto', 'plain']
    if len(unit.norms) > 1 and unit.groups == 1:
        if unit.kernel_size == (1, 1) and unit.stride == (1, 1):
            forms.append('moments')
        if unit.scale is None and unit.identity is None:
            forms.append('stacked')
    is_depthwise = unit.groups == unit.in_channels == unit.out_channels > 1
    known = (unit.kernel_size, unit.stride) in DEPTHWISE_GEOMETRIES
    if len(unit.norms) > 1 and is_depthwise and known:
        forms += ['fused', 'depthwise']
    return tuple(forms)


def choose_form(unit: 'MultiBranchConv2d', x: Tensor) -> str:
    """Name the form in which a unit in training form computes its output.

    Args:
        unit: The unit.
        x: Its input of shape (B, C, H, W).

    Returns:
        'plain', 'folded', 'moments', 'stacked', 'fused' or 'depthwise'.
    """
    asked = _forced or unit.training_form
    norms = unit.norms
    if asked == 'plain' or len(norms) == 1 or not are_alike(norms) or _must_run_branches(unit):
        return 'plain'
    # There are shapes, and no values, to be computed with.
    if x.device.type == 'meta':
        return 'plain'
    if not norms[0].training:
        return 'folded'
    pixels = unit.count_pixels(x)
    if process_group(norms) is not None:
        if not _can_synchronize(unit):
            return 'plain'
        # Processes whose batches differ in size must still send each other the same messages.
        pixels = MANY_PIXELS
    # One value a channel has no variance: torch's own message says so.
    if pixels < 2:
        return 'plain'
    supported = tuple(form for form in supported_forms(unit) if _is_possible(form, unit, x))
    if asked != 'auto' and asked in supported:
        return asked
    # One call however small the map: cheaper than all else wherever it can be made.
    if 'fused' in supported:
        return 'fused'
    if pixels < MIN_PIXELS:
        return 'plain'
    if 'depthwise' in supported:
        in_eights = unit.in_channels % 8 == 0 and is_channels_last(x)
        pays = _depthwise_pays(unit, pixels, in_eights)
        # The sums are arranged for a CPU's convolutions.
        return 'depthwise' if pays and x.device.type == 'cpu' else 'plain'
    if 'moments' not in supported:
        return 'stacked' if 'stacked' in supported else 'plain'
    if 'stacked' not in supported:
        return 'moments'
    costs = [_multiplications(unit, form, pixels) for form in ('moments', 'stacked')]
    return 'moments' if costs[0] < costs[1] else 'stacked'


def _must_run_branches(unit: 'MultiBranchConv2d') -> bool:
    """Whether something hangs on the modules of the branches that only their own call brings about.

    Weight norm, pruning and whoever looks at features use hooks; quantisation and adapters put
    something else in the place of a convolution.
    """
    modules = [unit.identity] if unit.identity is not None else []
    for branch in (*unit.branches, unit.scale):
        if branch is not None:
            if type(branch) is not nn.Sequential:
                return True
            # Whatever holds modules of its own has taken the place of the convolution.
            modules += (branch, *branch)
    return (
        nn.modules.module._has_any_global_hook()
        or any(map(has_hooks, modules))
        or unit.replaced_conv() is not None
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of a module brings about more than its ``forward``."""
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
        # Set on the instance, as those who wrap a module do.
        or 'forward' in vars(module)
    )


def _is_possible(form: str, unit: 'MultiBranchConv2d', x: Tensor) -> bool:
    """Whether a form that a unit's geometry allows can be had for an input, here and now."""
    if form == 'moments':
        # torch 2.10 cannot trace this one under autocast.
        return not (torch.compiler.is_compiling() and torch.is_autocast_enabled(x.device.type))
    return form != 'fused' or _can_fuse(unit, x)


def _can_fuse(unit: 'MultiBranchConv2d', x: Tensor) -> bool:
    is_cast = torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64
    if is_cast or x.shape[1] != unit.in_channels or process_group(unit.norms) is not None:
        return False
    tensors = [branch.conv.weight for branch in (*unit.branches, unit.scale) if branch is not None]
    for norm in unit.norms:
        tensors.append(norm.running_mean)
        if norm.affine:
            tensors += (norm.weight, norm.bias)
    return can_fuse(x, *tensors)


def _depthwise_pays(unit: 'MultiBranchConv2d', pixels: int, in_eights: bool) -> bool:
    if unit.stride != (1, 1):
        return True
    smallest = MIN_DEPTHWISE_NUMBERS_IN_EIGHTS if in_eights else MIN_DEPTHWISE_NUMBERS
    return pixels * unit.in_channels >= smallest


def _can_synchronize(unit: 'MultiBranchConv2d') -> bool:
    """Whether a unit's joint form can take statistics over several processes."""
    strided = unit.groups > 1 and unit.stride != (1, 1)
    return not strided and not torch.compiler.is_compiling()


def _multiplications(unit: 'MultiBranchConv2d', form: str, pixels: int) -> int:
    """Multiplications of a training step of a dense unit, forward and backward."""
    inputs = unit.in_channels * unit.kernel_size[0] * unit.kernel_size[1]
    outputs, branches = unit.out_channels, len(unit.norms)
    if form == 'stacked':
        return 3 * pixels * inputs * outputs * branches
    # Three products of the one convolution, the covariance and its gradient; then, once for all
    # pixels, every kernel with the covariance, twice, and with itself.
    return (3 * outputs + 2 * inputs) * inputs * pixels + 3 * branches * outputs * inputs**2


def set_training_form(model: nn.Module, form: str) -> None:
    """Set the form of all units of a model; those that cannot have it choose by shape.

    Args:
        model: A model that holds multi-branch convolutions.
        form: One of ``TRAINING_FORMS``; 'auto' is what a new model has.

    Raises:
        ValueError: If there is no such form.
    """
    _check(form)
    for module in model.modules():
        if hasattr(module, 'training_form'):
            can = module.deploy or form in supported_forms(module)
            module.training_form = form if can else 'auto'


def describe_forms(model: nn.Module, *inputs: Any) -> dict[str, str]:
    """Say in which forms the units of a model compute a step, without a trace on the model.

    Args:
        model: A model that holds multi-branch convolutions, in training or in eval mode.
        *inputs: What its ``forward`` takes, such as images of shape (B, 3, H, W).

    Returns:
        The form of every unit that was called ('deploy' if it holds nothing but one convolution),
        by its name in the model.

    Examples:
        >>> from collections import Counter
        >>> Counter(describe_forms(GhostNetV3().train(), torch.rand(16, 3, 224, 224)).values())
        Counter({'plain': 54, 'fused': 36, 'moments': 17, 'stacked': 15})
    """
    model, forms = copy.deepcopy(model), {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(unit: nn.Module, args: tuple[Tensor, ...]) -> None:
            forms[name] = 'deploy' if unit.deploy else choose_form(unit, args[0])

        return hook

    for name, module in model.named_modules():
        if hasattr(module, 'training_form'):
            module.register_forward_pre_hook(note(name))
    with torch.no_grad():
        model(*inputs)
    return forms


@contextmanager
def use_training_form(form: str) -> Iterator[None]:
    """Override the form of all units everywhere inside a ``with`` block.

    Args:
        form: One of ``TRAINING_FORMS``. Units that cannot have it choose by shape.

    Raises:
        ValueError: If there is no such form.

    Examples:
        >>> with use_training_form('plain'):
        ...     loss = model(images)
    """
    global _forced
    _check(form)
    before, _forced = _forced, form
    try:
        yield
    finally:
        _forced = before


def _check(form: str) -> None:
    if form not in TRAINING_FORMS:
        raise ValueError(f'training_form must be one of {", ".join(TRAINING_FORMS)}, got {form!r}.')
