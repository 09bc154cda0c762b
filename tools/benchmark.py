"""Measure GhostNetV3 beside timm's and two well-known small networks.

    python tools/benchmark.py infer --rounds 100 --threads 1 --out infer.json

prints a Markdown table of parameters, multiply-accumulates and the latency of one image.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from mmpretrain.models import ImageClassifier
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmgnv3.models import GhostNetV3
from mmgnv3.reparam import fold

try:
    import timm
    from timm.utils.model import reparameterize_model
except ImportError as error:
    raise SystemExit(
        'error: the networks to compare with are in timm: pip install -r requirements/dev.txt'
    ) from error

TIMM_GHOSTNETV3 = {
    0.5: 'ghostnetv3_050',
    1.0: 'ghostnetv3_100',
    1.3: 'ghostnetv3_130',
    1.6: 'ghostnetv3_160',
}
WARM_UP_ROUNDS = 3


@dataclass
class Network:
    """A network in eval mode; ``folded`` is None where there is nothing to fold."""

    name: str
    model: nn.Module
    folded: nn.Module | None = None

    @property
    def forms(self) -> list[nn.Module]:
        """The forms that exist, the one to deploy last."""
        return [self.model] if self.folded is None else [self.model, self.folded]


@dataclass
class Row:
    """One line of the table; what there is no folded form for is None.

    Attributes:
        network: Name.
        params: Parameters in training form.
        params_folded: Parameters in folded form.
        macs: Multiply-accumulates of convolutions and linear layers for one image, in the form to
            deploy.
        latency_ms: Median latency in training form, in milliseconds.
        latency_folded_ms: Median latency in folded form, in milliseconds.
    """

    network: str
    params: int
    params_folded: int | None
    macs: int
    latency_ms: float
    latency_folded_ms: float | None


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    commands = parser.add_subparsers(required=True)
    infer = commands.add_parser('infer', help='size and latency of the networks, one image a time')
    infer.set_defaults(run=run_infer)
    infer.add_argument(
        '--widths', type=float, nargs='+', default=list(TIMM_GHOSTNETV3), help='of GhostNetV3'
    )
    infer.add_argument('--rounds', type=positive, default=50, help='the median is taken over them')
    infer.add_argument('--threads', type=positive, help="of the CPU; torch's choice by default")
    infer.add_argument('--size', type=positive, default=224, help='pixels a side of the image')
    infer.add_argument('--device', type=device, default='cpu', help='cpu, cuda, cuda:1, ...')
    infer.add_argument('--out', type=Path, help='JSON file to write the numbers to')
    return parser.parse_args()


def positive(text: str) -> int:
    """Type of an argument that counts something."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1, got {number}')
    return number


def device(text: str) -> torch.device:
    """Type of an argument that names a device of this machine."""
    try:
        wanted = torch.device(text)
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f'{text!r} is no device') from error
    found = dict(cpu=1, cuda=torch.cuda.device_count()).get(wanted.type, 0)
    if (wanted.index or 0) >= found:
        raise argparse.ArgumentTypeError(f'torch finds no {text} here; use cpu or cuda')
    return wanted


def run_infer(args: argparse.Namespace) -> None:
    """Print and write the table of networks."""
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
    image = torch.rand(1, 3, args.size, args.size, device=args.device)
    networks = build_networks(args.widths, args.device)
    macs = [count_macs(network.forms[-1], image) for network in networks]
    forms = [form for network in networks for form in network.forms]
    latencies = measure_latencies(forms, image, args.rounds)
    rows = [
        Row(
            network.name,
            count_params(network.model),
            network.folded and count_params(network.folded),
            network_macs,
            latencies[network.model],
            latencies.get(network.folded),
        )
        for network, network_macs in zip(networks, macs, strict=True)
    ]
    machine = describe_machine(args.device)
    print(f'{machine}; {args.size} x {args.size} pixels, median of {args.rounds} rounds\n')
    print(format_table(rows))
    if args.out:
        settings = dict(machine=machine, size=args.size, rounds=args.rounds)
        write_json(dict(settings=settings, rows=[asdict(row) for row in rows]), args.out)


def build_networks(widths: Sequence[float], device: torch.device) -> list[Network]:
    """Build the networks with random weights; latency does not depend on them.

    Args:
        widths: Width multipliers of GhostNetV3.
        device: Where to put them.

    Returns:
        For every width this package's network and timm's, if timm has it; GhostNetV2 and
        MobileNetV3-Large, which have no branches to fold.
    """
    networks = []
    for width in widths:
        ours = build_classifier(width).eval()
        networks.append(Network(f'GhostNetV3 {width:g}x', ours, fold(ours)))
        if width in TIMM_GHOSTNETV3:
            theirs = timm.create_model(TIMM_GHOSTNETV3[width]).eval()
            networks.append(
                Network(f'GhostNetV3 {width:g}x (timm)', theirs, reparameterize_model(theirs))
            )
    for name, timm_name in (
        ('GhostNetV2 1x (timm)', 'ghostnetv2_100'),
        ('MobileNetV3-Large 1x (timm)', 'mobilenetv3_large_100'),
    ):
        networks.append(Network(name, timm.create_model(timm_name).eval()))
    for network in networks:
        for form in network.forms:
            form.to(device)
    return networks


def build_classifier(width: float) -> ImageClassifier:
    """Build the ImageNet classifier: the backbone, 1280 hidden units and 1000 classes."""
    backbone = GhostNetV3(widen_factor=width)
    return ImageClassifier(
        backbone=backbone,
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='StackedLinearClsHead',
            num_classes=1000,
            in_channels=backbone.out_channels[-1],
            mid_channels=[1280],
            dropout_rate=0.2,
        ),
    )


def count_params(model: nn.Module) -> int:
    """Count parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.inference_mode()
def count_macs(model: nn.Module, image: Tensor) -> int:
    """Count multiply-accumulates of convolutions and linear layers."""
    with FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() // 2


@torch.inference_mode()
def measure_latencies(
    models: Sequence[nn.Module], image: Tensor, rounds: int
) -> dict[nn.Module, float]:
    """Measure models in turn, so that a change of the machine's pace hits all of them alike.

    Args:
        models: Models in eval mode.
        image: Input of all of them.
        rounds: How often every model is measured.

    Returns:
        Median latency of every model in milliseconds.
    """
    times: dict[nn.Module, list[float]] = {model: [] for model in models}
    for _ in range(WARM_UP_ROUNDS + rounds):
        for model, series in times.items():
            # The untimed run brings the model's own weights back into the caches.
            model(image)
            wait_for(image.device)
            start = time.perf_counter()
            model(image)
            wait_for(image.device)
            series.append(1000 * (time.perf_counter() - start))
    return {model: statistics.median(times[model][WARM_UP_ROUNDS:]) for model in models}


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def describe_machine(device: torch.device) -> str:
    """Name processors, threads and torch's version."""
    parts = [cpu_name(), f'threads: {torch.get_num_threads()}', f'torch {torch.__version__}']
    if device.type == 'cuda':
        parts.insert(0, torch.cuda.get_device_name(device))
    return ', '.join(parts)


def cpu_name() -> str:
    """Name the CPU as Linux knows it."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def format_table(rows: Sequence[Row]) -> str:
    """Write rows as a Markdown table."""
    header = ('network', 'params', 'params folded', 'MACs', 'latency', 'latency folded')
    lines = [header, ('---', *['---:'] * (len(header) - 1))]
    for row in rows:
        lines.append(
            (
                row.network,
                f'{row.params / 1e6:.3f}M',
                '-' if row.params_folded is None else f'{row.params_folded / 1e6:.3f}M',
                f'{row.macs / 1e6:.1f}M',
                f'{row.latency_ms:.1f} ms',
                '-' if row.latency_folded_ms is None else f'{row.latency_folded_ms:.1f} ms',
            )
        )
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)


def write_json(content: dict, path: Path) -> None:
    """Write a JSON file that appears under its name when it is complete."""
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        temporary.write_text(json.dumps(content, indent=2) + '\n')
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def main() -> None:
    """Run the subcommand that the command line asks for."""
    args = parse_args()
    try:
        args.run(args)
    except (ValueError, OSError) as error:
        raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
    main()
