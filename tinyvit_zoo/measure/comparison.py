"""Compare models by size, work, accuracy and speed."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg

from ..data.datasets import DATASETS
from ..errors import ZooError
from ..recipes import RECIPES
from ..runtime.picture import new_figure
from ..weights import Weight, weight_of
from .counting import count, image_size
from .speed import machine, make_step, rounds, summarise
from .subjects import make_model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BLUE = '#2b6cb0'


def default_dataset(names: Sequence[str]) -> str | None:
    """Return the dataset of the first default weights among the models."""
    weights = (weight_of(cfg) for cfg in map(get_pretrained_cfg, names) if cfg)
    return next((weight.dataset for weight in weights if weight), None)


def comparison_row(name: str, dataset: str | None, img_size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Count a model, with the accuracies of its weights on `dataset`, at their size or at `img_size`."""
    weight, architecture = _weight(name, dataset), name.partition('.')[0]
    size = img_size or (weight.input_size[1:] if weight else None)
    model = make_model(architecture, DATASETS[dataset].num_classes if dataset else None, size, device='meta')
    counted = count(model, size)
    shown = weight if weight and tuple(weight.input_size) == tuple(counted.input_size) else None
    published = shown.published['top1'] if shown and shown.published else None
    if not weight and '.' not in name:  # nobody's weights, but a paper's figure
        published = next((r.published for r in RECIPES.values() if (r.model, r.dataset) == (name, dataset)
                          and counted.input_size[1:] == (r.img_size,) * 2), None)
    return {
        'name': name, 'weights': weight.name if weight else None, 'dataset': dataset,
        'input_size': list(counted.input_size), 'num_classes': int(model.num_classes),  # type: ignore[arg-type]
        'params': counted.params, 'macs': counted.macs, 'published': published,
        'measured': shown.measured['top1'] if shown and shown.measured else None}


def _weight(name: str, dataset: str | None) -> Weight | None:
    """Return the weights of the tag; without a tag, the first on the dataset, measured ones before others."""
    architecture, _, tag = name.partition('.')
    weights = [weight_of(cfg) for cfg in get_arch_pretrained_cfgs(architecture).values() if tag in ('', cfg.tag)]
    fitting = [w for w in weights if w and w.dataset == dataset and not w.encoder]
    if tag and not fitting and any(w and not w.encoder for w in weights):
        raise ZooError(f'{name} has no accuracy on {dataset}, which the others are compared on: compare weights of one '
                       f'data set (--dataset), or leave its tag out.')
    return next((w for w in fitting if w.measured), fitting[0] if fitting else None)


def add_speeds(
        rows: Sequence[dict[str, Any]], device: torch.device, batch_size: int, precision: str, seconds: float,
) -> dict[str, Any]:
    """Add images a second and the ratio to the first row; return the machine and the conditions."""
    steps = {}
    for row in rows:
        size = tuple(row['input_size'][1:])
        model = make_model(row['name'].partition('.')[0], row['num_classes'], size).to(device).eval()
        images = torch.randn(batch_size, *image_size(model, size), device=device)
        steps[row['name']] = make_step(model, images, train=False, bf16=precision == 'bf16')
    for row, speed in zip(rows, summarise(rounds(steps, device, seconds), batch_size), strict=True):
        row.update({key: speed[key] for key in ('images_per_second', 'ratio', 'ratio_range', 'rounds')})
    return {**machine(device), 'precision': precision, 'batch_size': batch_size}


def conditions(about: dict[str, Any]) -> str:
    """Say in a line what speeds were measured on."""
    threads = '' if 'NVIDIA' in about['device'] else f', threads {about["threads"]}'
    return f'batches of {about["batch_size"]}, {about["precision"]}, {about["device"]}{threads}, torch {about["torch"]}'


def plot_comparison(rows: Sequence[dict[str, Any]], dataset: str | None, about: dict[str, Any] | None) -> Figure:
    """Draw a panel for each figure and a line for each model: names stay readable whatever their number."""
    panels = 4 if about else 3
    figure, (axes,) = new_figure(1, panels, (3 * panels + 1, 1.3 + 0.32 * len(rows)), sharey=True)
    _plot_bars(axes[0], 'M parameters', [row['params'] / 1e6 for row in rows], '{:.2f}')
    _plot_bars(axes[1], 'M MACs', [row['macs'] / 1e6 for row in rows], '{:.0f}')
    _plot_accuracies(axes[2], rows, f'top-1, %{", " + DATASETS[dataset].title if dataset else ""}')
    if about:
        _plot_bars(axes[3], 'images/s', [row['images_per_second'] for row in rows], '{:.0f}')
        figure.suptitle(f'Speed: {conditions(about)}', fontsize=8)
    axes[0].set_yticks(range(len(rows)), [row['name'] for row in rows])
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    return figure


def _plot_bars(axis: Any, label: str, values: Sequence[float], style: str) -> None:
    axis.bar_label(axis.barh(range(len(values)), values, color=_BLUE), [style.format(value) for value in values],
                   padding=3, fontsize=8)
    axis.set(xlabel=label, xlim=(0, 1.25 * max(values)))


def _plot_accuracies(axis: Any, rows: Sequence[dict[str, Any]], label: str) -> None:
    for key, fill in (('measured', _BLUE), ('published', 'none')):
        points = [(row[key], i) for i, row in enumerate(rows) if row[key] is not None]
        if points:
            axis.scatter(*zip(*points, strict=True), s=40, facecolors=fill, edgecolors=_BLUE, label=key)
    axis.set(xlabel=label)
    axis.grid(axis='x', alpha=0.3)
    if axis.collections:
        axis.legend(fontsize=8, loc='lower center', bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    else:
        axis.set_xticks([])
        axis.text(0.5, 0.5, 'no figures', transform=axis.transAxes, ha='center')
