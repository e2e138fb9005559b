"""Lock a folder for one process; the system releases the lock when that ends, however it ends."""
import errno
import os
import platform
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from ..errors import ZooError
from .files import naming_unwritable

LOCK = '.lock'


def lock(folder: Path) -> IO[str]:
    """Lock a folder until `unlock`; ZooError with the process that has the lock, and since when.

    Where the system or the folder knows no locks, nothing is excluded.
    """
    with naming_unwritable(folder / LOCK):
        file = open(folder / LOCK, 'a+', encoding='utf-8', errors='replace')
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
    with naming_unwritable(Path(file.name)), file:
        file.truncate(0)
