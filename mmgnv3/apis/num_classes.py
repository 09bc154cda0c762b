"""Whether the heads of a model tell as many classes apart as its data have."""

from collections.abc import Iterator
from typing import Any

from mmgnv3.utils.wording import count

# Where detectors and classifiers have heads that tell classes apart, and what they stand in. Left
# out are those whose number is another one: of a region proposal network, of a teacher, of stuff.
_HEADS = ('head', 'bbox_head', 'mask_head')
_WRAPPERS = ('roi_head', 'module', 'detector')


def check_num_classes(model: dict, num_classes: int, dataset: str) -> None:
    """Compare the heads' number of classes with a data set's.

    Too few end a training in an index error or a CUDA assertion, too many are trained on nothing.

    Args:
        model: Config of the model. Heads that state no ``num_classes`` are passed over.
        num_classes: Of the data set.
        dataset: The data set's name in the whole config.

    Raises:
        ValueError: If a head has another number.
    """
    if 'language_model' in model:
        # Classes are phrases there, and the number is that of words in a text.
        return
    for entry, theirs in _iter_heads(model, 'model'):
        if theirs != num_classes:
            raise ValueError(
                f'{dataset} has {count(num_classes, "class")}, and '
                f'{entry}.num_classes is {theirs!r}. Set {entry}.num_classes={num_classes}, or '
                f'name the classes of the data by {dataset}.metainfo=dict(classes=(...)).'
            )


def _iter_heads(part: Any, entry: str) -> Iterator[tuple[str, Any]]:
    """Walk a model; cascades have lists of heads."""
    if isinstance(part, list | tuple):
        for index, inner in enumerate(part):
            yield from _iter_heads(inner, f'{entry}.{index}')
    elif isinstance(part, dict):
        if 'num_classes' in part:
            yield entry, part['num_classes']
        for key in (*_HEADS, *_WRAPPERS):
            if key in part:
                yield from _iter_heads(part[key], f'{entry}.{key}')
