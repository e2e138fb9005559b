"""Data files of the package, read only as released: tools/update_sums.py writes their digests to SHA256SUMS."""
import errno
import hashlib
from pathlib import Path

from ..errors import ZooError

PACKAGE = Path(__file__).parent.parent


def read_packaged(name: str) -> bytes:
    """Return the content of a file, named from the package's folder; ZooError if it is damaged or missing."""
    try:
        for path in (PACKAGE / name, PACKAGE / 'SHA256SUMS'):
            if not path.is_file():      # a pipe would wait for a writer
                raise FileNotFoundError(errno.ENOENT, 'no such file', str(path))
        content = (PACKAGE / name).read_bytes()
        sums = (PACKAGE / 'SHA256SUMS').read_bytes().splitlines()
    except OSError as e:
        raise ZooError(f'{e.filename} cannot be read ({e.strerror}): reinstall tinyvit_zoo.') from e
    if f'{hashlib.sha256(content).hexdigest()}  {name}'.encode() not in sums:
        raise ZooError(f'{PACKAGE / name} is damaged (its digest is not that in SHA256SUMS): reinstall tinyvit_zoo. In '
                       f'a clone where you changed it: python tools/update_sums.py.')
    return content
