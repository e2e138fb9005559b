"""The pictures of the analyses. Each function makes one matplotlib figure;"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ..runtime.picture import new_figure
from .attention import Maps, Pooling, Reach

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _GREY = '#2b6cb0', '#777777'
_INCH = 1.35            # side of a small picture


# -- attention distance and entropy ------------------------------------------------------------------------------------
def plot_reach(reaches: Mapping[str, Reach]) -> Figure:
    """A row a model: boxes over the heads of each layer, the heads as dots, and what uniform attention would have."""
    longest = max(len(found.layers) for found in reaches.values())
    figure, axes = new_figure(
        len(reaches), 2, (2 * max(4., 0.3 * longest + 1.2), 2.6 * len(reaches) + 0.4), sharey='col')
    highest: tuple[list[float], list[float]] = [], []
    for (left, right), (title, found) in zip(axes, reaches.items(), strict=True):
        highest[0].append(_boxes(left, found.distance, found.uniform_distance))
        highest[1].append(_boxes(right, found.entropy, found.uniform_entropy))
        left.set_ylabel('mean attention distance, px')
        right.set_ylabel('attention entropy, nats')
        left.set_title(title, fontsize=10, loc='left')
    for axis, values in zip(axes[-1], highest, strict=True):
        axis.set_xlabel('layer')
        axis.set_ylim(0, 1.1 * max(values))  # of the whole column
    _legend_below(figure, axes[0, 0])
    return figure


def _legend_below(figure: Figure, axes: Axes) -> None:
    """Where it hides nothing."""
    figure.legend(*axes.get_legend_handles_labels(), loc='outside lower center', ncols=2, fontsize=8, frameon=False)


def _boxes(axes: Axes, heads: Sequence[Tensor], uniform: Sequence[float]) -> float:
    """Draws them; the highest value there is."""
    places = np.arange(1, len(heads) + 1)
    values = [layer.numpy() for layer in heads]
    axes.boxplot(values, positions=places, widths=0.6, showfliers=False, medianprops={'color': _BLUE},
                 boxprops={'color': _BLUE}, whiskerprops={'color': _BLUE}, capprops={'color': _BLUE})
    axes.plot(np.repeat(places, [len(v) for v in values]), np.concatenate(values), '.', color='black', markersize=3,
              alpha=0.6, label='a head')
    axes.plot(places, uniform, '_', color=_GREY, markersize=12, label='uniform attention')
    step = 1 + len(heads) // 16
    axes.set_xticks(places[::step], [str(place) for place in places[::step]])
    axes.grid(axis='y', alpha=0.3)
    return max(*uniform, *(float(v.max()) for v in values))


# -- layer similarity --------------------------------------------------------------------------------------------------
def plot_similarity(found: Mapping[str, Tensor], titles: Sequence[str]) -> Figure:
    """Heat maps of CKA, the first layers below and to the left."""
    name = dict(zip('ab', titles, strict=False))
    figure, axes = new_figure(1, len(found), (4.1 * len(found) + 0.6, 4.1))
    for axis, (pair, values) in zip(axes[0], found.items(), strict=True):
        drawn = axis.imshow(values.t().numpy(), origin='lower', vmin=0, vmax=1, cmap='magma', aspect='auto')
        axis.set_xlabel(f'layer of {name[pair[0]]}')
        axis.set_ylabel(f'layer of {name[pair[1]]}')
        for ticks, count in ((axis.set_xticks, values.shape[0]), (axis.set_yticks, values.shape[1])):
            places = range(0, count, 1 + count // 13)
            ticks(places, [str(i + 1) for i in places])
        axis.set_box_aspect(1)
    figure.colorbar(drawn, ax=axes[0, -1], label='linear CKA', shrink=0.75)
    figure.set_layout_engine('constrained', w_pad=0.1)
    return figure


# -- maps over images --------------------------------------------------------------------------------------------------
def plot_maps(images: Tensor, maps: Maps, title: str) -> Figure:
    """A row an image: the image, rollout, mean over the heads, and each head, brightest where attention goes most."""
    names = ['image', *(['rollout'] if maps.rollout is not None else []), 'mean head',
             *(f'head {i + 1}' for i in range(maps.heads.shape[1]))]
    figure, axes = new_figure(len(images), len(names), (_INCH * len(names), (_INCH + 0.17) * len(images) + 0.5))
    for i, (row, image) in enumerate(zip(axes, images, strict=True)):
        shares = [*([maps.rollout[i]] if maps.rollout is not None else []), maps.heads[i].mean(0), *maps.heads[i]]
        show_image(row[0], image)
        for axis, share in zip(row[1:], shares, strict=True):
            overlay(axis, image, share, maps.layer.stride)
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name, fontsize=9)
    figure.suptitle(f'{title}: {maps.layer.name}, attention from {maps.query}', fontsize=10)
    return figure


def show_image(axes: Axes, image: Tensor) -> None:
    """An image [H, W, channels] in 0..1, its pixels as squares."""
    height, width, channels = image.shape
    pixels = (image[..., 0] if channels == 1 else image).numpy()
    axes.imshow(pixels, cmap='gray', vmin=0, vmax=1, interpolation='nearest', extent=(0, width, height, 0))
    axes.set_xticks([])
    axes.set_yticks([])


def overlay(axes: Axes, image: Tensor, share: Tensor, stride: tuple[float, float]) -> None:
    """Shares of attention [rows, columns] over the grey image, each token's over the pixels it stands for.

    The colour goes from nothing to the map's largest share, which is written below, as a multiple of a uniform one; but
    to twice a uniform one at least, so that what is next to uniform looks it.
    """
    height, width, _ = image.shape
    grey = image.mean(2, keepdim=True) * 0.8 + 0.1
    show_image(axes, grey)
    rows, cols = share.shape
    heat = (share / share.max().clamp(min=2 / share.numel())).float().numpy()
    axes.imshow(heat, cmap='inferno', alpha=0.2 + 0.45 * heat, vmin=0, vmax=1, interpolation='nearest',
                extent=(0, cols * stride[1], rows * stride[0], 0))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_xlabel(f'max ×{float(share.max()) * rows * cols:.1f}', fontsize=7, labelpad=1)


def plot_pooling(images: Tensor, pooling: Pooling, title: str) -> Figure:
    """Columns of an image and its weights, for some of the images; the last is the mean of all, on its own scale."""
    count = len(images)
    figure, axes = new_figure(2, count + 1, (_INCH * (count + 1) + 1, 2 * _INCH + 0.9))
    for column, image, weights in zip(axes.T, images, pooling.maps, strict=False):
        show_image(column[0], image)
        overlay(column[1], image, weights, pooling.stride)
    axes[0, -1].axis('off')
    mean = pooling.maps.mean(0).numpy()
    drawn = axes[1, -1].imshow(mean * mean.size, cmap='inferno', vmin=0, interpolation='nearest')
    axes[1, -1].set(xticks=[], yticks=[])
    axes[1, -1].set_title(f'mean of {len(pooling.maps)}', fontsize=9)
    figure.colorbar(drawn, ax=axes[1, -1], label='× uniform', shrink=0.8)
    figure.suptitle(f'{title}: weights of sequence pooling', fontsize=10)
    return figure


# -- parameters --------------------------------------------------------------------------------------------------------
def plot_temperatures(found: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """A panel a model: the temperature of each head over the layers, against where it started."""
    longest = max(map(len, found.values()))
    figure, axes = new_figure(1, len(found), (max(4., 0.32 * longest + 1.2) * len(found), 3.2), sharey=True)
    for axis, (title, layers) in zip(axes[0], found.items(), strict=True):
        for place, values in enumerate(layers.values(), 1):
            axis.plot([place] * len(values), values, 'o', color=_BLUE, markersize=4, alpha=0.7)
        axis.plot(range(1, len(layers) + 1), [values.mean() for values in layers.values()], color=_BLUE, linewidth=1,
                  label='mean of the heads')
        axis.axhline(1, color=_GREY, linestyle='--', linewidth=1, label='start: plain attention')
        step = 1 + len(layers) // 16
        axis.set_xticks(range(1, len(layers) + 1, step))
        axis.set_xlabel('layer')
        axis.set_title(title, fontsize=10, loc='left')
        axis.grid(axis='y', alpha=0.3)
    axes[0, 0].set_ylabel('factor on the logits / its start')
    _legend_below(figure, axes[0, 0])
    return figure


def plot_positions(similarity: Tensor, title: str) -> Figure:
    """For each position of the grid, a map of its cosine with all others; the position's own lies in its place."""
    rows, cols = similarity.shape[:2]
    zoom = 1 + 12 // max(rows, cols)  # so that the gaps are small beside the maps
    height, width = rows * zoom + 1, cols * zoom + 1
    tiles = np.full((rows * height - 1, cols * width - 1), np.nan)
    for row in range(rows):
        for col in range(cols):
            top, left = row * height, col * width
            tiles[top:top + height - 1, left:left + width - 1] = np.kron(
                similarity[row, col].numpy(), np.ones((zoom, zoom)))
    side = min(9., max(4.5, 0.55 * max(rows, cols)))
    figure, axes = new_figure(1, 1, (side * min(1., cols / rows) + 1.2, side * min(1., rows / cols) + 0.7))
    axis = axes[0, 0]
    drawn = axis.imshow(tiles, vmin=-1, vmax=1, cmap='viridis', interpolation='nearest')
    for ticks, count, side in ((axis.set_xticks, cols, width), (axis.set_yticks, rows, height)):
        places = range(0, count, 1 + count // 17)
        ticks([i * side + side / 2 - 1 for i in places], [str(i + 1) for i in places])
    axis.set_xlabel('column of the position')
    axis.set_ylabel('row of the position')
    axis.set_title(title, fontsize=10, loc='left')
    figure.colorbar(drawn, ax=axis, label='cosine similarity', shrink=0.8)
    return figure
