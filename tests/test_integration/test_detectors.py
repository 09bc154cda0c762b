"""The backbone inside mmdet's own detectors, each from mmdet's own config."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from mmdet.models.detectors import TwoStageDetector
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs, demo_mm_proposals
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from mmengine.logging import MessageHub
from mmengine.registry import DefaultScope
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmgnv3.models import GhostNetV3
from mmgnv3.reparam import fold, relative_difference
from tests.utils import randomize_norms


def set_neck(model: ConfigDict, channels: tuple[int, ...]) -> None:
    model.neck.in_channels = list(channels)


def set_neck_deepest_first(model: ConfigDict, channels: tuple[int, ...]) -> None:
    model.neck.in_channels = list(reversed(channels))


def set_ssd(model: ConfigDict, channels: tuple[int, ...]) -> None:
    """SSD's neck hands on the backbone's maps and adds smaller ones."""
    model.neck.in_channels = channels
    model.neck.out_channels = channels + tuple(model.neck.out_channels[len(channels) :])
    model.bbox_head.in_channels = model.neck.out_channels


@dataclass(frozen=True)
class Case:
    """How one of mmdet's configs gets another backbone.

    Attributes:
        config: Config of mmdet.
        out_indices: Stages with the strides of the maps that the config's own backbone returns.
        set_channels: Writes the backbone's channels where the detector asks for them.
        size: Height and width of the images in pixels.
        options: Sizes behind the backbone that are cut for speed.
        norms_left: Kinds of norms that remain after folding, all of them dependent on the input.
    """

    config: str
    out_indices: tuple[int, ...]
    set_channels: Callable[[ConfigDict, tuple[int, ...]], None] = set_neck
    size: int = 64
    options: dict[str, Any] = field(default_factory=dict)
    norms_left: frozenset[type[nn.Module]] = frozenset()


GROUP_NORM = frozenset({nn.GroupNorm})
TRANSFORMER_NORMS = frozenset({nn.GroupNorm, nn.LayerNorm})
TWO_LAYERS = {'encoder.num_layers': 2, 'decoder.num_layers': 2}

CASES = {
    'Faster R-CNN': Case('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', (1, 2, 3, 4)),
    'Mask R-CNN': Case(
        'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
        (1, 2, 3, 4),
        options={'train_cfg.rcnn.sampler.num': 32},
    ),
    'RetinaNet': Case('retinanet/retinanet_r50_fpn_1x_coco.py', (1, 2, 3, 4)),
    'ATSS': Case('atss/atss_r50_fpn_1x_coco.py', (1, 2, 3, 4), norms_left=GROUP_NORM),
    # In smaller images the deepest map is one pixel: its centerness is two numbers, both near zero,
    # and rounding is large beside them.
    'FCOS': Case(
        'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', (1, 2, 3, 4), size=160, norms_left=GROUP_NORM
    ),
    'YOLOX': Case('yolox/yolox_s_8xb8-300e_coco.py', (2, 3, 4)),
    'RTMDet': Case('rtmdet/rtmdet_s_8xb32-300e_coco.py', (2, 3, 4)),
    'YOLOv3': Case('yolo/yolov3_d53_8xb8-ms-608-273e_coco.py', (2, 3, 4), set_neck_deepest_first),
    # Much smaller images leave nothing of the last one of its six maps.
    'SSD': Case('ssd/ssd300_coco.py', (2, 3), set_ssd, size=300),
    'SSDLite': Case('ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py', (3, 5), set_ssd),
    'Deformable DETR': Case(
        'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
        (2, 3, 4),
        options={'num_queries': 20, **TWO_LAYERS},
        norms_left=TRANSFORMER_NORMS,
    ),
    'DINO': Case(
        'dino/dino-4scale_r50_8xb2-12e_coco.py',
        (2, 3, 4),
        options={'num_queries': 20, **TWO_LAYERS},
        norms_left=TRANSFORMER_NORMS,
    ),
}


@pytest.fixture(scope='module', params=CASES.values(), ids=CASES)
def case(request) -> Case:
    return request.param


@pytest.fixture(scope='module')
def detector(case) -> nn.Module:
    """The detector, shared by tests that leave it as it is."""
    backbone = dict(type='mmgnv3.GhostNetV3', widen_factor=0.5, out_indices=case.out_indices)
    with DefaultScope.overwrite_default_scope('mmdet'):
        config = get_config(f'mmdet::{case.config}')
        config.merge_from_dict({f'model.{key}': value for key, value in case.options.items()})
        config.model.backbone = ConfigDict(backbone)
        case.set_channels(config.model, MODELS.build(backbone).out_channels)
        torch.manual_seed(0)
        detector = MODELS.build(config.model)
        detector.init_weights()
    return randomize_norms(detector)


@pytest.fixture(scope='module')
def folded(detector) -> nn.Module:
    """Its folded copy, shared in the same way."""
    return fold(detector)


def make_batch(detector: nn.Module, case: Case) -> dict:
    """Two images with annotations as the detector's data preprocessor hands them on."""
    # What a runner would say; YOLOX resizes every tenth batch.
    MessageHub.get_current_instance().update_info('iter', 0)
    data = demo_mm_inputs(
        batch_size=2,
        image_shapes=(3, case.size, case.size),
        num_items=[3, 2],
        num_classes=80,
        with_mask=getattr(detector, 'with_mask', False),
        use_box_type=True,
    )
    return detector.data_preprocessor(data, training=True)


def train_one_step(detector: nn.Module, case: Case) -> None:
    """Also checks that the loss is finite and reaches every parameter of the backbone."""
    detector.train()
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3)
    loss, _ = detector.parse_losses(detector(**make_batch(detector, case), mode='loss'))
    assert loss.isfinite()
    loss.backward()
    for name, parameter in detector.backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # The gradient of a bias is zero where a norm in training mode comes after it.
        assert parameter.grad.any() or parameter.ndim == 1, name
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in detector.parameters())


class RawOutputs(nn.Module):
    """What a detector's heads compute before boxes are selected.

    Selection compares scores, and untrained heads give scores so close to each other that rounding
    decides. So the second stage of a two-stage detector gets fixed proposals.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, samples: list) -> Any:
        if not isinstance(self.detector, TwoStageDetector):
            return self.detector(images, samples)
        features = self.detector.extract_feat(images)
        proposals = demo_mm_proposals([images.shape[1:]] * len(images), 2)
        for proposal in proposals:
            proposal.bboxes = proposal.bboxes.to(images)
        return (
            self.detector.rpn_head(features),
            self.detector.roi_head(features, proposals, samples),
        )


def test_one_training_step(detector, case):
    assert isinstance(detector.backbone, GhostNetV3)
    train_one_step(copy.deepcopy(detector), case)


def test_folded_copy_trains(folded, case):
    train_one_step(copy.deepcopy(folded), case)


def test_fold_leaves_no_norm_that_can_be_folded(folded, case):
    norms = {
        type(module)
        for module in folded.modules()
        if isinstance(module, _BatchNorm | nn.GroupNorm | nn.LayerNorm)
    }
    assert norms == case.norms_left


@pytest.mark.parametrize(
    ('dtype', 'tolerance'), [(torch.float32, 1e-4), (torch.float64, 1e-10)], ids=str
)
def test_fold_keeps_outputs_and_original(detector, case, dtype, tolerance):
    original = copy.deepcopy(detector).to(dtype)
    before = copy.deepcopy(original.state_dict())
    folded = fold(original)
    samples = make_batch(detector, case)['data_samples']
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, case.size, case.size, generator=generator, dtype=dtype)
    difference = relative_difference(RawOutputs(original), RawOutputs(folded), images, samples)
    assert difference < tolerance
    assert original.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in original.state_dict().items())


@pytest.mark.parametrize('case', [CASES['RTMDet']], ids=['RTMDet'], indirect=True)
def test_levels_that_share_a_convolution_get_one_each(detector, folded):
    """RTMDet's head has one convolution for all levels and a norm a level."""
    for branch in ('cls_convs', 'reg_convs'):
        levels, folded_levels = (getattr(d.bbox_head, branch) for d in (detector, folded))
        assert len({id(level[0].conv) for level in levels}) == 1
        weights = [level[0].conv.weight for level in folded_levels]
        assert len(weights) == 3
        assert not any(torch.equal(weights[0], weight) for weight in weights[1:])
