"""Checks of a config's data, made before anything is built from it."""

import os
import re
from collections.abc import Iterator, Sequence
from inspect import isclass

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, METRICS, Registry

from .coco import check_coco
from .image_folder import check_annotations, check_class_folders, check_same_classes
from .num_classes import check_num_classes

# Public data sets, recognised by a path, and how to get them.
_SOURCES = (
    (
        r'(^|/)coco(/|$)|instances_(train|val)2017',
        'COCO 2017 is train2017.zip, val2017.zip and annotations_trainval2017.zip from '
        'https://cocodataset.org/#download: unpack them into {root}{or_link}. `make demo` needs '
        'none of it, it trains on images that it draws itself.',
    ),
    (
        r'(^|/)imagenet(/|$)',
        'ImageNet-1K (ILSVRC 2012) is given out at https://image-net.org after registration: '
        '{root} must hold train/<class>/*.JPEG and val/<class>/*.JPEG, or be a link to the folder '
        'that does; the environment variable IMAGENET_ROOT names another folder.',
    ),
    (
        r'(^|/)toyshapes(/|$)',
        '`python tools/make_toy_dataset.py {root}` writes it in seconds; the environment variable '
        'TOYSHAPES_ROOT names another folder.',
    ),
    (
        r'(^|/)bccd(/|$)',
        'BCCD is at https://github.com/Shenggan/BCCD_Dataset, and after `git clone` of it '
        '`python tools/voc_to_coco.py BCCD_Dataset/BCCD {root} RBC WBC Platelets` writes '
        'what is needed; the environment variable BCCD_ROOT names another folder.',
    ),
    (
        r'(^|/)cifar-?10(/|$)',
        'The environment variable CIFAR10_ROOT names a folder with train/<class>/* and '
        'test/<class>/*; without it mmpretrain downloads CIFAR-10.',
    ),
)


def iter_datasets(dataset: dict, entry: str) -> Iterator[tuple[str, dict]]:
    """Walk the data sets inside wrappers such as ``RepeatDataset`` and ``ConcatDataset``.

    Args:
        dataset: Config of a data set.
        entry: Its name in the whole config, for example ``train_dataloader.dataset``.

    Yields:
        Name and config of every data set that wraps no other.
    """
    if 'dataset' in dataset:
        yield from iter_datasets(dataset['dataset'], f'{entry}.dataset')
    elif 'datasets' in dataset:
        for index, inner in enumerate(dataset['datasets']):
            yield from iter_datasets(inner, f'{entry}.datasets.{index}')
    else:
        yield entry, dataset


def check_data(cfg: Config, splits: Sequence[str]) -> None:
    """Check that the data of a config are there and make sense.

    Looks for the annotation files and image folders of the data sets and for the annotation files
    of the evaluators. Where mmdet's ``CocoDataset`` and ``CocoMetric`` or mmpretrain's
    ``CustomDataset`` and ``ImageNet`` will read them, their contents are checked too, see
    :mod:`mmgnv3.apis.coco` and :mod:`mmgnv3.apis.image_folder`. Files that are not on the local
    disk are not looked at, nor are data sets that download themselves. The heads of the model must
    have as many classes as the data, see :mod:`mmgnv3.apis.num_classes`.

    Args:
        cfg: The whole config.
        splits: Those of ``'train'``, ``'val'`` and ``'test'`` that will be used.

    Raises:
        FileNotFoundError: If anything is missing: what, who asked for it and how to get it.
        ValueError: If an annotation file or an image is corrupt, if a folder is laid out
            differently, or if the data are not about the classes of the config.
    """
    checked: list[dict] = []
    class_folders: dict[str, tuple[str, ...]] = {}
    num_classes: dict[str, int | None] = {}
    places = _places(cfg, splits)
    with DATASETS.switch_scope_and_registry(cfg.get('default_scope', 'mmengine')) as registry:
        for split in splits:
            metrics = dict(_iter_metrics(cfg.get(f'{split}_evaluator'), f'{split}_evaluator'))
            classes: Sequence[str] = ()
            loader = cfg.get(f'{split}_dataloader') or {}
            for entry, config in iter_datasets(
                loader.get('dataset') or {}, f'{split}_dataloader.dataset'
            ):
                dataset = _declare(config, registry)
                if dataset is None:
                    continue
                classes = classes or dataset.metainfo.get('classes') or ()
                if not getattr(dataset, 'download', False):
                    _check_paths(dataset, entry, places)
                    if _is_coco(dataset):
                        _check_coco(_coco_arguments(dataset, list(metrics.values())), checked)
                    elif _is_image_folder(dataset):
                        _check_image_folder(dataset, class_folders)
                num_classes[entry] = _count_classes(dataset, class_folders)
            for entry, metric in metrics.items():
                if metric.get('ann_file'):
                    _require(metric['ann_file'], f'{entry}.ann_file', metric, places)
                    if classes and _is_coco_metric(metric):
                        _check_coco(_metric_arguments(metric, classes), checked)
    if class_folders:
        check_same_classes(class_folders)
    for entry, number in num_classes.items():
        if number is not None:
            check_num_classes(cfg.get('model') or {}, number, entry)


def _iter_metrics(
    evaluator: dict | Sequence[dict] | None, entry: str
) -> Iterator[tuple[str, dict]]:
    """Names and configs of the metrics of an evaluator: one, several, or inside a whole one's."""
    if isinstance(evaluator, dict) and 'metrics' in evaluator:
        yield from _iter_metrics(evaluator['metrics'], f'{entry}.metrics')
    elif isinstance(evaluator, dict):
        yield entry, evaluator
    else:
        for index, metric in enumerate(evaluator or []):
            yield f'{entry}.{index}', metric


def _places(cfg: Config, splits: Sequence[str]) -> dict[str, str]:
    """Where a config says that data are: its entries to change if they lie elsewhere."""
    places = {}
    for split in splits:
        dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset') or {}
        for entry, config in iter_datasets(dataset, f'{split}_dataloader.dataset'):
            places[f'{entry}.data_root'] = config.get('data_root')
        for entry, metric in _iter_metrics(cfg.get(f'{split}_evaluator'), f'{split}_evaluator'):
            places[f'{entry}.ann_file'] = metric.get('ann_file')
    return {entry: os.path.abspath(path) for entry, path in places.items() if path}


def _declare(config: dict, registry: Registry) -> BaseDataset | None:
    """Make a data set that knows its paths and classes and has read nothing yet."""
    kind = config.get('type')
    kind = registry.get(kind) if isinstance(kind, str) else kind
    if not (isclass(kind) and issubclass(kind, BaseDataset)):
        return None
    return registry.build({**config, 'pipeline': [], 'lazy_init': True})


def _count_classes(dataset: BaseDataset, folders: dict[str, tuple[str, ...]]) -> int | None:
    """Number of the things that a data set tells apart; None if it does not say."""
    metainfo = dataset.metainfo
    # Those of panoptic segmentation list stuff, too, which has a head of its own.
    classes = metainfo.get('thing_classes') or metainfo.get('classes')
    if classes is None:
        classes = folders.get(getattr(dataset, 'img_prefix', None))
    return None if classes is None else len(classes)


def _check_paths(dataset: BaseDataset, entry: str, places: dict[str, str]) -> None:
    options = dict(backend_args=getattr(dataset, 'backend_args', None))
    paths = dict(ann_file=dataset.ann_file)
    paths.update((f'data_prefix.{key}', path) for key, path in dataset.data_prefix.items())
    if dataset.data_root:
        # It may be a default of the data set's.
        places = {f'{entry}.data_root': os.path.abspath(dataset.data_root), **places}
    for key, path in paths.items():
        if path:
            _require(path, f'{entry}.{key}', options, places, dataset.data_root)


def _require(
    path: str, entry: str, options: dict, places: dict[str, str], root: str | None = None
) -> None:
    if not _is_local(path, options) or os.path.exists(path):
        return
    full = os.path.abspath(path)
    message = f'{full} is missing; the config asks for it in {entry}.'
    if path.startswith('~'):
        raise FileNotFoundError(
            f'{message} Nothing turns ~ into your home folder there: write the path in full.'
        )
    moved = {entry: ''}
    if root:
        root = os.path.abspath(root)
        moved = {e: p[len(root) :] for e, p in places.items() if f'{p}/'.startswith(f'{root}/')}
    root = root or os.path.dirname(full)
    or_link = ''
    if not os.path.lexists(root):
        or_link = (
            ', or link the folder that holds them there '
            f'(mkdir -p {os.path.dirname(root)} && ln -s /path/to/them {root})'
        )
    sources = [source for pattern, source in _SOURCES if re.search(pattern, full)]
    source = f' {sources[0].format(root=root, or_link=or_link)}' if sources else ''
    changes = ' '.join(f'{entry}=PATH{rest}' for entry, rest in moved.items())
    raise FileNotFoundError(f'{message}{source} If the data lie elsewhere: --cfg-options {changes}')


def _is_local(path: str, options: dict) -> bool:
    backend = (options.get('backend_args') or {}).get('backend', 'local')
    return '://' not in path and backend == 'local'


def _is_coco(dataset: BaseDataset) -> bool:
    """Whether the data set reads its file as mmdet's ``CocoDataset``, that class or one of it."""
    return _reads_as(dataset, 'mmdet.datasets.coco') and _is_on_disk(dataset, dataset.ann_file)


def _is_coco_metric(metric: dict) -> bool:
    """Whether a metric reads its file as mmdet's ``CocoMetric``, that class or one of it."""
    kind = metric.get('type')
    if isinstance(kind, str):
        with METRICS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    module = getattr(getattr(kind, 'compute_metrics', None), '__module__', None)
    return module == 'mmdet.evaluation.metrics.coco_metric' and _is_local(
        metric['ann_file'], metric
    )


def _is_image_folder(dataset: BaseDataset) -> bool:
    """Whether the data set reads as mmpretrain's ``CustomDataset``, of which ImageNet is one."""
    return _reads_as(dataset, 'mmpretrain.datasets.custom') and _is_on_disk(
        dataset, dataset.img_prefix
    )


def _reads_as(dataset: BaseDataset, module: str) -> bool:
    return type(dataset).load_data_list.__module__ == module


def _is_on_disk(dataset: BaseDataset, path: str) -> bool:
    return _is_local(path, dict(backend_args=getattr(dataset, 'backend_args', None)))


def _check_image_folder(dataset: BaseDataset, found: dict[str, tuple[str, ...]]) -> None:
    """Check one, and add it to those that were found to have a folder for every class."""
    folder = dataset.img_prefix
    num_classes = len(dataset.CLASSES) if dataset.CLASSES is not None else None
    if dataset.ann_file:
        check_annotations(dataset.ann_file, folder, num_classes, dataset.with_label)
    elif dataset.with_label and folder not in found:
        found[folder] = check_class_folders(folder, dataset.extensions, num_classes)


def _check_coco(arguments: dict, checked: list[dict]) -> None:
    """Check a file unless that was done, with the images in it or without."""
    if arguments not in checked:
        check_coco(**arguments)
        checked += [arguments, dict(arguments, image_folder=None, skip_empty=False)]


def _metric_arguments(metric: dict, classes: Sequence[str]) -> dict:
    return dict(
        ann_file=metric['ann_file'],
        image_folder=None,
        classes=classes,
        skip_empty=False,
        evaluated=True,
        labelled=not metric.get('format_only'),
    )


def _coco_arguments(dataset: BaseDataset, metrics: list[dict]) -> dict:
    return dict(
        ann_file=dataset.ann_file,
        image_folder=dataset.data_prefix['img'],
        classes=dataset.metainfo['classes'],
        skip_empty=not dataset.test_mode
        and (dataset.filter_cfg or {}).get('filter_empty_gt', False),
        evaluated=bool(metrics),
        labelled=not any(metric.get('format_only') for metric in metrics),
    )
