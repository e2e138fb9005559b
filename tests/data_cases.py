"""Splits and refusals for the tests of data."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import fakes
import pytest
import torch

from tinyvit_zoo.data.images import ArrayImages, decode
from tinyvit_zoo.data.sources import Source, open_source
from tinyvit_zoo.data.splits import Split
from tinyvit_zoo.errors import ZooError


def numbered(count: int) -> Split:
    """4x4 images; the label of each is its number, and so are its pixels, in two of the channels."""
    number = torch.arange(count)
    pixels = torch.stack([number // 256, number % 256, number * 0], -1).to(torch.uint8)
    return Split(ArrayImages(pixels[:, None, None].expand(-1, 4, 4, 3), 'numbered'), number)


def refusal(spec: object, **options: Any) -> str:
    with pytest.raises(ZooError) as caught:
        open_source(str(spec), **options)
    assert r'\n' not in str(caught.value)
    return str(caught.value)


def decoded(split: Split | None, channels: int = 3) -> torch.Tensor:
    assert split is not None
    first = split.read(0)
    return decode(split.images, (first.height, first.width), channels, split.index)


def sizes(source: Source) -> tuple[int, ...]:
    return tuple(0 if split is None else len(split) for split in (source.train, source.val, source.test))


def folder_split(root: Path) -> Split:
    if not root.exists():
        fakes.image_folder(root, {'a': 10, 'b': 10})
    return open_source(f'folder:{root}').train
