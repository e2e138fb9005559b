"""How alike two layers are: minibatch linear CKA (arXiv 2010.15327) by the unbiased HSIC estimator (Song et al., 2012).

Each batch of images gives an estimate of HSIC for each pair of layers; these are averaged over the batches first, and
CKA is the ratio of the averages. So it does not depend on the batch size but for noise. The images of a batch have to
be drawn at random from all classes: batches of one class each know nothing of what tells classes apart.
"""
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..errors import ZooError
from .places import see_features

LEAST = 4               # images in a batch, which the estimator divides by (n - 3)
_CONSTANT = 1e-10       # of the features' energy: less than this around their mean is rounding


def gram(features: Tensor) -> Tensor:
    """Products of the images' features with each other [n, n], of features [n, ...] around their mean.

    HSIC does not depend on the mean; without it more of the digits are the signal's. Features that are the same for
    all images give zero, and not the products of what rounding left.
    """
    x = features.flatten(1).float()
    centred = x - x.mean(0)
    if centred.square().mean() <= _CONSTANT * x.square().mean():
        return torch.zeros(len(x), len(x), dtype=torch.float64)
    return (centred @ centred.t()).cpu().double()  # there are devices without doubles


def unbiased_hsic(a: Tensor, b: Tensor) -> Tensor:
    """Between each two Gram matrices [A, n, n], [B, n, n] -> [A, B]. It is negative where chance has it so."""
    n = a.shape[-1]
    if n < LEAST:
        raise ZooError(f'A batch has {n} images, expected {LEAST} or more: the estimate divides by (n - 3).')
    off = 1 - torch.eye(n, dtype=a.dtype, device=a.device)
    a, b = a * off, b * off
    rows_a, rows_b = a.sum(2), b.sum(2)
    traces = a.flatten(1) @ b.flatten(1).t()
    totals = rows_a.sum(1)[:, None] * rows_b.sum(1) / ((n - 1) * (n - 2))
    return (traces + totals - 2 / (n - 2) * (rows_a @ rows_b.t())) / (n * (n - 3))


def ratio(cross: Tensor, self_a: Tensor, self_b: Tensor) -> Tensor:
    """CKA from average HSIC: [A, B], [A], [B] -> [A, B].

    Where a layer's HSIC with itself is not positive (its features tell the images apart no better than chance), it is
    like no other layer: 0, and never NaN.
    """
    scale = self_a.clamp(min=0).sqrt()[:, None] * self_b.clamp(min=0).sqrt()
    return torch.where(scale > 0, cross / scale.where(scale > 0, 1.), 0.)


@torch.no_grad()
def similarity(
        model: Any, batches: Iterable[Tensor], other: Any = None, other_batches: Iterable[Tensor] = (),
) -> dict[str, Tensor]:
    """CKA between all layers: {'aa': [A, A]}, with another model also 'ab' [A, B] and 'bb' [B, B].

    `batches` and `other_batches`: the same images in the same order, each as its model takes them.
    """
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
    found: list[Tensor] = []
    see_features(model, images, lambda index, features: found.append(gram(features)))
    return torch.stack(found)
