import io

import pytest
import torch

from mmgnv3.models import GhostNetV3
from mmgnv3.reparam import fold


@pytest.mark.filterwarnings('ignore')
def test_exported_network_computes_the_same():
    pytest.importorskip('onnx')
    runtime = pytest.importorskip('onnxruntime')
    torch.manual_seed(0)
    network = fold(GhostNetV3(widen_factor=0.5, out_indices=(0, 1, 2, 3, 4)).eval())
    images = torch.rand(1, 3, 96, 64)
    file = io.BytesIO()
    torch.onnx.export(network, (images,), file, dynamo=False, input_names=['images'])
    session = runtime.InferenceSession(file.getvalue(), providers=['CPUExecutionProvider'])
    outputs = session.run(None, dict(images=images.numpy()))
    with torch.no_grad():
        expected = network(images)
    for output, like in zip(outputs, expected, strict=True):
        assert (torch.from_numpy(output) - like).abs().max() < 1e-5 * like.abs().max()
