"""The optimizer, its learning rate and weight decay by the epoch, and clipping."""
import math
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn

from ..errors import ZooError, nearest
from ..recipes import BaseRecipe, Recipe
from ..runtime.text import one_line
from .muon import batch_matrices

_FUSED = ('adam', 'adamw', 'sgd', 'nesterov', 'momentum')
_MUON = ('muon', 'nmuon')
_CAPTURABLE = ('adam', 'adamw', *_MUON)     # by an option; SGD is anyway


def make_optimizer(recipe: BaseRecipe, model: nn.Module) -> torch.optim.Optimizer:
    """Make timm's optimizer with its groups: layer decay, no weight decay for what `model.no_weight_decay()` names."""
    if recipe.opt not in list_optimizers():
        raise ZooError(f'There is no optimizer {recipe.opt!r}.{nearest(recipe.opt, list_optimizers())}')
    options: dict[str, Any] = {}
    if 'adam' in recipe.opt:
        options['betas'] = recipe.betas
    if recipe.opt in _FUSED:
        options['fused'] = True
    if recipe.opt in _CAPTURABLE and next(model.parameters()).is_cuda:
        options['capturable'] = True
    params: Any = model
    layer_decay = recipe.layer_decay if isinstance(recipe, Recipe) else 1.
    if recipe.decay_all and layer_decay == 1.:
        params = [{'params': [p for p in model.parameters() if p.requires_grad], 'weight_decay': recipe.weight_decay}]
    try:
        optimizer = create_optimizer_v2(params, recipe.opt, lr=recipe.lr, weight_decay=recipe.weight_decay,
                                        momentum=recipe.momentum, filter_bias_and_bn=not recipe.decay_all,
                                        layer_decay=layer_decay if layer_decay != 1. else None, **options)
    except (ValueError, TypeError, AssertionError) as e:
        raise ZooError(f'The optimizer {recipe.opt!r} cannot be made ({one_line(e)}): use adamw or sgd.') from e
    if recipe.opt in _MUON:
        batch_matrices(optimizer)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float, decay: float) -> None:
    """Set the rate of every group by its scale, and the weight decay of those that have one."""
    for group in optimizer.param_groups:
        rate = lr * group.get('lr_scale', 1.)
        if isinstance(group['lr'], torch.Tensor):
            group['lr'].fill_(rate)
        else:
            group['lr'] = rate
        if group['weight_decay']:
            group['weight_decay'] = decay


def steps_by_tensors(recipe: BaseRecipe) -> bool:
    """Return whether nothing but tensors changes from one step of the optimizer to the next, the rate included."""
    return recipe.opt in {*_FUSED, *_CAPTURABLE} and recipe.weight_decay_end is None


def clip_gradients(parameters: list[nn.Parameter], limit: float, mode: str) -> None:
    """Clip norms to `limit`: of all gradients together ('norm'), or of each by itself ('tensor'). No host sync."""
    grads = [p.grad for p in parameters if p.grad is not None]
    if mode == 'norm':
        torch.nn.utils.clip_grad_norm_(parameters, limit)
    elif grads:
        norms = torch._foreach_norm(grads)
        torch._foreach_mul_(grads, [(limit / (norm + 1e-6)).clamp(max=1.) for norm in norms])


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
