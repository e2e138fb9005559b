"""Where images come from: every data set, written `NAME`, `NAME:ROOT` or `NAME:FILE`, opened by `open_source`.

Test images choose nothing: where a source has no validation images, `val_fraction` cuts them from the training images,
and with 0 there are none.
"""
from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import ZooError, nearest
from ..runtime.text import one_line
from .cache import check_cached
from .datasets import DATASETS, DatasetInfo
from .folders import Parts, open_cinic10, open_folder, open_tiny_imagenet
from .huggingface import open_hub
from .images import ArrayImages, EncodedImages, FileImages, decode
from .seeds import generator
from .splits import Split, draw, nested

_DIGITS_TEST = 360      # of 1,797
_VAL, _FRACTION, _SAMPLE = 1, 2, 3      # what a seed is used for
_SAMPLE_SIZE = 2000     # images that mean and deviation are measured on


@dataclass(frozen=True, eq=False)
class Source:
    """`info` is None where the set is not known beforehand: `normalisation` then measures it."""
    name: str
    train: Split
    val: Split | None
    test: Split | None
    class_names: tuple[str, ...]
    info: DatasetInfo | None = None


class _Torchvision(NamedTuple):
    class_name: str
    info: str
    lies_in: str
    splits: tuple[dict[str, Any] | None, ...]   # arguments for train, val, test


_TRAIN_TEST = {'train': True}, None, {'train': False}
_NAMED_SPLITS = {'split': 'train'}, None, {'split': 'test'}
_TORCHVISION = {
    'cifar10': _Torchvision('CIFAR10', 'c10', 'cifar-10-batches-py', _TRAIN_TEST),
    'cifar100': _Torchvision('CIFAR100', 'c100', 'cifar-100-python', _TRAIN_TEST),
    'svhn': _Torchvision('SVHN', 'svhn', 'train_32x32.mat', _NAMED_SPLITS),
    'mnist': _Torchvision('MNIST', 'mnist', 'MNIST/raw', _TRAIN_TEST),
    'fashion_mnist': _Torchvision('FashionMNIST', 'fmnist', 'FashionMNIST/raw', _TRAIN_TEST),
    'flowers102': _Torchvision('Flowers102', 'fl102', 'flowers-102',
                               ({'split': 'train'}, {'split': 'val'}, {'split': 'test'})),
    'stl10': _Torchvision('STL10', 'stl10', 'stl10_binary', _NAMED_SPLITS),
}


def open_source(
        spec: str, *, download: bool = False, val_fraction: float = 0., fraction: float = 1., seed: int = 0,
) -> Source:
    """The images of `spec`, not decoded yet.

    Args:
        spec: one of `SYNTAX`.
        download: let torchvision fetch a set that is not there.
        val_fraction: share of the training images that becomes the validation set, where the source has none.
        fraction: share of the training images to train on, every class in its proportion; a smaller share is part of
            a larger one. The validation set is cut before, so that it is the same for every fraction.
        seed: of these two draws. A published or fixed test set does not depend on it.
    """
    if not 0 <= val_fraction < 1 or not 0 < fraction <= 1:
        raise ZooError(f'val_fraction is {val_fraction:g} and fraction {fraction:g}: expected 0 <= val_fraction < 1 '
                       f'and 0 < fraction <= 1.')
    source = _open(spec, download)
    if val_fraction and source.val is None:
        mask = draw(source.train.labels, round(val_fraction * len(source.train)), seed, _VAL)
        if not mask.any():
            raise ZooError(f'val_fraction takes no image of the {len(source.train)} training images (one of each class '
                           f'stays): give more, or leave it out.')
        source = replace(source, train=source.train.select(~mask), val=source.train.select(mask))
    if fraction < 1:
        count = max(len(source.class_names), len(source.train) - round((1 - fraction) * len(source.train)))
        source = replace(source, train=source.train.select(nested(source.train.labels, count, seed, _FRACTION)))
    return source


def _open(spec: str, download: bool) -> Source:
    name, _, rest = spec.partition(':')
    if name not in SYNTAX:
        hint = f' Did you mean folder:{spec} or npz:{spec}?' if Path(spec).exists() else nearest(name, SYNTAX)
        raise ZooError(f'There is no data source {name!r}, expected one of {", ".join(SYNTAX.values())}.{hint}')
    if bool(rest) != (SYNTAX[name] != name):
        raise ZooError(f'The data source is {spec!r}, expected {SYNTAX[name]}.')
    if download and name in _OPENERS and name not in ('digits', 'hf'):
        raise ZooError(f'{name} is not fetched by this program: give {SYNTAX[name]} without download.')
    if name in _TORCHVISION:
        return _open_torchvision(name, Path(rest).expanduser(), download)
    return _OPENERS[name](rest)


def _open_torchvision(name: str, root: Path, download: bool) -> Source:
    known = _TORCHVISION[name]
    train, val, test = (
        None if args is None else _torchvision_split(name, root, args, download) for args in known.splits)
    assert train is not None
    info = DATASETS[known.info]
    return Source(name, train, val, test, info.label_names, info)


def _torchvision_split(name: str, root: Path, args: dict[str, Any], download: bool) -> Split:
    from torchvision import datasets

    class_name, _, lies_in, _ = _TORCHVISION[name]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # the pickles of CIFAR are older than NumPy 2
            data = getattr(datasets, class_name)(root, download=download, **args)
    except ImportError as e:
        raise ZooError(f"{name} needs {e.name}, which is not installed: pip install 'tinyvit-zoo[train]'.") from e
    except Exception as e:  # torchvision, pickle, scipy and the network have their own
        reason = ' '.join(str(e).split('You can use')[0].split())[:160] or type(e).__name__
        remedy = 'try again' if download else 'give the folder that holds it, or --download to fetch it'
        raise ZooError(f'{name} cannot be read from {root} ({reason}): expected {root / lies_in}; {remedy}.') from e
    if name == 'flowers102':
        paths = [path.relative_to(root) for path in data._image_files]
        return Split(FileImages(root, [str(path) for path in paths]), torch.tensor(data._labels))
    pixels = torch.as_tensor(data.data)
    if class_name in ('SVHN', 'STL10'):
        pixels = pixels.permute(0, 2, 3, 1)
    labels = data.targets if hasattr(data, 'targets') else data.labels
    return Split(ArrayImages(pixels, name), torch.as_tensor(labels).long())


def _open_digits(_: str) -> Source:
    """1,797 real 8x8 images that come with scikit-learn. The split is ours, and always the same: 1,437 and 360."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as e:
        raise ZooError("digits needs scikit-learn, which is not installed: pip install 'tinyvit-zoo[train]'.") from e
    data = load_digits()
    pixels = torch.from_numpy(np.round(data.images * (255 / 16)).astype(np.uint8))
    everything = Split(ArrayImages(pixels, 'digits'), torch.from_numpy(data.target).long())
    held = draw(everything.labels, _DIGITS_TEST, 0)
    info = DATASETS['digits']
    return Source('digits', everything.select(~held), None, everything.select(held), info.label_names, info)


def _open_npz(rest: str) -> Source:
    """The layout of MedMNIST: `train_images`, `train_labels`, and the same for `val` and `test` where there are any."""
    path = Path(rest).expanduser()
    if not path.is_file():
        raise ZooError(f'There is no file {path}: give an .npz file with train_images and train_labels.')
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name.partition('_')[0] in ('train', 'val', 'test')}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as e:
        raise ZooError(f'{path} is not an .npz file of plain arrays, or damaged ({one_line(e)}): '
                       f'save it again with numpy.savez.') from e
    train, val, test = (_npz_split(path, name, arrays) for name in ('train', 'val', 'test'))
    if train is None:
        raise ZooError(f'{path} holds {", ".join(arrays) or "nothing of the kind"}: expected train_images and '
                       f'train_labels, and val_* and test_* where there are any.')
    counts = train.labels.bincount()
    if len(counts) < 2 or not counts.all():
        raise ZooError(f'{path}: train_labels {"are all 0" if len(counts) < 2 else f"have no {int(counts.argmin())}"}'
                       f': expected classes numbered from 0 without a gap, two or more.')
    for split, name in ((val, 'val'), (test, 'test')):
        if split is not None and int(split.labels.max()) >= len(counts):
            raise ZooError(f'{path}: {name}_labels go up to {int(split.labels.max())}, train_labels to '
                           f'{len(counts) - 1}: every class needs training images.')
    return Source(path.stem, train, val, test, tuple(str(i) for i in range(len(counts))))


def _npz_split(path: Path, name: str, arrays: dict[str, np.ndarray]) -> Split | None:
    images, labels = arrays.get(f'{name}_images'), arrays.get(f'{name}_labels')
    if images is None and labels is None:
        return None
    if images is None or labels is None:
        raise ZooError(f'{path} has {name}_{"labels" if images is None else "images"} alone: expected {name}_images '
                       f'and {name}_labels.')
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)):
        raise ZooError(f'{path}: {name}_images are {images.dtype} {list(images.shape)}, expected uint8 [N, H, W] '
                       f'(grey) or [N, H, W, 3]; convert them (volumes cannot be used).')
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise ZooError(f'{path}: {name}_labels are {list(labels.shape)}, several labels an image; expected one class '
                       f'each, [N] or [N, 1]; choose a set with one label.')
    if labels.dtype.kind not in 'iu' or labels.shape not in ((len(images),), (len(images), 1)) or not len(labels):
        raise ZooError(f'{path}: {name}_labels are {labels.dtype} {list(labels.shape)} for {len(images)} images, '
                       f'expected one whole number for each.')
    if labels.min() < 0:
        raise ZooError(f'{path}: {name}_labels go down to {labels.min()}, expected classes numbered from 0.')
    pixels = images[..., 0] if images.shape[3:] == (1,) else images
    title = f'{path}: {name}_images'
    return Split(ArrayImages(torch.from_numpy(pixels), title), torch.from_numpy(labels.reshape(-1).astype(np.int64)))


def _from_parts(name: str, parts: Parts, info: DatasetInfo | None = None) -> Source:
    return Source(name, *parts, info)


def _path(rest: str) -> Path:
    return Path(rest).expanduser()


_OPENERS: dict[str, Callable[[str], Source]] = {
    'tiny_imagenet': lambda rest: _from_parts('tiny_imagenet', open_tiny_imagenet(_path(rest)), DATASETS['timnet']),
    'cinic10': lambda rest: _from_parts(
        'cinic10', open_cinic10(_path(rest), DATASETS['cinic10'].label_names), DATASETS['cinic10']),
    'folder': lambda rest: _from_parts(_path(rest).resolve().name, open_folder(_path(rest))),
    'npz': _open_npz,
    'hf': lambda rest: _from_parts(rest, open_hub(rest)),
    'digits': _open_digits,
}

# What may be written, by the name before the colon.
SYNTAX = {
    'digits': 'digits',
    **{name: f'{name}:ROOT' for name in (*_TORCHVISION, 'tiny_imagenet', 'cinic10', 'folder')},
    'npz': 'npz:FILE',
    'hf': 'hf:NAME',
}


def normalisation(
        source: Source, img_size: int | tuple[int, int], channels: int = 3, seed: int = 0,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels from 0 to 1.

    Those of `source.info` where they hold; else (a set not known beforehand, or colour turned to grey) measured on
    the training images at `img_size`, on 2,000 drawn at random where there are more.
    """
    info = source.info
    if info is not None and (channels == 3 or len(set(info.mean)) == 1):
        return info.mean[:channels], info.std[:channels]
    return measure(source.train, img_size, channels, seed)


def measure(
        split: Split, img_size: int | tuple[int, int], channels: int, seed: int,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation on a sample of the split."""
    if isinstance(split.images, EncodedImages):
        check_cached(split.images)  # or the first unreadable ones would be met here, and the others later
    chosen = torch.randperm(len(split), generator=generator(seed, _SAMPLE))[:_SAMPLE_SIZE].sort().values
    total, squares, count = torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64), 0
    size = (img_size, img_size) if isinstance(img_size, int) else (img_size[0], img_size[1])
    for part in chosen.split(256):
        pixels = decode(split.images, size, channels, split.select(part).index, progress=False).double() / 255
        total += pixels.sum((0, 2, 3))
        squares += pixels.square().sum((0, 2, 3))
        count += pixels.numel() // channels
    mean = total / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    return tuple(mean.tolist()), tuple(deviation.clamp(min=1 / 255).tolist())  # one grey value all over: not by zero
