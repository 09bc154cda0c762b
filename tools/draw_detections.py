"""Draw a grid of pictures with what a detector sees and what is annotated."""

import argparse

from mmgnv3.apis.cli import add_config_arguments, plain_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint, in its training form or folded')
    parser.add_argument('out', help='picture to write, .png, .jpg, .pdf or .svg')
    parser.add_argument(
        '--split', choices=('val', 'test'), default='test', help='whose pictures (default: test)'
    )
    parser.add_argument('--num', type=int, default=6, help='number of pictures (default: 6)')
    parser.add_argument('--columns', type=int, default=3, help='pictures in a row (default: 3)')
    parser.add_argument(
        '--score-thr', type=float, default=0.4, help='lowest score to draw (default: 0.4)'
    )
    args = parser.parse_args()
    with plain_errors():
        from mmgnv3.apis.draw import draw_checkpoint

        draw_checkpoint(**vars(args))


if __name__ == '__main__':
    main()
