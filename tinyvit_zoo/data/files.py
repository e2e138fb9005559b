"""Find image files, and read them and arrays, from folders and files of any origin.

A folder is read once, however many links lead to it, and only regular files are opened: never a pipe, a device or what
the system shows of itself. Only formats of images are decoded: no PostScript, whose reader runs programs.
"""
import contextlib
import logging
import os
import stat
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from ..errors import ZooError
from ..runtime.text import one_line, printable
from .tiff import by_tifffile, is_cut, is_tiff

EXTENSIONS = ('.avif', '.bmp', '.gif', '.jpeg', '.jpg', '.pbm', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
_FORMATS = ('AVIF', 'BMP', 'GIF', 'JPEG', 'JPEG2000', 'PNG', 'PPM', 'TIFF', 'WEBP')
_logger = logging.getLogger(__name__)


class Finder:
    """Find folders and image files below `root`; warn at the end of what was left out."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise ZooError(f'There is no folder {root}: give the folder that holds the images.')
        if os.stat(root).st_dev in _system_devices():
            raise ZooError(f'{root} belongs to the system: give a folder of image files.')
        self._root = root
        self._paths: dict[tuple[int, int], str] = {}        # of the folders by device and inode, once there is a link
        self._skipped: dict[str, dict[str, None]] = {}      # paths by the reason, each once

    def folders(self, folder: Path) -> list[Path]:
        """List folders, sorted, without hidden ones and those that macOS leaves in a zip."""
        return sorted(folder / entry.name for entry in _entries(folder)
                      if entry.name != '__MACOSX' and self._is_folder(entry))

    def images(self, folder: Path) -> list[str]:
        """List image files at any depth, relative to `folder`, sorted."""
        paths, waiting = [], ['']
        while waiting:
            below = waiting.pop()
            for entry in _entries(folder / below):
                if self._is_folder(entry):
                    waiting.append(os.path.join(below, entry.name))
                elif is_image(entry.name) and self._is_file(entry):
                    paths.append(os.path.join(below, entry.name))
        return sorted(paths)

    def skip(self, reason: str, path: str | Path) -> None:
        """Note a path to warn of."""
        self._skipped.setdefault(reason, {})[str(path)] = None

    def __enter__(self) -> 'Finder':
        return self

    def __exit__(self, *_: object) -> None:
        """Warn of what was left out."""
        for reason, paths in self._skipped.items():
            names = [os.path.relpath(path, self._root) for path in paths]
            more = f' and {len(names) - 3} more' if len(names) > 3 else ''
            _logger.warning('Skipped in %s, %s: %s%s.', self._root, reason, printable(', '.join(names[:3])), more)

    def _is_folder(self, entry: 'os.DirEntry[str]') -> bool:
        """Return whether this is a folder that is not read already by another name."""
        if not os.path.isdir(entry.path) if entry.is_symlink() else not entry.is_dir():
            return False
        state = os.stat(entry.path)
        if state.st_dev in _system_devices():
            return self._skip('folders of the system', entry)
        if entry.is_symlink() and not self._paths:
            for path, _, _ in os.walk(self._root):      # real folders come before links to them
                self._paths[_place(os.stat(path))] = path
        if self._paths and self._paths.setdefault(_place(state), entry.path) != entry.path:
            return self._skip('links to folders that were already read', entry)
        return True

    def _is_file(self, entry: 'os.DirEntry[str]') -> bool:
        """Return whether this is a regular file, or a dead link, which is to be named with what cannot be read."""
        if entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path) or not os.path.exists(entry.path):
            return True
        return os.path.isdir(entry.path) or self._skip('no regular files', entry)

    def _skip(self, reason: str, entry: 'os.DirEntry[str]') -> bool:
        self.skip(reason, entry.path)
        return False


def _place(state: os.stat_result) -> tuple[int, int]:
    return state.st_dev, state.st_ino


@cache
def _system_devices() -> set[int]:
    """Return the device numbers of /proc and /sys, whose links lead to the whole file system."""
    return {os.stat(path).st_dev for path in ('/proc', '/sys') if os.path.ismount(path)}


def _entries(folder: Path) -> 'list[os.DirEntry[str]]':
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith('.')]
    except OSError as e:
        raise ZooError(f'{folder} cannot be read ({e.strerror}): fix or remove it.') from e


def is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith('.')


@cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


@contextlib.contextmanager
def open_image(source: Path | BytesIO) -> Iterator[Image.Image]:
    """Open an image, undecoded. What Pillow does not read of TIFFs is decoded, and given as one that it does."""
    if isinstance(source, Path) and not stat.S_ISREG(os.stat(source).st_mode):
        raise ValueError('it is no regular file')
    with contextlib.ExitStack() as opened:
        try:
            image = opened.enter_context(Image.open(source, formats=_formats()))
            other = by_tifffile(source) if is_cut(image) else None
        except UnidentifiedImageError:
            if not is_tiff(source):
                raise
            other = by_tifffile(source)
        if other:
            image = opened.enter_context(Image.open(other))
        if not all(image.size):
            raise ValueError('it has no pixels')
        yield image


def read_npz(path: Path, wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz whose names are `wanted`; ZooError unless all of them are sound and plain."""
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix('.npy'): info for info in archive.infolist()}
            if (stated := _stated_members(path)) is not None and stated != len(members):
                raise ValueError(f'its index lists {stated} arrays, {len(members)} are there')
            for info in members.values():
                archive.open(info).close()  # compares the names of both headers
            members = {name: info for name, info in members.items() if wanted(name)}
            size, free = sum(info.file_size for info in members.values()), free_memory()
            if size > free:
                raise ZooError(f'{path} holds {size / 2 ** 30:.1f} GiB of arrays, but {free / 2 ** 30:.1f} GiB of '
                               f'memory are free: give a smaller set, or a folder of files.')
            for name, info in members.items():
                with archive.open(info) as file:
                    arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
                    if file.read(1):    # the checksum is compared at the end
                        raise ValueError('more bytes than its shape has')
    except ZooError:
        raise
    except Exception as e:  # zipfile, zlib, its other codecs and NumPy each have their own
        raise ZooError(f'{path} is damaged or not an .npz of plain arrays ({one_line(e)}): use numpy.savez.') from e
    return arrays


def _stated_members(path: Path) -> int | None:
    """Return the number of members by the end record of a zip; None with a comment, or where it is too large for it."""
    with open(path, 'rb') as file:      # zipfile itself does not compare it
        file.seek(-22, os.SEEK_END)
        record = file.read()
    count = int.from_bytes(record[10:12], 'little')
    return count if record[:4] == b'PK\5\6' and count != 0xFFFF else None


def map_npy(path: Path) -> np.ndarray:
    """Map the array of an .npy into memory."""
    try:
        if not path.is_file():
            raise ValueError('no regular file')
        return np.lib.format.open_memmap(path, mode='r')
    except Exception as e:  # NumPy has many
        raise ZooError(f'{path} is not an array of numbers, or damaged ({one_line(e)}): download it again.') from e


def free_memory(device: torch.device | None = None) -> int:
    """Return the bytes of free memory, on a GPU's device as in main memory; half of all if that is not reported."""
    if device is not None and device.type == 'cuda':
        return min(free_memory(), torch.cuda.mem_get_info(device)[0])
    with contextlib.suppress(OSError, StopIteration):
        lines = Path('/proc/meminfo').read_text().splitlines()
        available = 1024 * next(int(line.split()[1]) for line in lines if line.startswith('MemAvailable'))
        with contextlib.suppress(OSError, ValueError):  # a container may have less than its machine
            available = min(available, int(Path('/sys/fs/cgroup/memory.max').read_text()))
        return available
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') // 2
    return 4 * 2 ** 30


def cpu_count() -> int:
    """Count the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
