"""Measure GhostNetV3 beside timm's, the same network without branches, and MobileNetV3.

    python tools/benchmark.py train --threads 2 --rounds 15 --out train.json
    python tools/benchmark.py infer --threads 1 --rounds 40 --batch 1 32
    python tools/benchmark.py memory
    python tools/benchmark.py train --device cuda --batch 256 --amp --compile --optimizer

Every command prints a Markdown table and, below it, the ratios that matter. With --out it writes a
JSON file and a picture of the same name beside it. All networks take their turn in every round.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

# Networks allocate and free large maps all the time; small pages cost a tenth of a step.
os.environ.setdefault('THP_MEM_ALLOC_ENABLE', '1')

import torch
from torch import nn

from mmgnv3.benchmark import inference, networks, report, training
from mmgnv3.benchmark.networks import BRANCH_FREE, OURS, TIMM, TIMM_BRANCH_FREE
from mmgnv3.benchmark.training import Variant
from mmgnv3.utils import write_json
from mmgnv3.utils.machine import describe_machine

RATIOS = (
    (TIMM, OURS),
    (f'{OURS}, branch by branch', OURS),
    (OURS, BRANCH_FREE),
    (OURS, TIMM_BRANCH_FREE),
)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    commands = parser.add_subparsers(required=True)

    train = commands.add_parser('train', help='time of a training step')
    train.set_defaults(run=run_train)
    train.add_argument('--batch', type=positive, default=16, help='images a step')
    train.add_argument('--amp', action='store_true', help='add bfloat16 columns')
    train.add_argument('--compile', action='store_true', help='add torch.compile columns')
    train.add_argument(
        '--optimizer', action='store_true', help='LAMB and EMA in the step, and their share of it'
    )

    infer = commands.add_parser('infer', help='size and latency')
    infer.set_defaults(run=run_infer)
    infer.add_argument('--widths', type=float, nargs='+', default=[0.5, 1.0, 1.3, 1.6])
    infer.add_argument('--batch', type=positive, nargs='+', default=[1], help='images a call')
    infer.add_argument('--compile', action='store_true', help='add a torch.compile column')
    infer.add_argument('--onnx', action='store_true', help='add an ONNX Runtime column')

    memory = commands.add_parser('memory', help='what a training step keeps for the way back')
    memory.set_defaults(run=run_memory)
    memory.add_argument('--batch', type=positive, default=16, help='images a step')

    for command in (train, memory):
        text = 'only these, by their names in the table'
        command.add_argument('--networks', nargs='+', metavar='NAME', help=text)
    for command, rounds in ((train, 15), (infer, 50), (memory, None)):
        command.add_argument('--size', type=positive, default=224, help='pixels a side')
        command.add_argument('--device', type=device, default='cpu', help='cpu, cuda, cuda:1, ...')
        command.add_argument('--threads', type=positive, help="of the CPU; torch's choice if none")
        command.add_argument('--out', type=Path, help='JSON file; a picture goes beside it')
        if rounds:
            text = 'the median is taken over them'
            command.add_argument('--rounds', type=positive, default=rounds, help=text)
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


def run_train(args: argparse.Namespace) -> None:
    """Measure the training step."""
    variants = [Variant(), Variant(channels_last=True)]
    if args.amp:
        variants.append(Variant(channels_last=True, amp=True))
    if args.compile:
        variants.append(Variant(channels_last=True, amp=args.amp, compiled=True))
    builders = choose_networks(args.networks)
    images = torch.rand(args.batch, 3, args.size, args.size, device=args.device)
    times = training.measure_training(builders, variants, images, args.rounds, args.optimizer)

    header, rows = ['network'], [[name] for name in builders]
    best = {}
    for variant in variants:
        header.append(f'{variant.name}, ms')
        if args.optimizer:
            header.append('LAMB + EMA')
        if args.device.type == 'cuda':
            header.append('peak, MiB')
        for row in rows:
            found = times[row[0], variant]
            best[row[0]] = min(found.step, best.get(row[0], found.step))
            row.append(report.format_number(found.step))
            if args.optimizer:
                row.append(f'{found.update:.1f} ms, {100 * found.update / found.step:.0f} %')
            if args.device.type == 'cuda':
                row.append(report.format_number(found.peak_mib, digits=0))
    series = {v.name: [times[name, v].step for name in builders] for v in variants}
    head = f'training step, batch {args.batch}'
    print_table(args, head, header, rows)
    print(f'\nRatios of steps, best column of each:\n\n{format_ratios(best)}')
    content = [
        dict(network=name, **asdict(variant), **asdict(found))
        for (name, variant), found in times.items()
    ]
    write(args, content, dict(batch=args.batch, ratios=ratios(best)))
    draw(args, series, list(builders), 'ms', head)


def run_infer(args: argparse.Namespace) -> None:
    """Measure size and latency."""
    if args.onnx and (reason := inference.missing_for_onnx()):
        print(f'ONNX Runtime left out: it {reason}\n')
        args.onnx = False
    compared = networks.inference_networks(args.widths)
    image = torch.rand(1, 3, args.size, args.size, device=args.device)
    header = ['network', 'params', 'params folded', 'MACs']
    rows, content = [], []
    for network in compared:
        for form in (network.model, network.folded):
            if form is not None:
                form.to(args.device)
        params = networks.count_params(network.model)
        folded = network.folded and networks.count_params(network.folded)
        macs = inference.count_macs(network.deployed, image)
        rows.append(
            [
                network.name,
                f'{params / 1e6:.3f}M',
                f'{folded / 1e6:.3f}M' if folded else '-',
                f'{macs / 1e6:.1f}M',
            ]
        )
        content.append(
            dict(
                network=network.name, params=params, params_folded=folded, macs=macs, latency_ms={}
            )
        )
    shown = [
        form
        for form in inference.FORMS
        if (form != 'compiled' or args.compile) and (form != 'ONNX Runtime' or args.onnx)
    ]
    series = {}
    for batch in args.batch:
        images = image.expand(batch, -1, -1, -1).contiguous()
        times = inference.measure_latencies(compared, images, args.rounds, args.compile, args.onnx)
        for form in shown:
            header.append(form if batch == 1 else f'{form}, {batch} images')
            series[header[-1]] = [times.get((network.name, form)) for network in compared]
            for row, record in zip(rows, content, strict=True):
                latency = times.get((row[0], form))
                row.append(report.format_number(latency, 'ms'))
                record['latency_ms'][header[-1]] = latency
    head = f'inference, latency of {" and ".join(map(str, args.batch))} image(s)'
    print_table(args, head, header, rows)
    records = {record['network']: record['latency_ms'] for record in content}
    print('\nLatency of ours / of timm, same width:\n')
    pairs = [(name, f'{name} (timm)') for name in records if f'{name} (timm)' in records]
    lines = [
        [ours, *(f'{records[ours][c] / records[theirs][c]:.2f}' for c in series)]
        for ours, theirs in pairs
    ]
    print(report.format_table(['network', *series], lines))
    write(args, content, dict(batch=args.batch))
    draw(args, series, list(records), 'ms', head)


def run_memory(args: argparse.Namespace) -> None:
    """Measure saved activations."""
    images = torch.rand(args.batch, 3, args.size, args.size, device=args.device)
    kept = {
        name: training.measure_saved_activations(build(), images)
        for name, build in choose_networks(args.networks).items()
    }
    head = f'activations saved by a training step, batch {args.batch}'
    rows = [[name, report.format_number(mib, digits=0)] for name, mib in kept.items()]
    print_table(args, head, ['network', 'MiB'], rows)
    print(f'\nRatios:\n\n{format_ratios(kept)}')
    content = [dict(network=name, saved_mib=mib) for name, mib in kept.items()]
    write(args, content, dict(batch=args.batch, ratios=ratios(kept)))
    draw(args, {'saved': list(kept.values())}, list(kept), 'MiB', head)


def choose_networks(names: list[str] | None) -> dict[str, Callable[[], nn.Module]]:
    """Take the builders of networks by name, all of them if there are no names."""
    builders = networks.training_networks()
    if unknown := set(names or ()) - set(builders):
        raise ValueError(f'no network {", ".join(unknown)}; there are {", ".join(builders)}')
    return {name: build for name, build in builders.items() if not names or name in names}


def ratios(values: dict[str, float]) -> dict[str, float]:
    """Quotients of what was measured that the network is judged by."""
    pairs = [(a, b) for a, b in RATIOS if a in values and b in values]
    return {f'{a} / {b}': values[a] / values[b] for a, b in pairs}


def format_ratios(values: dict[str, float]) -> str:
    """Write them as a Markdown table."""
    lines = [[name, f'{ratio:.2f}'] for name, ratio in ratios(values).items()]
    return report.format_table(['ratio', ''], lines)


def print_table(
    args: argparse.Namespace, head: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Print a table under a line that says what was measured where."""
    print(f'{head}; {describe(args)}\n')
    print(report.format_table(header, rows))


def describe(args: argparse.Namespace) -> str:
    """Name machine and settings."""
    parts = [describe_machine(args.device), f'{args.size} x {args.size} pixels']
    if hasattr(args, 'rounds'):
        parts.append(f'median of {args.rounds} rounds')
    return '; '.join(parts)


def write(args: argparse.Namespace, rows: list[dict], more: dict) -> None:
    """Write the numbers if a file was asked for."""
    if args.out:
        settings = dict(machine=describe_machine(args.device), size=args.size, **more)
        settings.update(rounds=getattr(args, 'rounds', None))
        write_json(dict(settings=settings, rows=rows), args.out)


def draw(
    args: argparse.Namespace,
    series: dict[str, list[float | None]],
    names: list[str],
    unit: str,
    head: str,
) -> None:
    """Draw the numbers if a file was asked for."""
    if args.out:
        title = f'{head}\n{describe(args)}'
        report.draw_bars(series, names, args.out.with_suffix('.png'), unit, title)


def main() -> None:
    """Run the subcommand that the command line asks for."""
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        args.run(args)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
    main()
