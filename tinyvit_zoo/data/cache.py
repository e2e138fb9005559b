"""Arrays kept on disk: decoded images, and digests of files. The folder may be deleted at any time."""
import logging
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ZooError
from ..runtime.files import written_whole
from ..runtime.text import one_line
from .files import read_npz

_logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    default = os.path.join(os.environ.get('XDG_CACHE_HOME') or '~/.cache', 'tinyvit_zoo')
    folder = os.path.expanduser(os.environ.get('TINYVIT_ZOO_CACHE') or default)
    if folder.startswith('~'):
        raise ZooError(f'There is no home directory for the cache ({folder}): set TINYVIT_ZOO_CACHE to a folder.')
    return Path(folder) / 'images'


def read_cached(path: Path, shape: tuple[int, ...], dtype: Any) -> np.ndarray | None:
    """Return the array of a file of the cache; None where there is none, and a warning where it is damaged."""
    if not os.path.isfile(path):    # a pipe would wait for a writer
        return None
    try:
        array = read_npz(path, path.stem.__eq__)[path.stem]
        if array.shape == shape and array.dtype == dtype:
            return array
        reason = f'it holds {array.dtype} {array.shape}'
    except (ZooError, LookupError) as e:
        reason = one_line(e.__cause__ or e)
    _logger.warning('The cached images %s are damaged (%s): reading them again.', path, reason)
    return None


def write_cached(path: Path, content: np.ndarray | None = None) -> None:
    """Write an array, under the name of its file, or nothing; warn if the cache cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():    # a pipe, for one, which is no file of the cache
            path.unlink()
        with written_whole(path) as partial, open(partial, 'wb') as file:
            if content is not None:
                np.savez(file, **{path.stem: content})      # type: ignore[arg-type]
    except (OSError, ZooError) as e:
        _warn_unwritable(path.parent, one_line(e.__cause__ or e))


@cache
def _warn_unwritable(folder: Path, reason: str) -> None:
    _logger.warning('Decoded images cannot be kept in %s (%s): they are decoded at every start unless '
                    'TINYVIT_ZOO_CACHE names another folder.', folder, reason)
