"""Accuracy of a model on a split: top-1 with its interval, top-5, loss, by class; compared with the catalogue."""
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.datasets import DATASETS
from ..data.sources import Source
from ..errors import ZooError
from ..runtime.files import new_figure, write_picture
from ..runtime.text import table
from ..runtime.world import World, autocast
from ..weights import Weight, catalogue
from .bench import Bench, open_bench_source

_NUMBERS = 20       # classes up to which the cells of a confusion matrix have numbers
_SMALLEST = 3.      # points, of a legible class name
_FORMATS = {'top1': '.2f', 'top5': '.2f', 'loss': '.4f'}      # of the cards
_OUTCOMES = ('agrees', 'DIFFERS', 'no figure', 'not to be had')


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], world: World, dtype: torch.dtype | None = None,
             confusion: Tensor | None = None) -> dict[str, float]:
    """Return 'top1', 'top5' (percent; top5 from 6 classes on), 'loss' and 'images' over all processes."""
    # `confusion`, int64 [C, C] of zeros, gets the number of images by class (row) and predicted class (column)
    training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=world.device)  # loss, top-1, top-5, images
    classes = 0
    for images, labels in batches:
        with autocast(world.device, dtype):
            logits = model(images)
        logits = logits.float()
        classes = logits.shape[1]
        predictions = logits.topk(min(5, classes)).indices
        hits = predictions.eq(labels[:, None])
        if confusion is not None:
            cells = labels * classes + predictions[:, 0]
            confusion += torch.bincount(cells, minlength=classes ** 2).view(classes, classes)
        sums += torch.stack([
            F.cross_entropy(logits, labels, reduction='sum').double(), hits[:, 0].sum().double(), hits.sum().double(),
            torch.tensor(float(len(labels)), dtype=torch.float64, device=world.device)])
    model.train(training)
    if confusion is not None:
        world.sum(confusion)
    loss, top1, top5, count = world.sum(sums).tolist()
    figures = {'top1': 100 * top1 / count, 'loss': loss / count, 'images': int(count)}
    return {**figures, 'top5': 100 * top5 / count} if classes > 5 else figures


class ViewAverage(nn.Module):
    """Average logits over views. 'flip': mirrored too; 'shift': moved by a pixel to either corner too; both: six."""

    def __init__(self, model: Any, views: str) -> None:
        super().__init__()
        self.model, self.flip, self.shift = model, 'flip' in views, 'shift' in views
        self.pretrained_cfg = getattr(model, 'pretrained_cfg', {})

    def forward(self, x: Tensor) -> Tensor:
        views = [x]
        if self.shift:
            padded = F.pad(x, (1, 1, 1, 1), 'reflect')
            views += [padded[..., :-2, :-2], padded[..., 2:, 2:]]
        if self.flip:
            views += [view.flip(3) for view in views]
        return torch.stack([self.model(view).float() for view in views]).mean(0)


def accuracy(bench: Bench) -> dict[str, Any]:
    """Return the figures of `evaluate`, the 'interval' of the top-1, figures of all 'classes', and the 'confusion'."""
    confusion = torch.zeros(bench.num_classes, bench.num_classes, dtype=torch.int64, device=bench.world.device)
    figures = evaluate(bench.loaded.model, bench.batches(), bench.world, bench.dtype, confusion)
    correct = int(confusion.diagonal().sum())
    return {**figures, 'interval': wilson(correct, int(figures['images'])),
            'classes': by_class(confusion, bench.class_names), 'confusion': confusion.tolist()}


def by_class(confusion: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return for each class its images, its accuracy, and the class it is most often mistaken for."""
    rows = []
    for i, (name, row) in enumerate(zip(names, confusion.tolist(), strict=True)):
        images, correct, row[i] = sum(row), row[i], -1
        wrong = max(range(len(row)), key=row.__getitem__)
        rows.append({
            'class': name, 'images': images, 'correct': correct, 'top1': 100 * correct / images if images else None,
            'interval': wilson(correct, images) if images else None,
            'most_taken_for': names[wrong] if row[wrong] > 0 else None, 'times': max(row[wrong], 0)})
    return rows


def wilson(correct: int, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share, in percent."""
    z = 1.959963984540054
    share, square = correct / count, z * z / count
    middle = (share + square / 2) / (1 + square)
    half = z * math.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    return 100 * max(0., middle - half), 100 * min(1., middle + half)


def plot_confusion(confusion: Sequence[Sequence[int]], names: Sequence[str], title: str, path: Path) -> None:
    """Plot true classes (rows) against predicted ones, each row in percent of its images."""
    # colours by the square root of the share, else mistakes would be too faint beside the diagonal
    from matplotlib.colors import PowerNorm
    counts = np.array(confusion, dtype=float)
    shares = 100 * counts / counts.sum(1, keepdims=True).clip(min=1)
    size = min(max(4.5, 0.62 * len(names)), max(16, 0.12 * len(names)), 24)     # inches
    font = min(10., 60 * size / len(names) * 0.75)      # points, so that names do not overlap
    ticks = range(len(names)) if font >= _SMALLEST else ()
    figure, ((axes,),) = new_figure(1, 1, (size + 2.2, size + 1.2))
    image = axes.imshow(shares, cmap='Blues', norm=PowerNorm(0.5, 0, 100), interpolation='nearest')
    for set_ticks, rotation in ((axes.set_xticks, 90), (axes.set_yticks, 0)):
        set_ticks(ticks, [names[i] for i in ticks], rotation=rotation, fontsize=font)
        set_ticks([i + 0.5 for i in ticks[:-1]], minor=True)
    axes.tick_params(which='both', length=0)
    axes.set(xlabel='predicted class', ylabel='true class', title=title)
    axes.grid(which='minor', color='0.88', linewidth=0.4)
    if len(names) <= _NUMBERS:
        for row, column in zip(*counts.nonzero(), strict=True):
            share = shares[row, column]
            axes.text(column, row, f'{share:.1f}' if share < 99.95 else '100', ha='center', va='center', fontsize=8,
                      color='white' if share > 40 else 'black')
    figure.colorbar(image, ax=axes, label="% of the row's images", shrink=0.6, ticks=[0, 1, 5, 10, 25, 50, 100])
    write_picture(figure, path)


def check_catalogue(specs: Sequence[str], make_bench: Callable[[str, Source], Bench],
                    **options: Any) -> list[dict[str, Any]]:
    """Evaluate every classifier of the catalogue whose dataset is among `specs`; return a row for each."""
    sources: dict[str, Source] = {}
    for spec in specs:
        source = open_bench_source(spec, 'test', **options)
        if not source.info:
            raise ZooError(f'{spec} does not name its dataset: write KEY={spec}, KEY one of {", ".join(DATASETS)}.')
        if source.info.key in sources:
            raise ZooError(f'--data gives {source.info.key} twice: leave one out.')
        sources[source.info.key] = source
    classifiers = [w for w in catalogue().values() if not w.encoder]
    weights = [w for w in classifiers if w.dataset in sources]
    if not weights:
        raise ZooError(f'The catalogue has no weight with classes for {", ".join(sources)}: it has some for '
                       f'{", ".join(sorted({w.dataset for w in classifiers}))}.')
    return [_check_weight(w, sources[w.dataset], make_bench) for w in weights]


def _check_weight(weight: Weight, source: Source, make_bench: Callable[[str, Source], Bench]) -> dict[str, Any]:
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
