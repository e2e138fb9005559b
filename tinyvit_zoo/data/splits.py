"""Images with labels; draws from them that hold every class in its proportion; seeds made of several integers."""
import random
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import ZooError
from ..runtime.text import composed, printable, shown
from .images import Images


def derived(*numbers: int) -> int:
    """Derive a seed of 64 bits from several numbers; near numbers give unrelated seeds."""
    return int(np.random.SeedSequence([n % 2 ** 64 for n in numbers]).generate_state(1, np.uint64)[0])


def generator(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(derived(*numbers))


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed `random`, NumPy and torch (on the CPU) by `numbers` inside; restore their states after."""
    seed = derived(*numbers)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2 ** 32)
    torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would reach for every accelerator
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


@dataclass(frozen=True, eq=False)
class Split:
    """Some of `images`, those of `index` (None: all, in their order), with their labels.

    Labels are int64 [N], a class for each image; or uint8 [N, C] of 0 and 1, where an image may have several.
    """
    images: Images
    labels: Tensor
    index: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, i: int) -> Image.Image:
        return self.images.read(self.number(i))

    def name(self, i: int) -> str:
        return self.images.name(self.number(i))

    def number(self, i: int) -> int:
        return i if self.index is None else int(self.index[i])

    @property
    def multi_label(self) -> bool:
        return self.labels.ndim == 2

    @property
    def rarest(self) -> 'Split':
        """Return the images with one label each: of several the rarest; those without any are a class of their own."""
        return self if not self.multi_label else Split(self.images, rarest(self.labels), self.index)

    def select(self, chosen: Tensor) -> 'Split':
        """Return the images of a mask or of indices, without copying them."""
        index = torch.arange(len(self)) if self.index is None else self.index
        return Split(self.images, self.labels[chosen], index[chosen])


def repeated(split: Split, among: Container[bytes]) -> list[int]:
    """Find the images of a split whose bytes are among those of these digests."""
    return [i for i, row in enumerate(digests_of(split)) if row in among]


def digests_of(split: Split) -> list[bytes]:
    """Return the first eight bytes of a SHA-256 of each image, of its file or its pixels."""
    digests = [row[:8].tobytes() for row in split.images.digests()]
    return digests if split.index is None else [digests[i] for i in split.index.tolist()]


class Parts(NamedTuple):
    """The splits that a dataset's opener returns; without `class_names` they are those of the table."""
    train: Split        # without images where there are none to train on
    val: Split | None
    test: Split | None
    class_names: tuple[str, ...] = ()

    @staticmethod
    def of(train: Split | None, val: Split | None, test: Split | None, class_names: tuple[str, ...]) -> 'Parts':
        """Return splits of which any may be missing, but not all."""
        some = train or test or val
        assert some
        return Parts(some if train else some.select(torch.zeros(0, dtype=torch.int64)), val, test, class_names)

    def checked(self, title: str, complete: bool = True) -> 'Parts':
        """Raise ZooError unless (`complete`) every class has training images, and no split has another class."""
        labels, count = self.train.labels, len(self.class_names)
        numbers = labels.any(0).nonzero()[:, 0] if self.train.multi_label else labels.unique()
        seen = {*numbers.tolist()} & {*range(count)}
        if not count and self.train.multi_label:
            raise ZooError(f'{title} has no label, and so no classes: give a column of 0 and 1 for each class.')
        if not count or (complete and (len(seen) < count or count < 2)):
            lacking = printable(', '.join([name[:40] for i, name in enumerate(self.class_names) if i not in seen][:3]))
            raise ZooError(f'{title} has training images of {len(seen)} out of {count} classes'
                           f'{f" (none of {lacking})" if lacking else ""}: expected some of each, two '
                           f'classes or more{"" if self.train.multi_label else ", numbered from 0 without a gap"}.')
        for name, split in (('train', self.train), ('val', self.val), ('test', self.test)):
            if split and split.index is None and len(split.images) != len(split):
                raise ZooError(f'{title} has {len(split.images)} {name} images but {len(split)} labels: expected one '
                               f'label per image.')
            if split and split.labels.ndim != labels.ndim:
                raise ZooError(f'{title} has {name} images of {"several labels" if split.multi_label else "one label"} '
                               f'each, and the training images have {"one" if split.multi_label else "several"}.')
            if split and split.multi_label and (split.labels.shape[1] != count or int(split.labels.max()) > 1):
                raise ZooError(f'{title} has {name} labels {list(split.labels.shape)} up to {int(split.labels.max())}: '
                               f'expected 0 and 1, [images, {count}], a column for each class.')
            if split and not split.multi_label and not 0 <= int(split.labels.min()) <= int(split.labels.max()) < count:
                raise ZooError(f'{title} has {name} labels from {int(split.labels.min())} to '
                               f'{int(split.labels.max())}: expected 0 to {count - 1}, those of the training images.')
        return self


def numbers_of(train: Split, title: str) -> tuple[str, ...]:
    """Return the numbers of the classes of training images as their names."""
    if train.multi_label:
        return tuple(map(str, range(train.labels.shape[1])))
    count = int(train.labels.max()) + 1
    if count > len(train):  # a single wrong label would make millions of names
        raise ZooError(f'{title} has a label {count - 1:,} among {len(train)} training images: expected classes '
                       f'numbered from 0 without a gap.')
    return tuple(map(str, range(count)))


def are_numbers(names: Sequence[str]) -> bool:
    """Return whether the names of classes are their numbers, in order."""
    return [*names] == [*map(str, range(len(names)))]


def sorted_names(labels: Iterable[str]) -> tuple[str, ...]:
    """Return each label once, sorted; numbers by their value."""
    names = sorted({composed(str(label)) for label in labels})      # '1' and '01' too have an order
    return tuple(sorted(names, key=int) if all(name.isdecimal() and len(name) < 10 for name in names) else names)


def numbered(labels: Sequence[str], names: Sequence[str], title: str) -> Tensor:
    """Return the number of each label among the names of the classes, int64 [N]."""
    return torch.tensor(_numbers(labels, _places(names), title))


def hot(lists: Sequence[Collection[str]], names: Sequence[str], title: str) -> Tensor:
    """Return lists of labels as uint8 [N, C] of 0 and 1, a column for each of the names."""
    rows, places = torch.zeros(len(lists), len(names), dtype=torch.uint8), _places(names)
    for row, labels in zip(rows, lists, strict=True):
        row[_numbers(labels, places, title)] = 1
    return rows


def _places(names: Sequence[str]) -> dict[str, int]:
    return {composed(name): i for i, name in enumerate(names)}


def _numbers(labels: Collection[str], places: dict[str, int], title: str) -> list[int]:
    labels = [label and composed(label) for label in labels]    # a dataset may hold None
    if unknown := [label for label in labels if label not in places]:
        raise ZooError(f'{title} have the class {shown(unknown[0])}: expected {", ".join(map(shown, [*places][:3]))}'
                       f'{", ..." * (len(places) > 3)}.')
    return [places[label] for label in labels]


def rarest(labels: Tensor) -> Tensor:
    """Return of labels [N, C] the rarest that each image has, int64 [N]; C where it has none."""
    counts = labels.sum(0, dtype=torch.int64).double()
    return torch.where((labels > 0).any(1), torch.where(labels > 0, counts, torch.inf).argmin(1), labels.shape[1])


def draw(labels: Tensor, count: int, *seed: int) -> Tensor:
    """Draw a mask of about `count` images, every class in its proportion; at least one of each class is left out."""
    # a smaller count draws a subset of a larger one's images, up to rounding
    labels = labels if labels.ndim == 1 else rarest(labels)
    order, place, sizes = _shuffled(labels, *seed)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[order] = place < _shares(sizes, count)[labels[order]]
    return mask


def nested(labels: Tensor, count: int, *seed: int) -> Tensor:
    """Draw a mask of `count` images, every class in its proportion, with at least one image each if they suffice."""
    # ordered by rank within the class: a smaller count draws a subset of a larger one's images
    labels = labels if labels.ndim == 1 else rarest(labels)
    order, place, sizes = _shuffled(labels, *seed)
    first = (place / sizes[labels[order]]).argsort(stable=True)[:count]
    return torch.zeros(len(labels), dtype=torch.bool).index_fill_(0, order[first], True)


def _shuffled(labels: Tensor, *seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return indices class after class, shuffled inside; each one's place in its class; the classes' sizes."""
    sizes = labels.bincount()
    order = torch.randperm(len(labels), generator=generator(*seed))
    order = order[labels[order].argsort(stable=True)]
    return order, torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[labels[order]], sizes


def _shares(sizes: Tensor, count: int) -> Tensor:
    """Deal `count` out to the classes in proportion: whole parts first, then to the largest remainders."""
    most = (sizes - 1).clamp(min=0)
    exact = sizes.double() * count / sizes.sum()
    shares = exact.floor().long().minimum(most)
    while left := min(count, int(most.sum())) - int(shares.sum()):
        remainders = (exact - shares).masked_fill(shares == most, -torch.inf)
        takers = remainders.argsort(descending=True, stable=True)[:int((shares < most).sum())]
        shares[takers[:left]] += 1
    return shares
