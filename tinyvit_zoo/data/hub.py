"""Open datasets of the Hugging Face library, from the Hub or in memory: one column of images and one of classes."""
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import ZooError
from ..runtime.text import one_line, quiet
from .images import EncodedImages
from .splits import Parts, Split, hot, numbered, numbers_of, sorted_names

_SPLITS = ('train',), ('validation', 'valid', 'val'), ('test',)
_LABELS = ('label', 'labels', 'fine_label')     # which of several columns of classes is meant


class HubImages(EncodedImages):
    """The image column of one split, as encoded there."""

    def __init__(self, rows: Any, column: str, title: str) -> None:
        self._rows, self._column, self._title = rows, column, title

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, i: int) -> str:
        return f'{self._title}[{i}]'

    def open(self, i: int) -> Path | BytesIO:
        image = self._rows[i][self._column]
        if image is None:
            raise ValueError('there is none')
        return BytesIO(image['bytes']) if image['bytes'] is not None else Path(image['path'])

    def fingerprint(self) -> str:
        return str(self._rows._fingerprint)


def open_hub(name: str, training: bool = True) -> Parts:
    """Open a dataset of the Hugging Face Hub, NAME or NAME:CONFIG, by `datasets`, which downloads a missing one."""
    try:
        import datasets
    except ImportError as e:
        raise ZooError("hf: needs the datasets library: pip install 'tinyvit-zoo[hf]'.") from e
    try:
        with quiet('datasets', 'huggingface_hub'):
            splits = datasets.load_dataset(*name.split(':', 1))
    except Exception as e:  # the network, the Hub and each format have their own
        reason = one_line(e.__cause__ or e, 200)
        raise ZooError(f'The dataset {name} cannot be loaded ({reason}): use another, or a folder.') from e
    return hub_parts(name, splits, training)


def is_hub(data: Any) -> bool:
    """Return whether data is an object of the `datasets` library, or a mapping of such."""
    values = data.values() if isinstance(data, Mapping) else [data]
    return any(type(each).__module__.partition('.')[0] == 'datasets' for each in values)


def hub_parts(name: str, splits: Mapping[str, Any], training: bool = True) -> Parts:
    """Find the splits of a `datasets.DatasetDict`, their images and their labels; not `training`: any will do."""
    import datasets
    keys = [next((key for key in names if key in splits), None) for names in _SPLITS]
    first = keys[0] if training else keys[0] or keys[2] or keys[1]
    if first is None:
        raise ZooError(f'The dataset {name} has the splits {", ".join(map(str, splits))}: expected train.')
    for key in filter(None, keys):
        if not isinstance(splits[key], datasets.Dataset):
            raise ZooError(f'The {key} images of the dataset {name} are {type(splits[key]).__name__}: expected a '
                           f'datasets.Dataset.')
    splits = {key: splits[key].with_format(None) for key in filter(None, keys)}
    features = splits[first].features
    image, label = _columns(name, features)
    kind = _kind(features[label])
    names = kind.names
    if kind.text:
        given = splits[first][label][:]
        names = sorted_names(filter(None, chain(*filter(None, given)) if kind.several else given))
    for key, rows in splits.items():
        if not {image, label} <= {*rows.features} or _kind(rows.features[label]) != kind:
            raise ZooError(f'The {key} images of the dataset {name} have other columns or classes than the training '
                           f'images: expected the same.')
    train, val, test = (None if key is None else _split(name, key, splits[key], image, label, names) for key in keys)
    some = train or (None if training else test or val)
    if some is None:
        raise ZooError(f'The {"training " * training}images of the dataset {name} have no labels: expected a class for '
                       f'each.')
    return Parts.of(train, val, test, names or numbers_of(some, f'The dataset {name}'))


class _Kind(NamedTuple):
    """What a column holds: the names of its classes, if it has them; texts or not; a value or a list for each image."""
    names: tuple[str, ...]
    text: bool
    several: bool


def _kind(feature: Any) -> _Kind:
    import datasets
    inner = feature[0] if isinstance(feature, list) and len(feature) == 1 else getattr(feature, 'feature', None)
    value = feature if inner is None else inner
    return _Kind(tuple(value.names) if isinstance(value, datasets.ClassLabel) else (),
                 isinstance(value, datasets.Value) and 'string' in value.dtype, inner is not None)


def _columns(name: str, features: Any) -> tuple[str, str]:
    """Return the names of the image and of the label column."""
    import datasets
    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [key for key, feature in features.items() if _kind(feature).names]
    labels = labels or [key for key in _LABELS if key in features and (
        _kind(features[key]).text or (isinstance(features[key], datasets.Value) and 'int' in features[key].dtype))]
    preferred = [key for key in _LABELS if key in labels][:1] or labels
    if len(images) != 1 or len(preferred) != 1:
        raise ZooError(f'The dataset {name} has the columns {", ".join(features)}: expected a single column of images, '
                       f'and a column of classes (ClassLabel; or whole numbers, texts or lists of texts named label).')
    return images[0], preferred[0]


def _split(name: str, key: str, rows: Any, image: str, label: str, names: Sequence[str]) -> Split | None:
    """Make a split; None where the labels are withheld (-1, or none), as those of some test sets are."""
    import datasets
    given = rows[label][:]
    if all(each is None for each in given):
        return None
    kind, title = _kind(rows.features[label]), f'The {key} labels of the dataset {name}'
    try:
        if kind.several:
            labels = hot([[*filter(None, row)] if kind.text else [names[number] for number in row if number >= 0]
                          for row in given], names, title)
        elif kind.text:
            labels = numbered(given, names, title)
        else:
            labels = torch.from_numpy(np.asarray(given, dtype=np.int64))
    except (TypeError, IndexError) as e:
        raise ZooError(f'The dataset {name} has {key} images without a label: expected a class for each.') from e
    except OverflowError as e:
        raise ZooError(f'The dataset {name} has {key} labels beyond 2 ** 63: expected classes from 0 on.') from e
    if not len(labels) or not (labels.any() if labels.ndim == 2 else (labels >= 0).any()):
        return None
    encoded = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    return Split(HubImages(encoded, image, f'{name} {key}'), labels)
