"""Fold the checkpoint of a classifier or a detector into its deployed form."""

import argparse

from mmgnv3.apis.cli import add_config_arguments, plain_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint of the training form')
    parser.add_argument('out', help='file to write')
    which = parser.add_mutually_exclusive_group()
    for name, meaning in (('ema', 'the average of the weights'), ('raw', 'the weights themselves')):
        which.add_argument(
            f'--{name}',
            action='store_const',
            const=name,
            dest='which',
            help=f'fold {meaning}, after a run with an EMA hook (default: the average if any)',
        )
    args = parser.parse_args()
    with plain_errors():
        from mmgnv3.apis.deploy import fold_checkpoint

        report = fold_checkpoint(**vars(args))
    print(
        f'{args.out}: {report.num_params:,} parameters folded into {report.num_folded_params:,}; '
        f'outputs differ by {report.difference:.1e} of their scale'
    )


if __name__ == '__main__':
    main()
