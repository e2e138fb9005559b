"""The decorator of public functions: check their arguments, and suspend the torch modes of the caller."""
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, TypeVar, get_args, get_type_hints

import torch

from .data.objects import SPLITS
from .errors import ZooError
from .recipes.settings import is_of
from .runtime.files import told
from .runtime.text import shown

_LEAST = {'batch_size': 1, 'topk': 1, 'bootstrap': 0}   # and 10 ** 9 at most
Function = TypeVar('Function', bound=Callable[..., Any])


def checked(function: Function) -> Function:
    """Raise ZooError for an argument of another type than is annotated, a number out of its range, and OSErrors.

    The default dtype of torch must be float32: it is that of all threads, and cannot be suspended for one.
    """
    hints, signature = get_type_hints(function), inspect.signature(function)

    @wraps(function)
    def checking(*args: Any, **keywords: Any) -> Any:
        for name, value in signature.bind(*args, **keywords).arguments.items():
            hint, least = hints.get(name, Any), _LEAST.get(name)
            if name != 'keywords' and not is_of(value, hint):
                expected = ' | '.join(each.__name__ for each in get_args(hint) or (hint,))
                raise ZooError(f'{name} is {shown(value)}, expected {expected}.')
            if least is not None and value is not None and not least <= value <= 10 ** 9:
                raise ZooError(f'{name} is {shown(value)}, expected {least} to 1,000,000,000.')
            if name == 'split' and value not in ('', *SPLITS, 'all'):
                raise ZooError(f'split is {shown(value)}, expected {", ".join(SPLITS)} or all.')
        if (dtype := torch.get_default_dtype()) != torch.float32:
            raise ZooError(f"torch's default dtype is {dtype}, expected float32: call torch.set_default_dtype.")
        try:
            with _own_modes():
                return function(*args, **keywords)
        except OSError as e:    # a name that is too long, for one
            raise ZooError(told(e)) from e
    return checking     # type: ignore[return-value]


@contextmanager
def _own_modes() -> Iterator[None]:
    """Suspend what the caller may have set for this thread: inference mode, no_grad, a default device, autocast."""
    with torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        if torch.get_default_device().type != 'cpu':
            stack.enter_context(torch.device('cpu'))
        for kind in filter(torch.is_autocast_enabled, ('cpu', 'cuda')):
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield
