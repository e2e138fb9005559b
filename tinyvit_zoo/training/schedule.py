"""Learning rate and weight decay as functions of the epoch."""
from __future__ import annotations

import math

from ..recipes import BaseRecipe


def learning_rate(recipe: BaseRecipe, epoch: float) -> float:
    """At a moment of the training, in epochs: a linear warm-up, the schedule down to `min_lr`, then the cool-down."""
    warmup = recipe.warmup_epochs
    if epoch < warmup:
        return recipe.warmup_lr + (recipe.lr - recipe.warmup_lr) * epoch / warmup
    if epoch >= recipe.epochs:
        return recipe.min_lr
    if recipe.schedule == 'cosine':  # as timm's: the warm-up cuts the beginning off, it does not shift the rest
        left = _half_cosine(epoch / recipe.epochs)
    elif recipe.schedule == 'later_cosine':
        left = _half_cosine((epoch - warmup) / (recipe.epochs - warmup))
    else:
        left = (recipe.epochs - epoch) / (recipe.epochs - warmup)
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * left


def weight_decay(recipe: BaseRecipe, epoch: float) -> float:
    """At a moment of the training, in epochs."""
    if recipe.weight_decay_end is None:
        return recipe.weight_decay
    left = _half_cosine(min(1., epoch / recipe.epochs))
    return recipe.weight_decay_end + (recipe.weight_decay - recipe.weight_decay_end) * left


def _half_cosine(progress: float) -> float:
    """From 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * progress))
