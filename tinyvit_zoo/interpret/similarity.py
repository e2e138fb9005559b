"""Similarity of layers, and of position embeddings.

Minibatch linear CKA (arXiv 2010.15327) with the unbiased HSIC (Song et al., 2012), averaged over batches before the
ratio: the batch size changes only the noise. Images must be in random order, not sorted by class.
"""
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ZooError
from ..models import Layer, block_layers
from .attention import KNOWN

LEAST = 4               # images in a batch: the estimator divides by (n - 3)
_CONSTANT = 1e-10       # share of the features' energy below which their variance is rounding


def feature_names(model: Any) -> list[str]:
    """Return the names of the features that `see_features` shows, from the image on."""
    if why := no_features(model):
        raise ZooError(f'The features of {type(model).__name__} cannot be read: {why}. Use {KNOWN}.')
    return [layer.name for layer in _patch_layers(model)] or [info['module'] for info in model.feature_info]


def no_features(model: Any) -> str:
    """Return why the layers of a model cannot be compared; '' where they can."""
    known = block_layers(model) or hasattr(model, 'forward_intermediates')
    return '' if known else 'its blocks are not known, and it has no forward_intermediates'


def see_features(model: Any, images: Tensor, see: Callable[[int, Tensor], None]) -> None:
    """Call `see(index, features)` with each block's patch tokens, or maps [B, ...]; no blocks of a late class token."""
    layers = _patch_layers(model)
    if not layers:
        for index, features in enumerate(model.forward_intermediates(images, intermediates_only=True)):
            see(index, features)
        return

    def hook(index: int, layer: Layer, block: nn.Module, args: Any, output: Tensor) -> None:
        see(index, output[:, layer.prefix:] if output.ndim == 3 else output)
    with ExitStack() as hooks:
        for index, layer in enumerate(layers):
            hooks.callback(layer.block.register_forward_hook(partial(hook, index, layer)).remove)
        model.forward_features(images)


def _patch_layers(model: Any) -> list[Layer]:
    return [layer for layer in block_layers(model) if not layer.class_only]


def gram(features: Tensor) -> Tensor:
    """Return the Gram matrix [n, n] of features [n, ...] around their mean (for precision); zero if constant."""
    x = features.flatten(1).float()
    centred = x - x.mean(0)
    if centred.square().mean() <= _CONSTANT * x.square().mean():
        return torch.zeros(len(x), len(x), dtype=torch.float64)
    return (centred @ centred.t()).cpu().double()  # there are devices without doubles


def unbiased_hsic(a: Tensor, b: Tensor) -> Tensor:
    """Estimate HSIC between all Gram matrices [A, n, n], [B, n, n] -> [A, B]; by chance it may be negative."""
    n = a.shape[-1]
    if n < LEAST:
        raise ZooError(f'A batch has {n} images, expected {LEAST} or more, as the estimate divides by (n - 3).')
    off = 1 - torch.eye(n, dtype=a.dtype, device=a.device)
    a, b = a * off, b * off
    rows_a, rows_b = a.sum(2), b.sum(2)
    traces = a.flatten(1) @ b.flatten(1).t()
    totals = rows_a.sum(1)[:, None] * rows_b.sum(1) / ((n - 1) * (n - 2))
    return (traces + totals - 2 / (n - 2) * (rows_a @ rows_b.t())) / (n * (n - 3))


def ratio(cross: Tensor, self_a: Tensor, self_b: Tensor) -> Tensor:
    """Return CKA from average HSIC: [A, B], [A], [B] -> [A, B]; 0 for layers whose own is not positive (chance)."""
    scale = self_a.clamp(min=0).sqrt()[:, None] * self_b.clamp(min=0).sqrt()
    return torch.where(scale > 0, cross / scale.where(scale > 0, 1.), 0.)


@torch.no_grad()
def similarity(model: Any, batches: Iterable[Tensor], other: Any = None,
               other_batches: Iterable[Tensor] = ()) -> dict[str, Tensor]:
    """Return CKA between layers, 'aa' [A, A]; with another model, on the same images in order, also 'ab' and 'bb'."""
    pairs = ((batch, None) for batch in batches) if other is None else zip(batches, other_batches, strict=True)
    sums: dict[str, Any] = dict.fromkeys(('aa',) if other is None else ('aa', 'ab', 'bb'), 0.)
    for count, (batch, same) in enumerate(pairs, 1):
        grams = {'a': _grams(model, batch)}
        if other is not None:
            grams['b'] = _grams(other, same)
        for pair in sums:
            hsic = unbiased_hsic(grams[pair[0]], grams[pair[1]])
            sums[pair] = sums[pair] + (hsic - sums[pair]) / count
    alone = {name: sums[name * 2].diagonal() for name in 'ab' if name * 2 in sums}
    return {pair: ratio(hsic, alone[pair[0]], alone[pair[1]]) for pair, hsic in sums.items()}


def _grams(model: Any, images: Any) -> Tensor:
    grams: list[Tensor] = []
    see_features(model, images, lambda index, features: grams.append(gram(features)))
    return torch.stack(grams)


def no_positions(model: Any) -> str:
    """Return why a model has no position embedding; '' where it has."""
    if not block_layers(model):
        return 'its tokens are not known'
    return 'no positions are added to its tokens' if getattr(model, 'pos_embed', None) is None else ''


@torch.no_grad()
def position_similarity(model: Any) -> Tensor:
    """Return the cosine between all rows of the position embedding [rows, columns, rows, columns]."""
    if why := no_positions(model):
        raise ZooError(f'{type(model).__name__} has no table of positions: {why}.')
    rows, cols = model.patch_embed.grid_size if hasattr(model, 'patch_embed') else model.grid_size
    embedding = F.normalize(model.pos_embed[0, -rows * cols:].float().cpu(), dim=1)
    return (embedding @ embedding.t()).view(rows, cols, rows, cols)
