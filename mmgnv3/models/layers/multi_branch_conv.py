"""The multi-branch convolution: many linear branches in training, one convolution in deployment."""

from collections import OrderedDict
from typing import NamedTuple

import torch
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.utils import _pair
from torch.nn.utils.fusion import fuse_conv_bn_weights


class BranchConfig(NamedTuple):
    """Which branches the re-parameterizable convolutions of a network have.

    Attributes:
        num_branches: Parallel k x k convolutions, each with its own norm (N in the paper).
        with_scale: Whether kernels larger than 1 x 1 get a parallel 1 x 1 convolution.
        with_identity: Whether units that keep channels and stride get a parallel norm of their
            input.
    """

    num_branches: int = 3
    with_scale: bool = True
    with_identity: bool = True


class MultiBranchConv2d(BaseModule):
    """Sum of parallel ``conv + norm`` branches that folds exactly into one convolution.

    In training form the output is the sum of ``num_branches`` k x k convolutions, an optional
    1 x 1 convolution (``with_scale``) and the optional identity (``with_identity``), each followed
    by its own batch norm. Every branch is linear once its statistics are fixed, so
    :meth:`switch_to_deploy` replaces them all by one convolution with a bias. With one branch and
    nothing else it is the ordinary ``conv + norm``. There is no activation inside.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Odd kernel size, one number or (height, width). The padding is half of it, so
            that the output of a stride-1 unit is as large as its input.
        stride: Stride of every branch.
        groups: Groups of every branch; ``in_channels`` makes the unit depthwise.
        num_branches: Number of parallel k x k convolutions, 1 or more.
        with_scale: Adds the 1 x 1 branch (a "scale branch" in MobileOne's terms).
        with_identity: Adds the identity branch.
        norm_cfg: Config of the norm after every branch: ``BN``, ``SyncBN`` or another batch norm
            with running statistics. None means ``dict(type='BN')``.
        deploy: Builds the folded form: one convolution with bias, no norm.
        init_cfg: Initialisation config of :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If an argument makes no such unit, or the norm cannot be folded.

    Examples:
        >>> import torch
        >>> unit = MultiBranchConv2d(8, 8, 3, groups=8, with_scale=True, with_identity=True).eval()
        >>> x = torch.rand(1, 8, 14, 14)
        >>> expected = unit(x)
        >>> unit.switch_to_deploy()
        >>> assert torch.allclose(unit(x), expected, atol=1e-5)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int = 1,
        groups: int = 1,
        num_branches: int = 1,
        with_scale: bool = False,
        with_identity: bool = False,
        norm_cfg: dict | None = None,
        deploy: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _pair(kernel_size)
        self.stride = _pair(stride)
        self.groups = groups
        self.deploy = deploy
        if any(k < 1 or k % 2 == 0 for k in self.kernel_size):
            raise ValueError(f'kernel_size must be odd and positive, got {kernel_size}.')
        if isinstance(num_branches, bool) or not isinstance(num_branches, int) or num_branches < 1:
            raise ValueError(f'num_branches must be an integer of at least 1, got {num_branches}.')
        if with_scale and self.kernel_size == (1, 1):
            raise ValueError(
                'with_scale adds a 1 x 1 branch to a larger kernel; a 1 x 1 convolution gets '
                'another branch by num_branches.'
            )
        if with_identity and (in_channels != out_channels or self.stride != (1, 1)):
            raise ValueError(
                f'with_identity needs equal channels and stride 1, got {in_channels} -> '
                f'{out_channels} channels and stride {stride}.'
            )

        if deploy:
            self.conv = self._build_conv(self.kernel_size, bias=True)
            return
        norm_cfg = norm_cfg or dict(type='BN')
        self.branches = nn.ModuleList(
            self._build_branch(self.kernel_size, norm_cfg) for _ in range(num_branches)
        )
        self.scale = self._build_branch((1, 1), norm_cfg) if with_scale else None
        self.identity = _build_norm(norm_cfg, in_channels) if with_identity else None

    def _build_conv(self, kernel_size: tuple[int, int], bias: bool) -> nn.Conv2d:
        return nn.Conv2d(
            self.in_channels,
            self.out_channels,
            kernel_size,
            stride=self.stride,
            padding=(kernel_size[0] // 2, kernel_size[1] // 2),
            groups=self.groups,
            bias=bias,
        )

    def _build_branch(self, kernel_size: tuple[int, int], norm_cfg: dict) -> nn.Sequential:
        return nn.Sequential(
            OrderedDict(
                conv=self._build_conv(kernel_size, bias=False),
                norm=_build_norm(norm_cfg, self.out_channels),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the sum of the branches.

        Args:
            x: Input of shape (B, in_channels, H, W).

        Returns:
            Output of shape (B, out_channels, ceil(H / stride), ceil(W / stride)).
        """
        if self.deploy:
            return self.conv(x)
        out = self.branches[0](x)
        for branch in self.branches[1:]:
            out += branch(x)
        if self.scale is not None:
            out += self.scale(x)
        if self.identity is not None:
            out += self.identity(x)
        return out

    @torch.no_grad()
    def fold(self) -> tuple[Tensor, Tensor]:
        """Kernel and bias of the single convolution that equals this unit in eval mode.

        The sums are taken in float64 and rounded once at the end, so that folding adds no error
        of its own to a float32 network.

        Returns:
            Kernel of shape (out_channels, in_channels / groups, kernel height, kernel width) and
            bias of shape (out_channels,), in the unit's own dtype and on its device.
        """
        if self.deploy:
            return self.conv.weight.detach(), self.conv.bias.detach()
        like = self.branches[0].conv.weight
        kernel = like.new_zeros(like.shape, dtype=torch.float64)
        bias = like.new_zeros(self.out_channels, dtype=torch.float64)
        # A 1 x 1 kernel or the identity is a k x k kernel with nothing but its centre.
        centre = kernel[:, :, self.kernel_size[0] // 2, self.kernel_size[1] // 2]
        for branch in self.branches:
            branch_kernel, branch_bias = fuse_conv_norm(branch.conv.weight, None, branch.norm)
            kernel += branch_kernel
            bias += branch_bias
        if self.scale is not None:
            branch_kernel, branch_bias = fuse_conv_norm(
                self.scale.conv.weight, None, self.scale.norm
            )
            centre += branch_kernel[:, :, 0, 0]
            bias += branch_bias
        if self.identity is not None:
            out_index = torch.arange(self.out_channels, device=like.device)
            identity = torch.zeros_like(kernel[:, :, :1, :1])
            identity[out_index, out_index % identity.shape[1]] = 1
            branch_kernel, branch_bias = fuse_conv_norm(identity, None, self.identity)
            centre += branch_kernel[:, :, 0, 0]
            bias += branch_bias
        return kernel.to(like.dtype), bias.to(like.dtype)

    def switch_to_deploy(self) -> None:
        """Replace the branches by one convolution, in place. Does nothing if that was done before.

        The new weights can be trained if any weight of the branches could be.
        """
        if self.deploy:
            return
        kernel, bias = self.fold()
        requires_grad = any(p.requires_grad for p in self.parameters())
        self.conv = self._build_conv(self.kernel_size, bias=True).to(kernel.device, kernel.dtype)
        self.conv.load_state_dict(dict(weight=kernel, bias=bias))
        self.conv.requires_grad_(requires_grad).train(self.training)
        del self.branches, self.scale, self.identity
        self.deploy = True

    def extra_repr(self) -> str:
        """Say which form the unit has."""
        return f'deploy={self.deploy}'


def _build_norm(norm_cfg: dict, num_features: int) -> nn.Module:
    norm = build_norm_layer(norm_cfg, num_features)[1]
    if not is_foldable_norm(norm):
        raise ValueError(
            f'norm_cfg={norm_cfg} cannot be folded into a convolution: its statistics depend on '
            "the input in deployment too. Use a batch norm with running statistics, such as 'BN' "
            "or 'SyncBN'."
        )
    return norm


def is_foldable_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm that is a fixed affine map per channel in eval mode.

    True for torch's batch norms, its SyncBatchNorm and mmcv's, as long as they track running
    statistics; False for group, layer and instance norm.
    """
    is_batch_norm = isinstance(module, _BatchNorm) or type(module).__name__ == 'SyncBatchNorm'
    return is_batch_norm and getattr(module, 'running_var', None) is not None


def fuse_conv_norm(kernel: Tensor, bias: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Kernel and bias of the convolution that equals ``norm(conv(x))`` in eval mode.

    Args:
        kernel: Kernel of the convolution, shape (out_channels, in_channels / groups, ...).
        bias: Its bias of shape (out_channels,), or None.
        norm: A norm for which :func:`is_foldable_norm` holds.

    Returns:
        Kernel and bias of the fused convolution, both float64, cut from the autograd graph.
    """
    tensors = (kernel, bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    kernel, bias, mean, var, gamma, beta = (
        None if tensor is None else tensor.detach().double() for tensor in tensors
    )
    kernel, bias = fuse_conv_bn_weights(kernel, bias, mean, var, norm.eps, gamma, beta)
    return kernel.detach(), bias.detach()
