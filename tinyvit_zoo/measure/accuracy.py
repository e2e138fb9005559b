"""Accuracy of a model on a split: top-1 with its interval, top-5, loss, by class."""
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..runtime.precision import autocast
from ..runtime.world import World
from .bench import Bench


@torch.no_grad()
def evaluate(
        model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], world: World, dtype: torch.dtype | None = None,
        confusion: Tensor | None = None,
) -> dict[str, float]:
    """Return 'top1', 'top5' (percent; top5 only with 6 or more classes), 'loss' and 'images' over all processes.

    Each image counts once; the model keeps its mode. `confusion`, int64 [C, C] of zeros, becomes the number of images
    by class (row) and predicted class (column).
    """
    training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=world.device)  # loss, top-1, top-5, images
    classes = 0
    for images, labels in batches:
        with autocast(world.device, dtype):
            logits = model(images)
        logits = logits.float()
        classes = logits.shape[1]
        predictions = logits.topk(min(5, classes)).indices
        hits = predictions.eq(labels[:, None])
        if confusion is not None:
            cells = labels * classes + predictions[:, 0]
            confusion += torch.bincount(cells, minlength=classes ** 2).view(classes, classes)
        sums += torch.stack([
            F.cross_entropy(logits, labels, reduction='sum').double(), hits[:, 0].sum().double(), hits.sum().double(),
            torch.tensor(float(len(labels)), dtype=torch.float64, device=world.device)])
    model.train(training)
    if confusion is not None:
        world.sum(confusion)
    loss, top1, top5, count = world.sum(sums).tolist()
    figures = {'top1': 100 * top1 / count, 'loss': loss / count, 'images': int(count)}
    return {**figures, 'top5': 100 * top5 / count} if classes > 5 else figures


def accuracy(bench: Bench) -> dict[str, Any]:
    """Return the figures of `evaluate`, the 'interval' of the top-1, figures of all 'classes', and the 'confusion'."""
    confusion = torch.zeros(bench.num_classes, bench.num_classes, dtype=torch.int64, device=bench.world.device)
    figures = evaluate(bench.loaded.model, bench.batches(), bench.world, bench.dtype, confusion)
    correct = int(confusion.diagonal().sum())
    return {**figures, 'interval': wilson(correct, int(figures['images'])),
            'classes': by_class(confusion, bench.class_names), 'confusion': confusion.tolist()}


def by_class(confusion: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return for each class its images, its accuracy, and the class it is most often mistaken for."""
    rows = []
    for i, (name, row) in enumerate(zip(names, confusion.tolist(), strict=True)):
        images, correct, row[i] = sum(row), row[i], -1
        wrong = max(range(len(row)), key=row.__getitem__)
        rows.append({
            'class': name, 'images': images, 'correct': correct, 'top1': 100 * correct / images if images else None,
            'interval': wilson(correct, images) if images else None,
            'most_taken_for': names[wrong] if row[wrong] > 0 else None, 'times': max(row[wrong], 0)})
    return rows


def wilson(correct: int, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share, in percent."""
    z = 1.959963984540054
    share, square = correct / count, z * z / count
    middle = (share + square / 2) / (1 + square)
    half = z * math.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    return 100 * max(0., middle - half), 100 * min(1., middle + half)
