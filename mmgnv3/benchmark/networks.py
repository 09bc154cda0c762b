"""The networks that are compared: this package's in all their forms, and timm's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmengine.registry import DefaultScope
from mmpretrain.models import ImageClassifier
from torch import nn

from mmgnv3.models import GhostNetV2, GhostNetV3
from mmgnv3.reparam import fold

NUM_CLASSES = 1000
"""Classes of every network; those of ImageNet-1K."""

BRANCH_FREE = 'GhostNetV2 1x'
"""The network without branches that training with branches is measured against."""

OURS = 'GhostNetV3 1x'
TIMM = 'GhostNetV3 1x (timm)'
TIMM_BRANCH_FREE = 'GhostNetV2 1x (timm)'

_TIMM_GHOSTNETV3 = {
    0.5: 'ghostnetv3_050',
    1.0: 'ghostnetv3_100',
    1.3: 'ghostnetv3_130',
    1.6: 'ghostnetv3_160',
}


@dataclass
class Network:
    """A network in eval mode; ``folded`` is None where there is nothing to fold."""

    name: str
    model: nn.Module
    folded: nn.Module | None = None

    @property
    def deployed(self) -> nn.Module:
        """The form to deploy."""
        return self.model if self.folded is None else self.folded


def build_classifier(backbone: nn.Module) -> ImageClassifier:
    """Put the ImageNet head of GhostNetV3 on a backbone: 1280 hidden units and 1000 classes."""
    # A run before this one in the process may have left the scope of another framework.
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return ImageClassifier(
            backbone=backbone,
            neck=dict(type='GlobalAveragePooling'),
            head=dict(
                type='StackedLinearClsHead',
                num_classes=NUM_CLASSES,
                in_channels=backbone.out_channels[-1],
                mid_channels=[1280],
                dropout_rate=0.2,
            ),
        )


def inference_networks(widths: Sequence[float]) -> list[Network]:
    """Build the networks for inference, with random weights: time does not depend on them.

    Args:
        widths: Width multipliers of GhostNetV3.

    Returns:
        For every width this package's network and timm's, if timm has it; GhostNetV2 and
        MobileNetV3-Large, which have no branches to fold.

    Raises:
        ModuleNotFoundError: If timm is not installed.
    """
    timm, reparameterize_model = _import_timm()
    networks = []
    for width in widths:
        ours = build_classifier(GhostNetV3(widen_factor=width)).eval()
        networks.append(Network(f'GhostNetV3 {width:g}x', ours, fold(ours)))
        if width in _TIMM_GHOSTNETV3:
            theirs = timm.create_model(_TIMM_GHOSTNETV3[width]).eval()
            name = f'GhostNetV3 {width:g}x (timm)'
            networks.append(Network(name, theirs, reparameterize_model(theirs)))
    for name, timm_name in (
        (TIMM_BRANCH_FREE, 'ghostnetv2_100'),
        ('MobileNetV3-Large 1x (timm)', 'mobilenetv3_large_100'),
    ):
        networks.append(Network(name, timm.create_model(timm_name).eval()))
    return networks


def training_networks() -> dict[str, Callable[[], nn.Module]]:
    """Builders of the networks for training, all at width 1.0, in the order of the table.

    Raises:
        ModuleNotFoundError: If timm is not installed.
    """
    timm, _ = _import_timm()

    def build(cls: type, **kwargs) -> Callable[[], nn.Module]:
        return lambda: build_classifier(cls(**kwargs))

    def build_timm(name: str) -> Callable[[], nn.Module]:
        return lambda: timm.create_model(name, num_classes=NUM_CLASSES)

    return {
        OURS: build(GhostNetV3),
        f'{OURS}, branch by branch': build(GhostNetV3, training_form='plain'),
        f'{OURS}, folded': lambda: fold(build_classifier(GhostNetV3())),
        BRANCH_FREE: build(GhostNetV2),
        TIMM: build_timm('ghostnetv3_100'),
        TIMM_BRANCH_FREE: build_timm('ghostnetv2_100'),
        'MobileNetV3-Large 1x (timm)': build_timm('mobilenetv3_large_100'),
    }


def count_params(model: nn.Module) -> int:
    """Count parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def _import_timm() -> tuple:
    try:
        import timm
        from timm.utils.model import reparameterize_model
    except ImportError as error:
        raise ModuleNotFoundError(
            'the networks to compare with are in timm: pip install -r requirements/dev.txt'
        ) from error
    return timm, reparameterize_model
