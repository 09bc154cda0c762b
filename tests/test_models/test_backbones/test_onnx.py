import pytest
import torch

from mmgnv3.benchmark import inference
from mmgnv3.models import GhostNetV3
from mmgnv3.reparam import fold
from tests.utils import randomize_norms


@pytest.mark.skipif(inference.missing_for_onnx() is not None, reason='needs onnx and onnxruntime')
def test_onnx_runtime_computes_the_same():
    torch.manual_seed(0)
    backbone = GhostNetV3(widen_factor=0.5, out_indices=(0, 1, 2, 3, 4))
    network = fold(randomize_norms(backbone).eval())
    images = torch.rand(1, 3, 96, 64)
    outputs = inference._onnx_session(network, images)()
    with torch.no_grad():
        expected = network(images)
    for output, like in zip(outputs, expected, strict=True):
        assert (torch.from_numpy(output) - like).abs().max() < 1e-5 * like.abs().max()
