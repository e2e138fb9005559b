#!/usr/bin/env python3
"""Check catalogue.json, the types and the values of every field: `python tools/check_catalogue.py`."""
from __future__ import annotations

import json
import math
import re
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Any

from tinyvit_zoo.data.datasets import DATASETS
from tinyvit_zoo.errors import ZooError, nearest
from tinyvit_zoo.weights.catalogue import FOLDER, Date, Percent, Text, Weight, parse


def checked(text: str) -> dict[str, Weight]:
    """Read and check the text of a catalogue; ZooError names the entry and the field that is wrong."""
    try:
        entries = json.loads(text)
    except ValueError as e:
        raise ZooError(f'catalogue.json is not JSON ({e}): correct it.') from e
    if not isinstance(entries, list):
        raise ZooError('catalogue.json is not a list: expected a list of entries.')
    names: set[str] = set()
    for number, entry in enumerate(entries, 1):
        name = entry.get('name') if isinstance(entry, dict) else None
        where = f'catalogue.json, {name if name and isinstance(name, str) else f"entry {number}"}'
        _check(entry, Weight, where)
        if name in names:
            raise ZooError(f'{where} is there twice: give each entry a tag of its own.')
        names.add(name)
        weight, = parse(json.dumps([entry])).values()
        _check_weight(weight, where)
    return parse(text)


def _check(value: Any, hint: Any, where: str) -> None:
    """Raise ZooError unless a JSON value has this type."""
    args = typing.get_args(hint)
    if hint is Weight or typing.is_typeddict(hint):
        hints = _hints(hint)
        required = getattr(hint, '__required_keys__', _REQUIRED)
        if not isinstance(value, dict):
            raise ZooError(f'{where} is {value!r}, expected an object with {", ".join(sorted(required))}.')
        for key in value.keys() - hints.keys():
            raise ZooError(f'{where}: there is no field {key!r}.{nearest(key, hints)} Leave it out.')
        for key in sorted(required - value.keys()):
            raise ZooError(f'{where}: {key} is missing: add it.')
        for key, item in value.items():
            _check(item, hints[key], f'{where}: {key}')
    elif type(None) in args:
        if value is not None:
            _check(value, args[0], where)
    elif args:
        if not isinstance(value, list) or len(value) != len(args):
            raise ZooError(f'{where} is {value!r}, expected a list of {len(args)} numbers.')
        for item in value:
            _check(item, args[0], where)
    elif not _KINDS[hint][1](value):
        raise ZooError(f'{where} is {value!r}, expected {_KINDS[hint][0]}.')


_DATE = r'\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])'
_hints = cache(typing.get_type_hints)
_REQUIRED = frozenset(f.name for f in fields(Weight) if f.default is MISSING)
_KINDS: Mapping[Any, tuple[str, Callable[[Any], bool]]] = {
    str: ('a text', lambda value: isinstance(value, str)),
    Text: ('a text that is not empty', lambda value: isinstance(value, str) and value != ''),
    bool: ('true or false', lambda value: isinstance(value, bool)),
    int: ('a whole number', lambda value: type(value) is int),
    float: ('a number', lambda value: type(value) in (int, float) and math.isfinite(value)),
    Percent: ('a percentage', lambda value: type(value) in (int, float) and 0 <= value <= 100),
    Date: ('YEAR-MONTH-DAY', lambda value: isinstance(value, str) and bool(re.fullmatch(_DATE, value))),
}


def _check_weight(weight: Weight, where: str) -> None:
    """Raise ZooError for values that types cannot check: name, source of the file, training of our weights."""
    if not re.fullmatch(r'\w+\.\w+', weight.name):
        raise ZooError(f'{where}: name is {weight.name!r}, expected ARCHITECTURE.TAG.')
    if weight.dataset not in DATASETS:
        raise ZooError(f'{where}: there is no dataset {weight.dataset!r}.{nearest(weight.dataset, DATASETS)}')
    if bool(weight.file) + bool(weight.hf_hub_id) + bool(weight.url) != 1:
        raise ZooError(f'{where}: expected exactly one of file, hf_hub_id and url.')
    if (weight.file or weight.sha256) and not re.fullmatch('[0-9a-f]{64}', weight.sha256):
        raise ZooError(f'{where}: sha256 is {weight.sha256!r}, expected the 64 hexadecimal digits of the file.')
    if weight.file and (Path(weight.file).name != weight.file or not weight.file.endswith('.safetensors')):
        raise ZooError(f'{where}: file is {weight.file!r}, expected the name of a .safetensors file in weights/.')
    if weight.ours and (weight.recipe != weight.name or weight.trained is None):
        raise ZooError(f'{where} is of our training: expected recipe {weight.name!r}, and trained with its log.')


if __name__ == '__main__':
    try:
        print(f'{len(checked((FOLDER / "catalogue.json").read_text(encoding="utf-8")))} entries are right.')
    except ZooError as error:
        sys.exit(str(error))
