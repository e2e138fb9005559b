"""Recipes by the name of the weights they make. Imports nothing but dataclasses."""
# ruff: noqa: F401
from typing import Any

from ..errors import ZooError, nearest
from . import compact, fast_cnn, gpu, mae_lite, mae_small, spt_lsa, ssl_small
from .base import BaseRecipe, Pretraining, Recipe, check_model_args
from .presets import FINETUNING_PRESET, PRETRAINING_PRESETS

RECIPES = {
    recipe.name: recipe
    for module in (compact, fast_cnn, spt_lsa, ssl_small, mae_small, mae_lite, gpu) for recipe in module.RECIPES
}
PRETRAININGS = {
    recipe.name: recipe
    for module in (ssl_small, mae_small, mae_lite, gpu) for recipe in module.PRETRAININGS
}


def find_recipe(name: str) -> Recipe:
    """Return the recipe of these weights; ZooError with the nearest name if there is none."""
    _check_type(name)
    if name in PRETRAININGS:
        raise ZooError(f'{name} is a pre-training: `tinyvit-zoo pretrain {name}`.')
    if name not in RECIPES:
        raise ZooError(f'There is no recipe {name!r}.{nearest(name, RECIPES)} `tinyvit-zoo recipes` lists them; '
                       f'a model alone is trained without one.')
    return RECIPES[name]


def find_pretraining(name: str) -> Pretraining:
    """Return the pre-training of this name, as `find_recipe`."""
    _check_type(name)
    if name in RECIPES:
        raise ZooError(f'{name} is a supervised training: `tinyvit-zoo train {name}`.')
    if name not in PRETRAININGS:
        raise ZooError(f'There is no pre-training {name!r}.{nearest(name, [*PRETRAININGS, *PRETRAINING_PRESETS])} '
                       f'`tinyvit-zoo recipes` lists them; a method with a model needs none.')
    return PRETRAININGS[name]


def _check_type(name: Any) -> None:
    if not isinstance(name, str):
        raise ZooError(f'The recipe is a {type(name).__name__}, expected its name: `tinyvit-zoo recipes` lists them.')
