"""What the command line tools share. Importing it is cheap, so that ``-h`` answers at once."""

import argparse
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class CfgOptions(argparse.Action):
    """mmengine's ``DictAction``, imported when it is needed, with a message for what is no pair."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Sequence[str],
        option_string: str | None = None,
    ) -> None:
        """Store the pairs, or end the process with a message."""
        from mmengine.config import DictAction

        for value in values:
            if '=' not in value:
                parser.error(f'argument {option_string}: expected KEY=VALUE, got {value!r}')
        DictAction(self.option_strings, self.dest)(parser, namespace, values, option_string)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every tool that reads a config."""
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=CfgOptions,
        metavar='KEY=VALUE',
        help='change entries of the config: train_dataloader.batch_size=8; lists as key="[a,b]"',
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing have in common."""
    add_config_arguments(parser)
    parser.add_argument(
        '--work-dir',
        help="folder of logs and checkpoints (default: the config's, or work_dirs/NAME)",
    )
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument(
        '--no-pin-memory', action='store_true', help='leave page-locked memory alone'
    )
    parser.add_argument(
        '--no-persistent-workers', action='store_true', help='start loader workers anew every epoch'
    )
    parser.add_argument(
        '--launcher',
        choices=('none', 'pytorch', 'slurm', 'mpi'),
        default='none',
        help='job launcher',
    )
    # torch.distributed.launch passes the one or the other, depending on its version.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def parse_run_arguments(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Parse the command line of a tool made with :func:`add_run_arguments`.

    Returns:
        The arguments of the function behind the tool. The local rank goes into the environment,
        where mmengine looks for it.
    """
    args = vars(parser.parse_args())
    os.environ.setdefault('LOCAL_RANK', str(args.pop('local_rank')))
    return args


@contextmanager
def plain_errors() -> Iterator[None]:
    """End the process with a message alone where this package itself refuses its input.

    So does the operating system with a path: a file where a folder is to be made, no permission,
    whoever asks. An error raised anywhere else keeps its traceback: that one is needed to
    understand it.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            path = error.filename2 or error.filename
            sys.exit(
                f'error: {path}: {error.strerror}. Name another path, or clear the way to this one.'
            )
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get('__name__', '').split('.')[0] != 'mmgnv3':
            raise
        sys.exit(f'error: {error}')
