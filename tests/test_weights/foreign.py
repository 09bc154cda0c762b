"""Files as the reference code and timm write them, made from timm's networks."""

import argparse
import copy
import re
from functools import cache
from pathlib import Path

import torch
from timm.models.ghostnet import GhostModuleV3, GhostNet, _create_ghostnet
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from tests.utils import randomize_norms

FORMS = ('timm', 'timm folded', 'reference', 'reference folded')


@cache
def timm_network(width: float, num_classes: int = 1000, seed: int = 0) -> GhostNet:
    """A network to compare with, of random weights; not to be changed."""
    torch.manual_seed(seed)
    # timm names four widths only.
    network = _create_ghostnet('ghostnetv3_100', width=width, version='v3', num_classes=num_classes)
    return randomize_norms(network).eval()


def weights_of(network: nn.Module, form: str) -> dict[str, Tensor]:
    """State dict of a timm network in one of the forms that files have."""
    if form == 'timm folded':
        network = reparameterize_model(network)
    elif form == 'reference folded':
        # Its own reparameterize() leaves the strided depthwise convolutions as they are.
        network = copy.deepcopy(network)
        for module in network.modules():
            if isinstance(module, GhostModuleV3):
                module.switch_to_deploy()
    weights = network.state_dict()
    if form.startswith('reference'):
        weights = {reference_name(name): value for name, value in weights.items()}
    return {name: value.clone() for name, value in weights.items()}


def reference_name(name: str) -> str:
    return re.sub(r'(_rpr_(conv\.\d+|scale))\.bn1\.', r'\1.bn.', name)


def write_reference_file(path: Path, width: float = 0.5, num_classes: int = 10) -> Path:
    """A file with all that the reference code's training script saves: plain and averaged."""
    plain, averaged = (
        weights_of(timm_network(width, num_classes, seed), 'reference') for seed in (1, 2)
    )
    torch.save(
        dict(
            epoch=599,
            arch='ghostnetv3',
            state_dict=plain,
            optimizer=dict(state={}, param_groups=[dict(lr=0.1)]),
            version=2,
            args=argparse.Namespace(model='ghostnetv3', width=width, lr=[0.1]),
            state_dict_ema={f'module.{name}': value for name, value in averaged.items()},
            metric=77.13,
        ),
        path,
    )
    return path
