"""Small vision transformers for small data sets. Importing this package registers them with timm."""
import sys

from . import entry  # the first: it comes before torch
from .errors import ZooError
from .version import __version__

try:
    from .models import list_models
except ZooError as e:   # a damaged file of the package
    if not entry.IS_COMMAND:
        raise
    print(f'tinyvit-zoo: {e}', file=sys.stderr)
    raise SystemExit(2) from None

__all__ = ['ZooError', '__version__', 'list_models']
