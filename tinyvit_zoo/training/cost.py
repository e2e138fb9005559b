"""The cost of a training in PFLOP (10^15 FLOP), which no machine changes.

Epochs x images x FLOP of an image: 2 for a multiply-add of a forward pass, 4 more for one that is trained. All passes
of an image count, those of teachers and of further views too.
"""
from functools import cache
from statistics import fmean
from typing import Any

import timm
import torch

from ..augment.spec import AugmentSpec
from ..data.datasets import DATASETS
from ..errors import ZooError
from ..measure.bench import check_size as check_evaluated
from ..measure.counting import MANY_PIXELS, Count, TrainingFlop, check_memory, count, image_memory
from ..methods import METHODS
from ..methods.self_supervised import make_encoder
from ..models import take_any_size
from ..recipes import PRETRAININGS, RECIPES, BaseRecipe, Pretraining, Recipe
from ..runtime.text import one_line
from ..runtime.world import World
from ..weights.resolve import create_model, resolve

USUAL_IMAGES = 50_000       # where the dataset is not known


def pflop(recipe: BaseRecipe, images: int, num_classes: int) -> float:
    """Count a training on so many images, without the trainings that come before it."""
    flop = _pretraining_flop(recipe) if isinstance(recipe, Pretraining) else _supervised_flop(recipe, num_classes)
    return recipe.total_epochs * images * flop / 1e15


@cache
def pflop_of(name: str) -> float:
    """Count the recipe of this name on its dataset, on USUAL_IMAGES where that is not known."""
    recipe: BaseRecipe = {**RECIPES, **PRETRAININGS}[name]
    return pflop(recipe, *usual_images(recipe))


def usual_images(recipe: BaseRecipe) -> tuple[int, int]:
    """Return the training images and the classes of a recipe's dataset."""
    data = DATASETS.get(recipe.dataset)
    return (data.num_train or USUAL_IMAGES, data.num_classes) if data else (USUAL_IMAGES, 10)


def before(recipe: BaseRecipe) -> list[str]:
    """Return the recipes that make a recipe's teacher and the weights it begins with."""
    names = (getattr(recipe, name, '') for name in ('from_weights', 'teacher'))
    return [name for name in names if name in RECIPES or name in PRETRAININGS]


def total_pflop(name: str) -> float:
    """Count a recipe and those before it."""
    return pflop_of(name) + sum(map(total_pflop, before({**RECIPES, **PRETRAININGS}[name])))


@cache
def counted(name: str, size: int | tuple[int, int], num_classes: int) -> Count:
    """Count a model on the meta device, once."""
    model = create_model(name, size, device='meta', num_classes=num_classes)
    return count(model, size)


def _supervised_flop(recipe: Any, num_classes: int) -> float:
    if not (recipe.sizes or recipe.model_args or recipe.teacher):
        return 6 * counted(recipe.model, recipe.img_size, num_classes).macs
    model = create_model(recipe.model, recipe.img_size, device='meta', num_classes=num_classes, **recipe.model_args)
    if recipe.sizes:
        take_any_size(model)
    flop = 6 * fmean(count(model, size).macs for size in recipe.sizes or (recipe.img_size,))
    return flop + (2 * _teacher_macs(recipe.teacher, num_classes) if recipe.teacher else 0)


def _teacher_macs(spec: str, num_classes: int) -> int:
    name, size, args = spec.partition('=')[0].partition('.')[0], None, {}
    if not timm.is_model(name) or '=' in spec:
        teacher = resolve(spec)
        name, size, args = teacher.architecture, teacher.cfg['input_size'][1:], teacher.model_args
    return count(create_model(name, size, device='meta', num_classes=num_classes, **args)).macs


def check_size(recipe: BaseRecipe, images: int, num_classes: int, world: World) -> None:
    """Raise ZooError where a batch takes more memory than is free; looked at where it has many pixels."""
    size, labelled = max(getattr(recipe, 'sizes', ()) or (recipe.img_size,)), not isinstance(recipe, Pretraining)
    batch = -(-min(recipe.batch_size, images) // (recipe.accumulate * world.size))
    if not world.first:
        return
    if isinstance(recipe, Recipe) and recipe.teacher:
        check_evaluated(resolve(recipe.teacher), None, batch, world.device)
    if batch * size ** 2 < MANY_PIXELS:
        return
    try:
        model = create_model(recipe.model, size, device='meta', num_classes=num_classes * labelled, **recipe.model_args)
        needed, macs = image_memory(model, size, train=labelled), count(model, size).macs     # masked: a part of these
    except Exception:   # of every architecture its own; the training says what is wrong
        return
    check_memory(f'{recipe.name} at {size} pixels', world.device, batch, needed, macs)


def _pretraining_flop(recipe: Pretraining) -> float:
    """Pass two images through the method on the meta device; passes without gradients are those of teachers."""
    args, size, images, generator = dict(recipe.method_args), recipe.img_size, 2, torch.Generator()
    spec = AugmentSpec.of(recipe, {'input_size': (3, size, size), 'mean': (0.5,) * 3, 'std': (0.5,) * 3})
    try:
        with torch.device('meta'):
            if recipe.teacher:
                args['teacher'] = timm.create_model(recipe.teacher, num_classes=0, img_size=size, global_pool='token')
            method = METHODS[recipe.method](make_encoder(recipe), **args)
        views = method.views(spec)(torch.zeros(images, 3, size, size, dtype=torch.uint8), generator)
        with TrainingFlop() as counted:
            method.train()(*(x.to('meta') for x in (*views, *method.draw(images, generator))))
    except (RuntimeError, NotImplementedError) as e:    # a method from outside may need values
        raise ZooError(f'The cost of {recipe.method} cannot be counted: {one_line(e)}') from e
    return counted.flop / images
