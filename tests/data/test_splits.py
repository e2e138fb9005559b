"""Draws hold every class in its proportion, and smaller ones are part of larger ones."""
from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from data_cases import numbered

from tinyvit_zoo.data.splits import derived, draw, nested, seeded


def test_arrays_are_not_copied_while_they_wait() -> None:
    """A split of a split looks into the one array."""
    split = numbered(100)
    part = split.select(torch.arange(50)).select(torch.arange(10, 20))
    assert part.images is split.images and part.index is not None and part.index.tolist() == list(range(10, 20))


def test_every_share_of_uneven_classes_is_part_of_the_larger_ones() -> None:
    """With one of each class, and in proportion, to three images of 100 where the small classes have theirs first."""
    labels = torch.cat([torch.full((n,), i) for i, n in enumerate((100, 47, 10, 3, 1))])[torch.randperm(161)]
    masks = [nested(labels, count, 0) for count in range(162)]
    for count, (smaller, larger) in enumerate(itertools.pairwise(masks)):
        assert smaller.sum() == count and not (smaller & ~larger).any()
    for count, mask in enumerate(masks[5:], 5):
        taken = labels[mask].bincount(minlength=5)
        assert taken.min() >= 1 and ((taken - labels.bincount() * count / 161).abs() < 3).all()


@pytest.mark.parametrize('count', [0, 1, 7, 50, 110, 111, 500])
def test_draw_takes_the_number_asked_for(count: int) -> None:
    """In proportion to within one image a class, and one of each class is always left."""
    labels = torch.cat([torch.full((n,), i) for i, n in enumerate((100, 10, 3, 1, 1))])[torch.randperm(115)]
    drawn = labels[draw(labels, count, 0)].bincount(minlength=5)
    assert drawn.sum() == min(count, 110)
    assert (labels.bincount() - drawn >= 1).all()
    if count <= 50:
        assert ((drawn - labels.bincount() * count / 115).abs() <= 1).all()


def test_seeded_draws_repeat_and_differ() -> None:
    drawn = []
    for numbers in ((1, 2), (1, 2), (2, 1), (1, 3), (-1, 2)):
        with seeded(*numbers):
            drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[1] and len(set(drawn)) == 4
    assert len({derived(0, i) for i in range(1000)}) == 1000
