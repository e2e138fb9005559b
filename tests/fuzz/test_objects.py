"""Odd Python objects as data: splits of them, or a ZooError."""
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from fuzz_cases import cases, outcome
from hypothesis import given, strategies as st
from PIL import Image

from tinyvit_zoo.data.sources import Source, open_source
from tinyvit_zoo.measure.bench import open_evaluated

LABEL: Any = st.integers(0, 2) | st.sampled_from(['a', 'b', 'c', '', None, -1, 2.5, np.nan, 10 ** 30, ('a',), [0, 1]])
NUMBERS: Any = st.sampled_from([np.uint8, np.int8, np.uint16, np.int64, np.float16, np.float32, bool])
SHAPE: Any = st.sampled_from([(4, 4), (4, 4, 3), (3, 4, 4), (1, 4, 4), (5, 4, 4), (4, 4, 5), (0, 4), (4, 4, 40), (4,)])
IMAGE: Any = st.sampled_from([
    *(Image.new(mode, (4, 3)) for mode in ('L', 'RGB', 'RGBA', 'CMYK', '1', 'I;16', 'F', 'P', 'LA')), None, 5, 'a.png',
    '\0', b'x', np.zeros((4, 4)), np.full((4, 4), np.nan), np.zeros((4, 4, 5), np.uint16), torch.zeros(3, 4, 4)])
NAMES: Any = st.sampled_from([['a', 'b', 'c'], ['c', 'a'], ['x'], ['0', '1', '2'], ['a', 'a', 'b'], 'ab', [], None, 5])


class Odd(torch.utils.data.Dataset):
    """Items, with whatever torchvision's datasets have beside them."""

    def __init__(self, items: list[Any], **more: Any) -> None:
        self.items = items
        vars(self).update(more)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


@st.composite
def splits(draw: Any) -> Any:
    count = draw(st.sampled_from([0, 1, 2, 3, 6, 9]))
    plain = draw(st.booleans())
    labels = draw(st.lists(st.integers(0, 2) if plain else LABEL, min_size=count, max_size=count))
    if plain:
        labels = draw(st.sampled_from([list, tuple, np.array, lambda each: [[label] for label in each]]))(labels)
    if draw(st.booleans()):
        return np.ones((count, *draw(SHAPE)), draw(NUMBERS)), labels
    images = draw(st.lists(IMAGE, min_size=count, max_size=count))
    pairs = [*zip(images, labels, strict=True)]
    part = torch.utils.data.Subset(Odd(pairs), range(count))
    return draw(st.sampled_from([(images, labels), pairs, part, Odd(images, targets=labels), Odd(
        pairs, classes=draw(NAMES), targets=labels)]))


@cases(250)
@given(given=st.dictionaries(st.sampled_from(['train', 'val', 'test']), splits(), max_size=3), names=NAMES,
       training=st.booleans(), alone=st.booleans())
def test_odd_objects(given: Any, names: Any, training: bool, alone: bool) -> None:
    data = next(iter(given.values()), None) if alone else {**given, **({} if names is None else {'class_names': names})}

    def opened() -> Source:
        return open_source(data) if training else open_evaluated(data, '', ('a', 'b', 'c'), 'the weights')[0]
    source, message = outcome(opened)
    for split in () if source is None else (source.train, source.val, source.test):
        assert split is None or (len(split.images) == len(split) or split.index is not None)
        assert split is None or not len(split) or split.labels.max() < max(2, len(source.class_names))
    assert message or source
