"""Keep decoded images on disk, so that the files of a source are decoded once.

They lie in the folder `TINYVIT_ZOO_CACHE`, by default `~/.cache/tinyvit_zoo`, and may be deleted at any time.
"""
from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import ZooError
from ..runtime.files import written_whole
from ..runtime.text import one_line
from .images import EncodedImages, check_all, decode

_logger = logging.getLogger(__name__)
_VERSION = 1  # of decoding; another one makes the cache void


def cache_folder() -> Path:
    default = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'tinyvit_zoo'
    return Path(os.environ.get('TINYVIT_ZOO_CACHE') or default).expanduser() / 'images'


def decode_cached(images: EncodedImages, size: tuple[int, int], channels: int, progress: bool = True) -> Tensor:
    """Decode all images, or read them from the cache if the same files were decoded to the same size before."""
    shape = (len(images), channels, *size)
    path = cache_folder() / f'{_key(images, *shape)}.npz'
    pixels = _load(path, shape)
    if pixels is None:
        pixels = decode(images, size, channels, progress=progress)
        _write(path, pixels)
    return pixels


def check_cached(images: EncodedImages, progress: bool = True) -> None:
    """Check all images, unless the same files passed before."""
    path = cache_folder() / f'{_key(images)}.checked'
    if not path.exists():
        check_all(images, progress)
        _write(path, None)


def _key(images: EncodedImages, *shape: int) -> str:
    return hashlib.sha256(repr((_VERSION, images.fingerprint(), shape)).encode()).hexdigest()[:32]


def _load(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """Read cached pixels; None if they are missing or damaged, which the zip's checksum shows."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            array = file['images']
        if array.shape == shape and array.dtype == np.uint8:
            return torch.from_numpy(array)
        reason = f'it holds {array.dtype} {array.shape}'
    except Exception as e:  # zipfile, zlib and NumPy each have their own errors for a damaged file
        reason = one_line(e)
    _logger.warning('The cached images %s are damaged (%s): they are made again.', path, reason)
    return None


def _write(path: Path, images: Tensor | None) -> None:
    """Write decoded pixels, or an empty file; warn if the cache cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path, shared=True) as partial, open(partial, 'wb') as file:
            if images is not None:
                np.savez(file, images=images.numpy())
    except (OSError, ZooError) as e:
        _logger.warning('Decoded images cannot be kept in %s (%s): set TINYVIT_ZOO_CACHE to another folder, or they '
                        'are decoded at every start.', path.parent, one_line(e.__cause__ or e))
