"""The numbers of an analysis as arrays, and as text."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from .attention import Reach


def ragged(rows: Sequence[Tensor]) -> np.ndarray:
    """[layers, heads], NaN where a layer has fewer heads than another."""
    out = np.full((len(rows), max(len(row) for row in rows)), np.nan)
    for into, row in zip(out, rows, strict=True):
        into[:len(row)] = row.numpy()
    return out


def reach_arrays(found: Reach) -> dict[str, Any]:
    return {
        'layers': [layer.name for layer in found.layers], 'grid': [layer.grid for layer in found.layers],
        'stride': [layer.stride for layer in found.layers],
        'distance': ragged(found.distance), 'entropy': ragged(found.entropy),
        'uniform_distance': found.uniform_distance, 'uniform_entropy': found.uniform_entropy}


def reach_text(title: str, found: Reach) -> str:
    """A line a layer: the mean over the heads, their range, and what uniform attention would have."""
    lines = [f'{title:20} {"grid":>7} {"distance, px":>22} {"uniform":>8} {"entropy, nats":>22} {"uniform":>8}']
    for i, layer in enumerate(found.layers):
        distance, entropy = (
            f'{heads.mean():.2f} ({heads.min():.2f} to {heads.max():.2f})'
            for heads in (found.distance[i], found.entropy[i]))
        lines.append(f'{layer.name:20} {layer.grid[0]:>3}x{layer.grid[1]:<3} {distance:>22} '
                     f'{found.uniform_distance[i]:8.2f} {entropy:>22} {found.uniform_entropy[i]:8.2f}')
    return '\n'.join(lines)
