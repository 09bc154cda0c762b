"""Write COCO annotations of a data set in the layout of PASCAL VOC."""

import argparse

from mmgnv3.apis.cli import plain_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('root', help='folder with Annotations, ImageSets and JPEGImages')
    parser.add_argument('out', help='folder to write: {train,val,test}.json and a link to images')
    parser.add_argument('classes', nargs='+', help='their names, in the order of the config')
    args = parser.parse_args()
    with plain_errors():
        from mmgnv3.datasets.voc import voc_to_coco
        from mmgnv3.utils.wording import count

        written = voc_to_coco(**vars(args))
    for split, content in written.items():
        images, objects = len(content['images']), len(content['annotations'])
        print(f'{args.out}/{split}.json: {count(images, "image")}, {count(objects, "object")}')


if __name__ == '__main__':
    main()
