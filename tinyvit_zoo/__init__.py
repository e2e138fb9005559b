"""Small vision transformers for small data sets. Importing this package registers them with timm.

    run = tinyvit_zoo.train('cct_4_3x2.c100', data='folder:photos', minutes=10)     # fine-tune on images of your own
    run.evaluate('folder:more')                                                     # accuracy, AUROC, by class, ...
    run.predict(['a.png', 'b.png'])                                                 # classes and probabilities
    run.export('mine.onnx')
    encoder = tinyvit_zoo.pretrain('mae_small', model='ssl_vit', data='folder:photos')   # without labels

`load` opens weights or a run directory, `list_models` names the models, `find_recipe` returns a recipe to train by.
"""
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import entry  # the first: it comes before torch
from .errors import ZooError
from .version import __version__

try:
    from .models import list_models
except Exception as e:  # a damaged file of the package, or of a library, or an environment variable that it cannot read
    if not entry.IS_COMMAND:
        raise
    problem = str(e) if isinstance(e, ZooError) else (
        f'A library cannot be imported ({type(e).__name__}: {" ".join(str(e).split())[:200]}): correct its '
        f'installation or its environment variables; python -c "import tinyvit_zoo" shows where it fails.')
    print(f'tinyvit-zoo: {problem}', file=sys.stderr)
    raise SystemExit(2) from None

if TYPE_CHECKING:
    from .api import Classifier, load, pretrain, train
    from .recipes import find_recipe

__all__ = ['Classifier', 'ZooError', '__version__', 'find_recipe', 'list_models', 'load', 'pretrain', 'train']
_LAZY = {**dict.fromkeys(('Classifier', 'load', 'pretrain', 'train'), 'api'), 'find_recipe': 'recipes'}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:   # what trains is imported when it is used
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{_LAZY[name]}'), name)


def __dir__() -> list[str]:
    return __all__
