"""What of a recipe can be known to be wrong before anything is read or written."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
from timm.models import get_arch_pretrained_cfgs
from timm.optim import list_optimizers
from torch import nn

from ..errors import ZooError, nearest
from ..methods.supervised import make_augment, make_mix
from ..models import check_name
from ..recipes import BaseRecipe, Recipe
from .optimizer import make_optimizer

_ALLOWED: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ('a number from 1 up', lambda v: 1 <= v < math.inf,
     'epochs batch_size accumulate img_size decoder_dim decoder_heads hidden_dim bottleneck_dim num_prototypes dim'),
    ('0 or more', lambda v: 0 <= v < math.inf,
     'lr weight_decay weight_decay_end warmup_epochs warmup_lr min_lr cooldown_epochs clip crop_padding color_jitter '
     'mixup cutmix mix_off_epoch decoder_depth decoder_block visible_weight weight local_views eval_every workers'),
    ('0 or more', lambda v: v >= 0, 'checkpoint_minutes'),
    ('0 to 1', lambda v: 0 <= v <= 1,
     'momentum flip ema smoothing mix_prob mix_switch_prob erase mask_ratio centre_momentum freeze_last '
     'temperature_warmup drop_rate attn_drop_rate drop_path_rate pos_drop_rate proj_drop_rate patch_drop_rate'),
    ('above 0, and at most 1', lambda v: 0 < v <= 1, 'crop_pct layer_decay'),
    ('0 or more, and less than 1', lambda v: 0 <= v < 1, 'betas'),
    ('above 0', lambda v: 0 < v < math.inf,
     'std crop_scale crop_ratio erase_area erase_aspect mlp_ratio temperature student_temperature teacher_temperature '
     'local_scale'),
    ('finite', math.isfinite, 'mean'),
    ('from -2**63 to 2**64 - 1, as torch takes it', lambda v: -2 ** 63 <= v < 2 ** 64, 'seed'),
)
_BY_NAME = {name: (expected, fits) for expected, fits, names in _ALLOWED for name in names.split()}
_LENGTHS = {'mean': 3, 'std': 3, 'betas': 2, 'crop_scale': 2, 'crop_ratio': 2, 'color_jitter': 4, 'erase_area': 2,
            'erase_aspect': 2, 'teacher_temperature': 2, 'local_scale': 2}


def check_numbers(values: Mapping[str, Any]) -> None:
    """ZooError for a value out of its range, or of too few or too many numbers; None is what a field can do without."""
    for name, value in values.items():
        if name not in _BY_NAME or value is None:
            continue
        expected, fits = _BY_NAME[name]
        numbers, count = (value, _LENGTHS[name]) if name in _LENGTHS else ((value,), 1)
        if not isinstance(numbers, (tuple, list)) or len(numbers) != count or not all(
                isinstance(number, (int, float)) and fits(number) for number in numbers):
            each = f'{count} numbers, each ' if count > 1 else ''
            raise ZooError(f'{name} is {value!r}, expected {each}{expected}.')


def check_choice(recipe: BaseRecipe, field: str, *allowed: str) -> None:
    if getattr(recipe, field) not in allowed:
        raise ZooError(f'{field} is {getattr(recipe, field)!r}, expected {" or ".join(map(repr, allowed))}.')


def check_training(recipe: BaseRecipe) -> None:
    """ZooError for what cannot be trained; the model's own arguments are left to `check_model`."""
    check_name(recipe.model)
    check_numbers(vars(recipe))
    check_choice(recipe, 'schedule', 'cosine', 'later_cosine', 'linear')
    check_choice(recipe, 'clip_mode', 'norm', 'tensor')
    if (recipe.mean is None) != (recipe.std is None):
        raise ZooError(f'mean is {recipe.mean} and std is {recipe.std}: give both or neither.')
    if recipe.opt not in list_optimizers():
        raise ZooError(f'There is no optimizer {recipe.opt!r}.{nearest(recipe.opt, list_optimizers())}')
    if recipe.epochs <= recipe.warmup_epochs:
        raise ZooError(f'warmup_epochs is {recipe.warmup_epochs:g} of {recipe.epochs} epochs: take fewer.')
    if recipe.weight_decay_end is not None and not recipe.weight_decay:
        raise ZooError(f'weight_decay is 0, and weight_decay_end {recipe.weight_decay_end:g}: what is not decayed in '
                       f'the beginning is not later either. Begin with 1e-8.')
    # layers that decay need a real model to tell apart
    make_optimizer(replace(recipe, layer_decay=1.) if isinstance(recipe, Recipe) else recipe, nn.Linear(1, 1))


def check_model(recipe: BaseRecipe) -> None:
    """ZooError where the model cannot be made with the recipe's arguments; nothing is drawn or kept for it."""
    check_numbers({name: value for name, value in recipe.model_args.items() if name.endswith('_rate')})
    if 'num_classes' in recipe.model_args:
        raise ZooError('num_classes is no matter of model_args, it comes from the images: leave it out.')
    try:
        timm.create_model(recipe.model, device='meta', **{'img_size': recipe.img_size, **recipe.model_args})
    except ZooError:
        raise
    except Exception as e:  # whatever a constructor makes of arguments that are not for it
        raise ZooError(f'{recipe.model} cannot be made with the model_args {dict(recipe.model_args)}: {e}. Expected '
                       f'arguments of its constructor that its name does not fix.') from e


def check_recipe(recipe: Recipe) -> None:
    """As `check_training`, with what only a supervised one has."""
    check_training(recipe)
    check_model(recipe)
    check_choice(recipe, 'keep', 'last', 'ema', 'best')
    check_choice(recipe, 'mix_mode', 'batch', 'elem')
    make_augment(recipe, recipe.mean or (0.5,) * 3, recipe.std or (0.5,) * 3)
    make_mix(recipe, 2)
    if recipe.keep == 'ema' and not recipe.ema:
        raise ZooError("keep is 'ema', and nothing is averaged: give --ema 0.999.")
    if recipe.from_weights and not Path(recipe.from_weights).exists():
        cfg = get_arch_pretrained_cfgs(recipe.model).get(recipe.from_weights)
        if cfg is None or not cfg.has_weights:
            raise ZooError(f'There are no weights {recipe.from_weights!r} to begin {recipe.model} with: give a file or '
                           f'a run directory by --from-weights.')
