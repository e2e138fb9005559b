"""`tinyvit-zoo plot-fractions`: accuracy over the share of the training images, from run directories."""
from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import ZooError
from ..runtime.picture import check_picture, new_figure, write_picture
from ..runtime.text import table

NAME = 'plot-fractions'
SUMMARY = 'plot accuracy over the share of the training images, from runs'
EXAMPLES = 'tinyvit-zoo plot-fractions runs/quarter runs/half runs/whole'


class _Run(NamedTuple):
    series: str         # the recipe, and what it starts from
    fraction: float
    images: int
    data: str
    top1: float


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('runs', metavar='RUN', nargs='+', type=Path, help='run directories of `tinyvit-zoo train '
                        '--fraction F`; runs of one recipe and one fraction (other seeds) are averaged')
    parser.add_argument('--output', type=Path, default=Path('fractions.png'), metavar='FILE', help='.png, .pdf or .svg '
                        '(default: fractions.png)')


def run(args: argparse.Namespace) -> str:
    check_picture('--output', args.output)
    runs = [_read(folder) for folder in args.runs]
    if others := {run.data for run in runs} - {runs[0].data}:
        raise ZooError(f'Runs are of different data ({runs[0].data}, {", ".join(sorted(others))}): give runs on one.')
    if len({run.fraction for run in runs}) == 1:
        raise ZooError(f'All runs trained on {runs[0].fraction:.0%} of the images: add some of another --fraction.')
    points = _points(runs)
    _draw(points, runs[0].data, args.output)
    return f'{_table(points)}\n\n{args.output}: test accuracy over the share of the training images'


def _read(folder: Path) -> _Run:
    documents = []
    for name, lacking in (('recipe.json', 'is no run directory'), ('result.json', 'is a run that has not ended')):
        try:
            documents.append(json.loads((folder / name).read_text(encoding='utf-8')))
        except (OSError, ValueError) as e:
            raise ZooError(f'{folder} {lacking} (no readable {name}): give finished runs of `tinyvit-zoo '
                           f'train`.') from e
    run, result = documents
    if 'test' not in result['figures']:
        raise ZooError(f'{folder} has no test accuracy, its data had no test images: give runs that have one.')
    start = run['recipe'].get('from_weights')
    series = run['recipe']['name'] + (f' from {start}' if start else '')
    data, top1 = run['data'], result['figures']['test']['top1']
    return _Run(series, run['fraction'], data['images'], data['source'], top1)


def _points(runs: Sequence[_Run]) -> dict[str, dict[float, list[_Run]]]:
    """Group runs by series, then by fraction in rising order."""
    points: dict[str, dict[float, list[_Run]]] = {}
    for run in sorted(runs, key=lambda run: run.fraction):
        points.setdefault(run.series, {}).setdefault(run.fraction, []).append(run)
    return points


def _spread(runs: Sequence[_Run]) -> tuple[float, float, float]:
    """Return the mean, the lowest and the highest accuracy."""
    values = [run.top1 for run in runs]
    return sum(values) / len(values), min(values), max(values)


def _table(points: dict[str, dict[float, list[_Run]]]) -> str:
    rows = [('recipe', 'fraction', 'images', 'runs', 'top-1, %', 'lowest to highest')]
    for series, by_fraction in points.items():
        for fraction, runs in by_fraction.items():
            mean, low, high = _spread(runs)
            rows.append((series, f'{fraction:.0%}', str(runs[0].images), str(len(runs)), f'{mean:.2f}',
                         f'{low:.2f} to {high:.2f}' if len(runs) > 1 else '-'))
    return table(rows, left=(0, 5))


def _draw(points: dict[str, dict[float, list[_Run]]], data: str, path: Path) -> None:
    """Draw means, with a bar from the lowest to the highest run."""
    figure, ((axes,),) = new_figure(1, 1, (6, 4))
    for series, by_fraction in points.items():
        spreads = [_spread(runs) for runs in by_fraction.values()]
        means = [mean for mean, _, _ in spreads]
        bars = [[mean - low for mean, low, _ in spreads], [high - mean for mean, _, high in spreads]]
        axes.errorbar([100 * fraction for fraction in by_fraction], means, bars, marker='o', capsize=3, label=series)
    axes.set(xlabel='share of the training images, %', ylabel='test top-1, %', title=data, xlim=(0, 105))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    write_picture(figure, path)
