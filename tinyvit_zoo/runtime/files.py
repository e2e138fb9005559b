"""Write files whole or not at all."""
from __future__ import annotations

import os
from pathlib import Path

from ..errors import ZooError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, whatever happens meanwhile."""
    partial = path.with_name(f'.{path.name}.partial')
    try:
        with open(partial, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as e:
        partial.unlink(missing_ok=True)
        raise ZooError(f'{path} could not be written ({e.strerror}): make room, or choose another place. A training '
                       f'then goes on with --resume.') from e
