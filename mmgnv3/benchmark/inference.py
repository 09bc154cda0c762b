"""Size and latency of networks in the forms in which they can be deployed."""

import copy
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .networks import Network
from .timing import measure_interleaved

FORMS = ('training form', 'folded', 'compiled', 'ONNX Runtime')
"""What a latency is measured of. The last two are made from the form to deploy."""

_MEMORY_FORMATS = dict(contiguous=torch.contiguous_format, channels_last=torch.channels_last)


def measure_latencies(
    networks: Sequence[Network],
    images: Tensor,
    rounds: int,
    with_compile: bool = False,
    with_onnx: bool = False,
) -> dict[tuple[str, str], dict[str, float]]:
    """Measure networks in eval mode, all of them in turn.

    Args:
        networks: Networks on the device of the images.
        images: Batch of shape (B, 3, H, W).
        rounds: The median is taken over them.
        with_compile: Adds ``torch.compile`` of the form to deploy.
        with_onnx: Adds ONNX Runtime, float32 on the CPU.

    Returns:
        Median latency of a batch in milliseconds by name and form, then by memory format: that of
        images and weights, 'contiguous' alone for ONNX Runtime, 'channels_last' for the compiled.

    Raises:
        ModuleNotFoundError: If ONNX Runtime was asked for and is not installed.
    """
    tasks: dict[tuple[str, str, str], Callable[[], object]] = {}
    for network in networks:
        for name, memory_format in _MEMORY_FORMATS.items():
            model, folded = (
                copy.deepcopy(form).to(memory_format=memory_format) if form is not None else None
                for form in (network.model, network.folded)
            )
            forms = {'training form': model}
            if folded is not None:
                forms['folded'] = folded
            # Compiling takes long and settles the formats inside the network by itself.
            if with_compile and memory_format is torch.channels_last:
                forms['compiled'] = torch.compile(folded or model)
            arranged = images.contiguous(memory_format=memory_format)
            for form, called in forms.items():
                tasks[network.name, form, name] = _call(called, arranged)
        if with_onnx:
            session = _onnx_session(network.deployed, images)
            tasks[network.name, 'ONNX Runtime', 'contiguous'] = session
    with torch.inference_mode():
        times = measure_interleaved(tasks, rounds, images.device, warm_up=3, settle=True)
    latencies: dict[tuple[str, str], dict[str, float]] = {}
    for (network_name, form, memory_format), time in times.items():
        latencies.setdefault((network_name, form), {})[memory_format] = time
    return latencies


def missing_for_onnx() -> str | None:
    """Say what ONNX Runtime's column lacks here, None for nothing."""
    missing = [name for name in ('onnx', 'onnxruntime') if find_spec(name) is None]
    return f'needs {" and ".join(missing)}: pip install {" ".join(missing)}' if missing else None


@torch.inference_mode()
def count_macs(model: nn.Module, image: Tensor) -> int:
    """Count multiply-accumulates of convolutions and linear layers for one image."""
    with FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() // 2


def _call(model: nn.Module, images: Tensor) -> Callable[[], object]:
    return lambda: model(images)


def _onnx_session(model: nn.Module, images: Tensor) -> Callable[[], object]:
    """Export a network in float32 and load it into ONNX Runtime with torch's threads."""
    if reason := missing_for_onnx():
        raise ModuleNotFoundError(f'ONNX Runtime {reason}')
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    model, images = copy.deepcopy(model).float().cpu(), images.float().cpu()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'model.onnx'
        # Not the exporter on top of torch.export, which needs one more package.
        torch.onnx.export(model, (images,), str(path), input_names=['images'], dynamo=False)
        session = onnxruntime.InferenceSession(
            path.read_bytes(), options, providers=['CPUExecutionProvider']
        )
    feed = dict(images=images.numpy())
    return lambda: session.run(None, feed)
