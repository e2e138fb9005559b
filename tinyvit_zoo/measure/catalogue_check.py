"""Compare the figures of the catalogue with what its weights reach now."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..data.datasets import DATASETS
from ..data.sources import Source
from ..errors import ZooError
from ..runtime.text import table
from ..weights import Weight, catalogue
from .accuracy import accuracy
from .bench import Bench, open_bench_source

_FORMATS = {'top1': '.2f', 'top5': '.2f', 'loss': '.4f'}      # of the cards
_OUTCOMES = ('agrees', 'DIFFERS', 'no figure', 'not to be had')

MakeBench = Callable[[str, Source], Bench]


def check_catalogue(specs: Sequence[str], make_bench: MakeBench, **options: Any) -> list[dict[str, Any]]:
    """Evaluate every classifier of the catalogue whose dataset is among `specs`; return a row for each."""
    sources = _open_sources(specs, **options)
    classifiers = [w for w in catalogue().values() if not w.encoder]
    weights = [w for w in classifiers if w.dataset in sources]
    if not weights:
        raise ZooError(f'The catalogue has no weight with classes for {", ".join(sources)}: it has some for '
                       f'{", ".join(sorted({w.dataset for w in classifiers}))}.')
    return [_check_weight(weight, sources[weight.dataset], make_bench) for weight in weights]


def _open_sources(specs: Sequence[str], **options: Any) -> dict[str, Source]:
    """Open each source, by the key of its dataset."""
    sources: dict[str, Source] = {}
    for spec in specs:
        source = open_bench_source(spec, 'test', **options)
        key = source.info.key if source.info else ''
        if not key:
            raise ZooError(f'{spec} does not say which data set it is: write KEY={spec}, KEY one of '
                           f'{", ".join(DATASETS)}.')
        if key in sources:
            raise ZooError(f'--data gives {key} twice: leave one out.')
        sources[key] = source
    return sources


def _check_weight(weight: Weight, source: Source, make_bench: MakeBench) -> dict[str, Any]:
    """Compare figures as displayed, to the last digit."""
    expected: dict[str, Any] = {key: value for key, value in (weight.measured or {}).items() if key in _FORMATS}
    row = {'weights': weight.name, 'data': source.name, 'catalogue': expected, 'now': {}, 'differs': [], 'reason': ''}
    try:
        figures = accuracy(make_bench(weight.name, source))
    except ZooError as e:       # no network, for example: check the others all the same
        if weight.file:         # ships with the package
            raise
        return {**row, 'outcome': 'not to be had', 'reason': str(e)}
    wrong = [key for key, value in expected.items() if _cell(key, value) != _cell(key, figures.get(key))]
    return {**row, 'now': {key: figures[key] for key in (*_FORMATS, 'images', 'interval') if key in figures},
            'differs': wrong, 'outcome': 'DIFFERS' if wrong else 'agrees' if expected else 'no figure'}


def _cell(key: str, value: float | None) -> str:
    return '-' if value is None else f'{value:{_FORMATS[key]}}'


def check_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a table, the number of each outcome, and up to three reasons for missing weights."""
    lines = [('weights', 'data', 'catalogue', 'now', '')]
    for row in rows:
        before, now = (_cell('top1', row[side].get('top1')) for side in ('catalogue', 'now'))
        detail = ', '.join(f'{key} {_cell(key, row["catalogue"][key])} is now {_cell(key, row["now"].get(key))}'
                           for key in row['differs'] if key != 'top1')
        lines.append((row['weights'], row['data'], before, now, row['outcome'] + (detail and f': {detail}')))
    counts = [(name, sum(row['outcome'] == name for row in rows)) for name in _OUTCOMES]
    reasons = [f'{row["weights"]}: {row["reason"]}' for row in rows if row['reason']]
    if len(reasons) > 3:
        reasons[2:] = [f'And {len(reasons) - 2} more: --json has all.']
    return '\n'.join([table(lines, left=(0, 1, 4)), '', ', '.join(f'{name}: {n}' for name, n in counts if n), *reasons])
