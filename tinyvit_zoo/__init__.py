"""Small vision transformers for small data sets. Importing this package registers them with timm."""
from . import entry  # noqa: F401  the first: it comes before torch
from .errors import ZooError
from .models import list_models
from .version import __version__

__all__ = ['ZooError', '__version__', 'list_models']
