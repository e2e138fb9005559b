"""The one exception of the package, and the hint that goes with a misspelt name."""
import difflib
from collections.abc import Iterable


class ZooError(RuntimeError):
    """A mistake the caller can mend. One line: what was wrong, what was expected, what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' with the closest of the known names, or '' where nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f' Did you mean {" or ".join(close)}?' if close else ''
