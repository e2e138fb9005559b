"""`tinyvit-zoo eval --all`: does every weight still have the figure that the catalogue says was measured?"""
from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..data.datasets import DATASETS
from ..errors import ZooError
from ..runtime.text import table
from ..weights import Weight, catalogue
from .evaluation import accuracy, open_bench_source

_SHOWN = {'top1': '.2f', 'top5': '.2f', 'loss': '.4f'}      # as the cards show them
_OUTCOMES = ('agrees', 'DIFFERS', 'no figure', 'not to be had')


def check_catalogue(args: argparse.Namespace, make_bench: Callable[[str, Any], Any]) -> str:
    """The table, or JSON; exits with 1 after printing it where a figure differs."""
    sources = open_sources(args.data, download=args.download)
    weights = [w for w in catalogue().values() if w.dataset in sources and not w.encoder]
    if not weights:
        raise ZooError(f'The catalogue has no weight with classes for {", ".join(sources)}: it has some for '
                       f'{", ".join(sorted({w.dataset for w in catalogue().values() if not w.encoder}))}.')
    rows = [check_weight(weight, sources[weight.dataset], make_bench) for weight in weights]
    text = json.dumps(rows, indent=2) if args.json else _text(rows)
    if any(row['outcome'] == 'DIFFERS' for row in rows):
        print(text, flush=True)
        raise SystemExit(1)
    return text


def open_sources(specs: Sequence[str], **options: Any) -> dict[str, Any]:
    """By the key of the data set."""
    sources: dict[str, Any] = {}
    for spec in specs:
        source = open_bench_source(spec, 'test', **options)
        key = next((key for key, info in DATASETS.items() if info is source.info), '')
        if not key:
            raise ZooError(f'{spec} does not say which data set it is: write KEY={spec}, KEY one of '
                           f'{", ".join(DATASETS)}.')
        if key in sources:
            raise ZooError(f'--data gives {key} twice: leave one out.')
        sources[key] = source
    return sources


def check_weight(weight: Weight, source: Any, make_bench: Callable[[str, Any], Any]) -> dict[str, Any]:
    """What is measured now beside the catalogue's figures, compared to the last digit that is shown of them."""
    told: Mapping[str, Any] = weight.measured or {}
    told = {key: told[key] for key in _SHOWN if key in told}
    row = {'weights': weight.name, 'data': source.name, 'catalogue': told, 'now': {}, 'differs': [], 'reason': ''}
    try:
        found = accuracy(make_bench(weight.name, source))
    except ZooError as e:       # no network, for one: the others are looked at all the same
        if weight.file:         # what ships with the package is there, and whole
            raise
        return {**row, 'outcome': 'not to be had', 'reason': str(e)}
    differs = [key for key, value in told.items() if _shown(key, value) != _shown(key, found.get(key))]
    outcome = 'DIFFERS' if differs else 'agrees' if told else 'no figure'
    return {**row, 'now': {key: found[key] for key in (*_SHOWN, 'images', 'interval') if key in found},
            'differs': differs, 'outcome': outcome}


def _shown(key: str, value: float | None) -> str:
    return '-' if value is None else f'{value:{_SHOWN[key]}}'


def _text(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [('weights', 'data', 'catalogue', 'now', '')]
    for row in rows:
        told, now = (_shown('top1', row[side].get('top1')) for side in ('catalogue', 'now'))
        detail = ', '.join(f'{key} {_shown(key, row["catalogue"][key])} is now {_shown(key, row["now"].get(key))}'
                           for key in row['differs'] if key != 'top1')
        lines.append((row['weights'], row['data'], told, now, row['outcome'] + (detail and f': {detail}')))
    counts = [(name, sum(row['outcome'] == name for row in rows)) for name in _OUTCOMES]
    reasons = [f'{row["weights"]}: {row["reason"]}' for row in rows if row['reason']]
    if len(reasons) > 3:
        reasons[2:] = [f'And {len(reasons) - 2} more: --json has all.']
    return '\n'.join([table(lines, left=(0, 1, 4)), '', ', '.join(f'{name}: {n}' for name, n in counts if n), *reasons])
