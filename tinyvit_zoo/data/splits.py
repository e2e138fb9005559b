"""Images with labels, and parts of them that hold every class in its proportion."""
from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from .images import Images
from .seeds import generator


@dataclass(frozen=True, eq=False)
class Split:
    """Some of `images`, those of `index` (None: all, in their order), with their labels, int64 [N]."""
    images: Images
    labels: Tensor
    index: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, i: int) -> Image.Image:
        return self.images.read(self._number(i))

    def name(self, i: int) -> str:
        return self.images.name(self._number(i))

    def _number(self, i: int) -> int:
        return i if self.index is None else int(self.index[i])

    def select(self, chosen: Tensor) -> Split:
        """Those of a mask or of indices; the images themselves are not copied."""
        index = torch.arange(len(self)) if self.index is None else self.index
        return Split(self.images, self.labels[chosen], index[chosen])


class Parts(NamedTuple):
    """What a dataset's opener returns; without `class_names` they are those of the table."""
    train: Split
    val: Split | None
    test: Split | None
    class_names: tuple[str, ...] = ()


def draw(labels: Tensor, count: int, *seed: int) -> Tensor:
    """A mask of `count` images (as near as can be), every class in its proportion; one of each class is left.

    Seeded, and what a smaller count draws is, but for rounding, among what a larger one draws.
    """
    order, place, sizes = _shuffled(labels, *seed)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[order] = place < _shares(sizes, count)[labels[order]]
    return mask


def nested(labels: Tensor, count: int, *seed: int) -> Tensor:
    """A mask of `count` images, every class in its proportion and with one image at least where they suffice for that.

    Seeded; what a smaller count takes is among what a larger one takes, to the image: they go by the share of their
    class that comes before them.
    """
    order, place, sizes = _shuffled(labels, *seed)
    first = (place / sizes[labels[order]]).argsort(stable=True)[:count]
    return torch.zeros(len(labels), dtype=torch.bool).index_fill_(0, order[first], True)


def _shuffled(labels: Tensor, *seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices class after class, shuffled inside; each one's place in its class; the classes' sizes."""
    sizes = labels.bincount()
    order = torch.randperm(len(labels), generator=generator(*seed))
    order = order[labels[order].argsort(stable=True)]
    return order, torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[labels[order]], sizes


def _shares(sizes: Tensor, count: int) -> Tensor:
    """`count` dealt out to the classes in proportion: whole parts first, then to the largest remainders."""
    most = (sizes - 1).clamp(min=0)
    exact = sizes.double() * count / sizes.sum()
    shares = exact.floor().long().minimum(most)
    while left := min(count, int(most.sum())) - int(shares.sum()):
        remainders = (exact - shares).masked_fill(shares == most, -torch.inf)
        takers = remainders.argsort(descending=True, stable=True)[:int((shares < most).sum())]
        shares[takers[:left]] += 1
    return shares
