"""`tinyvit-zoo plot-fractions`: accuracy over the share of the training images, from run directories."""
import argparse
import logging
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ZooError
from ..runtime.documents import fault
from ..runtime.files import check_picture, new_figure, user_path, write_picture
from ..runtime.text import table
from ..training.run_dir import differences
from ..weights.resolve import read_recipe, read_result

NAME = 'plot-fractions'
SUMMARY = 'plot the accuracy of runs over their share of the training images'
EXAMPLES = 'tinyvit-zoo plot-fractions runs/quarter runs/half runs/whole'

_logger = logging.getLogger(__name__)


class _Run(NamedTuple):
    folder: Path
    seed: int | None
    stated: dict[str, Any]      # what the seeds of a recipe have in common
    series: str         # the recipe, and its initial weights
    fraction: float
    images: int
    data: str
    test: str           # a digest of the test images, where the run has one
    top1: float


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('runs', metavar='RUN', nargs='+', type=user_path, help='run directories of `tinyvit-zoo train '
                        '--fraction F`; seeds of one recipe and fraction are averaged')
    parser.add_argument('--output', type=user_path, default=Path('fractions.png'), metavar='FILE',
                        help='.png, .pdf or .svg (default: fractions.png)')


def run(args: argparse.Namespace) -> str:
    check_picture('--output', args.output)
    runs = [_read(folder) for folder in args.runs]
    places = [run.folder.resolve() for run in runs]
    if twice := next((place for i, place in enumerate(places) if place in places[:i]), None):
        raise ZooError(f'{twice} is given twice: leave one out.')
    if others := {run.data for run in runs} - {runs[0].data}:
        raise ZooError(f'The runs have different data ({runs[0].data}, {", ".join(sorted(others))}): give runs on one.')
    if len({run.test for run in runs if run.test}) > 1:
        raise ZooError(f'The runs on {runs[0].data} have different test images: give runs with the same.')
    if len({run.fraction for run in runs}) == 1:
        raise ZooError(f'All runs trained on {runs[0].fraction:.0%} of the images: add runs of another --fraction.')
    runs.sort(key=lambda run: run.fraction)
    figure, ((axes,),) = new_figure(1, 1, (6, 4), runs[0].data)
    rows: list[tuple[str, ...]] = [('recipe', 'fraction', 'images', 'runs', 'top-1, %', 'lowest to highest')]
    for series in dict.fromkeys(run.series for run in runs):
        rows += _draw(axes, series, [run for run in runs if run.series == series])
    axes.set(xlabel='share of the training images, %', ylabel='test top-1, %', xlim=(0, 105))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    write_picture(figure, args.output)
    return f'{table(rows, left=(0, 5))}\n\n{args.output}: test accuracy over the share of the training images'


def _read(folder: Path) -> _Run:
    run = read_recipe(folder)
    if not (folder / 'result.json').is_file():
        raise ZooError(f'{folder} is not finished (no result.json): give finished runs of `train`.')
    figures = read_result(folder)['figures']
    if 'method' in run['recipe']:
        raise ZooError(f'{folder} is a pre-training: give runs of `train`.')
    if 'accuracy' in figures.get('test', {}):
        raise ZooError(f'{folder} has several labels per image, and no top-1: give other runs.')
    if 'test' not in figures:
        raise ZooError(f'{folder} has no test accuracy, as its data had no test images: give other runs.')
    read = {**run, 'test': figures['test']}
    if problem := fault(read, {'fraction': float, 'data': dict, 'test': {'top1': float}}, 'it'):
        raise ZooError(f'{folder} is damaged ({problem}): restore it from a copy.')
    start = run['recipe'].get('from_weights')
    series = run['recipe']['name'] + (f' from {start}' if start else '')
    recipe = {key: value for key, value in run['recipe'].items() if key not in ('seed', 'about', 'published')}
    stated = {**recipe, 'val_fraction': run.get('val_fraction'), 'images': run['data']['images']}
    data = run['data']
    return _Run(folder, run['recipe'].get('seed'), stated, series, run['fraction'], data['images'], data['source'],
                data.get('test', ''), figures['test']['top1'])


def _check_seeds(runs: Sequence[_Run]) -> None:
    """Raise ZooError unless the runs differ in their seeds, and in nothing else."""
    for run in runs:
        if changes := differences(runs[0].stated, run.stated):
            raise ZooError(f'{run.folder} is not another seed of {runs[0].folder} ({"; ".join(changes)}): leave it '
                           f'out.')
    seeds = [run.seed for run in runs if run.seed is not None]
    if len({*seeds}) < len(seeds):
        raise ZooError(f'Two runs of {runs[0].series} on {runs[0].fraction:.0%} have the same seed: leave one out.')


def _draw(axes: Any, series: str, runs: Sequence[_Run]) -> list[tuple[str, ...]]:
    """Draw means, with bars from the lowest to the highest of the runs, sorted by fraction; return lines of a table."""
    points = []
    rows: list[tuple[str, ...]] = []
    first = runs[0]
    for fraction, group in groupby(runs, key=lambda run: run.fraction):
        same = list(group)
        _check_seeds(same)
        if changes := differences({**first.stated, 'images': 0}, {**same[0].stated, 'images': 0}):
            _logger.warning('%s and %s are on one curve, but differ: %s.', first.folder, same[0].folder,
                            '; '.join(changes))
        images, values = zip(*((run.images, run.top1) for run in same), strict=True)
        mean, low, high = sum(values) / len(values), min(values), max(values)
        points.append((100 * fraction, mean, mean - low, high - mean))
        rows.append((series, f'{fraction:.0%}', str(images[0]), str(len(values)), f'{mean:.2f}',
                     f'{low:.2f} to {high:.2f}' if len(values) > 1 else '-'))
    shares, means, *bars = zip(*points, strict=True)
    axes.errorbar(shares, means, bars, marker='o', capsize=3, label=series)
    return rows
