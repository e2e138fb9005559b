"""From a recipe and images to weights with their figures: what `tinyvit-zoo train` does."""
from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ..data.datasets import DATASETS, spec_of
from ..data.sources import Source, normalization, open_source
from ..errors import ZooError
from ..kernels.memory import keep_freed_memory
from ..measure.accuracy import evaluate
from ..measure.bench import evaluation_batches
from ..methods.supervised import supervised_batches, supervised_task
from ..recipes import PRETRAININGS, RECIPES, BaseRecipe, Recipe
from ..runtime.files import write_whole
from ..runtime.machine import machine
from ..runtime.precision import autocast_dtype
from ..runtime.world import World
from ..weights import save_weights
from ..weights.resolve import resolve, without_rates
from .checks import check_numbers, check_recipe
from .loop import Loop
from .run_dir import Run, differences


@dataclass(frozen=True)
class Options:
    """What does not decide which weights are made, or belongs to the machine at hand."""
    output: Path
    data: str
    download: bool = False
    val_fraction: float = 0.
    fraction: float = 1.
    resume: bool = False
    precision: str = 'auto'
    compile: bool = False
    loader: str = 'auto'            # 'memory' or 'stream'
    workers: int | None = None
    checkpoint_minutes: float = 1.
    eval_every: int = 0             # epochs; 0: twenty times in all
    tensorboard: bool = False
    command: str = ''               # as it was given; '': the recipe's

    @property
    def loading(self) -> dict[str, Any]:
        """Of make_batches."""
        return {'mode': self.loader, **({} if self.workers is None else {'workers': self.workers})}


def train(recipe: Recipe, options: Options, world: World, start: Path | None = None) -> dict[str, Any]:
    """Make the weights of a recipe. Returns their figures, as result.json has them.

    `start`: where the weights that the recipe begins with lie, if not where it says.
    """
    dtype = autocast_dtype(options.precision, world.device)
    begun = dataclasses.replace(recipe, from_weights=str(start)) if start else recipe
    check_recipe(begun)
    check_numbers(vars(options))
    run = Run(options.output, quiet=not world.first, tensorboard=options.tensorboard)
    source = open_images(recipe, options, world)
    cfg = data_cfg(begun, source)
    model = make_model(begun, cfg).to(world.device)
    open_run(run, recipe, options, source, world)

    loading = options.loading
    with world.first_alone():
        batches = supervised_batches(recipe, source.train, cfg, world, **loading)
    # test images are looked at meanwhile only where there is nothing else to look at; they choose nothing
    watched = {'val': source.val} if source.val is not None else {'test': source.test}
    measures = {name: measure(split, recipe.batch_size, cfg, world, dtype, **loading)
                for name, split in watched.items() if split is not None}
    every = options.eval_every or max(1, recipe.total_epochs // 20)
    task = supervised_task(recipe, model, cfg, batches.streamed, measures, every)
    if options.compile and task.augment and world.device.type != 'cpu':
        task.augment.compile()
    loop = Loop(task, batches, recipe, run, world, dtype, options.compile, options.checkpoint_minutes)
    if options.resume:
        run.say(f'Resumed at step {loop.step}.' if loop.restore() else 'No checkpoint yet: from the beginning.')
    run.say(_headline(recipe, source, model, world, dtype, loop))
    with keep_freed_memory(world.device):
        loop.train()
    if world.first:
        write_weights(run.folder, recipe, cfg, task.kept())
    world.barrier()
    return _judge(recipe, options, source, cfg, world, dtype, run, loading)


def open_images(recipe: BaseRecipe, options: Options, world: World) -> Source:
    with world.first_alone():
        source = open_source(options.data, download=options.download, val_fraction=options.val_fraction,
                             fraction=options.fraction, seed=recipe.seed)
    if isinstance(recipe, Recipe) and recipe.keep == 'best' and source.val is None:
        raise ZooError("keep is 'best', and there are no validation images to choose by: give --val-fraction 0.1.")
    return source


def open_run(run: Run, recipe: BaseRecipe, options: Options, source: Source, world: World) -> None:
    """The first process opens the run directory; where it may not, that one says why and all end."""
    problem = ''
    if world.first:
        try:
            run.open(recipe, _facts(options, source, world), options.resume)
        except ZooError as e:
            problem = str(e)
    if world.gather(problem)[0]:
        raise ZooError(problem) if world.first else SystemExit(2)


def data_cfg(recipe: BaseRecipe, source: Source) -> dict[str, Any]:
    """The preprocessing and classes of the weights to be, in the fields of a timm cfg.

    Normalisation is the one the recipe names, or that of its data set where the images may be that (no other known set,
    as many classes), else that of the weights it starts from, else that of a known source, else measured on the
    training images. Classes have the names that the source has, or the data set's where it has numbers alone.
    """
    classes = len(source.class_names)
    known = DATASETS.get(recipe.dataset)
    if known and (known.num_classes != classes or source.info not in (None, known)):
        known = None
    begin = recipe.from_weights if isinstance(recipe, Recipe) else ''
    start = resolve(begin, recipe.model).cfg if begin else {}
    mean: tuple[float, ...]
    std: tuple[float, ...]
    if recipe.mean and recipe.std:
        mean, std = recipe.mean, recipe.std
    elif known:
        mean, std = known.mean, known.std
    elif 'mean' in start:
        mean, std = start['mean'], start['std']
    else:
        mean, std = normalization(source, recipe.img_size)
    named = any(not name.isdigit() for name in source.class_names)
    names = source.class_names if named or not known else known.label_names or source.class_names
    return {
        'architecture': recipe.model, 'num_classes': classes, 'input_size': (3, recipe.img_size, recipe.img_size),
        'mean': tuple(mean), 'std': tuple(std), 'crop_pct': recipe.crop_pct, 'interpolation': 'bicubic',
        'label_names': list(names)}


def make_model(recipe: Recipe, cfg: Mapping[str, Any]) -> nn.Module:
    """The model with its starting weights: the recipe's, or random ones drawn from its seed."""
    torch.manual_seed(recipe.seed)
    args = {'num_classes': cfg['num_classes'], 'img_size': recipe.img_size, **recipe.model_args}
    if not recipe.from_weights:
        return timm.create_model(recipe.model, **args)
    return resolve(recipe.from_weights, recipe.model).create(**args)


def measure(
        split: Any, batch_size: int, cfg: Mapping[str, Any], world: World, dtype: torch.dtype | None, **loading: Any,
) -> Any:
    """Return a function that evaluates a model on `split`."""
    batches = evaluation_batches(split, 2 * batch_size, cfg, world, **loading)
    return lambda model: evaluate(model, batches, world, dtype)


def _facts(options: Options, source: Source, world: World) -> dict[str, Any]:
    """What beside the recipe decides the weights; a resumed run must have the same."""
    digest = hashlib.sha256(source.train.labels.numpy().tobytes()).hexdigest()[:16]
    return {
        'data': {'source': source.name, 'images': len(source.train), 'labels': digest},
        'val_fraction': options.val_fraction, 'fraction': options.fraction, 'processes': world.size,
        'precision': options.precision, 'compile': options.compile}


def _headline(recipe: Recipe, source: Source, model: nn.Module, world: World, dtype: Any, loop: Loop) -> str:
    number = str(dtype or torch.float32).removeprefix('torch.')
    parts = [f'{name} {len(split)}' for name, split in (
        ('training', source.train), ('validation', source.val), ('test', source.test)) if split is not None]
    beginning = f'from {recipe.from_weights}' if recipe.from_weights else 'from scratch'
    return (f'{recipe.name}: {sum(p.numel() for p in model.parameters()):,} parameters, {beginning}; '
            f'{source.name}, images: {", ".join(parts)}; '
            f'{recipe.total_epochs} epochs of {len(loop.batches)} steps, {number} on {world.size} x {world.device}.'
            f'{" The same seed gives the same figures to rounding only." if world.device.type != "cpu" else ""}')


def write_weights(folder: Path, recipe: BaseRecipe, cfg: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """weights.safetensors, with all that timm needs to know of them in its metadata."""
    told = {key: value for key, value in cfg.items() if key != 'architecture'}
    save_weights(tensors, folder / 'weights.safetensors', {'pretrained_cfg': json.dumps(told), 'recipe': recipe.name})


def _judge(
        recipe: Recipe, options: Options, source: Source, cfg: Mapping[str, Any], world: World,
        dtype: torch.dtype | None, run: Run, loading: Mapping[str, Any],
) -> dict[str, Any]:
    """Load the weights file as a user would and measure it; result.json, the card, and the last line."""
    model = resolve(run.folder).load(world.device).model
    figures = {}
    for name, split in (('val', source.val), ('test', source.test)):
        if split is not None:
            figures[name] = measure(split, recipe.batch_size, cfg, world, dtype, **loading)(model)
    result = {'weights': recipe.name, 'figures': figures,
              'command': options.command or recipe.command(spec_of(recipe.dataset)), 'machine': machine()}
    if world.first:
        write_whole(run.folder / 'result.json', json.dumps(result, indent=1).encode())
        write_whole(run.folder / 'card.md', card(recipe, source, cfg, result).encode())
        run.say(f'Weights, curves and card are in {run.folder}.')
        for name, found in figures.items():
            run.say(f'{name} accuracy: {found["top1"]:.2f} % of {found["images"]} images')
    return result


def card(recipe: Recipe, source: Source, cfg: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """What these weights are, in Markdown."""
    rows = ''.join(f'| {name} | {f["images"]} | {f["top1"]:.2f} | {f["loss"]:.4f} |\n'
                   for name, f in result['figures'].items())
    args = ''.join(f', {key}={value!r}' for key, value in without_rates(recipe.model_args).items())
    size = ' x '.join(map(str, cfg['input_size']))
    return f'''# {recipe.name}
{about(recipe, source)}

| measured on | images | top-1, % | loss |
|---|---|---|---|
{rows}
![curves](curves.png)

## Use
```python
import timm
import tinyvit_zoo
weights = dict(file='weights.safetensors')
model = timm.create_model('{recipe.model}', pretrained=True, pretrained_cfg_overlay=weights{args})
```
Input {size}, mean {cfg['mean']}, std {cfg['std']}, {cfg['num_classes']} classes.

## Training
`{result['command']}` on {source.name} ({len(source.train)} images), {machine()['device']}.

{settings_table(recipe)}'''


def about(recipe: BaseRecipe, source: Source) -> str:
    """What the recipe of that name says of itself; or how this one, or its images, differ from it."""
    written = {**RECIPES, **PRETRAININGS}.get(recipe.name, recipe)
    changes = differences(dataclasses.asdict(written), dataclasses.asdict(recipe))
    if recipe.dataset and source.info and source.info is not DATASETS.get(recipe.dataset):
        changes.append(f'images {recipe.dataset} -> {source.name}')
    if changes:
        return f'By the recipe of that name, changed: {"; ".join(changes)}.'
    return f'{recipe.about} The paper has {recipe.published:.2f} %.' if recipe.published else recipe.about


def settings_table(recipe: BaseRecipe) -> str:
    settings = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)
                if field.name not in ('name', 'about', 'published')}
    return '| setting | value |\n|---|---|\n' + ''.join(f'| {key} | {value} |\n' for key, value in settings.items())

