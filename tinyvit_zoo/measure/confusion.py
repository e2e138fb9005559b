"""Plot a confusion matrix. Class names are drawn for up to about 200 classes, numbers for up to 20."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.picture import new_figure, write_picture

_NUMBERS = 20       # classes up to which cells have numbers
_SMALLEST = 3.      # points, of a legible name


def plot_confusion(confusion: Sequence[Sequence[int]], names: Sequence[str], title: str, path: Path) -> None:
    """Plot true classes (rows) against predicted ones, each row in percent of its images.

    Colours follow the square root of the share, else mistakes would be too faint beside the diagonal.
    """
    from matplotlib.colors import PowerNorm

    counts = np.array(confusion, dtype=float)
    shares = 100 * counts / counts.sum(1, keepdims=True).clip(min=1)
    size = min(max(4.5, 0.62 * len(names)), max(16, 0.12 * len(names)), 24)     # inches
    font = min(10., 60 * size / len(names) * 0.75)      # points, so that names do not overlap
    ticks = range(len(names)) if font >= _SMALLEST else ()
    figure, ((axes,),) = new_figure(1, 1, (size + 2.2, size + 1.2))
    image = axes.imshow(shares, cmap='Blues', norm=PowerNorm(0.5, 0, 100), interpolation='nearest')
    axes.set_xticks(ticks, [names[i] for i in ticks], rotation=90, fontsize=font)
    axes.set_yticks(ticks, [names[i] for i in ticks], fontsize=font)
    axes.tick_params(length=0)
    axes.set(xlabel='predicted class', ylabel='true class', title=title)
    axes.set_xticks([i + 0.5 for i in ticks[:-1]], minor=True)
    axes.set_yticks([i + 0.5 for i in ticks[:-1]], minor=True)
    axes.grid(which='minor', color='0.88', linewidth=0.4)
    axes.tick_params(which='minor', length=0)
    if len(names) <= _NUMBERS:
        _write_numbers(axes, shares, counts)
    figure.colorbar(image, ax=axes, label="% of the row's images", shrink=0.6, ticks=[0, 1, 5, 10, 25, 50, 100])
    write_picture(figure, path)


def _write_numbers(axes: Any, shares: np.ndarray, counts: np.ndarray) -> None:
    for row, column in zip(*counts.nonzero(), strict=True):
        share = shares[row, column]
        axes.text(column, row, f'{share:.1f}' if share < 99.95 else '100', ha='center', va='center', fontsize=8,
                  color='white' if share > 40 else 'black')
