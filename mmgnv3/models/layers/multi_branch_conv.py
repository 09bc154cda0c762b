"""The multi-branch convolution: many linear branches in training, one convolution in deployment."""

from collections import OrderedDict
from typing import NamedTuple

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

from mmgnv3.utils.arguments import is_integer

from .depthwise_fused import depthwise_fused
from .depthwise_moments import depthwise_moments
from .depthwise_strided import depthwise_strided
from .norms import affine_maps, build_norm, process_group, update_running_statistics
from .numerics import convolve_and_shift, statistics_dtype, sum_over_ranks
from .pointwise_moments import pointwise_moments
from .stacked_branches import stacked_branches
from .training_forms import choose_form, supported_forms


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

    The branches need not be run one by one: :mod:`.training_forms` says in which ways their sum is
    computed and chooses among them; :func:`.describe_forms` shows the choice. The modules of the
    branches hold parameters and statistics only, until one of them carries a hook (pruning, weight
    norm) or is replaced: then the unit runs its branches one by one.

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
        training_form: How the branches are computed, see :mod:`.training_forms`: 'auto' chooses
            by shape, 'plain' runs them one by one.
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
        training_form: str = 'auto',
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _pair(kernel_size)
        self.stride = _pair(stride)
        self.groups = groups
        self.deploy = deploy
        self.training_form = training_form
        counts = dict(
            in_channels=in_channels,
            out_channels=out_channels,
            groups=groups,
            num_branches=num_branches,
        )
        for name, count in counts.items():
            if not _are_counts(count):
                raise ValueError(f'{name} must be an integer of at least 1, got {count!r}.')
        for name, pair in (('kernel_size', self.kernel_size), ('stride', self.stride)):
            if len(pair) != 2 or not _are_counts(*pair):
                raise ValueError(f'{name} must be one or two integers of at least 1, got {pair}.')
        if any(size % 2 == 0 for size in self.kernel_size):
            raise ValueError(f'kernel_size must be odd, got {kernel_size}.')
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
        self.identity = build_norm(norm_cfg, in_channels) if with_identity else None
        if training_form not in supported_forms(self):
            raise ValueError(
                f'training_form must be one of {", ".join(supported_forms(self))} for this unit, '
                f'got {training_form!r}.'
            )

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

    def replaced_conv(self) -> nn.Module | None:
        """The first module that is no longer the convolution which a branch was made with."""
        convs = [(branch.conv, self.kernel_size) for branch in self.branches]
        if self.scale is not None:
            convs.append((self.scale.conv, (1, 1)))
        for conv, kernel_size in convs:
            is_own = type(conv).forward is nn.Conv2d.forward and (
                conv.bias is None
                and conv.padding_mode == 'zeros'
                and conv.kernel_size == kernel_size
                and conv.stride == self.stride
                and conv.padding == tuple(size // 2 for size in kernel_size)
                and conv.dilation == (1, 1)
                and conv.groups == self.groups
            )
            if not is_own:
                return conv
        return None

    def _build_branch(self, kernel_size: tuple[int, int], norm_cfg: dict) -> nn.Sequential:
        return nn.Sequential(
            OrderedDict(
                conv=self._build_conv(kernel_size, bias=False),
                norm=build_norm(norm_cfg, self.out_channels),
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
        form = choose_form(self, x)
        if form == 'plain':
            return self._forward_plain(x)
        device = x.device.type
        if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            return self._forward_folded(x) if form == 'folded' else self._forward_joint(x, form)

    def _forward_plain(self, x: Tensor) -> Tensor:
        out = self.branches[0](x)
        for branch in self.branches[1:]:
            out += branch(x)
        if self.scale is not None:
            out += self.scale(x)
        if self.identity is not None:
            out += self.identity(x)
        return out

    def _forward_folded(self, x: Tensor) -> Tensor:
        kernel, bias = self._fold(statistics_dtype(x))
        return convolve_and_shift(x, kernel.to(x.dtype), bias, self.stride)

    def _forward_joint(self, x: Tensor, form: str) -> Tensor:
        """Compute all branches at once with the statistics of the batch, and keep those."""
        norms = self.norms
        kernels = [branch.conv.weight for branch in self.branches]
        gammas, betas = affine_maps(norms)
        group = process_group(norms)
        shared = (gammas, betas, norms[0].eps, group)
        with_identity = self.identity is not None
        if form == 'moments':
            result = pointwise_moments(x, kernels, with_identity, *shared)
        elif form == 'stacked':
            result = stacked_branches(x, kernels, self.stride, *shared)
        else:
            scale = None if self.scale is None else self.scale.conv.weight
            if form == 'fused':
                args = (x, kernels, scale, with_identity, self.stride)
                result = depthwise_fused(*args, *shared[:3])
            elif self.stride == (1, 1):
                result = depthwise_moments(x, kernels, scale, with_identity, *shared)
            else:
                result = depthwise_strided(x, kernels, scale, self.stride, *shared[:3])
        out, means, variances = result
        count = self.count_pixels(x)
        if group is not None:
            (count,) = sum_over_ranks((means.new_tensor(float(count)),), group)
        update_running_statistics(norms, means, variances, count)
        return out

    @property
    def norms(self) -> list[nn.Module]:
        """Norms of all branches: of the convolutions, the 1 x 1 branch, the identity."""
        norms = [branch.norm for branch in self.branches]
        if self.scale is not None:
            norms.append(self.scale.norm)
        if self.identity is not None:
            norms.append(self.identity)
        return norms

    def count_pixels(self, x: Tensor) -> int:
        """Number of values a channel of the output has in a batch."""
        height, width = (-(-n // s) for n, s in zip(x.shape[2:], self.stride, strict=True))
        return x.shape[0] * height * width

    @torch.no_grad()
    def fold(self) -> tuple[Tensor, Tensor]:
        """Kernel and bias of the single convolution that equals this unit in eval mode.

        The sums are taken in float64 and rounded once at the end, so that folding adds no error
        of its own to a float32 network.

        Returns:
            Kernel of shape (out_channels, in_channels / groups, kernel height, kernel width) and
            bias of shape (out_channels,), in the unit's own dtype and on its device.

        Raises:
            ValueError: If something else has been put in the place of a branch's convolution.
        """
        if self.deploy:
            return self.conv.weight.detach(), self.conv.bias.detach()
        if (conv := self.replaced_conv()) is not None:
            raise ValueError(
                f'A branch holds {conv} in the place of its own convolution, which has no bias, '
                'no dilation and zeros for padding, and is no subclass: only that one can be '
                'folded. Put it back, or merge what was added to it into its weight.'
            )
        dtype = self.branches[0].conv.weight.dtype
        kernel, bias = self._fold(torch.float64)
        return kernel.to(dtype), bias.to(dtype)

    def _fold(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Fold with sums in ``dtype``; gradients flow back to the parameters of the branches."""
        norms = self.norms
        gammas, betas = (values.to(dtype) for values in affine_maps(norms))
        means = torch.stack([norm.running_mean.to(dtype) for norm in norms])
        variances = torch.stack([norm.running_var.to(dtype) + norm.eps for norm in norms])
        scales = gammas * variances.rsqrt()
        bias = (betas - scales * means).sum(0)

        scales = scales[:, :, None, None, None]
        kernel = sum(
            scale * branch.conv.weight.to(dtype)
            for scale, branch in zip(scales, self.branches, strict=False)
        )
        # A 1 x 1 kernel or the identity is a k x k kernel with nothing but its centre.
        pad = [size // 2 for size in self.kernel_size[::-1] for _ in range(2)]
        if self.scale is not None:
            scale = scales[len(self.branches)]
            kernel = kernel + F.pad(scale * self.scale.conv.weight.to(dtype), pad)
        if self.identity is not None:
            width = kernel.shape[1]
            unit = torch.eye(width, dtype=dtype, device=kernel.device).repeat(self.groups, 1)
            kernel = kernel + F.pad(scales[-1] * unit[:, :, None, None], pad)
        return kernel, bias

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
        return 'deploy=True' if self.deploy else f'training_form={self.training_form!r}'


def _are_counts(*values: object) -> bool:
    return all(is_integer(value) and value >= 1 for value in values)
