"""Which images the weights of a run were trained on, those of the runs before it included."""
import hashlib
import logging
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from ..errors import ZooError
from ..runtime.files import user_path, write_whole
from .files import TENSORS, read_metadata
from .resolve import RESULT, read_result

_logger = logging.getLogger(__name__)
NAME = 'trained_on.bin'
_BYTES = 8              # of the digest of an image; the file ends with as many of a checksum
_MOST = 2 ** 31         # a file with more is damaged


def keep_trained_on(folder: Path, own: Iterable[bytes], before: Sequence[str], begun: bool = True) -> None:
    """Write digests of the training images and of those of the runs `before`; those of a run that has `begun` stay."""
    own, content = {*own}, _content(folder) if begun else b''
    if not (_checksum(content[:-_BYTES]) == content[-_BYTES:] and own <= _split(content)):
        if begun and before:
            _warn(folder)
        digests = b''.join(sorted(own.union(*map(trained_on, before))))     # the runs before may be gone later
        write_whole(folder / NAME, digests + _checksum(digests))


def stated_of(folder: Path) -> dict[str, str]:
    """Return the entry of result.json with the digest of the file."""
    content = _content(folder)
    return {'trained_on': hashlib.sha256(content).hexdigest()} if content else {}


def trained_on(place: str | Path) -> set[bytes]:
    """Return the digests of the images; none where the place is no finished run, or one of an earlier version."""
    path = user_path(place)
    path = path if path.exists() else user_path(str(place).partition('=')[2] or place)      # of NAME=FILE
    folder = path.parent if path.is_file() else path
    try:
        result = read_result(folder)
        if path.is_file() and result.get(TENSORS) not in (None, read_metadata(path).get(TENSORS)):  # of another run
            return set()
        if result.get('trained_on') == stated_of(folder).get('trained_on'):
            return _split(_content(folder))
    except (OSError, ZooError):
        if not (folder / NAME).exists():
            return set()
    _warn(folder)
    return set()


@cache
def _warn(folder: Path) -> None:
    _logger.warning('%s or %s is missing or damaged, so images that the weights were trained on cannot be named: '
                    'restore them from a copy of the run.', folder / NAME, RESULT)


def _content(folder: Path) -> bytes:
    path = folder / NAME
    return path.read_bytes() if path.is_file() and path.stat().st_size <= _MOST else b''


def _split(content: bytes) -> set[bytes]:
    return {content[i:i + _BYTES] for i in range(0, len(content), _BYTES)}


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:_BYTES]
