"""Draw the analyses. Each function returns a matplotlib figure."""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..runtime.files import new_figure
from .attention import Maps, Pooling, Reach

_BLUE, _GREY = '#2b6cb0', '#777777'
_INCH = 1.35            # side of a small picture
_BELOW: dict[str, Any] = dict(loc='outside lower center', ncols=2, fontsize=8, frameon=False)      # of a legend


def plot_reach(reaches: Mapping[str, Reach]) -> Any:
    """Plot a row for each model: boxes over the heads of each layer, the heads as dots, and uniform attention."""
    longest = max(len(reach.layers) for reach in reaches.values())
    figure, axes = new_figure(
        len(reaches), 2, (2 * max(4., 0.3 * longest + 1.2), 2.6 * len(reaches) + 0.4), sharey='col')
    highest = []
    for (left, right), (title, reach) in zip(axes, reaches.items(), strict=True):
        highest.append((_boxes(left, reach.distance, reach.uniform_distance),
                        _boxes(right, reach.entropy, reach.uniform_entropy)))
        left.set(ylabel='mean attention distance, px')
        right.set(ylabel='attention entropy, nats')
        left.set_title(title, fontsize=10, loc='left')
    for axis, values in zip(axes[-1], zip(*highest, strict=True), strict=True):
        axis.set(xlabel='layer', ylim=(0, 1.1 * max(values)))   # of the whole column
    figure.legend(*axes[0, 0].get_legend_handles_labels(), **_BELOW)
    return figure


def _boxes(axes: Any, heads: Sequence[Tensor], uniform: Sequence[float]) -> float:
    """Draw the values by head; return the highest."""
    places = np.arange(1, len(heads) + 1)
    values = [layer.numpy() for layer in heads]
    blue: dict[str, Any] = {f'{part}props': {'color': _BLUE} for part in ('median', 'box', 'whisker', 'cap')}
    axes.boxplot(values, positions=places, widths=0.6, showfliers=False, **blue)
    axes.plot(np.repeat(places, [len(v) for v in values]), np.concatenate(values), '.', color='black', markersize=3,
              alpha=0.6, label='a head')
    axes.plot(places, uniform, '_', color=_GREY, markersize=12, label='uniform attention')
    _layer_ticks(axes, len(heads))
    return max(*uniform, *(float(v.max()) for v in values))


def _layer_ticks(axes: Any, count: int) -> None:
    ticks = range(1, count + 1, 1 + count // 16)
    axes.set_xticks(ticks, map(str, ticks))
    axes.grid(axis='y', alpha=0.3)


def plot_similarity(cka: Mapping[str, Tensor], titles: Sequence[str]) -> Any:
    """Plot heat maps of CKA, with the first layers below and to the left."""
    name = dict(zip('ab', titles, strict=False))
    figure, axes = new_figure(1, len(cka), (4.1 * len(cka) + 0.6, 4.1))
    for axis, (pair, values) in zip(axes[0], cka.items(), strict=True):
        image = axis.imshow(values.t().numpy(), origin='lower', vmin=0, vmax=1, cmap='magma', aspect='auto')
        axis.set(xlabel=f'layer of {name[pair[0]]}', ylabel=f'layer of {name[pair[1]]}')
        for ticks, count in ((axis.set_xticks, values.shape[0]), (axis.set_yticks, values.shape[1])):
            places = range(0, count, 1 + count // 13)
            ticks(places, [str(i + 1) for i in places])
        axis.set_box_aspect(1)
    figure.colorbar(image, ax=axes[0, -1], label='linear CKA', shrink=0.75)
    figure.set_layout_engine('constrained', w_pad=0.1)
    return figure


def plot_maps(images: Tensor, maps: Maps, title: str) -> Any:
    """Plot a row for each image: the image, the rollout, the mean over the heads, and each head."""
    rollout = [] if maps.rollout is None else [maps.rollout]
    names = ['image', *['rollout'] * len(rollout), 'mean head', *(f'head {i + 1}' for i in range(maps.heads.shape[1]))]
    figure, axes = new_figure(len(images), len(names), (_INCH * len(names), (_INCH + 0.17) * len(images) + 0.5),
                              f'{title}: {maps.layer.name}, attention from {maps.query}')
    for i, (row, image) in enumerate(zip(axes, images, strict=True)):
        shares = [*(r[i] for r in rollout), maps.heads[i].mean(0), *maps.heads[i]]
        _show_image(row[0], image)
        for axis, share in zip(row[1:], shares, strict=True):
            _overlay(axis, image, share, maps.layer.stride)
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name, fontsize=9)
    return figure


def _show_image(axes: Any, image: Tensor) -> None:
    """Draw an image [H, W, channels] in 0..1, its pixels as squares."""
    height, width, channels = image.shape
    axes.imshow((image[..., 0] if channels == 1 else image).numpy(), cmap='gray', vmin=0, vmax=1,
                interpolation='nearest', extent=(0, width, height, 0))
    axes.set(xticks=[], yticks=[])


def _overlay(axes: Any, image: Tensor, share: Tensor, stride: tuple[float, float]) -> None:
    """Draw shares of attention [rows, columns] over the grey image, each token over its pixels."""
    # colours reach to at least twice a uniform share: nearly uniform attention looks uniform
    height, width, _ = image.shape
    _show_image(axes, image.mean(2, keepdim=True) * 0.8 + 0.1)
    rows, cols = share.shape
    heat = (share / share.max().clamp(min=2 / share.numel())).float().numpy()
    axes.imshow(heat, cmap='inferno', alpha=0.2 + 0.45 * heat, vmin=0, vmax=1, interpolation='nearest',
                extent=(0, cols * stride[1], rows * stride[0], 0))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_xlabel(f'max ×{float(share.max()) * rows * cols:.1f}', fontsize=7, labelpad=1)


def plot_pooling(images: Tensor, pooling: Pooling, title: str) -> Any:
    """Plot images above their weights; the last column is the mean of all, on its own scale."""
    count = len(images)
    figure, axes = new_figure(2, count + 1, (_INCH * (count + 1) + 1, 2 * _INCH + 0.9),
                              f'{title}: weights of sequence pooling')
    for column, image, weights in zip(axes.T, images, pooling.maps, strict=False):
        _show_image(column[0], image)
        _overlay(column[1], image, weights, pooling.stride)
    axes[0, -1].axis('off')
    mean = pooling.maps.mean(0).numpy()
    heat = axes[1, -1].imshow(mean * mean.size, cmap='inferno', vmin=0, interpolation='nearest')
    axes[1, -1].set(xticks=[], yticks=[])
    axes[1, -1].set_title(f'mean of {len(pooling.maps)}', fontsize=9)
    figure.colorbar(heat, ax=axes[1, -1], label='× uniform', shrink=0.8)
    return figure


def plot_temperatures(models: Mapping[str, Mapping[str, Tensor]]) -> Any:
    """Plot a panel for each model: the temperature of each head over the layers, relative to its start."""
    longest = max(map(len, models.values()))
    figure, axes = new_figure(1, len(models), (max(4., 0.32 * longest + 1.2) * len(models), 3.2), sharey=True)
    for axis, (title, layers) in zip(axes[0], models.items(), strict=True):
        for place, values in enumerate(layers.values(), 1):
            axis.plot([place] * len(values), values, 'o', color=_BLUE, markersize=4, alpha=0.7)
        axis.plot(range(1, len(layers) + 1), [values.mean() for values in layers.values()], color=_BLUE, linewidth=1,
                  label='mean of the heads')
        axis.axhline(1, color=_GREY, linestyle='--', linewidth=1, label='start: plain attention')
        _layer_ticks(axis, len(layers))
        axis.set_xlabel('layer')
        axis.set_title(title, fontsize=10, loc='left')
    axes[0, 0].set_ylabel('factor on the logits / its start')
    figure.legend(*axes[0, 0].get_legend_handles_labels(), **_BELOW)
    return figure


def plot_positions(similarity: Tensor, title: str) -> Any:
    """Plot for each position of the grid a map of its cosine with all positions."""
    rows, cols = similarity.shape[:2]
    zoom = 1 + 12 // max(rows, cols)  # maps larger than the gaps
    height, width = rows * zoom + 1, cols * zoom + 1
    cells = similarity.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    tiles = F.pad(cells, (0, 1, 0, 1), value=torch.nan).transpose(1, 2).flatten(2).flatten(0, 1)[:-1, :-1]
    side = min(9., max(4.5, 0.55 * max(rows, cols)))
    figure, ((axis,),) = new_figure(1, 1, (side * min(1., cols / rows) + 1.2, side * min(1., rows / cols) + 0.7))
    image = axis.imshow(tiles.numpy(), vmin=-1, vmax=1, cmap='viridis', interpolation='nearest')
    for ticks, count, side in ((axis.set_xticks, cols, width), (axis.set_yticks, rows, height)):
        places = range(0, count, 1 + count // 17)
        ticks([i * side + side / 2 - 1 for i in places], [str(i + 1) for i in places])
    axis.set(xlabel='column of the position', ylabel='row of the position')
    axis.set_title(title, fontsize=10, loc='left')
    figure.colorbar(image, ax=axis, label='cosine similarity', shrink=0.8)
    return figure
