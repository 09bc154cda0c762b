"""From nothing to a deployed GhostNetV3 detector in minutes.

Draws a data set, trains a light RetinaNet on it, evaluates it, folds it, evaluates the folded file
again, and writes pictures of the run and of what the detector sees.
"""

import argparse
import contextlib
import io
import os
import sys
import warnings
from pathlib import Path

from mmgnv3.apis.cli import CfgOptions, plain_errors
from mmgnv3.datasets import ToyShapes

CONFIG = Path(__file__).parents[1] / 'configs/retinanet-light_ghostnetv3-0x5_1xb4_toyshapes.py'


def parse_args() -> argparse.Namespace:
    default = ToyShapes()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo'))
    parser.add_argument('--epochs', type=int, help='passes over the training pictures')
    parser.add_argument('--num-train', type=int, default=default.num_train, help='pictures')
    parser.add_argument('--num-val', type=int, default=default.num_val, help='pictures')
    parser.add_argument('--seed', type=int, default=0, help='of weights, order and augmentation')
    parser.add_argument(
        '--cfg-options', nargs='+', action=CfgOptions, help='changes of the config, as key=value'
    )
    args = parser.parse_args()
    if args.epochs is not None and args.epochs < 1:
        parser.error(f'--epochs must be 1 or more, got {args.epochs}')
    return args


def main() -> None:
    args = parse_args()
    data = ToyShapes(num_train=args.num_train, num_val=args.num_val)
    print(
        'GhostNetV3 demo: a small detector from nothing to its deployed form, on drawn pictures.\n'
        'As it stands it takes about seven minutes on two cores; Ctrl-C stops it.\n'
        f'Everything is written to {args.work_dir}, the logs to {args.work_dir / "run"}.\n',
        flush=True,
    )
    # The other half is for the data loaders. On two cores a second thread gains a network this
    # small little, and costs a lot as soon as anything else runs.
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, len(os.sched_getaffinity(0)) // 2)))
    # What libraries tell their own developers, and which optional parts they did not find.
    for category in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings('ignore', category=category)
    warnings.filterwarnings('ignore', message='faster_coco_eval is not installed')
    with contextlib.redirect_stdout(io.StringIO()):
        from mmgnv3.apis.demo import run_demo

    run_demo(
        str(CONFIG),
        args.work_dir,
        data,
        epochs=args.epochs,
        seed=args.seed,
        cfg_options=args.cfg_options,
    )


if __name__ == '__main__':
    try:
        with plain_errors():
            main()
    except KeyboardInterrupt:
        sys.exit('stopped')
