"""Depthwise branches with their batch norms, all together, by compiled code, on CPUs.

Its sources, in ``mmgnv3/ops/csrc``, say how. It computes what :mod:`.depthwise_moments` and
:mod:`.depthwise_strided` do with PyTorch's operators, for all strides alike, and centres every
channel before anything is summed, so that no large mean costs digits.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import Parameter
from torch.utils._python_dispatch import _get_current_dispatch_mode

from mmgnv3.ops import load_library

from .numerics import is_channels_last

# Kernel sizes and strides that there is code for.
DEPTHWISE_GEOMETRIES = (((3, 3), (1, 1)), ((3, 3), (2, 2)), ((5, 5), (2, 2)))

_FUNCTIONS = {torch.float32: 'float', torch.float64: 'double'}

MAX_WIDTH = 4096
"""Widest map: the sums of a row are taken in its own precision."""


def can_fuse(*tensors: Tensor) -> bool:
    """Whether there is compiled code for some tensors, here and now.

    It takes their addresses, so they must have some: neither subclasses nor what a dispatch mode or
    a transform of ``torch.func`` stands behind has.

    Args:
        *tensors: The map of shape (B, C, H, W), and all parameters and buffers that go with it.
    """
    x = tensors[0]
    return (
        not torch.compiler.is_compiling()
        and x.dtype in _FUNCTIONS
        and all(
            type(tensor) in (Tensor, Parameter)
            and tensor.device.type == 'cpu'
            and tensor.dtype == x.dtype
            for tensor in tensors
        )
        and x.shape[-1] <= MAX_WIDTH
        and not torch._C._are_functorch_transforms_active()
        and _get_current_dispatch_mode() is None
        and load_library() is not None
    )


def depthwise_fused(
    x: Tensor,
    kernels: Sequence[Tensor],
    scale: Tensor | None,
    with_identity: bool,
    stride: tuple[int, int],
    gammas: Tensor,
    betas: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of depthwise branches, each normalised by its own batch statistics.

    Equal to running the branches one by one, gradients of every tensor included. Branches are
    counted in the order kernels, 1 x 1 branch, identity; M is their number.

    Args:
        x: Input of shape (B, C, H, W) with B * H * W > 0. The output keeps its memory format; both
            are about as fast.
        kernels: Kernels of the branches, each of shape (C, 1, k, k) in the type of ``x``: 3 x 3
            with a stride of 1 or 2, or 5 x 5 with a stride of 2. The padding is half of k.
        scale: Kernel of the 1 x 1 branch, shape (C, 1, 1, 1), or None.
        with_identity: Whether the input itself is a branch.
        stride: Strides along rows and columns, both the same.
        gammas: Weights of the norms, shape (M, C).
        betas: Biases of the norms, shape (M, C).
        eps: What all the norms add to the variance.

    Returns:
        Output of shape (B, C, ceil(H / stride), ceil(W / stride)), and the branches' batch means
        and biased variances, both of shape (M, C), in double precision and without gradients.

    Raises:
        ValueError: If shapes do not fit, or :func:`can_fuse` does not hold for the tensors.
    """
    channels, size = x.shape[1], tuple(kernels[0].shape[2:])
    norms = (len(kernels) + (scale is not None) + with_identity, channels)
    expected = [(kernel, (channels, 1, *size)) for kernel in kernels]
    expected += [(gammas, norms), (betas, norms)]
    if scale is not None:
        expected.append((scale, (channels, 1, 1, 1)))
    fits = all(tensor.shape == shape for tensor, shape in expected)
    given = [x, *(tensor for tensor, _ in expected)]
    if not ((size, stride) in DEPTHWISE_GEOMETRIES and fits and x.numel() and can_fuse(*given)):
        raise ValueError(
            f'There is no compiled code for these tensors: {[tuple(t.shape) for t in given]}, '
            f'{[str(t.dtype) for t in given]}, stride {stride}.'
        )
    return _DepthwiseFused.apply(x, scale, with_identity, stride, gammas, betas, eps, *kernels)


class _DepthwiseFused(Function):
    @staticmethod
    def forward(ctx, x, scale, with_identity, stride, gammas, betas, eps, *kernels):
        batch, channels, height, width = x.shape
        # The device is named always: another one may be the default.
        out = torch.empty(
            (batch, channels, -(-height // stride[0]), -(-width // stride[1])),
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last if is_channels_last(x) else torch.contiguous_format,
        )
        means = torch.empty(gammas.shape, dtype=torch.float64, device=x.device)
        variances = torch.empty_like(means)
        centre = x.new_empty(channels)
        # Means, then variances, of the kernels' outputs and of the pixels under their centres.
        moments = means.new_empty(2, len(kernels) + 1, channels)
        ctx.settings = with_identity, stride[0], eps
        _call(
            'forward',
            ctx.settings,
            maps=dict(input=x, output=out),
            lists=dict(kernels=kernels),
            tensors=dict(
                scale=scale,
                gammas=gammas,
                betas=betas,
                means=means,
                variances=variances,
                centre=centre,
                moments=moments,
            ),
        )
        ctx.save_for_backward(x, scale, gammas, centre, moments, *kernels)
        ctx.mark_non_differentiable(means, variances)
        return out, means, variances

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out, _means, _variances):
        x, scale, gammas, centre, moments, *kernels = ctx.saved_tensors
        needs_x, needs_scale, _, _, needs_gammas, needs_betas, _, *needs_kernels = (
            ctx.needs_input_grad
        )
        grad_x = torch.empty_like(x) if needs_x else None
        # Not ``empty_like``, which keeps strides that the compiled code does not know.
        grad_kernels = [kernel.new_empty(kernel.shape) for kernel in kernels]
        grad_scale = None if scale is None else scale.new_empty(scale.shape)
        grad_gammas, grad_beta = gammas.new_empty(gammas.shape), gammas.new_empty(len(centre))
        _call(
            'backward',
            ctx.settings,
            maps=dict(input=x, grad_output=grad_out, grad_input=grad_x),
            lists=dict(kernels=kernels, grad_kernels=grad_kernels),
            tensors=dict(
                scale=scale,
                grad_scale=grad_scale,
                gammas=gammas,
                grad_gammas=grad_gammas,
                grad_beta=grad_beta,
                centre=centre,
                moments=moments,
            ),
        )
        return (
            grad_x,
            grad_scale if needs_scale else None,
            None,
            None,
            grad_gammas if needs_gammas else None,
            grad_beta.expand_as(gammas) if needs_betas else None,
            None,
            *(
                grad if needs else None
                for grad, needs in zip(grad_kernels, needs_kernels, strict=True)
            ),
        )


class _Map(ctypes.Structure):
    """``Tensor4`` of the sources: address and strides of a tensor (B, C, H, W)."""

    _fields_ = [
        ('data', ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ('image', 'channel', 'row', 'column')),
    ]


_COUNTS = (
    *('batch', 'channels', 'height', 'width', 'out_height', 'out_width'),
    *('kernel_size', 'stride', 'num_kernels', 'with_identity', 'threads'),
)
_MAPS = ('input', 'output', 'grad_output', 'grad_input')
_LISTS = ('kernels', 'grad_kernels')
_TENSORS = (
    *('scale', 'grad_scale', 'gammas', 'betas', 'grad_gammas', 'grad_beta'),
    *('means', 'variances', 'centre', 'moments'),
)


class _Arguments(ctypes.Structure):
    """``Arguments`` of the sources. What is not set is 0."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _COUNTS),
        ('eps', ctypes.c_double),
        *((name, _Map) for name in _MAPS),
        *((name, ctypes.POINTER(ctypes.c_void_p)) for name in _LISTS),
        *((name, ctypes.c_void_p) for name in _TENSORS),
    ]


def _call(
    name: str,
    settings: tuple[bool, int, float],
    maps: dict[str, Tensor | None],
    lists: dict[str, Sequence[Tensor]],
    tensors: dict[str, Tensor | None],
) -> None:
    """Call a compiled function.

    Args:
        name: 'forward' or 'backward'.
        settings: Whether the input is a branch, stride, eps.
        maps: Tensors (B, C, H, W) in any memory format.
        lists: Lists of contiguous tensors.
        tensors: Contiguous tensors.

    Raises:
        MemoryError: If there is none left for it.
    """
    x, kernels = maps['input'], lists['kernels']
    out = maps.get('output', maps.get('grad_output'))
    with_identity, stride, eps = settings
    arguments = _Arguments(
        *x.shape,
        *out.shape[2:],
        kernels[0].shape[-1],
        stride,
        len(kernels),
        with_identity,
        torch.get_num_threads(),
        eps,
    )
    # The copies, if any were needed, have to live until the function returns.
    kept = []
    for key, tensor in maps.items():
        if tensor is not None:
            kept.append(_materialize(tensor))
            setattr(arguments, key, _Map(kept[-1].data_ptr(), *kept[-1].stride()))
    for key, group in lists.items():
        group = [_materialize(tensor).contiguous() for tensor in group]
        setattr(arguments, key, (ctypes.c_void_p * len(group))(*(t.data_ptr() for t in group)))
        kept += group
    for key, tensor in tensors.items():
        if tensor is not None:
            kept.append(_materialize(tensor).contiguous())
            setattr(arguments, key, kept[-1].data_ptr())
    function = getattr(load_library(), f'{name}_{_FUNCTIONS[x.dtype]}')
    if function(ctypes.byref(arguments)):
        raise MemoryError('There is no memory left for the branches of a depthwise unit.')


def _materialize(tensor: Tensor) -> Tensor:
    """The tensor with its values in memory: signs and zeros may be noted beside it only."""
    tensor = tensor.resolve_neg()
    return torch.zeros_like(tensor) if tensor._is_zerotensor() else tensor
