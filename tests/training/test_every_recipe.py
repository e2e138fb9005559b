"""Every recipe takes its first step and one of the middle: on random images, small ones, with few blocks."""
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from tinyvit_zoo.methods import self_supervised, supervised
from tinyvit_zoo.recipes import PRETRAININGS, RECIPES, BaseRecipe, Recipe
from tinyvit_zoo.runtime.world import World
from tinyvit_zoo.training.run_dir import Run
from tinyvit_zoo.training.train import Options, make_loop, make_task, open_images, training_batches

IMAGES, LARGEST = 10, 32
STAGED, WHOLE = ('sl_pit', 'sl_swin', 'plain_pit', 'plain_swin', 'ssl_swin'), ('fast_cnn', 'resnet')
WORLD = World(0, 1, torch.device('cpu'))


@pytest.fixture(scope='module')
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Images by their size, as the data sets have them: two classes."""
    folder, paths = tmp_path_factory.mktemp('images'), {}
    for size in {min(recipe.img_size, LARGEST) for recipe in (*RECIPES.values(), *PRETRAININGS.values())}:
        images = np.random.RandomState(0).randint(0, 256, (IMAGES, size, size, 3), np.uint8)
        paths[size] = f'npz:{folder / f"{size}.npz"}'
        np.savez(folder / f'{size}.npz', train_images=images, train_labels=np.arange(IMAGES) % 2,
                 test_images=images[:2], test_labels=np.arange(2))
    return paths


@pytest.fixture(autouse=True)
def _teachers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without weights, which would be downloaded."""
    def attention_teacher(recipe: Any) -> Any:
        return timm.create_model('vit_tiny_patch16_224', num_classes=0, img_size=recipe.img_size, global_pool='token')

    monkeypatch.setattr(self_supervised, 'make_teacher', attention_teacher)
    monkeypatch.setattr(supervised, 'Teacher', lambda spec, cfg, device, dtype: lambda x: x.new_ones(len(x), 2))


def shallow(recipe: BaseRecipe) -> dict[str, Any]:
    """Another test builds each model in full."""
    if recipe.model.startswith(WHOLE) or getattr(recipe, 'method', '') == 'd_mae':     # which compares several blocks
        return recipe.model_args
    return {**recipe.model_args, **(dict(depths=(1, 1, 1)) if recipe.model.startswith(STAGED) else dict(depth=2))}


@pytest.mark.parametrize('recipe', [*RECIPES.values(), *PRETRAININGS.values()], ids=lambda recipe: recipe.name)
def test_two_steps(recipe: BaseRecipe, sources: dict[int, str], tmp_path: Path) -> None:
    size = min(recipe.img_size, LARGEST)
    changes: dict[str, Any] = {'batch_size': 2, 'model_args': shallow(recipe)}
    if isinstance(recipe, Recipe):
        changes |= {'from_weights': ''}     # the pre-training is a recipe of its own
    recipe = replace(recipe, img_size=size, **changes)
    options = Options(tmp_path / 'run', sources[size], precision='fp32')
    source, run = open_images(recipe, options, WORLD), Run(tmp_path, quiet=True)
    task = make_task(recipe, options, source, WORLD, None)
    loop = make_loop(task, training_batches(task, options, source), options, source, run)
    before = [p.detach().clone() for p in loop.parameters]
    for step, (images, labels) in zip((0, loop.total_steps // 2), loop.batches, strict=False):
        loop.step, loop.epoch = step, step // len(loop.batches)
        loop.train_step(images, labels)
    assert len(loop.losses) == 2 and all(loss.isfinite() for loss in loop.losses)
    moved = [not torch.equal(p, old) for p, old in zip(loop.parameters, before, strict=True)]
    assert sum(moved) > 0.5 * len(moved)
