"""Batches on the device, from memory or streamed; which images make which batch is the same either way.

The order of an epoch is a function of (seed, epoch) alone. A batch is shared among all processes: process r takes every
world_size-th image from the r-th on, so that together they have the batch that one process would have.
"""
import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.queues import Queue
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from ..errors import ZooError, nearest
from ..runtime.text import one_line
from .channels import as_channels, cropped, pixels_of
from .files import cpu_count, free_memory
from .images import ArrayImages, EncodedImages, check_cached, decode, decode_cached
from .splits import Split, generator, seeded

_logger = logging.getLogger(__name__)
MEMORY_SHARE = 0.25     # of the free memory, which the images may take
MEMORY_MAX_SIZE = 96    # pixels; larger images are cropped from the file at their own resolution
_ORDER, _AUGMENT = 4, 5     # derive the seeds of the order and of the augmentation
MOST_WORKERS = 256      # more would exhaust the machine's memory
_TIMEOUT = 600          # seconds for one batch; then the workers are taken for dead
_LOOK_EVERY = 2         # seconds
_MODES = ('auto', 'memory', 'stream')


class Batches:
    """Iterate over pairs of images [B, C, H, W] and labels (int64 [B]) on the device.

    Images are the output of `stream_transform` (if `streamed`) or `batch_transform`; uint8 without them. `num_images`:
    the images of an epoch over all processes; `len`: its batches.
    """
    streamed = False

    def __init__(self, order: '_Order', device: torch.device) -> None:
        self.device, self.num_images, self._order = device, order.num_images, order

    def __len__(self) -> int:
        return self._order.num_batches

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Iterate over this epoch from now on, without its first `start_batch` batches."""
        if not 0 <= start_batch <= len(self):
            raise ZooError(f'start_batch is {start_batch}, expected 0 to {len(self)}, the batches of an epoch.')
        self._order.epoch, self._order.start_batch = epoch, start_batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        raise NotImplementedError


def make_batches(split: Split, img_size: int | tuple[int, int], batch_size: int, device: str | torch.device, *,
                 train: bool, balanced: bool = False, channels: int = 3, seed: int = 0, rank: int = 0,
                 world_size: int = 1, mode: str = 'auto', batch_transform: Callable[[Tensor], Tensor] | None = None,
                 stream_transform: Callable[[Any], Tensor] | None = None, workers: int | None = None,
                 crop_pct: float = 1.) -> Batches:
    """Make the batches of a split. Reads all its images once beforehand, unless they are known to be sound.

    Args:
        batch_size: over all processes together.
        train: shuffle, and drop the last incomplete batch (a set smaller than a batch is one batch). Else in order,
            every image once; the last batch may be smaller, and a process may have one batch less than another.
        balanced: draw the training images with replacement, every class as often as another.
        seed: of order and augmentation.
        mode: 'memory': decoded once, on the device; 'stream': read and transformed by worker processes, every epoch;
            'auto': memory for images of at most 96 pixels that fit in a quarter of the free memory.
        batch_transform: from a uint8 batch on the device to the yielded images.
        stream_transform: from a Pillow image (RGB, or grey for one channel) to a tensor; when streaming, it is applied
            in place of `batch_transform`, under a seed of its own for each image and epoch.
        crop_pct: of images that are deep and streamed, to which `stream_transform` is not applied.
        workers: processes that stream; 0: none, None: as many as there are processors, eight at most.
    """
    size = (img_size, img_size) if isinstance(img_size, int) else (img_size[0], img_size[1])
    device = torch.device(device)
    if mode not in _MODES:
        raise ZooError(f'mode is {mode!r}, expected {", ".join(_MODES)}.{nearest(mode, _MODES)}')
    if split.images.deep:
        stream_transform = None     # they are no Pillow images
    elif channels not in (1, 3):
        raise ZooError(f'channels is {channels}, but the images are grey or RGB: use weights for 1 or 3 channels.')
    order = _Order(len(split), batch_size, train, seed, rank, world_size, split.labels if balanced else None)
    if mode == 'auto':
        mode = 'memory' if fits_in_memory(split, size, channels, device) else 'stream'
    transform = batch_transform or (lambda images: images)
    if mode == 'memory':
        return _MemoryBatches(in_memory(split, size, channels, rank == 0), split.labels, order, device, transform)
    if isinstance(split.images, EncodedImages):
        check_cached(split.images, progress=rank == 0)
    workers = min(8, cpu_count()) if workers is None else workers
    samples = _Samples(split, size, channels, seed, stream_transform, crop_pct)
    return _StreamBatches(samples, order, device, workers, transform)


def fits_in_memory(split: Split, size: tuple[int, int], channels: int, device: torch.device) -> bool:
    """Measure all the images of the source, which are decoded together."""
    count = len(split) if isinstance(split.images, ArrayImages) else len(split.images)
    size_of_all = count * channels * size[0] * size[1] * split.images.dtype.itemsize
    return max(size) <= MEMORY_MAX_SIZE and size_of_all <= MEMORY_SHARE * free_memory(device)


def in_memory(split: Split, size: tuple[int, int], channels: int, progress: bool = True) -> Tensor:
    """Decode to uint8 [N, C, H, W] in main memory. Files come from the cache, or go there."""
    if not isinstance(split.images, EncodedImages):
        return decode(split.images, size, channels, split.index, progress)
    images = decode_cached(split.images, size, channels, progress)
    return images if split.index is None else images.index_select(0, split.index)


class _Order(Sampler):
    """The order of the images, the share of this process, and where it stands: `epoch` and `start_batch`."""

    def __init__(self, count: int, batch_size: int, train: bool, seed: int, rank: int, world_size: int,
                 balanced: Tensor | None) -> None:
        if not 0 <= rank < world_size:
            raise ZooError(f'rank is {rank}, expected 0 to {world_size - 1}.')
        if batch_size < 1 or batch_size % world_size:
            raise ZooError(f'batch_size is {batch_size}, expected a multiple of the {world_size} processes.')
        if train and count < batch_size:
            batch_size = count - count % world_size
            if not batch_size:
                raise ZooError(f'{count} training images are too few for {world_size} processes: start fewer.')
            if rank == 0:
                _logger.warning('%d training images are less than a batch: an epoch is one batch '
                                'of %d.', count, batch_size)
        self._count, self._batch_size, self._train, self._seed = count, batch_size, train, seed
        self._rank, self._world_size = rank, world_size
        self._weights = None if balanced is None else 1 / balanced.bincount().double()[balanced]
        self.epoch = self.start_batch = 0
        whole, rest = divmod(count, batch_size)
        self.num_images = whole * batch_size if train else count
        self.num_batches = whole + (not train and rest > rank)

    def batches(self) -> list[Tensor]:
        """Return the indices of the coming batches of this epoch."""
        order = torch.arange(self._count)
        if self._train:
            draw = generator(self._seed, _ORDER, self.epoch)
            order = (torch.randperm(self._count, generator=draw) if self._weights is None
                     else self._weights.multinomial(self._count, replacement=True, generator=draw))
        parts = order[:self.num_images].split(self._batch_size)
        return [part[self._rank::self._world_size] for part in parts[self.start_batch:self.num_batches]]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield batches of (epoch, index): persistent workers learn the epoch from it."""
        return ([(self.epoch, i) for i in batch.tolist()] for batch in self.batches())


class _MemoryBatches(Batches):
    def __init__(self, images: Tensor, labels: Tensor, order: _Order, device: torch.device,
                 transform: Callable[[Tensor], Tensor]) -> None:
        super().__init__(order, device)
        self._images, self._labels, self._transform = images.to(device), labels.to(device), transform

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = self._order.batches()
        if not batches:
            return
        sizes = [len(batch) for batch in batches]
        for chosen in torch.cat(batches).to(self.device).split(sizes):  # one copy to the device an epoch
            yield self._transform(self._images.index_select(0, chosen)), self._labels.index_select(0, chosen)


@dataclass
class _Samples(Dataset):
    """The images of a split by (epoch, index)."""
    split: Split
    size: tuple[int, int]
    channels: int
    seed: int
    transform: Callable[[Any], Tensor] | None
    crop_pct: float = 1.

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, i = key
        try:
            if self.split.images.deep:
                pixels = self.split.images.pixels_at(self.split.number(i))
                return cropped(pixels, self.size, self.channels, self.crop_pct).clone(), self.split.labels[i]
            image = as_channels(self.split.read(i), self.channels)
        except Exception as e:  # it could be read when all were checked
            raise ZooError(f'{self.split.name(i)} can no longer be read ({one_line(e)}): fix it and resume.') from e
        if self.transform is None:
            return torch.from_numpy(pixels_of(image, self.size).copy()), self.split.labels[i]
        with seeded(self.seed, _AUGMENT, epoch, i):
            return self.transform(image), self.split.labels[i]


class _Workers(_MultiProcessingDataLoaderIter):
    """torch's, without the traceback that its __del__ prints where it could not be started as a whole."""

    def __init__(self, loader: Any) -> None:
        try:
            super().__init__(loader)
        except BaseException:
            for worker in getattr(self, '_workers', ()):
                worker.kill()
                worker.join()
            self._shutdown = True
            raise

    def __del__(self) -> None:
        try:
            super().__del__()
        except Exception:
            raise
        except BaseException as e:      # that of a signal's handler would be printed and lost here: it comes again
            number = signal.SIGINT if isinstance(e, KeyboardInterrupt) else signal.SIGTERM
            threading.Timer(1, os.kill, (os.getpid(), number)).start()


class _Loader(DataLoader):
    def _get_iterator(self) -> Any:
        return _Workers(self) if self.num_workers else super()._get_iterator()


def _end_unsent(_: int) -> None:
    """Let a worker end that cannot send a batch: its queue drops it, with a traceback, and it would be waited for.

    Also one whose parent was killed before it began, which torch would not notice.
    """
    if (parent := multiprocessing.parent_process()) and not parent.is_alive():
        os._exit(1)

    def end(*_: object) -> None:
        os._exit(1)
    Queue._on_queue_feeder_error = staticmethod(end)    # type: ignore[attr-defined]
    sys.excepthook = end    # which the thread that hands over a batch's memory calls


class _StreamBatches(Batches):
    # timm's `create_loader` takes no order and seeds augmentation by worker: no run could be resumed to the same bits

    def __init__(self, samples: _Samples, order: _Order, device: torch.device, workers: int,
                 transform: Callable[[Tensor], Tensor]) -> None:
        super().__init__(order, device)
        self.streamed, self._transform = samples.transform is not None, transform
        self._loader = _Loader(
            samples, batch_sampler=order, num_workers=workers, persistent_workers=workers > 0,
            worker_init_fn=_end_unsent, pin_memory=device.type == 'cuda',
            generator=torch.Generator())  # its own: the loop's random numbers are not to depend on the loader

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        try:
            batches = self._start()
            while True:
                images, labels = self._next(batches)
                if images is None or labels is None:
                    return
                images = images.to(self.device, non_blocking=True)
                yield images if self.streamed else self._transform(images), labels.to(self.device, non_blocking=True)
        except (Exception, GeneratorExit):
            batches, self._loader._iterator = self._loader._iterator, None
            if batches is not None:     # end its processes at once
                batches._shutdown_workers()     # type: ignore[attr-defined]
            raise

    def _start(self) -> Any:
        """Begin an epoch. The first one starts the workers, which ignore signals sent to the process group."""
        if not self._loader.num_workers:
            return iter(self._loader)
        batches: Any = self._loader._iterator
        if batches is not None:
            batches._timeout = 0    # torch waits for all workers, and checks every five seconds that they are alive
        with _naming_dead_workers(), _own_signals():
            batches = iter(self._loader)
        for worker in batches._workers:
            worker._popen.terminate = worker._popen.kill    # torch's last resort
        batches._timeout = min(_TIMEOUT, _LOOK_EVERY)
        return batches

    def _next(self, batches: Any) -> tuple[Tensor | None, Tensor | None]:
        """Return the next batch, or (None, None) at the end; check regularly that all workers are alive."""
        if not self._loader.num_workers:
            return next(batches, (None, None))
        began = time.monotonic()
        while True:
            try:
                with _naming_dead_workers():
                    return next(batches, (None, None))
            except TimeoutError as e:
                if time.monotonic() - began >= _TIMEOUT:
                    raise _dead(f'no batch in {_TIMEOUT} seconds') from e


@contextlib.contextmanager
def _naming_dead_workers() -> Iterator[None]:
    """Turn errors of a worker into a ZooError, or a TimeoutError if it is slow."""
    try:
        yield
    except (RuntimeError, OSError, EOFError) as e:
        text = ' '.join(str(e).split())
        if text.startswith('Caught ZooError'):      # inside a traceback of the process
            raise ZooError(text.split('ZooError: ')[-1]) from e
        if text.startswith('DataLoader timed out'):
            raise TimeoutError from e
        broken = not isinstance(e, RuntimeError) and not text.startswith('Caught ')     # while it sent a batch
        if 'Too many open files' in text:
            raise _dead('Too many open files') from e
        if broken or text.startswith(('DataLoader', 'Pin memory', 'received 0 items', "can't start")):
            raise _dead(one_line(e)) from e
        raise


def _dead(reason: str) -> ZooError:
    return ZooError(f'A process that loads images died, hangs or cannot be started ({reason}): use fewer --workers, or '
                    f'0.')


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Start workers that ignore SIGINT and SIGTERM, without torch's handler that raises wherever one dies."""
    if not hasattr(signal, 'pthread_sigmask') or threading.current_thread() is not threading.main_thread():
        yield
        return
    child, before = signal.getsignal(signal.SIGCHLD), signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        if child is not None and signal.getsignal(signal.SIGCHLD) is not child:     # torch's handler
            signal.signal(signal.SIGCHLD, child)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
