"""Write files whole or not at all."""
from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import ZooError


@contextmanager
def written_whole(path: Path, shared: bool = False) -> Iterator[Path]:
    """Yield a path in the same folder to write to, renamed to `path` at the end; an error removes what it holds.

    It may become a file, with the ending of `path`, or a folder. `shared`: several processes may write `path` at once.
    """
    partial = path.with_name(f'.partial-{os.getpid() if shared else ""}{path.name}')
    try:
        yield partial
        if partial.is_file():
            with open(partial, 'rb+') as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as e:
        raise ZooError(f'{path} cannot be written ({e.strerror or e}): make room, or choose another place.') from e
    finally:
        with suppress(OSError):
            if partial.is_dir():
                shutil.rmtree(partial)
            else:
                partial.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes, shared: bool = False) -> None:
    """Write `content` beside `path`, then rename it."""
    with written_whole(path, shared) as partial:
        partial.write_bytes(content)
