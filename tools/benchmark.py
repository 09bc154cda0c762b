"""Measure GhostNetV3 beside timm's, the same network without branches, and MobileNetV3.

    python tools/benchmark.py train --threads 2 --rounds 15 --out train.json
    python tools/benchmark.py infer --threads 1 --rounds 40 --batch 1 32
    python tools/benchmark.py memory
    python tools/benchmark.py units --threads 2
    python tools/benchmark.py train --device cuda --batch 256 --amp --compile --optimizer

Every command prints a Markdown table and, below it, the ratios that matter, of times in the better
memory format of each network. With --out it writes a JSON file and a picture of the same name
beside it. All networks take their turn in every round.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from mmgnv3.apis.cli import plain_errors
from mmgnv3.benchmark import inference, networks, report, training, units
from mmgnv3.benchmark.networks import BRANCH_FREE, OURS, TIMM, TIMM_BRANCH_FREE
from mmgnv3.benchmark.training import Variant
from mmgnv3.models import GhostNetV3
from mmgnv3.ops import load_library
from mmgnv3.utils.files import write_json
from mmgnv3.utils.machine import describe_machine
from mmgnv3.utils.parameters import count_params

# Values of a column by network, None where there is none.
Column = Mapping[str, float | None]

BETTER = 'the better memory format of each'

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

    unit = commands.add_parser('units', help="time of a step's units with branches, by their form")
    unit.set_defaults(run=run_units)
    unit.add_argument('--batch', type=positive, default=16, help='images a step')

    for command in (train, memory):
        text = 'only these, by their names in the table'
        command.add_argument('--networks', nargs='+', metavar='NAME', help=text)
    for command, rounds in ((train, 15), (infer, 50), (memory, None), (unit, 15)):
        command.add_argument('--size', type=positive, default=224, help='pixels a side')
        command.add_argument('--device', type=device, default='cpu', help='cpu, cuda, cuda:1, ...')
        command.add_argument('--threads', type=positive, help="of the CPU; torch's choice if none")
        command.add_argument('--out', type=json_file, help='JSON file; a picture goes beside it')
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


def json_file(text: str) -> Path:
    """Type of an argument that names a JSON file."""
    path = Path(text)
    if path.suffix != '.json':
        raise argparse.ArgumentTypeError(f'{text} must end in .json; the picture ends in .png')
    return path


def run_train(args: argparse.Namespace) -> None:
    """Measure the training step."""
    variants = [Variant(), Variant(channels_last=True)]
    if args.amp:
        variants.append(Variant(channels_last=True, amp=True))
    if args.compile:
        variants.append(Variant(channels_last=True, amp=args.amp, compiled=True))
    builders = networks.training_networks(args.networks)
    images = torch.rand(args.batch, 3, args.size, args.size, device=args.device)
    times = training.measure_training(builders, variants, images, args.rounds, args.optimizer)

    header, rows = ['network'], [[name] for name in builders]
    bars: dict[str, Column] = {}
    best: dict[str, Column] = {}
    for variant in variants:
        steps = bars[variant.name] = {name: times[name, variant].step for name in builders}
        others = best.get(variant.mode, steps)
        best[variant.mode] = {name: min(step, others[name]) for name, step in steps.items()}
        header.append(f'{variant.name}, ms')
        if args.optimizer:
            header.append('LAMB + EMA')
        if args.device.type == 'cuda':
            header.append('peak, MiB')
        for row in rows:
            found = times[row[0], variant]
            row.append(report.format_number(found.step))
            if args.optimizer:
                row.append(f'{found.update:.1f} ms, {100 * found.update / found.step:.0f} %')
            if args.device.type == 'cuda':
                row.append(report.format_number(found.peak_mib, digits=0))
    head = f'training step, batch {args.batch}'
    print_table(args, head, header, rows)
    content = [
        dict(network=name, **asdict(variant), **asdict(found))
        for (name, variant), found in times.items()
    ]
    save(args, head, bars, 'ms', content, print_ratios(RATIOS, best, f', {BETTER}'))


def run_infer(args: argparse.Namespace) -> None:
    """Measure size and latency."""
    if args.onnx and (reason := inference.missing_for_onnx()):
        print(f'ONNX Runtime left out: it {reason}\n')
        args.onnx = False
    compared = networks.inference_networks(args.widths)
    image = torch.rand(1, 3, args.size, args.size, device=args.device)
    rows, content = [], []
    for network in compared:
        for form in (network.model, network.folded):
            if form is not None:
                form.to(args.device)
        params = count_params(network.model)
        folded = network.folded and count_params(network.folded)
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
    columns: dict[str, Column] = {}
    for batch in args.batch:
        images = image.expand(batch, -1, -1, -1).contiguous()
        times = inference.measure_latencies(compared, images, args.rounds, args.compile, args.onnx)
        for form in inference.FORMS:
            column = form if batch == 1 else f'{form}, {batch} images'
            found = {network.name: times.get((network.name, form), {}) for network in compared}
            if any(found.values()):
                columns[column] = {name: min(t.values(), default=None) for name, t in found.items()}
                for record in content:
                    record['latency_ms'][column] = found[record['network']]
    for row in rows:
        row += [report.format_number(column[row[0]], 'ms') for column in columns.values()]
    head = f'inference, latency of {" and ".join(map(str, args.batch))} image(s), {BETTER}'
    header = ['network', 'params', 'params folded', 'MACs', *columns]
    print_table(args, head, header, rows)
    pairs = [(network.name, f'{network.name} (timm)') for network in compared]
    save(args, head, columns, 'ms', content, print_ratios(pairs, columns))


def run_memory(args: argparse.Namespace) -> None:
    """Measure saved activations."""
    images = torch.rand(args.batch, 3, args.size, args.size, device=args.device)
    kept = {
        name: training.measure_saved_activations(build(), images)
        for name, build in networks.training_networks(args.networks).items()
    }
    head = f'activations saved by a training step, channels_last float32, batch {args.batch}'
    rows = [[name, report.format_number(mib, digits=0)] for name, mib in kept.items()]
    print_table(args, head, ['network', 'MiB'], rows)
    content = [dict(network=name, saved_mib=mib) for name, mib in kept.items()]
    columns = dict(saved=kept)
    save(args, head, columns, 'MiB', content, print_ratios(RATIOS, columns))


def run_units(args: argparse.Namespace) -> None:
    """Measure what units with branches take of a training step."""
    images = torch.rand(args.batch, 3, args.size, args.size)
    images = images.to(args.device, memory_format=torch.channels_last)
    model = GhostNetV3().train().to(args.device, memory_format=torch.channels_last)
    found = units.measure_units(model, images, args.rounds)
    columns = {
        'all branches': {times.form: times.joint for times in found},
        'branch by branch': {times.form: times.plain for times in found},
        'one branch': {times.form: times.single for times in found},
    }
    for column in columns.values():
        column['together'] = sum(column.values())
    numbers = {times.form: str(times.number) for times in found}
    numbers['together'] = str(sum(times.number for times in found))
    rows = [
        [form, number, *(report.format_number(column[form]) for column in columns.values())]
        for form, number in numbers.items()
    ]
    head = f'units with branches in a training step of {OURS}, channels_last, batch {args.batch}'
    print_table(args, head, ['form', 'units', *(f'{name}, ms' for name in columns)], rows)
    save(args, head, columns, 'ms', [asdict(times) for times in found], {})


def print_ratios(
    pairs: Iterable[tuple[str, str]], columns: Mapping[str, Column], note: str = ''
) -> dict[str, dict[str, float | None]]:
    """Print quotients of networks that were measured, and return them by pair and column."""
    ratios = {
        f'{a} / {b}': {
            name: column[a] / column[b] if column[a] and column[b] else None
            for name, column in columns.items()
        }
        for a, b in pairs
        if all(a in column and b in column for column in columns.values())
    }
    rows = [
        [pair, *(report.format_number(ratio, digits=2) for ratio in found.values())]
        for pair, found in ratios.items()
    ]
    print(f'\nRatios{note}:\n')
    print(report.format_table(['ratio', *columns], rows))
    return ratios


def print_table(
    args: argparse.Namespace, head: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Print a table under a line that says what was measured where."""
    print(f'{head}; {describe(args)}\n')
    print(report.format_table(header, rows))


def describe(args: argparse.Namespace) -> str:
    """Name machine and settings."""
    parts = [describe_machine(args.device), f'{args.size} x {args.size} pixels']
    if args.device.type == 'cpu':
        parts.append(f'{"with" if load_library() else "without"} compiled operators')
    if hasattr(args, 'rounds'):
        parts.append(f'median of {args.rounds} rounds')
    return '; '.join(parts)


def save(
    args: argparse.Namespace,
    head: str,
    columns: Mapping[str, Column],
    unit: str,
    rows: list[dict],
    ratios: dict,
) -> None:
    """Write the numbers and draw the columns if a file was asked for."""
    if args.out:
        settings = dict(
            machine=describe_machine(args.device),
            size=args.size,
            batch=args.batch,
            ratios=ratios,
            rounds=getattr(args, 'rounds', None),
        )
        write_json(dict(settings=settings, rows=rows), args.out)
        title = f'{head}\n{describe(args)}'
        report.draw_bars(columns, args.out.with_suffix('.png'), unit, title)


def main() -> None:
    """Run the subcommand that the command line asks for."""
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    with plain_errors():
        if args.out:
            # A folder that cannot be made is to be known before the measuring, not after.
            args.out.parent.mkdir(parents=True, exist_ok=True)
        args.run(args)


if __name__ == '__main__':
    main()
