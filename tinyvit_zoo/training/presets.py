"""Make recipes for one's own model and images from the presets."""
from dataclasses import replace
from pathlib import Path
from typing import Any

from timm.models import get_pretrained_cfg

from ..data.datasets import DATASETS
from ..errors import ZooError
from ..models import check_name
from ..recipes import FINETUNING_PRESET, PRETRAINING_PRESETS, Pretraining, Recipe
from ..recipes.settings import AnyRecipe
from ..weights.resolve import check_model, resolve, without_rates


def finetuning_recipe(name: str = '', start: str = '') -> Recipe:
    """Fine-tune `name` ('': the model pre-trained in `start`) at its size; from scratch if it has no weights."""
    run = resolve(start).recipe if start and Path(start, 'recipe.json').is_file() else {}
    run = run if 'method' in run else {}
    if not name and not run:
        raise ZooError('Give a RECIPE (`tinyvit-zoo recipes` shows all), --model NAME, or --from a pre-training run.')
    name = name or run['name'].partition('.')[0]
    check_model(name)
    cfg: Any = get_pretrained_cfg(name)
    start = start or (f'{cfg.architecture}.{cfg.tag}' if cfg.has_weights else '')
    recipe = replace(
        FINETUNING_PRESET, name=f'{cfg.architecture}.finetuned', from_weights=start, img_size=cfg.input_size[-1],
        crop_pct=cfg.crop_pct, layer_decay=FINETUNING_PRESET.layer_decay if start else 1.)
    return replace(recipe, img_size=run['img_size'], model_args=without_rates(run['model_args'])) if run else recipe


def pretraining_recipe(method: str, model: str) -> Pretraining:
    """Pre-train `model` by `method`, at the size that it is made for."""
    check_name(model)
    model = model.partition('.')[0]
    cfg: Any = get_pretrained_cfg(model)
    return replace(PRETRAINING_PRESETS[method], name=f'{model}.{method}', img_size=cfg.input_size[-1],
                   crop_pct=cfg.crop_pct)


def without_mirroring(recipe: AnyRecipe, data: str) -> AnyRecipe:
    """Switch flips off where the dataset must not be mirrored."""
    rows = [row for row in DATASETS.values() if row.source == data.partition(':')[0]]
    return recipe if all(row.mirrored for row in rows) else replace(recipe, flip=0.)
