#!/usr/bin/env python3
"""The picture of docs/self_supervised.md: k-NN accuracy over pre-trainings, accuracy over the fine-tunings after them.

    tools/plot_pretraining.py runs/mae_* runs/moco_* runs/finetuned_* runs/scratch_* --out curves.png

Each run directory says itself what it is. Those of one kind are one line, their mean, in the band of all of them.
"""
from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyvit_zoo.errors import ZooError
from tinyvit_zoo.methods import METHODS
from tinyvit_zoo.runtime.files import check_picture, new_figure, write_picture
from tinyvit_zoo.weights.resolve import read_recipe

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCRATCH = 'from scratch'
COLOURS = {SCRATCH: 'tab:gray', **{name: f'C{i}' for i, name in enumerate(METHODS)}}
Curve = list[tuple[int, float]]     # epochs, percent
Kinds = dict[str, list[Curve]]


def kind_of(recipe: dict[str, Any]) -> str:
    """The method of a pre-training, or that a classifier began with."""
    if 'method' in recipe:
        return recipe['method']
    return kind_of(read_recipe(Path(recipe['from_weights']))['recipe']) if recipe['from_weights'] else SCRATCH


def curve(folder: Path, field: str, first: Curve) -> Curve:
    rows = map(json.loads, (folder / 'log.jsonl').read_text(encoding='utf-8').splitlines())
    return first + [(row['epoch'], row[field]) for row in rows if field in row]


def read(folders: list[Path]) -> tuple[Kinds, Kinds]:
    """The curves of pre-trainings and of fine-tunings, by method. The former begin with random weights."""
    before: Kinds = defaultdict(list)
    after: Kinds = defaultdict(list)
    for folder in folders:
        recipe = read_recipe(folder)['recipe']
        if 'method' in recipe:
            figures = json.loads((folder / 'result.json').read_text(encoding='utf-8'))['figures']['knn']
            before[kind_of(recipe)].append(curve(folder, 'knn_top1', [(0, figures['untrained']['knn_top1'])]))
        else:
            after[kind_of(recipe)].append(curve(folder, 'test_top1', []))
    return before, after


def draw(axes: Axes, kinds: Kinds, title: str, ylabel: str) -> None:
    for name in sorted(kinds, key=list(COLOURS).index):
        epochs = [epoch for epoch, _ in kinds[name][0]]
        values = np.array([[value for _, value in one] for one in kinds[name]])
        label = name if len(values) == 1 else f'{name} ({len(values)} seeds)'
        axes.plot(epochs, values.mean(0), color=COLOURS[name], marker='.', label=label)
        axes.fill_between(epochs, values.min(0), values.max(0), color=COLOURS[name], alpha=0.2, linewidth=0)
    axes.set(title=title, xlabel='epoch', ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.legend(loc='lower right')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='+', type=Path, metavar='RUN')
    parser.add_argument('--out', type=Path, required=True, metavar='FILE')
    args = parser.parse_args()
    try:
        check_picture('--out', args.out)
        before, after = read(args.runs)
    except ZooError as e:
        print(e, file=sys.stderr)
        return 2
    figure, ((left, right),) = new_figure(1, 2, (11, 4.2))
    draw(left, before, 'Pre-training, without labels', 'k-NN accuracy, %')
    draw(right, after, 'Fine-tuning', 'test accuracy, %')
    write_picture(figure, args.out)
    return 0


if __name__ == '__main__':
    sys.exit(main())
