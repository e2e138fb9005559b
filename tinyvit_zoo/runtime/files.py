"""Write files whole or not at all."""
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import ZooError


@contextmanager
def written_whole(path: Path, shared: bool = False) -> Iterator[Path]:
    """Yield a path beside `path`, of its ending, renamed to it at the end, and removed after an error."""
    # shared: several processes may write `path` at once
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
