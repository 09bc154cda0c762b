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
        widths: Width multipliers.

    Returns:
        GhostNetV3 and GhostNetV2, the same without branches, in every width, each before timm's if
        timm has it; timm's MobileNetV3-Large. timm folds branches and nothing else.

    Raises:
        RuntimeError: If timm is not installed.
    """
    timm, reparameterize_model = _import_timm()
    networks = []
    for width in widths:
        for version, backbone in ((3, GhostNetV3), (2, GhostNetV2)):
            name = f'GhostNetV{version} {width:g}x'
            ours = build_classifier(backbone(widen_factor=width)).eval()
            networks.append(Network(name, ours, fold(ours)))
            timm_name = f'ghostnetv{version}_{100 * width:03g}'
            if timm.is_model(timm_name):
                theirs = timm.create_model(timm_name).eval()
                folded = reparameterize_model(theirs) if version == 3 else None
                networks.append(Network(f'{name} (timm)', theirs, folded))
    mobilenet = timm.create_model('mobilenetv3_large_100').eval()
    return [*networks, Network('MobileNetV3-Large 1x (timm)', mobilenet)]


def training_networks(names: Sequence[str] | None = None) -> dict[str, Callable[[], nn.Module]]:
    """Builders of the networks for training, all at width 1.0, in the order of the table.

    Args:
        names: Which to take; all of them if there are none.

    Raises:
        RuntimeError: If timm is not installed.
        ValueError: If there is no network of one of the names.
    """
    timm, _ = _import_timm()

    def build(cls: type, **kwargs) -> Callable[[], nn.Module]:
        return lambda: build_classifier(cls(**kwargs))

    def build_timm(name: str) -> Callable[[], nn.Module]:
        return lambda: timm.create_model(name, num_classes=NUM_CLASSES)

    builders = {
        OURS: build(GhostNetV3),
        f'{OURS}, branch by branch': build(GhostNetV3, training_form='plain'),
        f'{OURS}, folded': lambda: fold(build_classifier(GhostNetV3())),
        BRANCH_FREE: build(GhostNetV2),
        TIMM: build_timm('ghostnetv3_100'),
        TIMM_BRANCH_FREE: build_timm('ghostnetv2_100'),
        'MobileNetV3-Large 1x (timm)': build_timm('mobilenetv3_large_100'),
    }
    if unknown := set(names or ()) - set(builders):
        listed = '; '.join(sorted(unknown)), '; '.join(builders)
        raise ValueError('There is no network {}. Those to choose from: {}.'.format(*listed))
    return {name: build for name, build in builders.items() if not names or name in names}


def _import_timm() -> tuple:
    try:
        import timm
        from timm.utils.model import reparameterize_model
    except ImportError as error:
        raise RuntimeError(
            "The networks to compare with are in timm: pip install 'mmgnv3[dev]'."
        ) from error
    return timm, reparameterize_model
