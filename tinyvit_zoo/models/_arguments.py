"""Check the arguments of a model's constructor by the types and the names of its parameters."""
import types
import typing
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from ..errors import ZooError
from ..runtime.text import shown

_FROM_0 = ('num_classes', 'num_convs', 'class_depth', 'reg_tokens')     # all other whole numbers begin at 1
_MOST = {'num_classes': 2 ** 20, 'img_size': 4096, 'depth': 256, 'depths': 256, 'class_depth': 256, 'num_convs': 8,
         'num_unfolds': 8}
_WIDEST = 8192      # of any other whole number: widths, heads, channels, sides of patches and windows
_KINDS = {int: (Integral, 'a whole number'), float: (Real, 'a number'), str: (str, 'a name'), bool: (bool, 'a bool'),
          type(None): (type(None), 'None')}


def check_arguments(model_cls: Any, arguments: Mapping[str, Any]) -> None:
    """Raise ZooError for the first value that is not of its parameter's type, or out of the range of its name."""
    hints = typing.get_type_hints(model_cls.__init__)
    for name, value in arguments.items():
        if name in hints and not _fits(name, hints[name], value):
            raise ZooError(f'{name} is {shown(value)}, expected {_expected(name, hints[name])}.')


def _fits(name: str, hint: Any, value: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(name, each, value) for each in inner)
    if origin is typing.Literal:
        return isinstance(value, str) and value in inner
    if origin is tuple:
        return isinstance(value, (tuple, list)) and len(value) == (len(value) if ... in inner else len(inner)) > 0 and (
            all(_fits(name, inner[0], part) for part in value))
    if hint not in _KINDS:
        return True
    if not isinstance(value, _KINDS[hint][0]) or (isinstance(value, bool) and hint is not bool):
        return False
    low, high = _range(name, hint)
    return hint not in (int, float) or low <= value <= high  # type: ignore[operator]


def _range(name: str, hint: Any) -> tuple[float, float]:
    if hint is int:
        return int(name not in _FROM_0), _MOST.get(name, _WIDEST)
    if name.endswith('_rate'):
        return 0, 1
    return (2 ** -8, 2 ** 8) if name.endswith('_ratio') else (-1e6, 1e6)


def _expected(name: str, hint: Any) -> str:
    """Describe the values that fit."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return ' or '.join(_expected(name, each) for each in inner)
    if origin is typing.Literal:
        return ' or '.join(map(repr, inner))
    if origin is tuple:
        return f'a tuple of {"" if ... in inner else f"{len(inner)} "}such numbers'
    low, high = _range(name, hint)
    text = _KINDS[hint][1] if hint in _KINDS else getattr(hint, '__name__', str(hint))
    return f'{text} from {low:g} to {high:,}' if hint in (int, float) else text
