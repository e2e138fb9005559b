"""Recipes for one's own model and images, from the presets."""
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from timm.models import get_pretrained_cfg

from ..data.datasets import DATASETS
from ..data.objects import is_object, title_of
from ..data.sources import Source
from ..errors import ZooError
from ..methods import METHODS
from ..models import check_name
from ..recipes import (
    FINETUNING_PRESET,
    PRETRAINING_PRESETS,
    RECIPES,
    BaseRecipe,
    Pretraining,
    Recipe,
    find_pretraining,
)
from ..recipes.settings import AnyRecipe, defaults
from ..runtime.files import user_path
from ..runtime.text import show
from ..runtime.world import World
from ..weights.resolve import read_recipe, resolve, without_rates

_OF_THE_START = 'name', 'from_weights', 'img_size', 'crop_pct', 'layer_decay', 'model_args'


def finetuning_recipe(name: str = '', start: str = '', resumed: Path | None = None) -> Recipe:
    """Fine-tune `name`, as `resolve` takes it, at its size; from scratch if it has no weights.

    `start`: other weights to start from. Without `name` it is a pre-training run, whose encoder is fine-tuned.
    `resumed`: the run to go on with, which says what it began with where that is gone.
    """
    try:
        return _finetuning_recipe(name, start)
    except ZooError:
        if not (resumed and (resumed / 'recipe.json').is_file()):
            raise
        written = read_recipe(resumed)['recipe']
        if not written['name'].endswith('.finetuned'):
            raise
        return replace(FINETUNING_PRESET, **{key: written[key] for key in _OF_THE_START if key in written})


def _finetuning_recipe(name: str, start: str) -> Recipe:
    run = resolve(start).recipe if start and (user_path(start) / 'recipe.json').is_file() else {}
    run = {**defaults(Pretraining), **run} if 'method' in run else {}
    if not name and not run:
        raise ZooError('Give a recipe (`tinyvit-zoo recipes` shows all), a model, or a pre-training run to start from '
                       '(--from DIR, start=DIR).')
    found = resolve(name or run['name'].partition('.')[0])
    start = start or (str(found.file or found.name) if found.has_weights else '')
    cfg: Any = {**get_pretrained_cfg(found.architecture).to_dict(), **found.cfg}
    recipe = replace(
        FINETUNING_PRESET, name=f'{found.architecture}.finetuned', from_weights=start, img_size=cfg['input_size'][-1],
        crop_pct=cfg['crop_pct'], layer_decay=FINETUNING_PRESET.layer_decay if start else 1.,
        model_args=found.model_args)
    return replace(recipe, img_size=run['img_size'], model_args=without_rates(run['model_args'])) if run else recipe


def pretraining_recipe(method: str | Pretraining, model: str = '') -> Pretraining:
    """Pre-train `model` by a method, at the size that it is made for; a recipe, or the name of one, has its model."""
    if isinstance(method, Pretraining) or method not in PRETRAINING_PRESETS:
        recipe = method if isinstance(method, Pretraining) else find_pretraining(method)
        if model:
            raise ZooError(f'{recipe.name} fixes its model: leave out the model, or use '
                           f'{", ".join(PRETRAINING_PRESETS)}.')
        return recipe
    if not model:
        raise ZooError(f'The model is missing: give the encoder for {method} to pre-train.')
    check_name(model)
    model = model.partition('.')[0]
    cfg: Any = get_pretrained_cfg(model)
    return replace(PRETRAINING_PRESETS[method], name=f'{model}.{method}', img_size=cfg.input_size[-1],
                   crop_pct=cfg.crop_pct)


def call_text(name: str, recipe: BaseRecipe, data: Any, keywords: Mapping[str, Any]) -> str:
    """Return the call in Python that trains by the recipe, for the card."""
    verb, model, known = 'train', repr(name), RECIPES.get(name if name == recipe.name else '')
    if isinstance(recipe, Pretraining):
        verb, model = 'pretrain', model + (f', model={recipe.model!r}' if name != recipe.name else '')
    elif known:     # a recipe was given, not the weights of that name
        model = f'tinyvit_zoo.find_recipe({name!r})'
    start = getattr(recipe, 'from_weights', '')
    if 'from_weights' not in keywords and start not in ('', known.from_weights if known else name):
        keywords = {'start': start, **keywords}
    rest = ''.join(f', {key}={value!r}' for key, value in keywords.items() if key != 'resume')
    return f'tinyvit_zoo.{verb}({model}, data={"..." if is_object(data) else repr(title_of(data))}{rest})'


_COLOURS = ('auto_augment', 'color_jitter')


def without_colours(recipe: BaseRecipe, source: Source, given: Mapping[str, Any], world: World) -> Any:
    """Switch augmentation of colours off for images of other channels or 16 bits; refuse it where it was asked for."""
    if not source.train.images.deep:
        return recipe
    wanted = [name for name in _COLOURS if getattr(recipe, name, None)]
    if asked := [name for name in wanted if name in given]:
        raise ZooError(f'{asked[0]} needs 8-bit grey or RGB images, which {source.name} does not have: leave it out.')
    views = isinstance(recipe, Pretraining) and METHODS[recipe.method].own_views
    if (wanted or views) and world.first:
        left = [*wanted, *['colour and blur augmentation'] * views]
        show(f'{source.name} is not 8-bit grey or RGB: trained without {" and ".join(left)}.')
    changes: dict[str, Any] = {name: '' if name == 'auto_augment' else None for name in wanted}
    return replace(recipe, **changes)


def without_mirroring(recipe: AnyRecipe, data: str) -> AnyRecipe:
    """Switch flips off where the dataset must not be mirrored."""
    rows = [row for row in DATASETS.values() if row.source == data.partition(':')[0]]
    return recipe if all(row.mirrored for row in rows) else replace(recipe, flip=0.)
