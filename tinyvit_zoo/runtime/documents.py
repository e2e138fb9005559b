"""JSON documents that a run leaves: written whole, with a digest of what they say; read with every type checked."""
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import ZooError
from .files import write_whole

_DIGEST = 'sha256'
_MOST_BYTES = 2 ** 24
_NAMES = {str: 'a text', int: 'a whole number', float: 'a number', bool: 'true or false', dict: 'a mapping'}


def write_document(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` with a digest; ZooError if a number in it is not finite."""
    if name := next(not_finite(content), ''):
        raise ZooError(f'{path} cannot be written: {name} is not a finite number.')
    plain = json.loads(json.dumps(content))
    write_whole(path, json.dumps({**plain, _DIGEST: digest(plain)}, indent=1).encode())


def read_document(path: Path, shape: Mapping[str, Any], advice: str) -> dict[str, Any]:
    """Read a document of this shape (see `fault`), without its digest; ZooError with the advice for any other."""
    # files of earlier versions have no digest
    try:
        if path.stat().st_size > _MOST_BYTES or not path.is_file():
            raise ValueError('it is not a file of that size')
        content = json.loads(path.read_text(encoding='utf-8'))
        if isinstance(content, dict):
            renamed = [value for value in content.values() if isinstance(value, str) and len(value) == 64]
            found = content.pop(_DIGEST, renamed[0] if renamed else None)   # the key may be damaged
            if found not in (None, digest(content)):
                raise ValueError('its digest does not match')
    except OSError as e:
        raise ZooError(f'{path} cannot be read ({e.strerror or e}): {advice}.') from e
    except (ValueError, RecursionError) as e:
        raise ZooError(f'{path} is damaged ({str(e)[:80]}): {advice}.') from e
    if problem := fault(content, shape, 'it'):
        raise ZooError(f'{path} is damaged ({problem}): {advice}.')
    return content


def digest(content: Any) -> str:
    """Return the SHA-256 of a JSON value, which does not depend on the order of keys or on blanks."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def fault(value: Any, shape: Any, name: str) -> str:
    """Return how a value differs from a type, or from a mapping of names to shapes; '' where it does not.

    Numbers must be finite. Names may be missing where theirs ends in '?', and there may be others.
    """
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return f'{name} is {value!r:.40}, expected a mapping'
        for key, inner in shape.items():
            key, optional = key.removesuffix('?'), key.endswith('?')
            if key not in value and not optional:
                return f'{key} is missing'
            if key in value and (problem := fault(value[key], inner, key)):
                return problem
        return ''
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = numeric and _finite(value) and (shape is float or isinstance(value, int)) if shape in (
        int, float) else isinstance(value, shape)
    return '' if fits else f'{name} is {value!r:.40}, expected {_NAMES[shape]}'


def not_finite(content: Any, name: str = '') -> Iterator[str]:
    """Yield the names of the numbers in a document that are infinite or NaN."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from not_finite(value, f'{name} {key}'.strip())
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from not_finite(value, name)
    elif isinstance(content, float) and not math.isfinite(content):
        yield name


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:   # a whole number beyond those of a float
        return False
