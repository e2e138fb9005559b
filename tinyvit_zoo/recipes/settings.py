"""The settings of a recipe: their names, their values from text, and a recipe with some of them changed."""
import ast
import dataclasses
import inspect
import json
import sys
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeVar

from ..errors import ZooError, nearest
from ..runtime.text import shown
from . import FINETUNING_PRESET, BaseRecipe, Pretraining, Recipe

_FIXED = ('name', 'about', 'published', 'method')       # fields that no option overrides
_EXAMPLES = {'method_args': {'mask_ratio': 0.6}, 'weight_decay_end': 0.4, 'sizes': (24, 28, 32),
             'color_jitter': (0.4, 0.4, 0.4, 0.1), 'mean': (0.5, 0.5, 0.5), 'std': (0.25, 0.25, 0.25)}
_BOOLS = {'true': True, 'yes': True, '1': True, 'false': False, 'no': False, '0': False}
_WORDS: dict[Any, str] = {int: 'a whole number', float: 'a finite number', bool: 'True or False', str: 'text'}
_LONGEST = 10_000       # characters of a setting
AnyRecipe = TypeVar('AnyRecipe', bound=BaseRecipe)


def settings(kind: type[BaseRecipe]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if field.name not in _FIXED]


def option(name: str) -> str:
    """Return the option of a field: 'batch_size' -> '--batch-size'."""
    return f'--{name.replace("_", "-")}'


def type_name(kind: type[BaseRecipe], name: str) -> str:
    """Return the type of a field: 'int', 'float', 'str', 'bool', or 'value' for a Python literal."""
    hint = typing.get_type_hints(kind)[name]
    return hint.__name__ if hint in (int, float, str, bool) else 'value'


def parse(kind: type[BaseRecipe], name: str, text: str) -> Any:
    """Convert the text of an option to the type of its field."""
    wanted = type_name(kind, name)
    try:
        if wanted == 'str':
            return text
        if wanted == 'bool':
            return _BOOLS[text.lower()]
        if wanted != 'value':
            return {'int': int, 'float': float}[wanted](text)
        hint = typing.get_type_hints(kind)[name]    # tuple[float, float] | None: tuple and NoneType
        hints = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        value, allowed = ast.literal_eval(text), tuple(typing.get_origin(each) or each for each in hints)
        if not (isinstance(value, allowed) or (float in allowed and type(value) is int)):
            raise ValueError
        return float(value) if float in allowed and value is not None else value
    except (ValueError, SyntaxError, KeyError, TypeError, OverflowError, MemoryError, RecursionError) as e:
        expected = {'int': 'a whole number', 'float': 'a number', 'bool': 'true or false'}.get(
            wanted, f'a value like {_EXAMPLES.get(name) or getattr(FINETUNING_PRESET, name)!r}')
        raise ZooError(f'{option(name)} is {text[:80]!r}, expected {expected}.') from e


def defaults(kind: type[Any]) -> dict[str, Any]:
    """Return the fields that have defaults, as JSON has them: a run of an earlier version may lack any."""
    factories = {f.name: f.default_factory() for f in dataclasses.fields(kind)
                 if f.default_factory is not dataclasses.MISSING}
    values = {f.name: f.default for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}
    return json.loads(json.dumps({**values, **factories}))


def check_types(kind: type[Any], values: Mapping[str, Any]) -> None:
    """Raise ZooError for a value read from JSON that is not of its field's type. Another version's fields pass."""
    for name, hint in typing.get_type_hints(kind).items():
        if name in values and not is_of(values[name], hint):
            raise ZooError(f'{name} is {values[name]!r:.40}')


def is_of(value: Any, hint: Any) -> bool:
    """Return whether a value, also one of JSON, may stand for one of this type."""
    if hint is Any:
        return True
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is types.UnionType:
        return any(is_of(value, each) for each in args)
    if origin is tuple:
        each = [args[0]] * len(value) if isinstance(value, list) and args[-1] is ... else args
        return isinstance(value, list) and len(value) == len(each) and all(map(is_of, value, each))
    if hint in (int, float):
        numbers = (int, float) if hint is float else int
        return isinstance(value, numbers) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, type(None) if origin is None else origin)


def check_lengths(values: dict[str, Any]) -> None:
    """Raise ZooError for a value that no message, card or recipe.json could hold."""
    for key, value in values.items():
        text = ''
        with suppress(Exception):   # of integers of thousands of digits, of nested lists, and of a caller's objects
            text = repr(value)
        if not 0 < len(text) <= _LONGEST:
            raise ZooError(f'{key} is {shown(value)}, expected a shorter value.')


def check_keywords(kind: type[Any], given: dict[str, Any]) -> None:
    """Raise ZooError for a value of another type than its field's; tuples are lists in JSON."""
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
    try:
        check_types(kind, plain)
    except ZooError as e:
        hint = typing.get_type_hints(kind)[str(e).partition(' ')[0]]
        raise ZooError(f'{e}: expected {_WORDS.get(hint) or inspect.formatannotation(hint)}.') from e


def parse_assignments(texts: typing.Iterable[str]) -> dict[str, Any]:
    """Convert 'epochs=5' and the like to fields of a pre-training."""
    changes: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition('=')
        name = name.replace('-', '_')
        known = [name for name in settings(Pretraining) if name not in ('seed', 'method')]
        if not equals or name not in known:
            raise ZooError(f'--pretraining {text} is not a SETTING=VALUE of a pre-training.{nearest(name, known)} '
                           f'Expected e.g. epochs=100.')
        changes[name] = parse(Pretraining, name, value)
    return changes


def override(recipe: AnyRecipe, changes: Mapping[str, Any]) -> AnyRecipe:
    """Replace fields; with other epochs the whole schedule keeps its proportions."""
    changes = dict(changes)
    if 'epochs' in changes:
        ratio = changes['epochs'] / recipe.epochs
        scaled: dict[str, Any] = {'warmup_epochs': recipe.warmup_epochs * ratio,
                                  'cooldown_epochs': round(recipe.cooldown_epochs * ratio)}
        if isinstance(recipe, Recipe):
            scaled['mix_off_epoch'] = recipe.mix_off_epoch and max(1, round(recipe.mix_off_epoch * ratio))
        changes = {**scaled, **changes}
    return dataclasses.replace(recipe, **changes)
