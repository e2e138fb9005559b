"""Decode images from arrays or encoded files to 8-bit pixels of a given size, and keep them on disk.

An image of that size stays as it is; any other is resized (bicubic, antialiased) until it fills the size, and cropped
in the middle. Files are decoded once: the pixels lie in the folder `TINYVIT_ZOO_CACHE`, by default
`~/.cache/tinyvit_zoo`, and may be deleted at any time.
"""
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import ZooError
from ..runtime.text import Progress, one_line
from .cache import cache_folder, read_cached, write_cached
from .channels import as_channels, fitted, is_deep, pixels_of, preview, read_deep, read_pages, upright
from .files import cpu_count, open_image

_CHUNK = 64             # images a thread takes at a time
_VERSION = 3            # of decoding; another one makes the cache void


class Images(ABC):
    """A sequence of images, each read on demand. Those that are `deep` have pixels that Pillow does not hold."""
    channels, dtype = 3, torch.uint8
    root: Path | None = None    # of files

    @property
    def deep(self) -> bool:
        return is_deep(self.channels, self.dtype)

    def pixels_at(self, i: int) -> Tensor:
        """Return the pixels [C, H, W] of image `i`, where they are deep."""
        raise NotImplementedError

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, i: int) -> str:
        """Name image `i` in an error."""

    @abstractmethod
    def read(self, i: int) -> Image.Image:
        """Return image `i`: upright, 8 bits, RGB or grey, of its own size."""

    @abstractmethod
    def digests(self) -> np.ndarray:
        """Return a digest of each image, uint8 [N, 32]."""

    def contents(self) -> str:
        """Return a digest of all images, by which a resumed run checks that they are unchanged."""
        return hashlib.sha256(self.digests().data).hexdigest()


class ArrayImages(Images):
    """Decoded images of one size, held in memory: uint8 [N, H, W] or [N, H, W, C], or int32 of 16 bits."""

    def __init__(self, pixels: Tensor, title: str) -> None:
        self.pixels, self.title = pixels, title
        self.channels, self.dtype = (pixels.shape[3] if pixels.ndim == 4 else 1), pixels.dtype

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, i: int) -> str:
        return f'{self.title}[{i}]'

    def digests(self) -> np.ndarray:
        return digest_rows([hashlib.sha256(image.tobytes()).digest() for image in self.pixels.numpy()])

    def contents(self) -> str:
        digest = hashlib.sha256(repr(list(self.pixels.shape)).encode())
        for part in self.pixels.split(4096):    # they need not lie in order
            digest.update(np.ascontiguousarray(part.numpy()).data)
        return digest.hexdigest()

    def pixels_at(self, i: int) -> Tensor:
        pixels = self.pixels[i]
        return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)

    def read(self, i: int) -> Image.Image:
        if self.deep:
            return preview(self.pixels_at(i))
        return Image.fromarray(np.ascontiguousarray(self.pixels[i].numpy()))

    def select(self, indices: Tensor, channels: int) -> Tensor:
        """Return [n, C, H, W] at their own size."""
        pixels = self.pixels.index_select(0, indices)
        if pixels.ndim == 3:
            return pixels.unsqueeze(1).expand(-1, channels, -1, -1)
        if channels == self.channels:
            return pixels.permute(0, 3, 1, 2)
        if self.deep or channels != 1:
            raise ZooError(f'{self.title} has {self.channels} channels, expected {channels} as the weights.')
        red, green, blue = pixels.int().unbind(-1)     # to the bit as Pillow does (ITU-R 601)
        return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8).unsqueeze(1)


class EncodedImages(Images):
    """Encoded images: `open` returns a path or file for Pillow; `fingerprint` changes when any image does."""

    @abstractmethod
    def open(self, i: int) -> Path | BytesIO: ...

    @abstractmethod
    def fingerprint(self) -> str: ...

    def digests(self) -> np.ndarray:
        """Read all files, unless the same ones were read before."""
        path = cache_folder() / f'{_key(self)}.digests'
        if (known := read_cached(path, (len(self), 32), np.uint8)) is not None:
            return known
        digests = np.zeros((len(self), 32), np.uint8)

        def work(place: int, i: int) -> None:
            source = self.open(i)
            content = source.read_bytes() if isinstance(source, Path) else source.getvalue()
            digests[place] = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
        for_each(self, range(len(self)), work, 'reading images', progress=True)
        write_cached(path, digests)
        return digests

    def read(self, i: int) -> Image.Image:
        with open_image(self.open(i)) as image:
            return upright(image)

    def check(self, i: int) -> None:
        """Read all of image `i` as cheaply as its format allows; raise if it cannot be read."""
        with open_image(self.open(i)) as image:
            if image.format == 'JPEG':
                image.draft(None, (image.width // 8 or 1, image.height // 8 or 1))  # reads all, computes an eighth
            upright(image)


class FileImages(EncodedImages):
    """Files below a folder; `paths` are relative to `root`."""
    root: Path

    def __init__(self, root: Path, paths: Sequence[str]) -> None:
        self.root = root
        self._paths = np.array([os.fsencode(path) for path in paths], dtype=bytes)  # one buffer for all workers

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, i: int) -> str:
        return str(self.open(i))

    def open(self, i: int) -> Path:
        return self.root / os.fsdecode(self._paths[i])

    def fingerprint(self) -> str:
        digest = hashlib.sha256(os.fsencode(self.root.resolve()))
        for path in self._paths:
            facts: tuple[int, ...] = (-1,)     # of a dead link, which is to be named with what cannot be read
            with suppress(OSError):
                state = os.stat(os.path.join(os.fsencode(self.root), path))
                # files with times as before have other times of change, or other inodes
                facts = state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino
            digest.update(b'%s\0%s\0' % (path, repr(facts).encode()))
        return digest.hexdigest()


class DeepImages(EncodedImages):
    """Encoded images of 16 bits, or TIFFs of several pages."""

    def __init__(self, images: EncodedImages, channels: int, dtype: torch.dtype) -> None:
        self._images, self.channels, self.dtype, self.root = images, channels, dtype, images.root

    def __len__(self) -> int:
        return len(self._images)

    def name(self, i: int) -> str:
        return self._images.name(i)

    def open(self, i: int) -> Path | BytesIO:
        return self._images.open(i)

    def fingerprint(self) -> str:
        return self._images.fingerprint()

    def pixels_at(self, i: int) -> Tensor:
        with open_image(self.open(i)) as image:
            pixels = read_pages(image)
        if (len(pixels), pixels.dtype) != (self.channels, self.dtype):
            bits = {torch.uint8: 8, torch.int32: 16}
            raise ValueError(f'it has {len(pixels)} channels of {bits[pixels.dtype]} bits, the first image has '
                             f'{self.channels} of {bits[self.dtype]}')
        return pixels

    def read(self, i: int) -> Image.Image:
        pixels = self.pixels_at(i)
        return preview(pixels) if self.deep else Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())

    def check(self, i: int) -> None:
        self.pixels_at(i)


def digest_rows(digests: list[bytes]) -> np.ndarray:
    return np.frombuffer(b''.join(digests), np.uint8).reshape(-1, 32)


def with_depth(images: Images) -> Images:
    """Return encoded images as they are, or as deep ones where the first is."""
    if not isinstance(images, EncodedImages) or not len(images):
        return images
    try:
        pixels = read_deep(images.open(0))
    except Exception:   # it is named with all others that cannot be read
        return images
    return images if pixels is None else DeepImages(images, len(pixels), pixels.dtype)


def deep(images: Images, first: Images) -> Images:
    """Return encoded images as deep ones of the channels and bits of `first`."""
    assert isinstance(images, EncodedImages)
    return DeepImages(images, first.channels, first.dtype)


def decode(images: Images, size: tuple[int, int], channels: int, indices: Tensor | None = None,
           progress: bool = True) -> Tensor:
    """Decode all images, or those of `indices`, to [N, C, H, W]. One error names all that cannot be read.

    Of uint8, or int32 where images are of 16 bits.
    """
    indices = torch.arange(len(images)) if indices is None else indices
    out = torch.empty(len(indices), channels, *size, dtype=images.dtype)
    if isinstance(images, ArrayImages) and tuple(images.pixels.shape[1:3]) == tuple(size):
        for into, part in zip(out.split(4096), indices.split(4096), strict=True):  # parts, or it is held twice
            into.copy_(images.select(part, channels))
        return out
    target = out.numpy()

    def work(place: int, i: int) -> None:
        if images.deep:
            out[place] = fitted(images.pixels_at(i), size, channels)
        else:
            target[place] = pixels_of(as_channels(images.read(i), channels), size)
    for_each(images, indices.tolist(), work, 'decoding images', progress)
    return out


def for_each(images: Images, indices: Sequence[int], work: Callable[[int, int], None], title: str,
              progress: bool) -> None:
    """Call `work(place, index)` for all, in threads: Pillow's decoders release the GIL."""
    def run(start: int) -> list[tuple[str, BaseException]]:
        failed = []
        for place, i in enumerate(indices[start:start + _CHUNK], start):
            if stopped.is_set():
                break
            try:
                work(place, i)
            except Exception as e:  # every decoder has its own errors for a damaged file
                failed.append((f'{images.name(i)} ({one_line(e)})', e.__cause__ or e))
        return failed
    bad: list[tuple[str, Any]] = []
    stopped = Event()
    with ThreadPoolExecutor(cpu_count()) as pool:
        starts = range(0, len(indices), _CHUNK)
        results: Iterator[list[tuple[str, BaseException]]] = map(run, starts)
        try:
            with suppress(RuntimeError):    # where no thread may be started, work goes on without
                results = pool.map(run, starts)
            with Progress(len(indices), title, quiet=not progress) as shown:
                for failed in results:
                    bad += failed
                    shown.show(min(shown.done + _CHUNK, len(indices)))
        except BaseException:  # Ctrl-C: drop the queue
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if bad:
        more = f', and {len(bad) - 10} more' if len(bad) > 10 else ''
        raise ZooError(f'{len(bad)} of {len(indices)} images cannot be read; fix or remove them: '
                       f'{", ".join(text for text, _ in bad[:10])}{more}.') from bad[0][1]


def decode_cached(images: EncodedImages, size: tuple[int, int], channels: int, progress: bool = True) -> Tensor:
    """Decode all images, or read them from the cache if the same files were decoded to the same size before."""
    shape = (len(images), channels, *size)
    wide = images.dtype == torch.int32
    path = cache_folder() / f'{_key(images, *shape, *[16] * wide)}.npz'
    if (known := read_cached(path, shape, np.int32 if wide else np.uint8)) is not None:
        return torch.from_numpy(known)
    pixels = decode(images, size, channels, progress=progress)
    write_cached(path, pixels.numpy())
    return pixels


def check_cached(images: EncodedImages, progress: bool = True) -> None:
    """Read every image once, unless the same files passed before; one error names all that cannot be read."""
    depth = (images.channels, images.dtype.itemsize) if isinstance(images, DeepImages) else ()
    path = cache_folder() / f'{_key(images, *depth)}.checked'
    if not path.exists():
        for_each(images, range(len(images)), lambda _, i: images.check(i), 'checking images', progress)
        write_cached(path)


def _key(images: EncodedImages, *shape: int) -> str:
    return hashlib.sha256(repr((_VERSION, images.fingerprint(), shape)).encode()).hexdigest()[:32]
