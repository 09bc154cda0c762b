"""GhostNetV3 (arXiv 2404.11202) as a backbone for any OpenMMLab framework."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmgnv3.models.layers import (
    BranchConfig,
    GhostBottleneck,
    MultiBranchConv2d,
    is_foldable_norm,
    set_training_form,
)
from mmgnv3.models.layers.ghost import make_divisible
from mmgnv3.registry import MODELS
from mmgnv3.utils.arguments import is_integer, is_real

from .arch_table import read_arch, split_into_stages


@MODELS.register_module()
class GhostNetV3(BaseModule):
    """GhostNetV3 backbone.

    Multi-branch in training, plain in deployment: :meth:`switch_to_deploy` folds every batch norm
    and every branch exactly. The network is the public code's
    (huawei-noah/Efficient-AI-Backbones, ``ghostnetv3_pytorch``) and timm's, with their default
    (PyTorch's) initialisation; what is constant there is an argument here.

    A stage is a run of blocks of one stride. For the architecture ``'base'`` stages 0 to 4 have
    the strides 2, 4, 8, 16 and 32 and stage 5 is the last 1 x 1 convolution at stride 32. Stages
    behind the last one asked for are not built, so that every parameter takes part in training;
    their weights in a checkpoint are passed over.

    Args:
        widen_factor: Width multiplier, positive. The paper has 1.0, 1.3 and 1.6.
        arch: Name of an architecture (``'base'``: GhostNetV3, ``'small'``: GhostNetV3-Small for
            tiny images, arXiv 2509.12380) or a table: a dict with any of ``stem_channels`` (int),
            ``stem_stride`` (int), ``rows`` (a sequence of (kernel size, hidden channels, out
            channels, SE ratio, stride), one a bottleneck) and ``last_channels`` (int), all at
            width 1.0. What a table leaves out is as in ``'base'``.
        num_branches: Parallel convolutions N of every re-parameterizable unit, 1 or more.
        with_scale: Whether depthwise units have the 1 x 1 branch.
        out_indices: Stages whose outputs are returned, negative ones counted from the end. None
            means the last stage: ``(5,)`` for ``'base'``. Detectors with an FPN take
            ``(2, 3, 4)``.
        frozen_stages: The stem and stages 0 to this one are frozen: eval mode, no gradient. -1
            freezes nothing.
        norm_cfg: Config of the norms. Only batch norms with running statistics (``BN``,
            ``SyncBN``) can be folded. None means ``dict(type='BN')``.
        norm_eval: Whether norms keep their running statistics in training.
        with_cp: Trades time for memory: activations inside a block are recomputed in the backward
            pass. Outputs, gradients and running statistics stay the same. Under
            :func:`torch.compile` it does nothing: the compiler decides what to recompute.
        deploy: Builds the folded form, into which weights of a folded backbone can be loaded.
        with_identity: Whether units that keep channels and stride have the identity branch.
        training_form: How branches are computed in training, one of
            :data:`mmgnv3.models.layers.TRAINING_FORMS`: 'auto' takes what is fastest for every
            unit's shape, 'plain' runs them one by one. The results are the same up to rounding.
        init_cfg: Initialisation config of :class:`mmengine.model.BaseModule`, for example
            ``dict(type='Pretrained', checkpoint=path, prefix='backbone.')``.

    Attributes:
        out_channels (tuple[int, ...]): Channels of the returned maps, in the order of
            ``out_indices``; what ``in_channels`` of a neck is to be.
        out_strides (tuple[int, ...]): Their strides in pixels of the image.
        min_input_size (int): Smallest height and width of an image in pixels.

    Raises:
        ValueError: If an argument makes no network, or the norm cannot be folded.

    Examples:
        >>> import torch
        >>> backbone = GhostNetV3(widen_factor=1.0, out_indices=(2, 3, 4)).eval()
        >>> [tuple(x.shape) for x in backbone(torch.rand(1, 3, 224, 224))]
        [(1, 40, 28, 28), (1, 112, 14, 14), (1, 160, 7, 7)]
        >>> backbone.out_channels
        (40, 112, 160)
        >>> backbone.switch_to_deploy()
    """

    arch_settings = dict(
        base=dict(
            stem_channels=16,
            stem_stride=2,
            rows=(
                (3, 16, 16, 0, 1),
                (3, 48, 24, 0, 2),
                (3, 72, 24, 0, 1),
                (5, 72, 40, 0.25, 2),
                (5, 120, 40, 0.25, 1),
                (3, 240, 80, 0, 2),
                (3, 200, 80, 0, 1),
                (3, 184, 80, 0, 1),
                (3, 184, 80, 0, 1),
                (3, 480, 112, 0.25, 1),
                (3, 672, 112, 0.25, 1),
                (5, 672, 160, 0.25, 2),
                (5, 960, 160, 0, 1),
                (5, 960, 160, 0.25, 1),
                (5, 960, 160, 0, 1),
                (5, 960, 160, 0.25, 1),
            ),
            last_channels=960,
        ),
        small=dict(
            stem_channels=16,
            stem_stride=1,
            rows=(
                (3, 16, 16, 0, 1),
                (3, 32, 20, 0, 2),
                (3, 40, 20, 0, 1),
                (3, 48, 32, 0.25, 1),
                (3, 64, 32, 0.25, 1),
                (3, 80, 48, 0, 2),
                (3, 96, 48, 0, 1),
                (3, 120, 64, 0.25, 1),
                (3, 128, 80, 0.25, 1),
                (3, 160, 80, 0.25, 1),
            ),
            last_channels=160,
        ),
    )

    # The public code gates the expansion of every block but the first two.
    num_ungated_blocks = 2

    def __init__(
        self,
        widen_factor: float = 1.0,
        arch: str | dict = 'base',
        num_branches: int = 3,
        with_scale: bool = True,
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        norm_cfg: dict | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        deploy: bool = False,
        with_identity: bool = True,
        training_form: str = 'auto',
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if not is_real(widen_factor) or widen_factor <= 0:
            raise ValueError(f'widen_factor must be a positive number, got {widen_factor!r}.')
        flags = dict(
            with_scale=with_scale,
            norm_eval=norm_eval,
            with_cp=with_cp,
            deploy=deploy,
            with_identity=with_identity,
        )
        for name, flag in flags.items():
            # A text such as 'False' would count as true.
            if flag not in (True, False):
                raise ValueError(f'{name} must be True or False, got {flag!r}.')
        table = read_arch(arch, self.arch_settings)
        stage_rows = split_into_stages(table['rows'])
        num_stages = len(stage_rows) + 1

        self.arch = arch
        self.widen_factor = widen_factor
        self.out_indices = _check_out_indices(out_indices, num_stages)
        last_stage = max(self.out_indices)
        if not is_integer(frozen_stages) or not -1 <= frozen_stages <= last_stage:
            raise ValueError(
                f'frozen_stages must be an integer between -1 (none) and {last_stage}, the last '
                f'stage that is built, got {frozen_stages!r}.'
            )
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self.deploy = deploy

        branch_cfg = BranchConfig(num_branches, with_scale, with_identity)
        common = dict(norm_cfg=norm_cfg, deploy=deploy)
        channels = make_divisible(table['stem_channels'] * widen_factor)
        stride = table['stem_stride']
        self.stem = nn.Sequential(
            MultiBranchConv2d(3, channels, 3, stride=stride, **common), nn.ReLU(inplace=True)
        )

        self.stages = nn.ModuleList()
        stage_channels, stage_strides = [], []
        self.min_input_size = 1
        block_index = 0
        for rows in stage_rows[: last_stage + 1]:
            blocks = []
            for row in rows:
                with_gate = block_index >= self.num_ungated_blocks
                block = GhostBottleneck(
                    channels,
                    make_divisible(row.hidden_channels * widen_factor),
                    make_divisible(row.out_channels * widen_factor),
                    kernel_size=row.kernel_size,
                    stride=row.stride,
                    se_ratio=row.se_ratio,
                    with_gate=with_gate,
                    branch_cfg=branch_cfg,
                    **common,
                )
                if with_gate:
                    # A map of an n-pixel image has ceil(n / stride) pixels and the gate needs 2.
                    self.min_input_size = stride + 1
                blocks.append(block)
                channels = make_divisible(row.out_channels * widen_factor)
                stride *= row.stride
                block_index += 1
            self.stages.append(nn.Sequential(*blocks))
            stage_channels.append(channels)
            stage_strides.append(stride)
        if last_stage == num_stages - 1:
            last_channels = make_divisible(table['last_channels'] * widen_factor)
            self.stages.append(
                nn.Sequential(
                    MultiBranchConv2d(channels, last_channels, 1, **common), nn.ReLU(inplace=True)
                )
            )
            stage_channels.append(last_channels)
            stage_strides.append(stride)
        self.out_channels = tuple(stage_channels[i] for i in self.out_indices)
        self.out_strides = tuple(stage_strides[i] for i in self.out_indices)
        set_training_form(self, training_form)
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of the stages in ``out_indices``.

        Args:
            x: Images of shape (B, 3, H, W), H and W at least ``min_input_size``.

        Returns:
            One map a stage, in the order of ``out_indices``: shape (B, C, ceil(H / stride),
            ceil(W / stride)). On a CPU they are channels_last in memory.

        Raises:
            ValueError: If the images are too small for the deepest gate.
        """
        if min(x.shape[-2:]) < self.min_input_size:
            raise ValueError(
                f'Images of {x.shape[-2]} x {x.shape[-1]} pixels are too small: the DFC gate of '
                f'the deepest stage needs a map of 2 x 2, so {self.min_input_size} pixels a side '
                'at least. Resize or pad the images, or return earlier stages only (out_indices).'
            )
        x = self.stem(_in_fast_format(x))
        outs = {}
        for index, stage in enumerate(self.stages):
            for block in stage:
                x = self._forward_block(block, x)
            if index in self.out_indices:
                outs[index] = x
        return tuple(outs[index] for index in self.out_indices)

    def _forward_block(self, block: nn.Module, x: Tensor) -> Tensor:
        if (
            not (self.with_cp and torch.is_grad_enabled() and isinstance(block, GhostBottleneck))
            # A compiler decides by itself what to compute twice, and cannot trace the context.
            or torch.compiler.is_compiling()
        ):
            return block(x)
        return checkpoint(
            block,
            x,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _frozen_statistics(block)),
        )

    def switch_to_deploy(self) -> None:
        """Fold all branches and norms, in place. Does nothing if that was done before."""
        for module in list(self.modules()):
            if isinstance(module, MultiBranchConv2d):
                module.switch_to_deploy()
        self.deploy = True

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        for module in (self.stem, *self.stages[: self.frozen_stages + 1]):
            module.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> 'GhostNetV3':
        """Set the mode; frozen stages stay in eval mode, norms too if ``norm_eval``."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if is_foldable_norm(module):
                    module.eval()
        return self

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args, **kwargs) -> None:
        # mmengine only logs keys and shapes that do not fit and goes on with random weights, so a
        # checkpoint of another network has to be refused here.
        for key in list(state_dict):
            stage = key.removeprefix(f'{prefix}stages.').split('.')[0]
            is_stage = key.startswith(f'{prefix}stages.') and stage.isdecimal()
            if is_stage and int(stage) >= len(self.stages):
                del state_dict[key]
        theirs = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        ours = self.state_dict()
        if theirs and not set(theirs) & set(ours):
            inside = any(name.startswith('backbone.stem.') for name in theirs)
            raise RuntimeError(
                "The checkpoint holds a whole model; its backbone is taken by prefix='backbone.' "
                'in init_cfg.'
                if inside
                else f'The checkpoint holds no GhostNetV3: its first weight is {min(theirs)}. '
                'Public files are read by an address, see mmgnv3.weights.'
            )
        if theirs:
            their_form, our_form = _describe(theirs), _describe(ours)
            if their_form != our_form:
                raise RuntimeError(
                    f'The checkpoint holds the backbone of another GhostNetV3: {their_form}; '
                    f'this one is: {our_form}. Set widen_factor, num_branches, with_scale, '
                    'with_identity and deploy as the checkpoint has them. A training form is '
                    'folded by tools/reparam.py; a folded one cannot be unfolded.'
                )
            for name, value in ours.items():
                if name in theirs and theirs[name].shape != value.shape:
                    raise RuntimeError(
                        f'The checkpoint holds a backbone of another arch or width: {name} is '
                        f'{tuple(theirs[name].shape)} there and {tuple(value.shape)} here.'
                    )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _in_fast_format(x: Tensor) -> Tensor:
    """Lay the channels of a pixel side by side where that is faster, which is on a CPU.

    Contiguous maps are reordered by every convolution there; these are not, all the way through
    the network, and its outputs keep the format. On a GPU the format is the user's choice.
    """
    if x.device.type != 'cpu' or x.dtype not in (torch.float32, torch.bfloat16):
        return x
    return x.contiguous(memory_format=torch.channels_last)


def _check_out_indices(out_indices: Sequence[int] | None, num_stages: int) -> tuple[int, ...]:
    if out_indices is None:
        return (num_stages - 1,)
    out_indices = tuple(out_indices) if isinstance(out_indices, Iterable) else (out_indices,)
    if not out_indices or not all(
        is_integer(i) and -num_stages <= i < num_stages for i in out_indices
    ):
        raise ValueError(
            f'out_indices must be integers that name stages between 0 and {num_stages - 1} (the '
            f'last 1 x 1 convolution), got {out_indices}.'
        )
    indices = tuple(int(i) % num_stages for i in out_indices)
    if len(set(indices)) < len(indices):
        raise ValueError(f'out_indices names a stage twice: {out_indices}.')
    return indices


def _describe(state_dict: dict[str, Tensor]) -> str:
    """Say which network the weights of a backbone belong to."""
    deploy = 'stem.0.conv.weight' in state_dict
    stem = state_dict.get('stem.0.conv.weight' if deploy else 'stem.0.branches.0.conv.weight')
    channels = 'unknown' if stem is None else stem.shape[0]
    if deploy:
        return f'deployed form, {channels} stem channels'
    cheap = 'stages.0.0.ghost1.cheap.'
    branches = {k.split('.')[6] for k in state_dict if k.startswith(f'{cheap}branches.')}
    scale = 'with' if f'{cheap}scale.conv.weight' in state_dict else 'without'
    identity = 'with' if f'{cheap}identity.running_var' in state_dict else 'without'
    return (
        f'training form, {channels} stem channels, {len(branches)} branches, {scale} 1 x 1 branch, '
        f'{identity} identity'
    )


@contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Let a recomputation, which must not count a batch twice, update copies of the buffers.

    The norms themselves stay as they are: branches are computed jointly or one by one by what
    their norms are set to, and autograd expects the tensors of the first pass again.
    """
    owners = [(m, dict(m._buffers)) for m in module.modules() if m._buffers]
    for owner, buffers in owners:
        owner._buffers.update({k: v if v is None else v.clone() for k, v in buffers.items()})
    try:
        yield
    finally:
        for owner, buffers in owners:
            owner._buffers.update(buffers)
