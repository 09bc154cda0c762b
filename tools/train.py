"""Train a classifier (mmpretrain) or a detector (mmdet)."""

import argparse

from mmgnv3.apis.cli import add_run_arguments, parse_run_arguments, plain_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_run_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from a checkpoint; without one, from the last in the work dir if there is any',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate to the actual batch size',
    )
    parser.add_argument('--no-validate', action='store_true', help='do not evaluate in between')
    args = parse_run_arguments(parser)
    with plain_errors():
        from mmgnv3.apis.run import train

        train(**args)


if __name__ == '__main__':
    main()
