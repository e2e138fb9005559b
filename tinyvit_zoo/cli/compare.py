"""`tinyvit-zoo compare`: models side by side, by size, work, accuracy and speed."""
from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg

from ..data.datasets import DATASETS
from ..errors import ZooError
from ..measure.counting import count, image_size
from ..measure.speed import machine, make_step, rounds, summarise
from ..measure.subjects import find_names, make_model
from ..recipes import RECIPES
from ..runtime.picture import check_picture, new_figure, write_picture
from ..runtime.text import as_csv, table
from ..runtime.world import join_world
from ..weights import Weight, weight_of
from ._options import add_formats, add_img_size, duration, positive

NAME = 'compare'
SUMMARY = 'compare models by parameters, multiply-adds, accuracy and speed'
EXAMPLES = '''
tinyvit-zoo compare cct_7_3x1 cvt_7_4 vit_lite_7_4 --plot compare.png
tinyvit-zoo compare resnet18 cct_7_3x1 sl_vit --dataset c10 --img-size 32 --device cuda
'''


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('names', metavar='NAME[.TAG]', nargs='+',
                        help='models of the zoo or of timm, with wildcards those of the zoo; the first is the baseline')
    parser.add_argument('--dataset', choices=DATASETS, metavar='SET',
                        help=f'what accuracies are on: {", ".join(DATASETS)} (default: that of the first weights)')
    add_img_size(parser)
    parser.add_argument('--speed', action=argparse.BooleanOptionalAction, default=True, help='time inference')
    parser.add_argument('--batch-size', type=positive, default=32, metavar='N', help='of inference (default: 32)')
    parser.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1, ... (default: cpu)')
    parser.add_argument('--precision', default='fp32', choices=['fp32', 'bf16'])
    parser.add_argument('--seconds', type=duration, default=10., metavar='S', help='of timing in all (default: 10)')
    parser.add_argument('--plot', type=Path, metavar='FILE', help='the same as a picture: .png, .pdf or .svg')
    add_formats(parser, 'the same in plain numbers, and the machine')


def run(args: argparse.Namespace) -> str:
    names = find_names(args.names)
    if args.plot:
        check_picture('--plot', args.plot)
    dataset = args.dataset or next((w.dataset for w in map(_default, names) if w), None)
    rows = [_row(name, dataset, args.img_size) for name in names]
    about = _time(rows, args) if args.speed else None
    if args.plot:
        write_picture(_picture(rows, dataset, about), args.plot)
    if args.csv:
        return as_csv(rows)
    return json.dumps({'machine': about, 'models': rows}, indent=2) if args.json else _text(rows, dataset, about)


def _default(name: str) -> Weight | None:
    cfg = get_pretrained_cfg(name)
    return weight_of(cfg) if cfg else None


def _weight(name: str, dataset: str | None) -> Weight | None:
    """That of the tag; without one, of those on the data set one that was measured before one that was not."""
    architecture, _, tag = name.partition('.')
    found = [weight_of(cfg) for cfg in get_arch_pretrained_cfgs(architecture).values() if tag in ('', cfg.tag)]
    fitting = [w for w in found if w and w.dataset == dataset and not w.encoder]
    if tag and not fitting and any(w and not w.encoder for w in found):
        raise ZooError(f'{name} has no accuracy on {dataset}, what the others are compared on: compare weights of one '
                       f'data set (--dataset), or leave its tag out.')
    return next((w for w in fitting if w.measured), fitting[0] if fitting else None)


def _row(name: str, dataset: str | None, img_size: tuple[int, int] | None) -> dict[str, Any]:
    weight, architecture = _weight(name, dataset), name.partition('.')[0]
    size = img_size or (weight.input_size[1:] if weight else None)
    model = make_model(architecture, DATASETS[dataset].num_classes if dataset else None, size, device='meta')
    found = count(model, size)
    shown: Weight | None = weight if weight and tuple(weight.input_size) == tuple(found.input_size) else None
    published = shown.published['top1'] if shown and shown.published else None
    if not weight and '.' not in name:  # nobody's weights, but a paper's figure
        published = next((r.published for r in RECIPES.values() if (r.model, r.dataset) == (name, dataset)
                          and found.input_size[1:] == (r.img_size,) * 2), None)
    return {
        'name': name, 'weights': weight.name if weight else None, 'dataset': dataset,
        'input_size': list(found.input_size), 'num_classes': int(model.num_classes),  # type: ignore[arg-type]
        'params': found.params, 'macs': found.macs, 'published': published,
        'measured': shown.measured['top1'] if shown and shown.measured else None}


def _time(rows: list[dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    """Adds images a second, and the ratio to the first; returns what they were taken on."""
    with join_world(args.device) as world:
        steps = {}
        for row in rows:
            size = tuple(row['input_size'][1:])
            model = make_model(row['name'].partition('.')[0], row['num_classes'], size).to(world.device).eval()
            images = torch.randn(args.batch_size, *image_size(model, size), device=world.device)
            steps[row['name']] = make_step(model, images, train=False, bf16=args.precision == 'bf16')
        for row, speed in zip(rows, summarise(rounds(steps, world.device, args.seconds), args.batch_size), strict=True):
            row.update({key: speed[key] for key in ('images_per_second', 'ratio', 'ratio_range', 'rounds')})
        return {**machine(world.device), 'precision': args.precision, 'batch_size': args.batch_size}


def _text(rows: Sequence[dict[str, Any]], dataset: str | None, about: dict[str, Any] | None) -> str:
    head = ['model', 'weights', 'input', 'M parameters', 'M MACs', 'measured', 'published']
    lines = [head + (['images/s', 'ratio', 'range'] if about else [])]
    for row in rows:
        accuracies = ['-' if row[key] is None else f'{row[key]:.2f}' for key in ('measured', 'published')]
        lines.append([row['name'], (row['weights'] or '-').rpartition('.')[2], 'x'.join(map(str, row['input_size'])),
                      f'{row["params"] / 1e6:.2f}', f'{row["macs"] / 1e6:.1f}', *accuracies])
        if about:
            low, high = row['ratio_range']
            lines[-1] += [f'{row["images_per_second"]:.1f}', f'{row["ratio"]:.2f}', f'{low:.2f}-{high:.2f}']
    on = f' on {DATASETS[dataset].title}' if dataset else ''
    text = [table(lines, left=(0, 1)), '', f'Top-1 accuracy in %{on}: what we measured, what the paper says.']
    if about:
        text.append(f'Inference in turn, {_conditions(about)}; ratio of speed to {rows[0]["name"]}, the range over '
                    f'{rows[0]["rounds"]} rounds.')
    return '\n'.join(text)


def _conditions(about: dict[str, Any]) -> str:
    threads = '' if 'NVIDIA' in about['device'] else f', threads {about["threads"]}'
    return f'batches of {about["batch_size"]}, {about["precision"]}, {about["device"]}{threads}, torch {about["torch"]}'


# -- the picture -------------------------------------------------------------------------------------------------------
def _picture(rows: Sequence[dict[str, Any]], dataset: str | None, about: dict[str, Any] | None) -> Any:
    """A panel a figure, a line a model: names of any length and number stay readable."""
    panels = 4 if about else 3
    figure, (axes,) = new_figure(1, panels, (3 * panels + 1, 1.3 + 0.32 * len(rows)), sharey=True)
    _bars(axes[0], 'M parameters', [row['params'] / 1e6 for row in rows], '{:.2f}')
    _bars(axes[1], 'M MACs', [row['macs'] / 1e6 for row in rows], '{:.0f}')
    _accuracies(axes[2], rows, f'top-1, %{", " + DATASETS[dataset].title if dataset else ""}')
    if about:
        _bars(axes[3], 'images/s', [row['images_per_second'] for row in rows], '{:.0f}')
        figure.suptitle(f'Speed: {_conditions(about)}', fontsize=8)
    axes[0].set_yticks(range(len(rows)), [row['name'] for row in rows])
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    return figure


def _bars(axis: Any, label: str, values: Sequence[float], style: str) -> None:
    axis.bar_label(axis.barh(range(len(values)), values, color='#2b6cb0'), [style.format(value) for value in values],
                   padding=3, fontsize=8)
    axis.set(xlabel=label, xlim=(0, 1.25 * max(values)))


def _accuracies(axis: Any, rows: Sequence[dict[str, Any]], label: str) -> None:
    for key, fill in (('measured', '#2b6cb0'), ('published', 'none')):
        points = [(row[key], i) for i, row in enumerate(rows) if row[key] is not None]
        if points:
            axis.scatter(*zip(*points, strict=True), s=40, facecolors=fill, edgecolors='#2b6cb0', label=key)
    axis.set(xlabel=label)
    axis.grid(axis='x', alpha=0.3)
    if axis.collections:
        axis.legend(fontsize=8, loc='lower center', bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    else:
        axis.set_xticks([])
        axis.text(0.5, 0.5, 'no figures', transform=axis.transAxes, ha='center')
