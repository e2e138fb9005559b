"""Open the images of a dataset, written `NAME`, `NAME:PATH` or `NAME:FILE`.

Validation images never come from the test set: `val_fraction` cuts them from the training images, 0 none.
"""
import pkgutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ZooError, nearest
from ..runtime.files import user_path
from ..runtime.text import composed, one_line, shown
from .channels import MOST, as_tensor, input_channels, largest
from .datasets import DATASETS, Dataset, Torchvision
from .files import read_npz
from .folders import open_folder
from .hub import hub_parts, is_hub, open_hub
from .images import ArrayImages, EncodedImages, FileImages, check_cached, decode, deep, with_depth
from .objects import SPLITS, as_hot, is_object, names_of, open_split, title_of, with_labels
from .splits import Parts, Split, draw, generator, nested, numbers_of
from .tables import medmnist_file, open_csv

_DIGITS_TEST = 360      # of 1,797
_VAL, _FRACTION, _SAMPLE = 1, 2, 3      # uses of a seed
_SAMPLE_SIZE = 2000     # images that mean and deviation are measured on


@dataclass(frozen=True, eq=False)
class Source:
    """Opened images; `info` is the dataset's row of the table, if it is there."""
    name: str
    train: Split
    val: Split | None
    test: Split | None
    class_names: tuple[str, ...]
    info: Dataset | None = None

    @property
    def channels(self) -> int:
        """Return the channels that a model takes: grey is repeated to three."""
        return input_channels(self.train.images.channels)

    val_fraction: float = 0.    # share of the training images that were held out as `val`


def syntax() -> dict[str, str]:
    """Return the syntax of each source, by the name before the colon."""
    rows = {row.source: row.spec for row in DATASETS.values() if row.opener}
    return {'digits': 'digits', **rows, 'folder': 'folder:PATH', 'csv': 'csv:FILE', 'npz': 'npz:FILE',
            'medmnist': 'medmnist:NAME', 'hf': 'hf:NAME'}


def open_source(spec: Any, *, download: bool = False, val_fraction: float = 0., fraction: float = 1.,
                seed: int = 0, training: bool = True, whole: bool = False, labels: bool = True) -> Source:
    """Open the images of `spec`, without decoding them.

    Args:
        spec: one of `syntax`, a Path of a folder, an .npz or a .csv file, or Python objects (`tinyvit_zoo.data.objects`
            says which).
        download: let torchvision fetch a dataset that is not there.
        val_fraction: share of the training images that becomes the validation set, where the source has none.
        fraction: share of the training images to train on, every class in its proportion; a smaller share is part of
            a larger one. The validation set is cut before, so that it is the same for every fraction.
        seed: of these two draws. A published or fixed test set does not depend on it.
        training: require training images of every class.
        whole: take class folders or a table without splits for testing, all of them; else a fifth.
        labels: not, for pre-training: images without labels will do, and are one class.
    """
    if not 0 <= val_fraction < 1 or not 0 < fraction <= 1:
        raise ZooError(f'val_fraction is {val_fraction:g}, expected 0 to below 1; fraction {fraction:g}, above 0 to 1.')
    if isinstance(spec, Path):
        spec = f'{spec.suffix[1:] if spec.suffix in (".npz", ".csv") else "folder"}:{spec}'
    source = _open_objects(spec if labels else with_labels(spec), training and labels) if is_object(spec) else _open(
        spec, download, training, whole, labels)
    if val_fraction and source.val is None:
        mask = draw(source.train.labels, round(val_fraction * len(source.train)), seed, _VAL)
        if not mask.any():
            raise ZooError(f'val_fraction takes none of {len(source.train)} images (one per class is kept): give more.')
        source = replace(source, train=source.train.select(~mask), val=source.train.select(mask),
                         val_fraction=val_fraction)
    if fraction < 1 and len(source.train):
        count = max(len(source.class_names), len(source.train) - round((1 - fraction) * len(source.train)))
        source = replace(source, train=source.train.select(nested(source.train.labels, count, seed, _FRACTION)))
    return source


def _open(spec: str, download: bool, training: bool, whole: bool, labels: bool) -> Source:
    name, _, place = spec.partition(':')
    known = syntax()
    if name not in known:
        hint = f' Did you mean folder:{spec} or npz:{spec}?' if Path(spec).exists() else nearest(name, known)
        raise ZooError(f'There is no data source {name!r}, expected one of {", ".join(known.values())}.{hint}')
    if bool(place) != (known[name] != name):
        raise ZooError(f'The data source is {spec!r}, expected {known[name]}.')
    if place and name not in ('hf', 'medmnist'):
        place = str(user_path(place))
    row = next((row for row in DATASETS.values() if row.source == name and row.opener), None)
    opener = row.opener if row else None
    if isinstance(opener, Torchvision):
        train, val, test = (None if args is None else _open_torchvision(name, opener, Path(place), args, download)
                            for args in (opener.train, opener.val, opener.test))
        assert train is not None
        return _source(name, Parts(train, val, test), row)
    if download and place and name not in ('hf', 'medmnist'):
        raise ZooError(f'{name} cannot be downloaded here: give {known[name]} without download.')
    if opener:
        return _source(name, (pkgutil.resolve_name(opener) if isinstance(opener, str) else opener)(place), row)
    if name == 'medmnist':
        path, names = medmnist_file(place, download)
        return _source(path.stem, _open_npz(path, True)._replace(class_names=names), training=training)
    path = Path(place)
    title, parts = (
        (place, open_hub(place, training)) if name == 'hf' else
        (path.stem, open_csv(place, training, whole)) if name == 'csv' else
        (path.resolve().name, open_folder(path, training, whole, labels)) if name == 'folder' else
        (path.stem, _open_npz(path, training, labels)))
    return _source(title, parts, training=training and labels)


def _open_objects(data: Any, training: bool) -> Source:
    """Open arrays or datasets: a mapping of splits, or the training images alone."""
    given = dict(data) if isinstance(data, Mapping) else {'train': data}
    named = given.pop('class_names', None)
    names = () if named is None else names_of(named)
    if names is None or len({*names}) < len(names):
        raise ZooError(f'class_names is {shown(named)}, expected a name for each class, no two alike.')
    first = next((name for name in ('train', 'test', 'val')[:1 if training else 3] if given.get(name) is not None), '')
    if not is_hub(given) and (not first or given.keys() - {*SPLITS}):
        keys = ', '.join(map(shown, given))
        raise ZooError(f'The data have the keys {keys}: expected train, and optionally val, test and class_names.')
    if is_hub(given):
        parts = hub_parts(title_of(data), given, training)
        return _source(title_of(data), parts._replace(class_names=names or parts.class_names), training=training)
    split, own = open_split(given[first], first, names)
    opened = {first: split}
    known, names = own or names, names or own or numbers_of(split, 'The data')
    for name in SPLITS:
        if name != first and given.get(name) is not None:
            opened[name] = open_split(given[name], name, names, known)[0]
    train, val, test = map(opened.get, SPLITS)
    return _source(title_of(data), Parts.of(train, val, test, names), training=training)


def _source(name: str, parts: Parts, row: Dataset | None = None, training: bool = True) -> Source:
    images = with_depth(parts.train.images)
    if images is not parts.train.images:
        train, val, test = (split if split is None else replace(split, images=deep(split.images, images))
                            for split in parts[:3])
        assert train is not None
        parts = Parts(train, val, test, parts.class_names)
    names = tuple(map(composed, parts.class_names)) or (row.label_names if row else ())
    return Source(name, *parts._replace(class_names=names).checked(name, complete=training and not row), row)


def _open_torchvision(name: str, known: Torchvision, root: Path, args: Mapping[str, Any], download: bool) -> Split:
    from torchvision import datasets
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # the pickles of CIFAR are older than NumPy 2
            data = getattr(datasets, known.class_name)(root, download=download, **args)
    except ImportError as e:
        raise ZooError(f"{name} needs {e.name}, which is not installed: pip install 'tinyvit-zoo[train]'.") from e
    except Exception as e:  # torchvision, pickle, scipy and the network have their own
        reason = one_line(e).split(' You can use')[0]
        remedy = 'try again' if download else 'give the folder that holds it, or --download to fetch it'
        raise ZooError(f'{name} cannot be read in {root} ({reason}): expected {root / known.folder}; {remedy}.') from e
    if hasattr(data, '_image_files'):
        paths = [str(path.relative_to(root)) for path in data._image_files]
        return Split(FileImages(root, paths), torch.tensor(data._labels))
    pixels = torch.as_tensor(data.data)
    if pixels.shape[1] == 3:  # [N, C, H, W]
        pixels = pixels.permute(0, 2, 3, 1)
    labels = data.targets if hasattr(data, 'targets') else data.labels
    return Split(ArrayImages(pixels, name), torch.as_tensor(labels).long())


def open_digits(_: str) -> Parts:
    """Open the 1,797 real 8x8 images that come with scikit-learn; ours is the split, always the same: 1,437 and 360."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as e:
        raise ZooError("digits needs scikit-learn, which is not installed: pip install 'tinyvit-zoo[train]'.") from e
    data = load_digits()
    pixels = torch.from_numpy(np.round(data.images * (255 / 16)).astype(np.uint8))
    everything = Split(ArrayImages(pixels, 'digits'), torch.from_numpy(data.target).long())
    held = draw(everything.labels, _DIGITS_TEST, 0)
    return Parts(everything.select(~held), None, everything.select(held))


def _open_npz(path: Path, training: bool, labels: bool = True) -> Parts:
    """Open MedMNIST's layout: `train_images`, `train_labels`, and the same for `val` and `test` where there are any.

    Not `labels`: training images may have none.
    """
    if not path.is_file():
        raise ZooError(f'There is no file {path}: give an .npz file with train_images and train_labels.')
    arrays = read_npz(path, lambda name: name.partition('_')[0] in ('train', 'val', 'test'))
    if not labels and 'train_images' in arrays:
        arrays.setdefault('train_labels', np.zeros(arrays['train_images'].shape[:1], np.int64))
    train, val, test = (_npz_split(path, name, arrays) for name in ('train', 'val', 'test'))
    some = train or (None if training else test or val)
    if some is None:
        raise ZooError(f'{path} holds {", ".join(arrays) or "no such arrays"}: expected train_images and train_labels.')
    return Parts.of(train, val, test, numbers_of(some, str(path)))


def _npz_split(path: Path, name: str, arrays: dict[str, np.ndarray]) -> Split | None:
    images, labels = arrays.get(f'{name}_images'), arrays.get(f'{name}_labels')
    if images is None and labels is None:
        return None
    if images is None or labels is None:
        raise ZooError(f'{path} has only one of {name}_images and {name}_labels: expected both.')
    channels = images.shape[3] if images.ndim == 4 else 1
    if channels not in (1, 3) and (images.shape[1] in (1, 3) or images.shape[1] < images.shape[2] == channels):
        raise ZooError(f'{path}: {name}_images are {list(images.shape)}, with the channels in front: expected them '
                       f'last, [N, H, W, C].')
    if images.dtype not in (np.uint8, np.uint16) or images.ndim not in (3, 4) or channels > MOST:
        raise ZooError(f'{path}: {name}_images are {images.dtype} {list(images.shape)}, expected uint8 [N, H, W] '
                       f'(grey) or [N, H, W, 3], or uint16, or up to {MOST} channels; convert them (volumes cannot be '
                       f'used).')
    if not images.size:
        raise ZooError(f'{path}: {name}_images are {list(images.shape)}, expected one or more, with pixels.')
    if labels.ndim == 2 and labels.shape[1] > 1 and labels.shape[0] == len(images) and len(labels):
        hot = torch.from_numpy(as_hot(labels, f'{path}: {name}_labels'))
        return Split(ArrayImages(_pixels(images), f'{path}: {name}_images'), hot)
    if labels.dtype.kind not in 'iu' or labels.shape not in ((len(images),), (len(images), 1)) or not len(labels):
        raise ZooError(f'{path}: {name}_labels are {labels.dtype} {list(labels.shape)} for {len(images)} images, '
                       f'expected one whole number for each, [N] or [N, 1]; or 0 and 1 for each class, [N, C].')
    if labels.max() >= 2 ** 31:     # it would turn negative
        raise ZooError(f'{path}: {name}_labels go up to {labels.max():,}, expected numbers of classes, from 0.')
    numbers = torch.from_numpy(labels.reshape(-1).astype(np.int64))
    return Split(ArrayImages(_pixels(images), f'{path}: {name}_images'), numbers)


def _pixels(images: np.ndarray) -> torch.Tensor:
    return as_tensor(images[..., 0] if images.shape[3:] == (1,) else images)


def normalization(source: Source, img_size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return each channel's mean and deviation (pixels 0 to 1): the table's, or of up to 2,000 training images."""
    if source.info:
        return source.info.mean, source.info.std
    split, channels = source.train, source.channels
    most = largest(split.images.dtype)
    if isinstance(split.images, EncodedImages):
        check_cached(split.images)  # or the first unreadable ones would be met here, and the others later
    chosen = torch.randperm(len(split), generator=generator(0, _SAMPLE))[:_SAMPLE_SIZE].sort().values
    total, squares, count = torch.zeros(channels).double(), torch.zeros(channels).double(), 0
    for part in chosen.split(256):
        index = split.select(part).index
        pixels = decode(split.images, (img_size, img_size), channels, index, progress=False).double() / most
        total += pixels.sum((0, 2, 3))
        squares += pixels.square().sum((0, 2, 3))
        count += pixels.numel() // channels
    mean = total / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    return tuple(mean.tolist()), tuple(deviation.clamp(min=1 / most).tolist())  # one grey value all over: not by zero
