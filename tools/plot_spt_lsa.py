#!/usr/bin/env python3
"""Draw the pictures of docs/spt_lsa.md: shifted patches and locality attention on one photograph.

    tools/plot_spt_lsa.py --out docs/images

Needs matplotlib and scikit-learn (`pip install tinyvit-zoo[analysis,train]`). The photograph is scikit-learn's sample
image china.jpg, by danielbuechele, CC BY 2.0 (https://www.flickr.com/photos/danielbuechele/6061409035/); cropped and
resized here. The pictures show the output of the package's own layers.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from tinyvit_zoo.layers import attend, attend_locally, cut_patches, shift_diagonally
from tinyvit_zoo.runtime.files import new_figure, write_picture

SIZE, PATCH = 64, 8  # of sl_vit_64
GRID = SIZE // PATCH
TOKEN = (2, 3)       # row and column of the token shown
SHIFTS = ('in place', 'right, down', 'left, down', 'right, up', 'left, up')
RED, GREEN = '#e8332a', '#1a9850'


def photograph() -> Tensor:
    """Return the photograph [1, 3, 64, 64] in 0..1."""
    from sklearn.datasets import load_sample_image
    image = torch.tensor(load_sample_image('china.jpg')).permute(2, 0, 1)[None].float() / 255
    return F.interpolate(image[:, :, 20:404, 150:534], (SIZE, SIZE), mode='bicubic', antialias=True).clamp(0, 1)


def show(axes: Axes, image: Tensor, title: str = '') -> None:
    """Draw an image [3, H, W], pixels as squares."""
    axes.imshow(image.permute(1, 2, 0).numpy(), interpolation='nearest', extent=(0, image.shape[2], image.shape[1], 0))
    axes.set_title(title, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])


def frame(axes: Axes, row: float, col: float, size: float, **style: object) -> None:
    axes.add_patch(Rectangle((col, row), size, size, fill=False, **style))


def plot_shifts(image: Tensor, path: Path) -> None:
    """Draw the five copies, one patch of each below, and the area of the image that these cover."""
    copies = shift_diagonally(image, PATCH // 2).view(5, 3, SIZE, SIZE)
    row, col = TOKEN[0] * PATCH, TOKEN[1] * PATCH
    figure, axes = new_figure(2, 6, (12, 4.3))
    for i, (copy, name) in enumerate(zip(copies, SHIFTS, strict=True)):
        show(axes[0, i], copy, name)
        for line in range(PATCH, SIZE, PATCH):
            axes[0, i].axhline(line, color='white', linewidth=0.3, alpha=0.6)
            axes[0, i].axvline(line, color='white', linewidth=0.3, alpha=0.6)
        frame(axes[0, i], row, col, PATCH, color=RED, linewidth=2)
        show(axes[1, i], copy[:, row:row + PATCH, col:col + PATCH])
    axes[1, 0].set_ylabel('in that patch', fontsize=10)
    axes[0, 0].set_ylabel('the image', fontsize=10)

    show(axes[0, 5], image[0], 'what the token has seen')
    around = slice(row - PATCH, row + 2 * PATCH), slice(col - PATCH, col + 2 * PATCH)
    show(axes[1, 5], image[0][(slice(None), *around)])
    for panel, top, left in ((axes[0, 5], row, col), (axes[1, 5], PATCH, PATCH)):
        frame(panel, top, left, PATCH, color=RED, linewidth=2)
        frame(panel, top - PATCH / 2, left - PATCH / 2, 2 * PATCH, color=RED, linewidth=2, linestyle='--')
    write_picture(figure, path, dpi=110)


def attention(image: Tensor, factor: float, masked: bool) -> Tensor:
    """Return attention [tokens, tokens] with the normalized patches as queries and keys.

    The layer's function gives it for unit vectors as values.
    """
    patches = cut_patches(shift_diagonally(image, PATCH // 2), PATCH)[0]
    q = F.layer_norm(patches, patches.shape[1:])
    values = torch.eye(len(q), q.shape[1])
    qkv = torch.stack([q, q, values], dim=1)[None, :, :, None]
    scale = factor * 8 / q.shape[1]  # logits: 8 times the correlation of two patches
    attended = attend_locally(qkv, torch.tensor([scale]), 0.) if masked else attend(qkv, scale, 0.)
    return attended[0, :, :len(q)]


def plot_attention(image: Tensor, path: Path) -> None:
    """Draw one token's attention over the image, and its probabilities in falling order."""
    cases = [('plain softmax', 1., False), ('itself masked', 1., True), ('masked, temperature x 0.5', 0.5, True),
             ('masked, temperature x 2', 2., True)]
    token = TOKEN[0] * GRID + TOKEN[1]
    rows = {name: attention(image, factor, masked)[token] for name, factor, masked in cases}
    figure, axes = new_figure(2, 4, (12, 5.6), height_ratios=(3, 2))
    for i, (name, row) in enumerate(rows.items()):
        show(axes[0, i], image[0].mean(0, keepdim=True).expand(3, -1, -1) * 0.7 + 0.3, name)
        heat = row.view(GRID, GRID)
        drawn = axes[0, i].imshow(
            heat.numpy(), cmap='Reds', alpha=(0.1 + 6 * heat).clamp(max=0.9).numpy(), vmin=0, vmax=0.2,
            interpolation='nearest', extent=(0, SIZE, SIZE, 0))
        frame(axes[0, i], TOKEN[0] * PATCH, TOKEN[1] * PATCH, PATCH, color=GREEN, linewidth=2.5)
        order = row.argsort(descending=True)[:24]
        colours = [GREEN if index == token else '#a50f15' for index in order]
        axes[1, i].bar(range(24), row[order].numpy(), color=colours)
        axes[1, i].set_ylim(0, 0.8)
        axes[1, i].set_xticks([])
        axes[1, i].set_xlabel('tokens it looks at most', fontsize=9)
        entropy = -(row * row.clamp_min(1e-30).log2()).sum()
        axes[1, i].set_title(f'itself {row[token]:.0%}, entropy {entropy:.1f} bits', fontsize=10)
        axes[1, i].spines[['top', 'right']].set_visible(False)
    axes[1, 0].set_ylabel('attention')
    figure.colorbar(drawn, ax=axes, label='attention', shrink=0.5, extend='max', anchor=(0, 1))
    write_picture(figure, path, dpi=100)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('docs/images'), help='folder for the PNG files')
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    image = photograph()
    for name, plot in (('spt', plot_shifts), ('lsa', plot_attention)):
        path = args.out / f'{name}.png'
        plot(image, path)
        print(path)
    return 0


if __name__ == '__main__':
    sys.exit(main())
