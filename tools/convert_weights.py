"""Convert public weights of GhostNetV3, the reference code's or timm's, to a checkpoint."""

import argparse

from mmgnv3.apis.cli import plain_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'src',
        help='file, URL, 1.0x for the public one (downloaded once), or an address ghostnetv3://...',
    )
    parser.add_argument('out', help='file to write')
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        '--ema',
        action='store_const',
        const=True,
        dest='ema',
        help='the averaged weights (default where the file holds them)',
    )
    which.add_argument(
        '--raw', action='store_const', const=False, dest='ema', help='the weights as trained'
    )
    args = parser.parse_args()
    with plain_errors():
        from mmgnv3.utils.files import sha256
        from mmgnv3.weights import convert_file, locate, parse_address
        from mmgnv3.weights.public import SCHEME

        source, ema, digest = args.src, None, None
        if source.startswith(SCHEME):
            source, ema, digest = parse_address(source)
        if ema is not None and args.ema not in (None, ema):
            parser.error(f'{args.src} and --{"ema" if args.ema else "raw"} exclude each other')
        path = locate(source, digest)
        converted = convert_file(path, args.out, ema if args.ema is None else args.ema)
    form = 'deployed' if converted.deployed else f'training, {converted.num_branches} branches'
    print(
        f'{args.out}: GhostNetV3 {converted.widen_factor}x of the {converted.source}\n'
        f'  form       {form}\n'
        f'  weights    {"averaged (EMA)" if converted.ema else "plain"}\n'
        f'  classes    {converted.num_classes}\n'
        f'  parameters {converted.num_params:,}\n'
        f'Converted from {path}, SHA-256 {sha256(path)}'
    )


if __name__ == '__main__':
    main()
