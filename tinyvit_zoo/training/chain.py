"""A training with the pre-training that its recipe begins from: one after the other, each with its own directory."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.datasets import spec_of
from ..errors import ZooError
from ..models import list_models
from ..recipes import PRETRAININGS, Pretraining, Recipe
from ..runtime.world import World
from ..weights.resolve import without_rates
from .checks import check_recipe
from .pretrain import check_pretraining, pretrain
from .run_dir import PRETRAINING, Run
from .train import Options, open_images, train


def pretraining_of(recipe: Recipe) -> Pretraining | None:
    """What has to come first: nothing where the weights to begin with are a file, or published.

    ZooError where it is a pre-training on other images than the recipe's.
    """
    first = PRETRAININGS.get(recipe.from_weights)
    if first is None or Path(recipe.from_weights).exists():
        return None
    if first.name in list_models(pretrained=True):
        return None
    if first.dataset != recipe.dataset:
        raise ZooError(f'{recipe.name} begins from {first.name}, which is pre-trained on other images: make that first '
                       f'(`{first.command(spec_of(first.dataset))}`) and give it by --from DIR.')
    return first


def adapted(first: Pretraining, recipe: Recipe) -> Pretraining:
    """The pre-training of the same network, from the same seed."""
    return replace(first, seed=recipe.seed, model_args={**first.model_args, **without_rates(recipe.model_args)})


def train_from_pretraining(first: Pretraining, recipe: Recipe, options: Options, world: World) -> dict[str, Any]:
    """In OUTPUT/pretraining, then in OUTPUT. Resumed, it goes on with whichever of the two has not ended."""
    check_recipe(replace(recipe, from_weights=''))
    check_pretraining(first)
    Run(options.output).check(options.resume)
    open_images(recipe, options, world)
    begin = options.output / PRETRAINING
    pretrain(first, replace(options, output=begin, eval_every=0), world)
    return train(recipe, options, world, start=begin)
