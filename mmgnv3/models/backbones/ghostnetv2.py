"""GhostNetV2 (arXiv 2211.12905): the network that GhostNetV3 adds branches to."""

from collections.abc import Sequence

from mmgnv3.registry import MODELS

from .ghostnetv3 import GhostNetV3


@MODELS.register_module()
class GhostNetV2(GhostNetV3):
    """GhostNetV2 backbone: GhostNetV3 without re-parameterization.

    Both have the same convolutions, gates and widths; here every unit is one convolution and one
    norm. It is the baseline of what branches bring and cost. Folded, the two have the same
    weights, so that a folded GhostNetV3 loads into ``GhostNetV2(deploy=True)``.

    Args:
        widen_factor: Width multiplier, positive. The paper has 1.0, 1.3 and 1.6.
        arch: Name of an architecture or a table, see :class:`GhostNetV3`.
        out_indices: Stages whose outputs are returned, None for the last one.
        frozen_stages: The stem and stages 0 to this one are frozen, -1 for none.
        norm_cfg: Config of the norms. None means ``dict(type='BN')``.
        norm_eval: Whether norms keep their running statistics in training.
        with_cp: Recomputes activations inside a block in the backward pass.
        deploy: Builds the folded form.
        init_cfg: Initialisation config of :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If an argument makes no network, or the norm cannot be folded.

    Examples:
        >>> import torch
        >>> backbone = GhostNetV2(widen_factor=1.0, out_indices=(2, 3, 4)).eval()
        >>> [tuple(x.shape) for x in backbone(torch.rand(1, 3, 224, 224))]
        [(1, 40, 28, 28), (1, 112, 14, 14), (1, 160, 7, 7)]
    """

    def __init__(
        self,
        widen_factor: float = 1.0,
        arch: str | dict = 'base',
        out_indices: Sequence[int] | None = None,
        frozen_stages: int = -1,
        norm_cfg: dict | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        deploy: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(
            widen_factor,
            arch,
            num_branches=1,
            with_scale=False,
            with_identity=False,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            norm_cfg=norm_cfg,
            norm_eval=norm_eval,
            with_cp=with_cp,
            deploy=deploy,
            init_cfg=init_cfg,
        )
