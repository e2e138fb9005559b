"""The images that analyses look at."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..augment.pillow import evaluation_transform
from ..data.images import FileImages, as_channels
from ..data.seeds import generator
from ..data.sources import open_source
from ..data.splits import Split
from ..errors import ZooError
from ..measure.prediction import image_files
from ..runtime.text import one_line
from ..weights.resolve import Loaded

_DRAW = 6       # what the seed is used for


def open_images(data: str | None, split: str, files: Sequence[Path] | None) -> Split:
    """The images of a data source's split, or of files and folders."""
    if bool(data) == bool(files):
        raise ZooError('Give --data SOURCE (digits, npz:FILE, folder:DIR, ...) or --files IMAGE..., one of the two.')
    if data:
        found = getattr(open_source(data), split)
        if found is None:
            raise ZooError(f'{data} has no {split} images: take another --split.')
        return found
    paths = [str(path.absolute()) for path in image_files(files or ())]
    return Split(FileImages(Path('/'), paths), torch.zeros(len(paths), dtype=torch.int64))


def draw_images(split: Split, count: int, seed: int) -> Split:
    """So many at random, of all classes mixed; all, where there are no more."""
    return split.select(torch.randperm(len(split), generator=generator(seed, _DRAW))[:count])


def batches(subject: Loaded, split: Split, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """The images in their order, prepared as the weights want them [B, C, H, W]."""
    transform, channels = evaluation_transform(subject.cfg), subject.cfg['input_size'][0]
    for start in range(0, len(split), batch_size):
        places = range(start, min(start + batch_size, len(split)))
        yield torch.stack([transform(_read(split, i, channels)) for i in places]).to(device)


def displayed(subject: Loaded, images: Tensor) -> Tensor:
    """Pixels as they were, [B, H, W, C] in 0..1, of images as the model takes them."""
    mean, std = (torch.tensor(subject.cfg[key], device=images.device)[:, None, None] for key in ('mean', 'std'))
    return (images * std + mean).clamp(0, 1).permute(0, 2, 3, 1).cpu()


def _read(split: Split, i: int, channels: int) -> Any:
    try:
        return as_channels(split.read(i), channels)
    except Exception as e:  # every decoder has its own errors for a damaged file
        raise ZooError(f'{split.name(i)} cannot be read as an image ({one_line(e)}): mend or leave it out.') from e
