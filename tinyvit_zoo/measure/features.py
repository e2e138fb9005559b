"""Features of a frozen encoder, their k-NN accuracy and their spread.

Features are the classifier's input, `forward_head(..., pre_logits=True)`, in eval mode.
"""
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..runtime.precision import autocast
from ..runtime.world import World

_CHUNK = 1 << 24        # similarities held at once


@torch.no_grad()
def extract(
        model: Any, batches: Iterable[tuple[Tensor, Tensor]], world: World, dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Return features [N, D] (float32) and labels [N] of all batches, on every process. The model keeps its mode."""
    training = model.training
    model.eval()
    pairs: list[tuple[Tensor, Tensor]] = []
    for images, labels in batches:
        with autocast(world.device, dtype):
            features = model.forward_head(model.forward_features(images), pre_logits=True)
        pairs.append((features.flatten(1).float(), labels))
    model.train(training)
    if world.size > 1:
        pairs = [(x.to(world.device), y.to(world.device)) for part in world.gather(
            [(x.cpu(), y.cpu()) for x, y in pairs]) for x, y in part]
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


@torch.no_grad()
def knn(
        train_features: Tensor, train_labels: Tensor, features: Tensor, labels: Tensor, k: int = 20,
        temperature: float = 0.07, *, num_classes: int,
) -> float:
    """Return the top-1 accuracy in percent of the weighted k-NN classifier of DINO (arXiv:2104.14294).

    The k training images of largest cosine similarity s (all, where there are fewer) vote with exp(s / temperature).
    """
    bank, queries = F.normalize(train_features, dim=1), F.normalize(features, dim=1)
    k, correct = min(k, len(bank)), torch.zeros((), dtype=torch.int64, device=features.device)
    step = max(1, _CHUNK // len(bank))
    for x, y in zip(queries.split(step), labels.split(step), strict=True):
        similarity, index = (x @ bank.T).topk(k)                                            # [B, k]
        weights = ((similarity - 1) / temperature).exp()        # the largest similarity is 1: nothing overflows
        votes = weights.new_zeros(len(x), num_classes).scatter_add_(1, train_labels[index], weights)
        correct += votes.argmax(1).eq(y).sum()
    return 100 * correct.item() / len(labels)


@torch.no_grad()
def spread(features: Tensor) -> float:
    """Return the standard deviation of L2-normalised features over the images, in units of 1/sqrt(D).

    It is 1 for features spread evenly over the sphere, and 0 for a collapse, where all images have one feature.
    """
    return F.normalize(features, dim=1).std(0, correction=0).mean().item() * features.shape[1] ** 0.5
