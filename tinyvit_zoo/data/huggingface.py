"""Open datasets of the Hugging Face Hub by its `datasets` library, which downloads missing ones."""
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ZooError
from ..runtime.text import one_line
from .images import EncodedImages
from .splits import Parts, Split

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


def open_hub(name: str) -> Parts:
    try:
        import datasets
    except ImportError as e:
        raise ZooError("hf: needs the datasets library: pip install 'tinyvit-zoo[hf]'.") from e
    try:
        splits = datasets.load_dataset(name)
    except Exception as e:  # the network, the Hub and each format have their own
        raise ZooError(f'The dataset {name} cannot be loaded ({one_line(e, 200)}): give a name on the '
                       f'Hub or a local folder that datasets.load_dataset takes alone.') from e
    keys = [next((key for key in names if key in splits), None) for names in _SPLITS]
    if keys[0] is None:
        raise ZooError(f'The dataset {name} has the splits {", ".join(splits)}: expected train.')
    features = splits[keys[0]].features
    image, label = _columns(name, features, datasets)
    feature = features[label]
    train, val, test = (None if key is None else _split(name, key, splits[key], image, label, datasets) for key in keys)
    if train is None:
        raise ZooError(f'The training images of the dataset {name} have no labels: expected a class for each.')
    names = feature.names if isinstance(feature, datasets.ClassLabel) else map(str, range(int(train.labels.max()) + 1))
    return Parts(train, val, test, tuple(names)).checked(f'The dataset {name}')


def _columns(name: str, features: Any, datasets: Any) -> tuple[str, str]:
    """Return the names of the image and of the label column."""
    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    labels = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    labels = labels or [key for key in _LABELS if 'int' in str(getattr(features.get(key), 'dtype', ''))]
    preferred = [key for key in _LABELS if key in labels][:1] or labels
    if len(images) != 1 or len(preferred) != 1:
        raise ZooError(f'The dataset {name} has the columns {", ".join(features)}: expected one of images and one of '
                       f'class labels.')
    return images[0], preferred[0]


def _split(name: str, key: str, rows: Any, image: str, label: str, datasets: Any) -> Split | None:
    """Make a split; None where the labels are withheld (-1), as those of some test sets are."""
    try:
        labels = torch.from_numpy(np.asarray(rows[label][:], dtype=np.int64))
    except TypeError as e:
        raise ZooError(f'The dataset {name} has {key} images without a label: expected a class for each.') from e
    if not len(labels) or (labels < 0).all():
        return None
    encoded = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    return Split(HubImages(encoded, image, f'{name} {key}'), labels)
