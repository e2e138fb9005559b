"""Python objects as data: arrays, tensors, torch datasets, and datasets of the Hugging Face library."""
import hashlib
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import ZooError
from ..runtime.files import user_path
from ..runtime.text import composed, one_line, shown
from .channels import MOST, as_tensor, is_deep, is_deep_image, preview, read_deep, read_pages, upright
from .images import ArrayImages, FileImages, Images, digest_rows, for_each
from .splits import Split, hot, numbered, sorted_names

SPLITS = ('train', 'val', 'test')
_FORMS = ("(images, labels), a torch Dataset of pairs, or a mapping of 'train' and, where there are any, 'val' and "
          "'test' to such, with 'class_names' if they have names")


class DatasetImages(Images):
    """The images of a torch Dataset of (image, label); its transforms must not draw random numbers."""

    def __init__(self, dataset: Any, title: str) -> None:
        self._dataset, self._title = dataset, title
        self._lock = threading.Lock()       # a dataset may hold an open file
        self._digests: list[bytes] = []
        with suppress(Exception):           # it is named with all others that cannot be read
            if (pixels := deep_pixels(dataset[0][0])) is not None:
                self.channels, self.dtype = len(pixels), pixels.dtype

    def __len__(self) -> int:
        return len(self._dataset)

    def name(self, i: int) -> str:
        return f'{self._title}[{i}]'

    def digests(self) -> np.ndarray:
        """Read all images once; as arrays of the same pixels have them."""
        digests = [b''] * len(self)

        def work(place: int, i: int) -> None:
            pixels = self.pixels_at(i).permute(1, 2, 0).numpy() if self.deep else np.asarray(self.read(i))
            digests[place] = hashlib.sha256(pixels.tobytes()).digest()
        if not self._digests:
            for_each(self, range(len(self)), work, 'reading images', progress=True)
            self._digests = digests
        return digest_rows(self._digests)

    def pixels_at(self, i: int) -> Tensor:
        pixels = deep_pixels(self._image(i))
        if pixels is None or (len(pixels), pixels.dtype) != (self.channels, self.dtype):
            raise ValueError('its channels or bits differ from the first image')
        return pixels

    def read(self, i: int) -> Image.Image:
        if self.deep:
            return preview(self.pixels_at(i))
        return as_image(self._image(i))

    def _image(self, i: int) -> Any:
        with self._lock:
            return _item(self._dataset, i)[0]


def as_image(image: Any) -> Image.Image:
    """Return a Pillow image, upright, 8 bits, of a Pillow image, an array or a tensor."""
    if isinstance(image, Image.Image):
        return upright(_sized(image).copy())    # it is turned in place
    pixels = as_pixels(image, 'The image', batch=False)
    if is_deep(pixels.shape[2] if pixels.ndim == 3 else 1, pixels.dtype):
        raise ValueError('its bits or channels differ from the first image')
    return Image.fromarray(np.ascontiguousarray(pixels.numpy()))


def _sized(image: Image.Image) -> Image.Image:
    if not all(image.size):
        raise ValueError(f'it has {image.width} x {image.height} pixels, expected one or more')
    return image


def deep_pixels(image: Any) -> Tensor | None:
    """Return the pixels [C, H, W] of an image of 16 bits or of other channels, a path or an object; None for others."""
    if isinstance(image, (str, Path)):
        return read_deep(user_path(image))
    if isinstance(image, Image.Image):
        return read_pages(image) if is_deep_image(_sized(image)) else None
    pixels = as_pixels(image, 'The image', batch=False)
    pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    return pixels if is_deep(len(pixels), pixels.dtype) else None


def as_pixels(values: Any, title: str, batch: bool = True) -> Tensor:
    """Return uint8, or int32 of uint16, [N, H, W] or [N, H, W, C], of arrays and tensors, channels first or last.

    Floats are of 0 to 1. Channels are the last axis if it has 1 or 3, else the shorter one of both.
    """
    try:
        if isinstance(values, Tensor) and (values.is_nested or values.layout != torch.strided):
            raise TypeError('sparse or nested: use to_dense() or a list')
        pixels = (values if isinstance(values, Tensor) else as_tensor(np.asarray(values))).detach().cpu()
    except Exception as e:  # arrays of objects, ragged lists, tensors without values
        raise ZooError(f'{title}: got {type(values).__name__}, not an array of numbers ({one_line(e)}): expected '
                       f'uint8, uint16 or floats of 0 to 1.') from e
    pixels = pixels.to(torch.int32) if pixels.dtype == torch.uint16 else pixels
    deep = str(getattr(values, 'dtype', '')).endswith('uint16')
    pixels = pixels if batch else pixels[None]
    if pixels.is_floating_point():
        if not pixels.numel() or not 0 <= pixels.min() <= pixels.max() <= 1:
            raise ZooError(f'{title}: floating-point pixels go from {pixels.min():g} to {pixels.max():g}, expected 0 '
                           f'to 1: scale them, or give uint8.' if pixels.numel() else f'{title}: there are no pixels.')
        grey_or_rgb = pixels.ndim == 3 or 1 in pixels.shape[1::2] or 3 in pixels.shape[1::2]
        deep, most = (False, torch.uint8) if grey_or_rgb else (True, torch.int32)
        pixels = (pixels * (65535 if deep else 255)).round().to(most)
    if pixels.ndim == 4 and pixels.shape[3] not in (1, 3) and (
            pixels.shape[1] in (1, 3) or pixels.shape[1] < pixels.shape[3]):
        pixels = pixels.permute(0, 2, 3, 1)
    right = pixels.dtype == torch.int32 if deep else pixels.dtype == torch.uint8
    if not right or pixels.ndim not in (3, 4) or max(pixels.shape[3:], default=1) > MOST:
        shape, wanted = list(values.shape) if hasattr(values, 'shape') else type(values).__name__, 'N, ' * batch
        raise ZooError(f'{title}: got {getattr(values, "dtype", "")} {shape}, expected uint8, uint16 or floats of '
                       f'0 to 1, [{wanted}H, W], or [{wanted}H, W, 3] (grey or RGB), or up to {MOST} channels.')
    if not pixels.numel():
        raise ZooError(f'{title}: there are no pixels.')
    pixels = pixels[..., 0] if pixels.shape[3:] == (1,) else pixels
    return pixels if batch else pixels[0]


def is_object(data: Any) -> bool:
    """Return whether data is a Python object, not the name of a source."""
    return not isinstance(data, (str, Path))


def title_of(data: Any) -> str:
    """Name data in a message or a card; a Path as the source that it is taken for."""
    if isinstance(data, Path):
        return f'{data.suffix[1:] if data.suffix in (".npz", ".csv") else "folder"}:{data}'
    if type(data) is dict and data:
        return title_of(data.get('train', next(iter(data.values()))))
    return data if isinstance(data, str) else 'an array' if isinstance(data, (tuple, list)) else type(data).__name__


class _Alone:
    """A Dataset of images alone, with a label 0 for each."""

    def __init__(self, images: Any) -> None:
        self._images, self.targets = images, [0] * len(images)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        item = self._images[i]
        return item[0] if isinstance(item, (tuple, list)) else item, 0


def with_labels(data: Any) -> Any:
    """Return images that have no labels with a label 0 for each; other data as they are."""
    if type(data) is dict and data.keys() == {'train'}:
        return {'train': with_labels(data['train'])}
    if isinstance(data, (tuple, list)) and len(data) == 2 and data[1] is None:
        data = data[0]
    elif isinstance(data, (tuple, list)):
        several = len(data) > 2 and all(     # two are images and labels
            isinstance(each, (str, Path, Image.Image)) or getattr(each, 'ndim', 0) in (2, 3) for each in data)
        if not several:
            return data
    elif not hasattr(data, 'ndim'):
        item: Any = {}
        with suppress(Exception):   # it is named later
            item = data[0]
        alone = len(item) == 1 if isinstance(item, (tuple, list)) else not isinstance(item, Mapping)
        return _Alone(data) if alone and hasattr(data, '__len__') else data
    countable = data.ndim > 0 if hasattr(data, 'ndim') else hasattr(data, '__len__')
    return (data, [0] * len(data)) if countable else data


def open_split(data: Any, name: str, names: Sequence[str] = (), known: Sequence[str] = (),
               ) -> tuple[Split, tuple[str, ...]]:
    """Return the split of arrays or a torch Dataset, and the names of its classes, () where it has none.

    `names`: of the classes, which labels that are texts must be among. `known`: those by which the numbers of a Dataset
    that names its classes are changed.
    """
    if isinstance(data, (tuple, list)) and len(data) == 2:
        images = _images(data[0], name)
        numbers, names = _labels(data[1], name, names)
        if len(images) != len(numbers):
            raise ZooError(f'There are {len(images)} {name} images but {len(numbers)} labels: expected one label per '
                           f'image.')
        return Split(images, numbers), names
    if not hasattr(data, '__getitem__') or not hasattr(data, '__len__') or isinstance(data, Mapping):
        raise ZooError(f'The {name} images are a {type(data).__name__}: expected {_FORMS}.')
    try:
        count = len(data)
        labels = _kept_labels(data, count)
    except Exception as e:
        raise ZooError(f'The {name} images have no length or labels ({_raised(e)}): fix the dataset.') from e
    if not count:
        raise ZooError(f'The {name} images are empty: expected one or more.')
    labels = [_label(data, i, name) for i in range(count)] if labels is None else labels
    own = _own_names(data)
    numbers, texts = _labels(labels, name, names or own)
    if own and known and not texts and own != tuple(known):
        if numbers.ndim == 2 or int(numbers.max()) >= len(own):
            raise ZooError(f'The {name} images have the classes {", ".join(map(shown, own[:3]))}, ...: expected '
                           f'{", ".join(map(shown, known[:3]))}, ..., in this order.')
        numbers = numbered([own[number] for number in numbers.tolist()], known, f'The {name} images')
    return Split(DatasetImages(data, name), numbers), own or texts


def _images(values: Any, name: str) -> Images:
    """Return the images of an array, or of a list of paths or Pillow images."""
    values = _plain(values)
    if isinstance(values, (list, tuple)) and values:
        if all(isinstance(each, Image.Image) for each in values):
            return DatasetImages([(each, 0) for each in values], name)
        if len({tuple(getattr(each, 'shape', ())) for each in values}) > 1:    # arrays of several sizes
            return DatasetImages([(each, 0) for each in values], name)
        if all(isinstance(each, (str, Path)) for each in values):
            return FileImages(Path(), [str(user_path(each)) for each in values])
    return ArrayImages(as_pixels(values, f'The {name} images'), name)


def _kept_labels(data: Any, count: int) -> Any:
    """Return the labels that a Dataset has read already, None if it has none, or others than its items."""
    labels = next((getattr(data, key) for key in ('targets', 'labels') if hasattr(data, key)), None)
    if labels is None or not count or len(labels) != count or getattr(data, 'target_transform', None):
        return None     # a Subset has none
    kept = labels.iloc if hasattr(labels, 'iloc') else labels
    for i in range(0, count, -(-count // 8)):
        with suppress(ZooError):    # an item that cannot be read is named later
            if not np.array_equal(np.asarray(_label(data, i, '')), np.asarray(kept[i])):
                return None
    return labels


def _own_names(data: Any) -> tuple[str, ...]:
    """Return the names that a Dataset has for its classes; () if it has none, or makes other labels of them."""
    while isinstance(data, torch.utils.data.Subset):
        data = data.dataset
    return () if getattr(data, 'target_transform', None) else names_of(getattr(data, 'classes', None)) or ()


def names_of(values: Any) -> tuple[str, ...] | None:
    """Return the names of classes; None where there are none to iterate over."""
    try:
        return None if isinstance(values, (str, bytes)) else tuple(composed(str(value)) for value in values)
    except TypeError:
        return None


def _item(data: Any, i: int) -> Any:
    try:
        return data[i]
    except Exception as e:  # the caller's own
        raise ValueError(f'it raises {_raised(e)}') from e


def _raised(error: Exception) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())[:160]}'


def _label(data: Any, i: int, name: str) -> Any:
    try:
        item = _item(data, i)
    except ValueError as e:
        raise ZooError(f'Item {i} of the {name} images cannot be read ({e}): fix the dataset.') from e.__cause__
    try:
        _, label = [*item] if not isinstance(item, Mapping) else []
    except (TypeError, ValueError) as e:
        raise ZooError(f'The {name} images are a {type(data).__name__} whose items are not pairs of an image and a '
                       f'label ({e}): expected {_FORMS}.') from e
    return label


def as_hot(array: np.ndarray, title: str) -> np.ndarray:
    """Return labels [N, C] of 0 and 1, a column for each class, as uint8."""
    if array.dtype.kind not in 'iufb' or not np.isin(array, (0, 1)).all():
        raise ZooError(f'{title} are {array.dtype} {list(array.shape)}: expected a column of 0 and 1 for each class '
                       f'(multi-label).')
    return array.astype(np.uint8)


def _plain(values: Any) -> Any:
    """Return texts or lists in NumPy or pandas as a list, other values as they are; of one column, if a table."""
    values = values.to_numpy() if hasattr(values, 'to_numpy') else values
    if not isinstance(values, np.ndarray) or values.dtype.kind not in 'OU':
        return values
    return (values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values).tolist()


def _are_texts(labels: Any) -> bool:
    return isinstance(labels, (list, tuple, set, frozenset)) and all(isinstance(each, str) for each in labels)


def _labels(values: Any, name: str, names: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Return the labels, and the names of the classes if labels are texts, or lists of texts, else ()."""
    values = _plain(values)
    if isinstance(values, (list, tuple)) and all(_are_texts(each) for each in values) and (names or any(values)):
        names = tuple(names) or sorted_names(chain(*values))
        return hot(values, names, f'The {name} labels'), names
    if isinstance(values, list) and values and all(isinstance(each, Tensor) for each in values):
        values = torch.stack(values) if len({each.shape for each in values}) == 1 else values
    try:
        array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    except Exception as e:  # ragged lists, tensors without values, or an object's own
        raise ZooError(f'The {name} labels are not numbers ({one_line(e)}): expected one whole number for each '
                       f'image.') from e
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 2 and len(array):
        return torch.from_numpy(as_hot(array, f'The {name} labels')), ()
    if array.ndim == 1 and len(array) and all(isinstance(each, str) for each in values):    # NumPy makes texts of all
        names = tuple(names) or sorted_names(values)
        return numbered(values, names, f'The {name} labels'), names
    if array.dtype.kind not in 'iub' or array.ndim != 1 or not len(array) or array.min() < 0 or array.max() >= 2 ** 31:
        given = list(values) if isinstance(values, (list, tuple)) else array.tolist() if array.ndim == 1 else []
        wrong = next((f': number {i} is {shown(label)}' for i, label in enumerate(given)
                      if not isinstance(label, (int, np.integer)) or not 0 <= label < 2 ** 31), '')
        raise ZooError(f'The {name} labels are {array.dtype} {list(array.shape)}{wrong}; expected one whole number, '
                       f'from 0, or one class name for each image.')
    return torch.from_numpy(array.astype(np.int64)), ()
