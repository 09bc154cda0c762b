"""Write the embedded data set, pictures and COCO annotations, below a folder."""

from __future__ import annotations

import argparse
import time

from mmgnv3.apis.cli import plain_errors
from mmgnv3.datasets import CLASSES, ToyShapes


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    default = ToyShapes()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('root', help='folder to write: empty, absent or an older such data set')
    parser.add_argument('--num-train', type=int, default=default.num_train, help='pictures')
    parser.add_argument('--num-val', type=int, default=default.num_val, help='pictures')
    parser.add_argument('--width', type=int, default=default.width, help='in pixels')
    parser.add_argument('--height', type=int, default=default.height, help='in pixels')
    parser.add_argument('--seed', type=int, default=default.seed, help='of all drawing')
    return parser.parse_args()


def main() -> None:
    """Write the data set that the command line asks for."""
    options = vars(parse_args())
    root = options.pop('root')
    start = time.time()
    with plain_errors():
        data = ToyShapes(**options)
        data.write(root)
    print(
        f'{root}: {data.num_train} training and {data.num_val} validation pictures of '
        f'{", ".join(CLASSES)} ({time.time() - start:.0f} s)'
    )


if __name__ == '__main__':
    main()
