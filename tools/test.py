"""Evaluate a checkpoint of a classifier (mmpretrain) or a detector (mmdet), folded or not."""

import argparse

from mmgnv3.apis.cli import add_run_arguments, parse_run_arguments, plain_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_run_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', metavar='FILE', help='write predictions or metrics to a file')
    parser.add_argument(
        '--out-item',
        choices=('pred', 'metrics'),
        help='which of them: predictions to a .pkl (default), or metrics to a .json, .yaml or .pkl',
    )
    parser.add_argument('--show', action='store_true', help='show predictions in windows')
    parser.add_argument(
        '--show-dir',
        metavar='DIR',
        help="write pictures of predictions, to WORK_DIR/TIME/DIR: beside the run's log",
    )
    parser.add_argument(
        '--wait-time', type=float, default=2.0, help='seconds that a window stays (default: 2)'
    )
    parser.add_argument(
        '--interval', type=int, default=1, help='make a picture every so many images (default: 1)'
    )
    parser.add_argument(
        '--tta', action='store_true', help="test-time augmentation: the config's, or flipping"
    )
    args = parse_run_arguments(parser)
    with plain_errors():
        from mmgnv3.apis.run import test

        test(**args)


if __name__ == '__main__':
    main()
