"""`tinyvit-zoo eval --all`: does every weight still have the figure that the catalogue says was measured?"""
from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..data.info import DATASETS
from ..errors import ZooError
from ..weights import Weight, catalogue
from .evaluate_command import table
from .evaluation import accuracy, open_bench_source

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
    """What is measured now beside the catalogue's figure, compared as it is shown there: in hundredths of a percent."""
    told = (weight.measured or {}).get('top1')
    row = {'weights': weight.name, 'data': source.name, 'catalogue': told, 'top1': None, 'reason': ''}
    try:
        found = accuracy(make_bench(weight.name, source))
    except ZooError as e:       # no network, for one: the others are looked at all the same
        return {**row, 'outcome': 'not to be had', 'reason': str(e)}
    row.update({key: found[key] for key in ('top1', 'top5', 'loss', 'images', 'interval') if key in found})
    if told is None:
        return {**row, 'outcome': 'no figure'}
    return {**row, 'outcome': 'agrees' if f'{told:.2f}' == f'{found["top1"]:.2f}' else 'DIFFERS'}


def _text(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [('weights', 'data', 'catalogue', 'now', '')]
    for row in rows:
        told, now = (f'{value:.2f}' if value is not None else '-' for value in (row['catalogue'], row['top1']))
        lines.append((row['weights'], row['data'], told, now, row['outcome']))
    counts = [(name, sum(row['outcome'] == name for row in rows)) for name in _OUTCOMES]
    reasons = dict.fromkeys(row['reason'] for row in rows if row['reason'])
    return '\n'.join([table(lines, left=(0, 1, 4)), '', ', '.join(f'{name}: {n}' for name, n in counts if n),
                      *list(reasons)[:5]])
