"""Which images the weights of a run were trained on, those of the runs before it included."""
import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

from ..errors import ZooError
from ..runtime.files import user_path, write_whole
from .resolve import read_result

_logger = logging.getLogger(__name__)
_NAME, _BYTES = 'trained_on.bin', 8     # of each image


def write_trained_on(folder: Path, digests: Iterable[bytes]) -> None:
    """Write digests of the training images, of eight bytes each, into a run directory."""
    write_whole(folder / _NAME, b''.join(sorted(digests)))


def stated_of(folder: Path) -> dict[str, str]:
    """Return the entry of result.json with the digest of the file."""
    path = folder / _NAME
    return {'trained_on': hashlib.sha256(path.read_bytes()).hexdigest()} if path.is_file() else {}


def trained_on(place: str | Path) -> set[bytes]:
    """Return the digests of the images; none where the place is no finished run, or one of an earlier version."""
    try:
        path = user_path(place)
        path = path if path.exists() else user_path(str(place).partition('=')[2] or place)      # of NAME=FILE
        folder = path.parent if path.is_file() else path
        stated = read_result(folder).get('trained_on')
    except (OSError, ZooError):
        return set()
    if stated is None:
        return set()
    if stated != stated_of(folder).get('trained_on'):
        _logger.warning('%s is missing or damaged: evaluation images that were trained on cannot be named.',
                        folder / _NAME)
        return set()
    content = (folder / _NAME).read_bytes()
    return {content[i:i + _BYTES] for i in range(0, len(content), _BYTES)}
