"""Converted weights, with timm's networks as the oracle."""

import pytest
import torch
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from timm.models.ghostnet import ghostnetv2_100
from timm.utils.model import reparameterize_model
from torch import nn

from mmgnv3.models import GhostNetV3
from mmgnv3.models.layers.ghost import GhostModule
from mmgnv3.reparam import is_deployed_checkpoint
from mmgnv3.utils.checkpoints import read_checkpoint
from mmgnv3.weights import ConvertedWeights, convert_checkpoint, convert_file
from tests.test_weights.foreign import FORMS, timm_network, weights_of, write_reference_file
from tests.utils import classifier_config


def load_classifier(converted: ConvertedWeights) -> nn.Module:
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        config = classifier_config(
            converted.widen_factor,
            converted.num_classes,
            deploy=converted.deployed,
            out_indices=(0, 1, 2, 3, 4, 5),
        )
        classifier = MODELS.build(config)
    classifier.load_state_dict(converted.state_dict, strict=True)
    return classifier.eval()


def outputs_of(classifier: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    maps = classifier.backbone(x)
    return [*maps, classifier.head(classifier.neck(maps))]


def timm_outputs(network: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The maps at the ends of this package's stages, then the logits."""
    outputs = []
    features = network.act1(network.bn1(network.conv_stem(x)))
    for index, block in enumerate(network.blocks):
        features = block(features)
        if index in (0, 2, 4, 6, 8, 9):
            outputs.append(features)
    return [*outputs, network.forward_head(features)]


@torch.no_grad()
def assert_same_outputs(classifier: nn.Module, network: nn.Module) -> None:
    x = torch.randn(2, 3, 64, 80, generator=torch.Generator().manual_seed(0))
    actual, expected = outputs_of(classifier, x), timm_outputs(network, x)
    assert len(actual) == len(expected) == 7
    for ours, theirs in zip(actual, expected, strict=True):
        scale = theirs.abs().max()
        torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('width', [0.5, 1.0, 1.3, 1.6])
def test_outputs_equal_timm(width, form):
    network = timm_network(width)
    converted = convert_checkpoint(weights_of(network, form))
    folded = 'folded' in form
    assert converted.widen_factor == width
    assert converted.num_classes == 1000
    assert converted.deployed == folded
    assert converted.num_branches == (None if folded else 3)
    if form == 'timm':
        assert converted.num_params == sum(p.numel() for p in network.parameters())
    assert not folded or not any('running_mean' in name for name in converted.state_dict)
    assert_same_outputs(load_classifier(converted), network)


@pytest.mark.parametrize(
    ('form', 'source'),
    [
        ('timm', 'timm'),
        ('timm folded', 'reference code or timm'),
        ('reference', 'reference code'),
        ('reference folded', 'reference code'),
    ],
)
def test_source(form, source):
    assert convert_checkpoint(weights_of(timm_network(0.5), form)).source == source


@pytest.mark.parametrize('form', ['timm', 'timm folded'])
def test_a_branch_that_timm_lacks(form):
    """At this width the 1 x 1 convolutions have an identity branch, here and in the reference."""
    network = timm_network(0.3, num_classes=10)
    classifier = load_classifier(convert_checkpoint(weights_of(network, form)))
    if form == 'timm':
        units = [m.primary for m in classifier.modules() if isinstance(m, GhostModule)]
        assert any(unit.identity is not None for unit in units)
    assert_same_outputs(classifier, network)


def test_the_reference_does_not_lack_it():
    with pytest.raises(ValueError, match=r'nothing for backbone\.\S+\.primary\.identity\.weight'):
        convert_checkpoint(weights_of(timm_network(0.3, num_classes=10), 'reference'))


def test_no_random_numbers_are_drawn():
    weights = weights_of(timm_network(0.5), 'reference')
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    convert_checkpoint(weights)
    assert torch.equal(torch.rand(1), expected)


def test_counters_may_be_absent_or_superfluous():
    weights = weights_of(timm_network(0.5), 'reference')
    del weights['bn1.num_batches_tracked']
    weights['blocks.0.0.total_ops'] = torch.zeros(1, dtype=torch.float64)
    weights['total_params'] = torch.zeros(1, dtype=torch.float64)
    converted = convert_checkpoint(weights)
    assert converted.state_dict['backbone.stem.0.branches.0.norm.num_batches_tracked'] == 0


def test_half_precision_becomes_single():
    weights = weights_of(timm_network(0.5), 'timm')
    halves = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    converted = convert_checkpoint(halves).state_dict
    assert {v.dtype for v in converted.values()} == {torch.float32, torch.int64}
    torch.testing.assert_close(
        converted['head.layers.1.fc.weight'], weights['classifier.weight'], rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize('form', FORMS)
def test_left_over_in_the_file(form):
    weights = weights_of(timm_network(0.5), form)
    added = [
        'blocks.3.0.attn.weight',
        'blocks.3.0.ghost3.bias',
        'blocks.12.0.conv.weight',
        # Of names that are right elsewhere: this block has no stride, and an identity for shortcut.
        'blocks.2.0.conv_dw.bias',
        'blocks.2.0.shortcut.0.weight',
    ]
    weights.update(dict.fromkeys(added, torch.zeros(1)))
    with pytest.raises(ValueError) as error:
        convert_checkpoint(weights)
    assert f'no place in this network for {", ".join(added)}' in str(error.value)


@pytest.mark.parametrize(
    ('key', 'name'),
    [
        ('bn1.running_var', 'backbone.stem.0.branches.0.norm.running_var'),
        ('classifier.bias', 'head.layers.1.fc.bias'),
        ('blocks.9.0.bn1.weight', 'backbone.stages.5.0.branches.0.norm.weight'),
        (
            'blocks.6.4.ghost1.short_conv.4.weight',
            'backbone.stages.3.5.ghost1.gate.convs.2.branches.0.conv.weight',
        ),
        (
            'blocks.7.0.dw_rpr_scale.bn1.bias',
            'backbone.stages.4.0.downsample.scale.norm.bias',
        ),
    ],
)
def test_left_over_in_the_network(key, name):
    weights = weights_of(timm_network(0.5), 'timm')
    del weights[key]
    with pytest.raises(ValueError, match=rf'nothing for .*{name}'):
        convert_checkpoint(weights)


def test_other_shapes():
    weights = weights_of(timm_network(0.5), 'timm')
    weights['blocks.0.0.ghost1.cheap_rpr_skip.bias'] = torch.zeros(5)
    with pytest.raises(ValueError, match=r'cheap\.identity\.bias \(5,\) in place of \(4,\)'):
        convert_checkpoint(weights)


@pytest.mark.parametrize(
    ('checkpoint', 'message'),
    [
        ({}, 'not the weights of a GhostNetV3'),
        (dict(state_dict={'backbone.stem.0.conv.weight': torch.zeros(1)}), 'hold backbone.stem'),
        (dict(epoch=3, net='x'), 'tensors alone, this one also epoch, net'),
        (dict(epoch=3, model='x'), 'model is a str'),
        (dict(state_dict=[1]), 'state_dict is a list'),
    ],
)
def test_something_else(checkpoint, message):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(checkpoint)


def test_an_earlier_ghostnet():
    with pytest.raises(ValueError, match='no place in this network for .*primary_conv'):
        convert_checkpoint(ghostnetv2_100().state_dict())


@pytest.mark.parametrize(('ema', 'seed'), [(None, 2), (True, 2), (False, 1)])
def test_file_with_averaged_weights(ema, seed, tmp_path):
    source = write_reference_file(tmp_path / 'reference.pth.tar')
    out = tmp_path / 'new' / 'converted.pth'
    converted = convert_file(source, out, ema)
    assert converted.ema == (seed == 2)

    saved = torch.load(out, weights_only=True)
    assert saved['meta'] == dict(
        source='reference code', ema=seed == 2, widen_factor=0.5, num_classes=10
    )
    assert saved['state_dict'].keys() == converted.state_dict.keys()
    assert all(torch.equal(v, saved['state_dict'][k]) for k, v in converted.state_dict.items())
    assert_same_outputs(load_classifier(converted), timm_network(0.5, 10, seed))
    assert not is_deployed_checkpoint(saved)


@pytest.mark.parametrize(
    ('kept', 'ema', 'message'),
    [
        ('state_dict', True, 'no averaged weights'),
        ('model', True, 'no averaged weights'),
        ('state_dict_ema', False, 'averaged weights only'),
        ('model_ema', False, 'averaged weights only'),
    ],
)
def test_weights_that_are_not_there(kept, ema, message):
    checkpoint = {kept: weights_of(timm_network(0.5), 'timm')}
    convert_checkpoint(checkpoint)
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(checkpoint, ema=ema)


@pytest.mark.parametrize(('ema', 'seed'), [(None, 2), (True, 2), (False, 1)])
def test_names_of_other_scripts(ema, seed):
    plain, averaged = (weights_of(timm_network(0.5, 10, seed), 'timm') for seed in (1, 2))
    converted = convert_checkpoint(dict(model=plain, model_ema=averaged, epoch=3), ema)
    assert converted.ema == (seed == 2)
    expected = convert_checkpoint(averaged if converted.ema else plain).state_dict
    assert all(torch.equal(value, expected[k]) for k, value in converted.state_dict.items())


def test_an_average_that_there_is_none_of():
    checkpoint = dict(model=weights_of(timm_network(0.5), 'timm'), model_ema=None)
    assert not convert_checkpoint(checkpoint).ema


def test_an_unreadable_file_is_named_once(tmp_path):
    (tmp_path / 'cut.pth').write_bytes(b'PK')
    with pytest.raises(ValueError) as error:
        convert_file(tmp_path / 'cut.pth', tmp_path / 'out.pth')
    assert str(error.value).count('cut.pth') == 1


def test_a_folded_file_is_known_as_such(tmp_path):
    source, out = tmp_path / 'folded.pth', tmp_path / 'converted.pth'
    torch.save(reparameterize_model(timm_network(0.5)).state_dict(), source)
    convert_file(source, out)
    assert is_deployed_checkpoint(read_checkpoint(out))
    init_cfg = dict(type='Pretrained', checkpoint=str(out), prefix='backbone.')
    backbone = GhostNetV3(widen_factor=0.5, deploy=True, init_cfg=init_cfg)
    backbone.init_weights()
    saved = torch.load(out, weights_only=True)['state_dict']
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, saved[f'backbone.{name}'])


def test_the_file_itself_is_not_overwritten(tmp_path):
    source = write_reference_file(tmp_path / 'reference.pth.tar')
    link = tmp_path / 'link.pth'
    link.symlink_to(source)
    before = source.read_bytes()
    for out in (source, link):
        with pytest.raises(ValueError, match='the file to convert'):
            convert_file(source, out)
    assert source.read_bytes() == before


def test_nothing_half_done(tmp_path):
    source, out = tmp_path / 'other.pth', tmp_path / 'out' / 'converted.pth'
    torch.save({'conv1.weight': torch.zeros(3)}, source)
    with pytest.raises(ValueError, match=r'other\.pth: .*hold conv1\.weight'):
        convert_file(source, out)
    assert not out.parent.exists()
