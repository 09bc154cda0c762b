"""What branches, distillation, EMA, Mixup and CutMix do on CIFAR-10, over several seeds.

Trains every cell with every seed and writes a Markdown table, a picture and the figures as JSON. An
interrupted call goes on where it was when it is repeated. The raw and the averaged weights (EMA) of
every run are both evaluated, so that EMA needs no runs of its own.

    python tools/cifar_ablation.py                      # 200 epochs on all images: for a GPU
    python tools/cifar_ablation.py --epochs 4 --num-train 3000 --num-test 1000 --workers 0

The environment variable CIFAR10_ROOT names an image folder, see
configs/_base_/datasets/cifar10_bs128.py; without it mmpretrain downloads CIFAR-10 to data/cifar10.
"""

import argparse
import contextlib
import io
import sys
import warnings
from pathlib import Path

from mmengine.config import DictAction

from mmgnv3.apis.cli import plain_errors

CONFIGS = Path(__file__).parents[1] / 'configs/cifar10'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/cifar_ablation'))
    parser.add_argument(
        '--network', default='ghostnetv3-small-1x0', help='first part of the names of its configs'
    )
    parser.add_argument(
        '--cells', nargs='+', default=['branches', 'plain', 'kd', 'mix'], help='default: all four'
    )
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--epochs', type=int, help='of a run, 2 or more')
    parser.add_argument('--num-train', type=int, help='images, as many of each class')
    parser.add_argument('--num-test', type=int, help='images, as many of each class')
    parser.add_argument('--workers', type=int, help='processes that load data, 0 for none')
    parser.add_argument(
        '--teacher',
        metavar='CHECKPOINT',
        help='for distillation, of the config in the kd configs; else trained like everything',
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='changes of all configs, as key=value'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    options = args.cfg_options or {}
    if args.workers is not None:
        for split in ('train', 'val', 'test'):
            options[f'{split}_dataloader.num_workers'] = args.workers
    # What libraries tell their own developers, and which optional parts they did not find.
    for category in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings('ignore', category=category)
    with contextlib.redirect_stdout(io.StringIO()):
        from mmgnv3.apis.ablation import run_ablation
        from mmgnv3.apis.ablation_results import Settings

    settings = Settings(
        network=args.network,
        epochs=args.epochs,
        num_train=args.num_train,
        num_test=args.num_test,
        cfg_options=options,
    )
    table = run_ablation(
        CONFIGS,
        args.work_dir,
        settings,
        cells=args.cells,
        seeds=args.seeds,
        teacher=args.teacher,
    )
    print(f'\n{table}\nWritten to {args.work_dir}: table.md, ablation.png, results/')


if __name__ == '__main__':
    try:
        with plain_errors():
            main()
    except KeyboardInterrupt:
        sys.exit('stopped; repeat the command to go on')
