"""The one exception of the package, and the hint that goes with a misspelt name."""
import difflib
from collections.abc import Iterable


class ZooError(RuntimeError):
    """A mistake of the caller, in one line: the problem, the expected value, the remedy."""

    def __str__(self) -> str:   # names of files may hold any character
        return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in super().__str__().strip())


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ' Did you mean ...?' with the closest known name, or '' if none is close."""
    close = difflib.get_close_matches(str(name), list(known), n=3, cutoff=0.5)
    return f' Did you mean {" or ".join(close)}?' if close else ''
