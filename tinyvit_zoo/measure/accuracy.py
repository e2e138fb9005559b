"""Accuracy and loss of a model over a split, each image counted once however many processes there are."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..augment.batched import normalize
from ..augment.pillow import evaluation_transform
from ..data.batches import Batches, make_batches
from ..data.splits import Split
from ..runtime.precision import autocast
from ..runtime.world import World


def evaluation_batches(split: Split, batch_size: int, cfg: Mapping[str, Any], world: World, **options: Any) -> Batches:
    """Make batches of a split, each image once, normalized as the weights of `cfg` want it."""
    transforms = {'batch_transform': lambda images: normalize(images, cfg['mean'], cfg['std']),
                  'stream_transform': evaluation_transform(cfg)}
    return make_batches(split, cfg['input_size'][1:], batch_size, world.device, train=False, rank=world.rank,
                        world_size=world.size, **{**transforms, **options})


@torch.no_grad()
def evaluate(
        model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], world: World, dtype: torch.dtype | None = None,
        confusion: Tensor | None = None,
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
            logits = model(images)
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
