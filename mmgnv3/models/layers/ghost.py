"""The parts of GhostNetV3: ghost module, DFC gate, squeeze-and-excitation and bottleneck."""

from mmengine.model import BaseModule
from torch import Tensor, cat, nn
from torch.nn import functional as F

from .gated_concat import gated_concat
from .multi_branch_conv import BranchConfig, MultiBranchConv2d
from .norms import is_foldable_norm, process_group
from .numerics import statistics_dtype
from .training_forms import has_hooks


def make_divisible(channels: float, divisor: int = 4) -> int:
    """Round a number of channels to a multiple of ``divisor`` without losing more than a tenth.

    The rule of the MobileNet family, used by GhostNetV3 with divisor 4.

    Args:
        channels: Wanted number of channels, positive.
        divisor: The result is a multiple of it.

    Returns:
        Nearest multiple, at least ``divisor`` and at least 0.9 times ``channels``.
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


class DFCGate(BaseModule):
    """Decoupled fully connected attention: what a pixel's row and column say about its channels.

    Average pool by 2, 1 x 1 convolution, 1 x 5 and 5 x 1 depthwise convolutions, sigmoid
    (introduced by GhostNetV2, arXiv 2211.12905; kept by GhostNetV3).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the gate.
        norm_cfg: Config of the norms, see :class:`MultiBranchConv2d`.
        deploy: Builds the folded form.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm_cfg: dict | None = None,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        common = dict(norm_cfg=norm_cfg, deploy=deploy)
        self.convs = nn.Sequential(
            MultiBranchConv2d(in_channels, out_channels, 1, **common),
            MultiBranchConv2d(out_channels, out_channels, (1, 5), groups=out_channels, **common),
            MultiBranchConv2d(out_channels, out_channels, (5, 1), groups=out_channels, **common),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the gate.

        Args:
            x: Input of shape (B, in_channels, H, W), H and W at least 2.

        Returns:
            Values in (0, 1) of shape (B, out_channels, H // 2, W // 2), to be enlarged to the
            size of what is gated (nearest neighbours).

        Raises:
            ValueError: If the map has fewer than 2 rows or columns, so that nothing is left after
                pooling, or if one pixel of one image is left and its norms are in training mode.
        """
        height, width = x.shape[-2:]
        if height < 2 or width < 2:
            raise ValueError(
                f'The DFC gate pools its input by 2 and got a map of {height} x {width} pixels. '
                'Use larger images.'
            )
        is_one_value = self.training and len(x) * (height // 2) * (width // 2) == 1
        if is_one_value and self._takes_statistics():
            raise ValueError(
                f'The DFC gate pools its input of {height} x {width} pixels to a single one, and '
                'the batch is one image: its batch norms cannot take a variance of one value. '
                'Train with two images or more in a batch or with larger ones (97 pixels a side '
                'where the stride is 32), or put the norms into eval mode (norm_eval=True).'
            )
        return self.convs(F.avg_pool2d(x, kernel_size=2, stride=2)).sigmoid_()

    def _takes_statistics(self) -> bool:
        """Whether norms take the statistics of the batch, and of this process's alone."""
        norms = [norm for norm in self.modules() if is_foldable_norm(norm) and norm.training]
        return bool(norms) and process_group(norms) is None


class GhostModule(BaseModule):
    """Half of the channels from a 1 x 1 convolution, the other half from a cheap depthwise one.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        with_act: Whether both halves end in a ReLU.
        with_gate: Whether the output is multiplied with a :class:`DFCGate` of the input.
        branch_cfg: Branches of the two convolutions.
        norm_cfg: Config of the norms, see :class:`MultiBranchConv2d`.
        deploy: Builds the folded form.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        with_act: bool = True,
        with_gate: bool = False,
        branch_cfg: BranchConfig | None = None,
        norm_cfg: dict | None = None,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        branch_cfg = branch_cfg or BranchConfig()
        self.out_channels = out_channels
        half = -(-out_channels // 2)
        common = dict(num_branches=branch_cfg.num_branches, norm_cfg=norm_cfg, deploy=deploy)
        self.primary = MultiBranchConv2d(
            in_channels,
            half,
            1,
            with_identity=branch_cfg.with_identity and in_channels == half,
            **common,
        )
        self.cheap = MultiBranchConv2d(
            half,
            half,
            3,
            groups=half,
            with_scale=branch_cfg.with_scale,
            with_identity=branch_cfg.with_identity,
            **common,
        )
        self.act = nn.ReLU(inplace=True) if with_act else nn.Identity()
        self.gate = (
            DFCGate(in_channels, out_channels, norm_cfg=norm_cfg, deploy=deploy)
            if with_gate
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        primary = self.act(self.primary(x))
        cheap = self.act(self.cheap(primary))
        if primary.shape[1] + cheap.shape[1] != self.out_channels:
            cheap = cheap[:, :-1]
        if self.gate is None:
            return cat([primary, cheap], dim=1)
        return gated_concat(primary, cheap, self.gate(x))


class SELayer(BaseModule):
    """Squeeze-and-excitation with ReLU and hard sigmoid, ``relu6(x + 3) / 6``.

    mmpretrain and mmdet have one each; the backbone must run beside either of them alone.

    Args:
        channels: Channels of input and output.
        ratio: Share of the channels that is left after the squeeze.
    """

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        squeezed = make_divisible(channels * ratio)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.act = nn.ReLU(inplace=True)
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the channels of (B, channels, H, W)."""
        # Not ``mean``: its way back writes a whole map, and one that is not channels_last.
        total = x.sum((2, 3), keepdim=True, dtype=statistics_dtype(x))
        squeezed = (total / (x.shape[2] * x.shape[3])).to(x.dtype)
        return x * self.gate(self.expand(self.act(self.reduce(squeezed))))


class GhostBottleneck(BaseModule):
    """Expanding ghost module, depthwise convolution if strided, SE, projecting ghost module.

    Args:
        in_channels: Channels of the input.
        hidden_channels: Channels between the two ghost modules.
        out_channels: Channels of the output.
        kernel_size: Size of the strided depthwise kernel and of the shortcut's; the cheap
            operations are always 3 x 3.
        stride: Stride of the block.
        se_ratio: Ratio of :class:`SELayer`, 0 for none.
        with_gate: Whether the expansion is gated by :class:`DFCGate`.
        branch_cfg: Branches of the re-parameterizable convolutions.
        norm_cfg: Config of the norms, see :class:`MultiBranchConv2d`.
        deploy: Builds the folded form.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        se_ratio: float = 0.0,
        with_gate: bool = False,
        branch_cfg: BranchConfig | None = None,
        norm_cfg: dict | None = None,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        branch_cfg = branch_cfg or BranchConfig()
        common = dict(norm_cfg=norm_cfg, deploy=deploy)
        self.ghost1 = GhostModule(
            in_channels, hidden_channels, with_gate=with_gate, branch_cfg=branch_cfg, **common
        )
        self.downsample = (
            MultiBranchConv2d(
                hidden_channels,
                hidden_channels,
                kernel_size,
                stride=stride,
                groups=hidden_channels,
                num_branches=branch_cfg.num_branches,
                with_scale=branch_cfg.with_scale and kernel_size > 1,
                **common,
            )
            if stride > 1
            else None
        )
        self.se = SELayer(hidden_channels, se_ratio) if se_ratio else None
        self.ghost2 = GhostModule(
            hidden_channels, out_channels, with_act=False, branch_cfg=branch_cfg, **common
        )
        self.shortcut = (
            nn.Identity()
            if in_channels == out_channels and stride == 1
            else nn.Sequential(
                MultiBranchConv2d(
                    in_channels, in_channels, kernel_size, stride, groups=in_channels, **common
                ),
                MultiBranchConv2d(in_channels, out_channels, 1, **common),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        out = self.ghost1(x)
        if self.downsample is not None:
            out = self.downsample(out)
        if self.se is not None:
            out = self.se(out)
        out = self.ghost2(out)
        if has_hooks(self.ghost2):
            return out + self.shortcut(x)
        # Nothing else holds the output of the concatenation at the end of ``ghost2``.
        return out.add_(self.shortcut(x))
