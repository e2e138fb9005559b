"""Recipes by the name of the weights they make. Imports nothing but dataclasses."""
from ..errors import ZooError, nearest
from . import compact, mae_lite, mae_small, spt_lsa, ssl_small
from .base import SOURCES, Recipe
from .finetune import FINETUNE

__all__ = ['FINETUNE', 'RECIPES', 'SOURCES', 'Recipe', 'find_recipe']

RECIPES = {
    recipe.name: recipe
    for paper in (compact, spt_lsa, ssl_small, mae_small, mae_lite) for recipe in paper.RECIPES
}


def find_recipe(name: str) -> Recipe:
    """The recipe that makes the weights of this name; ZooError that names the nearest where there is none."""
    if name not in RECIPES:
        raise ZooError(f'There is no recipe {name!r}.{nearest(name, RECIPES)} `tinyvit-zoo recipes` shows all; '
                       f'`--model NAME` trains without one.')
    return RECIPES[name]
