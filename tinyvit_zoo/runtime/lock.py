"""Lock a folder, and a process, for one training; the system releases the lock when the process ends in any way."""
import errno
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import IO

from ..errors import ZooError
from .files import naming_unwritable

LOCK = '.lock'
_HELD: dict[tuple[int, Path], object] = {}   # by process and folder: the system's locks part processes, not threads
_TRAINING = Lock()


@contextmanager
def only_training() -> Iterator[None]:
    """Raise ZooError in a second thread that trains: both would draw from torch's one generator of random numbers."""
    if not _TRAINING.acquire(blocking=False):
        raise ZooError('Another training of this process is running: wait until it ends, or start another process.')
    try:
        yield
    finally:
        _TRAINING.release()


def lock(folder: Path) -> IO[str]:
    """Lock a folder until `unlock`; ZooError with the process that has the lock, and since when.

    Where the system or the folder knows no locks, other processes are not excluded.
    """
    key, mine = (os.getpid(), folder.resolve()), object()
    if _HELD.setdefault(key, mine) is not mine:     # before it is opened: closing any handle would give the lock up
        raise ZooError(f'{folder} is in use by another training of this process: wait, or choose another output.')
    try:
        return _lock(folder)
    except BaseException:
        del _HELD[key]
        raise


def _lock(folder: Path) -> IO[str]:
    with naming_unwritable(folder / LOCK):
        file = open(folder.resolve() / LOCK, 'a+', encoding='utf-8', errors='replace')
        try:
            with suppress(ImportError):
                import fcntl
                # not flock: workers would inherit it, and outlive a killed training by seconds
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                holder = ' '.join(file.read(200).split()) or 'another process'
                file.close()
                raise ZooError(f'{folder} is in use by {holder}: wait, stop it, or choose another output.') from e
        file.truncate(0)
        print(f'process {os.getpid()} on {platform.node()} since {time.strftime("%Y-%m-%d %H:%M:%S")}', file=file,
              flush=True)
        return file


def unlock(file: IO[str]) -> None:
    path = Path(file.name)
    try:
        with naming_unwritable(path), file:
            file.truncate(0)
    finally:
        _HELD.pop((os.getpid(), path.parent), None)
