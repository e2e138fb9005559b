"""Accuracy and loss of a model over a split, each image counted once however many processes there are."""
from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..runtime.precision import autocast
from ..runtime.world import World


@torch.no_grad()
def evaluate(
        model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], prepare: Callable[[Tensor], Tensor], world: World,
        dtype: torch.dtype | None = None, confusion: Tensor | None = None,
) -> dict[str, float]:
    """{'top1', 'top5' (percent; top5 only from 6 classes on), 'loss', 'images'}. The model keeps its mode.

    `confusion`, int64 [C, C] of zeros, becomes the number of images by class (row) and predicted class (column).
    """
    training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=world.device)  # loss, top-1, top-5, images
    classes = 0
    for images, labels in batches:
        with autocast(world.device, dtype):
            logits = model(prepare(images))
        logits = logits.float()
        classes = logits.shape[1]
        guesses = logits.topk(min(5, classes)).indices
        best = guesses.eq(labels[:, None])
        if confusion is not None:
            confusion += torch.bincount(labels * classes + guesses[:, 0], minlength=classes ** 2).view(classes, classes)
        sums += torch.stack([
            F.cross_entropy(logits, labels, reduction='sum').double(), best[:, 0].sum().double(), best.sum().double(),
            torch.tensor(float(len(labels)), dtype=torch.float64, device=world.device)])
    model.train(training)
    if confusion is not None:
        world.sum(confusion)
    loss, top1, top5, count = world.sum(sums).tolist()
    figures = {'top1': 100 * top1 / count, 'loss': loss / count, 'images': int(count)}
    return {**figures, 'top5': 100 * top5 / count} if classes > 5 else figures
