"""Every training form against the branch-by-branch form: all that a training step leaves behind."""

import copy
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from mmgnv3.models.layers import (
    GhostBottleneck,
    MultiBranchConv2d,
    describe_forms,
    set_training_form,
    training_forms,
    use_training_form,
)
from mmgnv3.models.layers.training_forms import choose_form, supported_forms
from tests.utils import needs_compiled_ops, randomize_norms

EXPANSION = dict(in_channels=6, out_channels=10, kernel_size=1, num_branches=3)
PROJECTION = dict(in_channels=20, out_channels=4, kernel_size=1, num_branches=3)
UNITS = {
    'moments': EXPANSION,
    'moments-identity': dict(
        in_channels=8, out_channels=8, kernel_size=1, num_branches=2, with_identity=True
    ),
    'moments-one-and-identity': dict(
        in_channels=8, out_channels=8, kernel_size=1, num_branches=1, with_identity=True
    ),
    'stacked': PROJECTION,
    'stacked-3x3-strided': dict(
        in_channels=5, out_channels=4, kernel_size=3, stride=2, num_branches=2
    ),
    'depthwise': dict(
        in_channels=8,
        out_channels=8,
        kernel_size=3,
        groups=8,
        num_branches=3,
        with_scale=True,
        with_identity=True,
    ),
    'depthwise-strided': dict(
        in_channels=8,
        out_channels=8,
        kernel_size=5,
        stride=2,
        groups=8,
        num_branches=3,
        with_scale=True,
    ),
    'depthwise-bare': dict(in_channels=8, out_channels=8, kernel_size=3, groups=8, num_branches=2),
    'stacked-pointwise-strided': dict(
        in_channels=5, out_channels=7, kernel_size=1, stride=2, num_branches=2
    ),
}
UNITS |= {
    name.replace('depthwise', 'fused'): unit
    for name, unit in UNITS.items()
    if name.startswith('depthwise')
}
# Those of one kind each that are to hold for all kinds; in half precision nothing is fused.
HALF = ['moments', 'stacked', 'depthwise', 'depthwise-strided']
FUSED = [pytest.param(name, marks=needs_compiled_ops) for name in ('fused', 'fused-strided')]
JOINT = [*HALF, *FUSED]
SIZES = [(3, 7, 5), (1, 6, 6), (2, 1, 1), (4, 1, 4)]
# Of a channel's mean, in standard deviations: what rounding every output by itself may leave.
SHIFT = 1e-3
FORMATS = [torch.contiguous_format, torch.channels_last]


def make_unit(name: str, **kwargs) -> MultiBranchConv2d:
    """A unit whose form is the first word of its name."""
    torch.manual_seed(0)
    settings = dict(training_form=name.split('-')[0])
    return randomize_norms(MultiBranchConv2d(**{**settings, **UNITS[name], **kwargs})).double()


def make_input(unit: MultiBranchConv2d, size: tuple[int, int, int] = (3, 7, 5)) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    batch, height, width = size
    shape = (batch, unit.in_channels, height, width)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def make_grad(out: Tensor, mean: float = 0) -> Tensor:
    """A gradient for an output, of numbers that every type has."""
    generator = torch.Generator().manual_seed(2)
    grad = torch.randn(out.shape, generator=generator, dtype=torch.float64) + mean
    return grad.bfloat16().to(out)


def step(unit: nn.Module, x: Tensor, grad_mean: float = 0) -> dict[str, Tensor]:
    """What a training step leaves: output, gradients, running statistics."""
    x = x.detach().clone().requires_grad_()
    out = unit(x)
    out.backward(make_grad(out, grad_mean))
    found = dict(output=out.detach(), input=x.grad)
    found.update((f'{name}.grad', p.grad) for name, p in unit.named_parameters())
    found.update(unit.named_buffers())
    return found


def assert_same_step(unit: nn.Module, x: Tensor, tolerance: float = 1e-9) -> None:
    """Compare a unit with its plain form; ``tolerance`` is relative to each tensor's scale."""
    plain = copy.deepcopy(unit)
    set_training_form(plain, 'plain')
    assert_same(step(unit, x), step(plain, x), tolerance)


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:
            assert actual[name] is None, name
            continue
        # The weight of a depthwise 1 x 1 branch has next to no gradient: the norm behind it takes
        # any factor out again. Rounding is then all there is of it, and is measured by what the
        # other kernels get.
        same = name.replace('scale.conv', 'branches.0.conv')
        scale = expected[same].double().abs().max().clamp_min(1e-6)
        error = (actual[name].double() - value.double()).abs().max() / scale
        assert error < tolerance, f'{name}: {error:.1e}'


@pytest.mark.parametrize('memory_format', FORMATS, ids=['contiguous', 'channels_last'])
@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('name', UNITS)
def test_step_equals_plain_step(name, size, memory_format):
    unit = make_unit(name)
    x = make_input(unit, size).to(memory_format=memory_format)
    if unit.count_pixels(x) > 1:
        assert_same_step(unit, x)


@pytest.mark.parametrize('name', UNITS)
def test_step_equals_plain_step_in_float32(name):
    unit = make_unit(name).float()
    assert_same_step(unit, make_input(unit, (4, 12, 12)).float(), tolerance=1e-4)


@pytest.mark.parametrize('momentum', [0.1, 0.0, 1.0, None])
@pytest.mark.parametrize('name', JOINT)
def test_running_statistics_over_several_batches(name, momentum):
    unit = make_unit(name)
    for norm in unit.norms:
        norm.momentum = momentum
    plain = copy.deepcopy(unit)
    plain.training_form = 'plain'
    for batch in range(3):
        x = make_input(unit) * (batch + 1)
        unit(x)
        plain(x)
    for (key, ours), theirs in zip(unit.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, msg=key)
    assert unit.norms[0].num_batches_tracked == 3


@pytest.mark.parametrize('norm_cfg', [dict(type='BN', affine=False), dict(type='BN', eps=1e-2)])
@pytest.mark.parametrize('name', ['moments-identity', *JOINT[1:]])
def test_other_norms(name, norm_cfg):
    unit = make_unit(name, norm_cfg=norm_cfg)
    assert choose_form(unit, make_input(unit)) != 'plain'
    assert_same_step(unit, make_input(unit))


@pytest.mark.parametrize('frozen', ['norm.weight', 'norm.bias', 'conv.weight', 'norm', ''])
@pytest.mark.parametrize('name', JOINT)
def test_frozen_parameters(name, frozen):
    unit = make_unit(name)
    for key, parameter in unit.named_parameters():
        if frozen in key:
            parameter.requires_grad_(False)
    assert_same_step(unit, make_input(unit))


@pytest.mark.parametrize('name', JOINT)
def test_input_without_gradient(name):
    unit = make_unit(name)
    plain = copy.deepcopy(unit)
    plain.training_form = 'plain'
    for form in (unit, plain):
        form(make_input(unit)).square().sum().backward()
    for ours, theirs in zip(unit.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    'kwargs',
    [
        UNITS['moments-identity'],
        PROJECTION,
        dict(
            in_channels=6,
            out_channels=6,
            kernel_size=(3, 5),
            groups=6,
            num_branches=2,
            with_scale=True,
            with_identity=True,
        ),
        dict(in_channels=6, out_channels=4, kernel_size=3, groups=2, stride=2, num_branches=2),
    ],
    ids=['pointwise', 'projection', 'depthwise', 'grouped'],
)
def test_frozen_norms_are_one_convolution(kwargs):
    torch.manual_seed(0)
    unit = randomize_norms(MultiBranchConv2d(**kwargs)).double().eval()
    x = make_input(unit)
    assert choose_form(unit, x) == 'folded'
    assert_same_step(unit, x, tolerance=1e-12)
    with torch.no_grad():
        assert unit(x).grad_fn is None


@pytest.mark.parametrize('case', ['one in eval mode', 'momentum', 'eps'])
def test_norms_that_differ_are_run_one_by_one(case):
    unit = make_unit('moments')
    norm = unit.norms[1]
    if case == 'one in eval mode':
        norm.eval()
    else:
        setattr(norm, case, 0.3)
    assert choose_form(unit, make_input(unit)) == 'plain'
    assert_same_step(unit, make_input(unit))


def prune_branch(branch: nn.Sequential) -> None:
    prune.random_unstructured(branch.conv, 'weight', 0.5)


def normalise_weight(branch: nn.Sequential) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)
        nn.utils.weight_norm(branch.conv)


def double_output(branch: nn.Sequential) -> None:
    branch.register_forward_hook(lambda module, args, out: 2 * out)


def subclass_conv(branch: nn.Sequential) -> None:
    class Negative(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return -super().forward(x)

    branch.conv.__class__ = Negative


def replace_conv(branch: nn.Sequential, **kwargs) -> None:
    conv = branch.conv
    settings = dict(padding=conv.padding, groups=conv.groups, bias=False, dtype=torch.float64)
    channels = conv.in_channels, conv.out_channels
    branch.conv = nn.Conv2d(*channels, conv.kernel_size, **{**settings, **kwargs})


def add_bias(branch: nn.Sequential) -> None:
    replace_conv(branch, bias=True)


def reflect_borders(branch: nn.Sequential) -> None:
    replace_conv(branch, padding_mode='reflect')


def dilate(branch: nn.Sequential) -> None:
    padding = tuple(size // 2 * 2 for size in branch.conv.kernel_size)
    replace_conv(branch, dilation=2, padding=padding)


def patch_forward(branch: nn.Sequential) -> None:
    forward = branch.conv.forward
    branch.conv.forward = lambda x: 2 * forward(x)


class Branch(nn.Module):
    def __init__(self, branch: nn.Sequential) -> None:
        super().__init__()
        self.conv, self.norm = branch

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).square())


REPLACEMENTS = [subclass_conv, add_bias, reflect_borders, dilate]


@pytest.mark.parametrize('mode', ['train', 'eval'])
@pytest.mark.parametrize(
    'change', [prune_branch, normalise_weight, double_output, patch_forward, *REPLACEMENTS]
)
@pytest.mark.parametrize('name', ['moments', 'stacked', 'depthwise', 'fused'])
def test_changed_branches_are_called(name, change, mode):
    unit = make_unit(name)
    torch.manual_seed(3)
    change(unit.branches[1])
    unit.train(mode == 'train')
    x = make_input(unit)
    expected = sum(branch(x) for branch in unit.branches)
    for other in (unit.scale, unit.identity):
        expected = expected if other is None else expected + other(x)
    assert choose_form(unit, x) == 'plain'
    torch.testing.assert_close(unit(x), expected)


def test_branch_of_another_kind_is_called():
    unit = make_unit('fused')
    unit.branches[1] = Branch(unit.branches[1])
    x = make_input(unit)
    assert choose_form(unit, x) == 'plain'
    expected = sum(branch(x) for branch in (*unit.branches, unit.scale, unit.identity))
    torch.testing.assert_close(unit(x), expected)


def test_hooks_of_all_modules_are_called():
    unit = make_unit('moments')
    called = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: called.append(m))
    try:
        unit(make_input(unit))
    finally:
        handle.remove()
    assert all(norm in called for norm in unit.norms)


@pytest.mark.parametrize('change', REPLACEMENTS)
def test_replaced_convolutions_are_not_folded(change):
    unit = make_unit('depthwise')
    change(unit.branches[1])
    with pytest.raises(ValueError, match='holds .*Conv2d|holds Negative'):
        unit.switch_to_deploy()
    assert not unit.deploy


def test_shapes_without_values():
    unit = make_unit('moments').to('meta')
    assert unit(torch.empty(2, unit.in_channels, 9, 9, device='meta')).shape[2:] == (9, 9)


def test_hooks_that_were_removed_leave_no_trace():
    unit = make_unit('moments')
    handle = unit.norms[0].register_forward_hook(lambda *_: None)
    assert choose_form(unit, make_input(unit)) == 'plain'
    handle.remove()
    assert choose_form(unit, make_input(unit)) == 'moments'


def test_one_branch_is_plain():
    unit = make_unit('moments', num_branches=1, training_form='auto')
    assert choose_form(unit, make_input(unit)) == 'plain'
    assert supported_forms(unit) == ('auto', 'plain')


@pytest.mark.parametrize('name', JOINT)
def test_one_value_a_channel_is_refused_as_by_torch(name):
    unit = make_unit(name)
    with pytest.raises(ValueError, match='more than 1 value'):
        unit(make_input(unit, (1, 1, 1)))


@pytest.mark.parametrize('backward_inside', [False, True])
@pytest.mark.parametrize('name', [*HALF, 'moments-identity'])
def test_half_precision_keeps_moments_in_float32(name, backward_inside):
    unit = make_unit(name).float()
    x = make_input(unit, (4, 12, 12)).float()
    exact = step(copy.deepcopy(unit).double(), x.double())
    leaf = x.clone().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16):
        out = unit(leaf)
        assert out.dtype == torch.bfloat16
        grad = make_grad(out)
        if backward_inside:
            out.backward(grad)
    if not backward_inside:
        out.backward(grad)
    found = dict(output=out.detach(), input=leaf.grad)
    found.update((f'{key}.grad', p.grad) for key, p in unit.named_parameters())
    found.update(unit.named_buffers())
    assert all(v.dtype != torch.bfloat16 for key, v in found.items() if key != 'output')
    # bfloat16 has eight bits; what the input loses by them is all that a variance may lose.
    assert_same(found, exact, tolerance=0.03)
    variances = [key for key in found if key.endswith('running_var')]
    assert_same({k: found[k] for k in variances}, {k: exact[k] for k in variances}, 2e-3)


@pytest.mark.parametrize('name', HALF)
def test_half_precision_with_gradients_of_one_sign(name):
    """What the norms take out of them must not leave its rounding behind."""
    unit = make_unit(name)
    # Numbers that half precision has, so that only what is computed from them is rounded.
    for parameter in unit.parameters():
        parameter.data = parameter.data.bfloat16().double()
    x = make_input(unit, (8, 20, 20)).bfloat16()
    exact = step(copy.deepcopy(unit), x.double(), grad_mean=10)
    with torch.autocast('cpu', torch.bfloat16):
        found = step(unit.float(), x, grad_mean=10)
    kernels = [key for key in found if key.endswith('conv.weight.grad')]
    assert_same({k: found[k] for k in kernels}, {k: exact[k] for k in kernels}, 0.01)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('name', HALF)
def test_half_precision_in_eval_mode(name, dtype):
    """One folded convolution rounds no worse than the branches do."""
    unit = make_unit(name).float()
    x = (make_input(unit, (8, 24, 24)) + 3).to(dtype)
    for norm in unit.norms:
        norm.momentum = 1.0
    unit(x.float())
    unit.eval()
    exact = copy.deepcopy(unit).double()(x.double())
    shifts = []
    for form in ('auto', 'plain'):
        set_training_form(unit, form)
        with torch.no_grad(), torch.autocast('cpu', dtype):
            error = unit(x).double() - exact
        shifts.append((error.mean((0, 2, 3)) / exact.std((0, 2, 3))).abs().max())
    assert shifts[0] < 1.6 * shifts[1]


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('memory_format', FORMATS, ids=['contiguous', 'channels_last'])
@pytest.mark.parametrize('name', ['moments', 'stacked'])
def test_half_precision_statistics_are_those_of_the_map(name, memory_format, dtype):
    unit = make_unit(name).float()
    x = make_input(unit, (4, 12, 12)).to(dtype).to(memory_format=memory_format)
    for norm in unit.norms:
        norm.momentum = 1.0
    with torch.autocast('cpu', dtype):
        unit(x)
    for branch in unit.branches:
        # The moments form never writes the branches down, nor rounds their kernels.
        kernel = branch.conv.weight if name == 'moments' else branch.conv.weight.to(dtype)
        z = F.conv2d(x.to(kernel.dtype), kernel).double()
        var, mean = torch.var_mean(z, (0, 2, 3))
        std = var.sqrt().max()
        assert (branch.norm.running_mean - mean).abs().max() < 1e-5 * std
        assert (branch.norm.running_var - var).abs().max() < 1e-5 * std**2


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('name', HALF)
def test_half_precision_does_not_shift_means(name, dtype):
    unit = make_unit(name).float()
    x = (make_input(unit, (8, 24, 24)) + 3).to(dtype)
    with torch.autocast('cpu', dtype):
        out = unit(x).double()
    # The mean of a normalised branch is the norm's offset.
    expected = sum(norm.bias for norm in unit.norms).double()
    error = (out.mean((0, 2, 3)) - expected) / out.std((0, 2, 3))
    assert error.abs().max() < SHIFT


@pytest.mark.parametrize('name', JOINT)
def test_recomputation_gives_the_same_gradients(name):
    unit = make_unit(name)
    x = make_input(unit)
    expected = step(copy.deepcopy(unit), x)
    leaf = x.clone().requires_grad_()
    out = checkpoint(unit, leaf, use_reentrant=False)
    out.backward(make_grad(out))
    torch.testing.assert_close(leaf.grad, expected['input'])


@pytest.mark.parametrize('name', JOINT)
def test_second_derivative_is_refused(name):
    unit = make_unit(name)
    x = make_input(unit).requires_grad_()
    (grad,) = torch.autograd.grad(unit(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        grad.sum().backward()


@pytest.mark.parametrize('name', JOINT)
def test_graph_can_be_walked_twice(name):
    unit = make_unit(name)
    x = make_input(unit).requires_grad_()
    loss = unit(x).square().sum()
    first = torch.autograd.grad(loss, x, retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(loss, x)[0])


@pytest.mark.parametrize('name', JOINT)
def test_activation_in_place_behind_the_unit(name):
    unit = make_unit(name)
    block = nn.Sequential(unit, nn.ReLU(inplace=True))
    for memory_format in FORMATS:
        x = make_input(unit).to(memory_format=memory_format)
        assert_same_step(copy.deepcopy(block).float(), x.float(), tolerance=1e-4)


@pytest.mark.parametrize('name', ['moments', 'stacked'])
def test_compiles_without_graph_breaks(name):
    unit = make_unit(name)
    x = make_input(unit)
    expected = step(copy.deepcopy(unit), x)
    # The backend runs the captured graphs, forward and backward, without generating code.
    torch.compiler.reset()
    actual = step(torch.compile(unit, fullgraph=True, backend='aot_eager'), x)
    actual = {key.removeprefix('_orig_mod.'): value for key, value in actual.items()}
    assert_same(actual, expected, 1e-9)


@pytest.mark.parametrize('name', ['moments', 'moments-identity', 'stacked', 'depthwise'])
def test_compiles_without_graph_breaks_in_half_precision(name):
    unit = make_unit(name).float()
    x = make_input(unit).float()
    torch.compiler.reset()
    compiled = torch.compile(copy.deepcopy(unit), fullgraph=True, backend='aot_eager')
    with torch.autocast('cpu', torch.bfloat16):
        actual, expected = compiled(x), unit(x)
    actual.float().square().sum().backward()
    torch.testing.assert_close(actual.float(), expected.float(), rtol=0.1, atol=0.1)


def test_choice_by_shape():
    """Moments where the covariance is cheaper than the branches it saves; little maps plain."""
    x = torch.zeros(16, 1, 14, 14)
    for inputs, outputs, form in [
        (24, 36, 'moments'),
        (160, 480, 'moments'),
        (72, 12, 'stacked'),
        (672, 56, 'stacked'),
    ]:
        unit = MultiBranchConv2d(inputs, outputs, 1, num_branches=3)
        assert choose_form(unit, x.expand(-1, inputs, -1, -1)) == form
        assert choose_form(unit, x[:2].expand(-1, inputs, -1, -1)) == 'plain'


@pytest.mark.parametrize('is_compiled', [True, False])
def test_choice_for_depthwise_units(is_compiled, monkeypatch):
    """Compiled code however small the map; operators where they pay."""
    monkeypatch.setattr(training_forms, 'can_fuse', lambda *_: is_compiled)
    unit = MultiBranchConv2d(**UNITS['depthwise'])
    for size, memory_format, form in [
        (48, FORMATS[1], 'depthwise'),
        (28, FORMATS[1], 'plain'),
        (28, FORMATS[0], 'depthwise'),
        (14, FORMATS[0], 'plain'),
        (2, FORMATS[0], 'plain'),
    ]:
        x = torch.zeros(16, 8, size, size).to(memory_format=memory_format)
        assert choose_form(unit, x) == ('fused' if is_compiled else form)
        with torch.autocast('cpu', torch.bfloat16):
            assert choose_form(unit, x) == form
    with use_training_form('depthwise'):
        assert choose_form(unit, x) == 'depthwise'
    with use_training_form('fused'):
        assert choose_form(unit, x) == ('fused' if is_compiled else 'plain')


@pytest.fixture(params=[pytest.param('fused', marks=needs_compiled_ops)])
def fused(request):
    """A unit that is fused, and an input."""
    unit = make_unit(request.param)
    x = make_input(unit)
    assert choose_form(unit, x) == 'fused'
    return unit, x


@pytest.mark.parametrize('channels', [4, 64])
def test_wrong_channels_end_in_the_error_of_torch(channels, fused):
    unit, x = fused
    with pytest.raises(RuntimeError, match='to have 8 channels'):
        unit(x[:, :1].expand(-1, channels, -1, -1))


def test_mixed_types_end_in_the_error_of_torch(fused):
    unit, x = fused
    unit.branches[1].conv.float()
    with pytest.raises(RuntimeError, match='same dtype|type'):
        unit(x)


def test_mixed_devices_are_not_fused(fused):
    unit, x = fused
    assert choose_form(unit.to('meta'), x) != 'fused'


def test_default_device_does_not_matter(fused):
    unit, x = fused
    expected = step(copy.deepcopy(unit), x)
    leaf = x.clone().requires_grad_()
    with torch.device('meta'):
        out = unit(leaf)
    out.backward(make_grad(out))
    assert torch.equal(out, expected['output']) and torch.equal(leaf.grad, expected['input'])


def test_tensors_without_addresses_are_not_fused(fused):
    unit, x = fused

    class Marked(Tensor):
        pass

    assert choose_form(unit, x.as_subclass(Marked)) != 'fused'
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert choose_form(unit, mode.from_tensor(x)) != 'fused'
    with FlopCounterMode(display=False) as counter:
        unit(x)
    assert counter.get_total_flops()
    found = []
    torch.func.vmap(lambda part: found.append(choose_form(unit, part)) or part)(x[None])
    assert found != ['fused']


@pytest.mark.parametrize('place', ['input', 'gradient'])
def test_signs_that_are_noted_beside_the_values(place, fused):
    unit, x = fused

    def negative(value: Tensor) -> Tensor:
        return torch.complex(torch.zeros_like(value), -value).conj().imag

    assert negative(x).is_neg() and torch.equal(negative(x), x)
    expected = step(copy.deepcopy(unit), x)
    leaf = (negative(x) if place == 'input' else x.clone()).detach().requires_grad_()
    out = unit(leaf)
    grad = make_grad(out)
    out.backward(negative(grad) if place == 'gradient' else grad)
    torch.testing.assert_close(leaf.grad, expected['input'])


def test_zeros_that_are_noted_beside_the_values(fused):
    unit, x = fused
    x.requires_grad_()
    out = unit(x)
    (grad,) = torch.autograd.grad(out, x, torch._efficientzerotensor(out.shape, dtype=x.dtype))
    assert not grad.any()


def test_form_can_be_set_and_forced():
    unit = make_unit('moments', training_form='stacked')
    x = make_input(unit)
    assert choose_form(unit, x) == 'stacked' and "training_form='stacked'" in repr(unit)
    assert_same_step(unit, x)
    with use_training_form('plain'):
        assert choose_form(unit, x) == 'plain'
        with use_training_form('moments'):
            assert choose_form(unit, x) == 'moments'
        assert choose_form(unit, x) == 'plain'
    assert choose_form(unit, x) == 'stacked'

    block = GhostBottleneck(8, 24, 8)
    set_training_form(block, 'stacked')
    assert block.ghost1.primary.training_form == 'stacked'
    assert block.ghost1.cheap.training_form == 'auto'
    deployed = MultiBranchConv2d(**EXPANSION, deploy=True)
    set_training_form(deployed, 'plain')


def test_forms_of_a_model_can_be_seen():
    model = nn.Sequential(GhostBottleneck(8, 48, 8), MultiBranchConv2d(8, 4, 1, deploy=True))
    x = torch.rand(2, 8, 24, 24)
    before = copy.deepcopy(model.state_dict())
    forms = describe_forms(model, x)
    units = {n: m for n, m in model.named_modules() if isinstance(m, MultiBranchConv2d)}
    assert forms.keys() == units.keys()
    assert forms['0.ghost1.primary'] == 'moments' and forms['1'] == 'deploy'
    with use_training_form('plain'):
        assert set(describe_forms(model, x).values()) == {'plain', 'deploy'}
    model.eval()
    assert describe_forms(model, x)['0.ghost1.primary'] == 'folded'
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(unit._forward_pre_hooks for unit in units.values())


@pytest.mark.parametrize('form', ['fast', 'depthwise'])
def test_unknown_or_impossible_form_is_refused(form):
    with pytest.raises(ValueError, match='training_form must be one of auto, plain, moments'):
        MultiBranchConv2d(**EXPANSION, training_form=form)
    if form == 'fast':
        for setter in (use_training_form, lambda name: set_training_form(nn.Identity(), name)):
            with pytest.raises(ValueError, match="got 'fast'"), setter(form) or nullcontext():
                pass
