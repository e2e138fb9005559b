"""The card of a run's weights."""
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from ..data.datasets import DATASETS
from ..data.sources import Source
from ..methods import Task
from ..recipes import PRETRAININGS, RECIPES, BaseRecipe
from ..runtime.world import machine
from .run_dir import differences


def make_card(task: Task, source: Source, result: Mapping[str, Any]) -> str:
    """Write the card of a run's weights, in Markdown."""
    recipe, cfg, parts = task.recipe, task.cfg, task.card(result['figures'])
    settings = ''.join(f'| {field.name} | {getattr(recipe, field.name)} |\n' for field in fields(recipe)
                       if field.name not in ('name', 'about', 'published'))
    cost = f'; {result["pflop"]:g} PFLOP' if result['pflop'] else ''
    return f'''# {recipe.name}
{about(recipe, source)}{parts['note']}

{parts['table']}
![curves](curves.png)

## Use
{parts['use']}Input {' x '.join(map(str, cfg['input_size']))}, mean {cfg['mean']}, std {cfg['std']}{parts['classes']}.

## {task.title}
`{result['command']}` on {source.name} ({len(source.train)} images), {machine()['device']}{cost}.

| setting | value |
|---|---|
{settings}'''


def about(recipe: BaseRecipe, source: Source) -> str:
    """Return the recipe's own description; or how this recipe, or its images, differ from the one of that name."""
    written = {**RECIPES, **PRETRAININGS}.get(recipe.name, recipe)
    changes = differences(asdict(written), asdict(recipe))
    if recipe.dataset and source.info and source.info is not DATASETS.get(recipe.dataset):
        changes.append(f'images {recipe.dataset} -> {source.name}')
    if changes:
        return f'The recipe of that name, with changes: {"; ".join(changes)}.'
    return f'{recipe.about} The paper has {recipe.published:.2f} %.' if recipe.published else recipe.about
