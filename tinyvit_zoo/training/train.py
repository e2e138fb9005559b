"""Make the weights of a recipe: `tinyvit-zoo train` and `tinyvit-zoo pretrain`."""
import json
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.batches import MOST_WORKERS, Batches, make_batches
from ..data.datasets import DATASETS, spec_of
from ..data.sources import Source, normalization, open_source
from ..data.splits import are_numbers, digests_of, draw, repeated
from ..errors import ZooError
from ..kernels.memory import keep_freed_memory
from ..methods import TASKS, Task
from ..models import check_name, list_models
from ..recipes import PRETRAININGS, BaseRecipe, Pretraining, Recipe
from ..recipes.ranges import FROM_0, FROM_0_TO_INFINITY, POSITIVE, Range, check_fields, setting
from ..recipes.settings import AnyRecipe, override
from ..runtime.documents import digest
from ..runtime.files import naming_unwritable, user_path, write_whole
from ..runtime.text import show, some
from ..runtime.world import World, autocast_dtype, fast_kernels, machine
from ..weights import save_weights
from ..weights.files import TENSORS, read_metadata
from ..weights.readout import Readout
from ..weights.resolve import RESULT, check_model, read_recipe, resolve, without_rates
from ..weights.trained import keep_trained_on, stated_of, trained_on
from .budget import fit_minutes, fit_pflop
from .card import make_card
from .cost import check_size, pflop
from .facts import begun_cfg, check_alike, fingerprints, in_first, open_run, runs_before, to_begin
from .loop import Loop, Stopped
from .optimizer import make_optimizer
from .own import without_colours
from .run_dir import PRETRAINING, Run, load_checkpoint

_ALIKE = ('resume', 'minutes', 'pflop', 'loader', 'graphs', 'compile', 'precision', 'eval_every', 'checkpoint_minutes',
          'val_fraction', 'fraction')       # options that all processes must share
VAL_FRACTION = 0.1      # held out where the recipe keeps the best weights and there are no validation images


@dataclass(frozen=True)
class Options:
    """Settings of the machine and the images, not of the recipe."""
    output: Path
    data: Any                       # as `open_source` takes it
    download: bool = False
    val_fraction: float | None = None   # None: VAL_FRACTION where something is to be chosen by validation images
    fraction: float = 1.
    resume: bool = False
    precision: str = 'auto'
    compile: bool = False
    graphs: bool = True             # on a GPU
    loader: str = 'auto'            # 'memory' or 'stream'
    workers: int | None = setting(None, allowed=Range(f'0 to {MOST_WORKERS}', lambda v: 0 <= v <= MOST_WORKERS))
    checkpoint_minutes: float = setting(1., allowed=FROM_0_TO_INFINITY)
    eval_every: int = setting(0, allowed=FROM_0)    # epochs; 0: some 20 times in all, or a fifth of the time
    track: str = ''                 # tensorboard, wandb, mlflow or trackio
    # that the run may take: they set the epochs
    minutes: float | None = setting(None, allowed=Range('above 0, and at most 50,000', lambda v: 0 < v <= 50_000))
    pflop: float | None = setting(None, allowed=POSITIVE)       # likewise
    begun: float | None = None      # time.monotonic() when the minutes began; None: as `train` is called
    given: Mapping[str, Any] = field(default_factory=dict)  # fields of the recipe that do not scale with the epochs
    command: str = ''               # as it was given; '': the recipe's

    @property
    def loading(self) -> dict[str, Any]:
        """Options of `make_batches`."""
        return {'mode': self.loader, **({} if self.workers is None else {'workers': self.workers})}


def train(recipe: BaseRecipe, options: Options, world: World, start: Path | None = None) -> dict[str, Any]:
    """Make a recipe's weights, from `start` where given, or pre-train an encoder. Returns result.json."""
    begun = options.begun or time.monotonic()
    check_fields(options)
    check_recipe(to_begin(recipe, options, start))
    if 'epochs' in options.given and (options.minutes or options.pflop):
        raise ZooError('minutes, pflop and epochs all set the epochs: give one of them.')
    check_alike(world, {'recipe': asdict(recipe), **{name: getattr(options, name) for name in _ALIKE}})
    run = Run(options.output, quiet=not world.first, track=options.track)
    source, batches = open_images(recipe, options, world), None
    recipe = without_colours(recipe, source, options.given, world)
    check_size(recipe, len(source.train), len(source.class_names), world)
    try:
        if options.minutes or options.pflop:
            in_first(world, lambda: run.claim(options.resume))
            recipe, batches = _within_budget(recipe, options, source, world, start, begun)
        task = make_task(recipe, options, source, world, start)
        open_run(run, task, options, source)
        return _go_on(run, task, batches, options, source)
    finally:
        run.close()


def _go_on(run: Run, task: Task, batches: Batches | None, options: Options, source: Source) -> dict[str, Any]:
    """Train from the beginning or, in a resumed run, from where it stands. Returns result.json."""
    recipe, world = task.recipe, task.world
    if options.resume:      # a chain goes on to its second stage
        if result := world.gather(run.finished())[0]:
            with suppress(ZooError):    # checkpoints may be gone
                state = load_checkpoint(run.folder, run.say) if world.first else None
                if state and state.get('rows') and state['epoch'] == recipe.total_epochs:
                    run.rewind(state['rows'])
            run.say(f'{recipe.name} is finished: {run.folder}.')
            return result
    before = fingerprints(source) if world.first else []
    batches = batches or training_batches(task, options, source)
    loop = make_loop(task, batches, options, source, run)
    if options.resume:
        run.say(f'Resumed at step {loop.step}.' if loop.restore() else 'No checkpoint yet: starting from the '
                                                                       'beginning.')
    precision = str(task.dtype or torch.float32).removeprefix('torch.')
    names = source.class_names
    classes = f', {len(names)} classes ({some(names)})' if isinstance(recipe, Recipe) else ''
    run.say(f'{recipe.name}: {task.headline(source)}{classes}; {recipe.total_epochs} epochs of {len(batches)} steps, '
            f'{precision} on {world.size} x {world.device}.'
            f'{" The same seed gives the same figures up to rounding." if world.device.type != "cpu" else ""}')
    if options.minutes or options.pflop:
        run.say(f'The epochs fit the budget: --epochs {recipe.epochs} repeats this run.')
    if not loop.step:
        if world.first:
            _tell_of_repeated(recipe, source, run)
        task.begin()
    with keep_freed_memory(world.device), fast_kernels(world.device, task.dtype):
        loop.train()
    if world.first and fingerprints(source) != before:
        run.say(f'Files of {source.name} were written to during the training, which may have read other images: repeat '
                f'it unless they are the same.')
    try:
        return _finish(task, options, source, run)
    except (Exception, SystemExit):
        raise
    except BaseException as e:      # of a signal: the last checkpoint holds all
        raise Stopped(signal.SIGINT if isinstance(e, KeyboardInterrupt) else signal.SIGTERM) from None


def _tell_of_repeated(recipe: BaseRecipe, source: Source, run: Run) -> None:
    """Name the images for evaluation that are also trained on, or were by the weights to begin with or the teacher."""
    known = {'are training images too': set(digests_of(source.train)), **{
        f'were training images of {spec}': trained_on(spec) for spec in runs_before(recipe)}}
    for name, split in (('validation', source.val), ('test', source.test)):
        for fault, digests in known.items():
            if split and digests and (both := repeated(split, digests)):
                run.say(f'{len(both)} of {len(split)} {name} images {fault}, which makes their accuracy too high: '
                        f'{some([split.name(i) for i in both])}.')


def make_task(recipe: BaseRecipe, options: Options, source: Source, world: World, start: Path | None) -> Task:
    """Make what is trained, with the weights to begin with."""
    dtype, begun = autocast_dtype(options.precision, world.device), to_begin(recipe, options, start)
    cfg, kind = data_cfg(begun, source, begun_cfg(options)), TASKS[type(recipe)]
    return kind(recipe, cfg, world, dtype, kind.make_network(begun, cfg, world.device))


def training_batches(task: Task, options: Options, source: Source) -> Batches:
    recipe, world = task.recipe, task.world
    with world.first_alone():
        return make_batches(
            source.train, task.cfg['input_size'][1:], recipe.batch_size, world.device, train=True, seed=recipe.seed,
            channels=task.cfg['input_size'][0],
            rank=world.rank, world_size=world.size, stream_transform=task.views.pillow(),
            balanced=getattr(recipe, 'balance', '') == 'sampling', **options.loading)


def make_loop(task: Task, batches: Batches, options: Options, source: Source, run: Run) -> Loop:
    task.given_eval_every = options.eval_every
    task.watch(source, run.say, options.loading)
    if options.compile and task.world.device.type != 'cpu':
        task.views.compile()
    return Loop(task, batches, run, options.compile, options.checkpoint_minutes, options.graphs)


def _within_budget(recipe: AnyRecipe, options: Options, source: Source, world: World, start: Path | None, begun: float,
                   ) -> tuple[AnyRecipe, Batches | None]:
    """Set the epochs, those of the run where it is resumed. Also returns the batches if they had to be made."""
    if options.resume and (options.output / 'recipe.json').exists():
        epochs = read_recipe(options.output)['recipe']['epochs']
        return override(recipe, {**options.given, 'epochs': epochs}), None
    if options.pflop:
        recipe = fit_pflop(recipe, options, lambda changed: pflop(changed, len(source.train), len(source.class_names)))
        check_recipe(recipe)
        return recipe, None
    if world.first:
        show('Measuring the speed ...')
    batches = training_batches(make_task(recipe, options, source, world, start), options, source)

    def build(run: Run) -> Loop:
        task = make_task(recipe, options, source, world, start)
        open_run(run, task, replace(options, resume=False), source)
        return make_loop(task, batches, options, source, run)

    def finish(loop: Loop) -> None:
        _finish(loop.task, options, source, loop.run)
    recipe = fit_minutes(recipe, options, world, build, finish, begun)
    check_recipe(recipe)
    return recipe, batches


def train_from_pretraining(first: Pretraining, recipe: Recipe, options: Options, world: World) -> dict[str, Any]:
    """Pre-train in OUTPUT/pretraining, then train in OUTPUT. A resumed chain goes on with the stage it was in."""
    if options.minutes or options.pflop:
        raise ZooError(f'{recipe.name} starts with the pre-training {first.name}, but minutes and pflop are for '
                       f'one training: give epochs (on the command line also --pretraining epochs=N), or pre-train '
                       f'first and start from that run (--from DIR, start=DIR).')
    check_recipe(replace(recipe, from_weights=''))
    check_recipe(first)
    check_alike(world, {'recipe': asdict(recipe)})
    Run(options.output).check(options.resume)
    source = open_images(recipe, options, world)
    if options.val_fraction is None:    # both stages leave out the same images
        options = replace(options, val_fraction=source.val_fraction)
    check_size(recipe, len(source.train), len(source.class_names), world)
    begin = options.output / PRETRAINING
    train(first, replace(options, output=begin, eval_every=0), world)
    return train(recipe, options, world, start=begin)


def pretraining_of(recipe: Recipe) -> Pretraining | None:
    """Return the pre-training to run first; None where there are weights. ZooError if its images are others."""
    first = PRETRAININGS.get(recipe.from_weights)
    if first is None or Path(recipe.from_weights).exists() or first.name in list_models(pretrained=True):
        return None
    if first.dataset != recipe.dataset:
        raise ZooError(f'{recipe.name} starts from {first.name}, which is pre-trained on other images: run that first '
                       f'(`{first.command(spec_of(first.dataset))}`) and start from it (--from DIR, start=DIR).')
    return replace(first, seed=recipe.seed, model_args={**first.model_args, **without_rates(recipe.model_args)})


def check_recipe(recipe: Any) -> None:
    """Raise ZooError for a recipe that cannot be trained, before anything is read or written."""
    check_model(recipe.model) if isinstance(recipe, Recipe) else check_name(recipe.model)
    recipe.check()
    # layers that decay need a real model to tell apart
    make_optimizer(replace(recipe, layer_decay=1.) if isinstance(recipe, Recipe) else recipe, nn.Linear(1, 1))
    TASKS[type(recipe)].check(recipe)


def open_images(recipe: BaseRecipe, options: Options, world: World) -> Source:
    best = isinstance(recipe, Recipe) and recipe.keep == 'best'
    fraction = VAL_FRACTION * best if options.val_fraction is None else options.val_fraction
    with world.first_alone():
        source = open_source(options.data, download=options.download, val_fraction=fraction, fraction=options.fraction,
                             seed=recipe.seed, labels=isinstance(recipe, Recipe))
    _check_output(options, source)
    if source.val_fraction and options.val_fraction is None and world.first:
        show(f'{fraction:.0%} of the training images are held out to choose the best weights: val_fraction sets the '
             f'share.')
    if best and source.val is None:
        raise ZooError("keep is 'best', but there are no validation images: give a val_fraction of 0.1.")
    TASKS[type(recipe)].check_images(recipe, source)
    if isinstance(recipe, Pretraining) and not (source.val or source.test):
        if not draw(source.train.labels, len(source.train) // 5, 0).any():
            raise ZooError(f'{source.name} has {len(source.train)} images, too few to hold out a fifth to '
                           f'evaluate the features: give more, or test images too.')
    return source


def _check_output(options: Options, source: Source) -> None:
    """Raise ZooError where pictures of the run would be images of the next one."""
    data, images = options.data, source.train.images
    is_folder = user_path(data).is_dir() if isinstance(data, Path) else (
        isinstance(data, str) and data.startswith('folder:'))
    if images.root and is_folder and options.output.resolve().is_relative_to(images.root.resolve()):
        raise ZooError(f'{options.output} is inside the folder of the images, {images.root}: choose another output.')


def data_cfg(recipe: BaseRecipe, source: Source, begun: Mapping[str, Any]) -> dict[str, Any]:
    """Return the preprocessing and classes of the weights to be, in the fields of a timm cfg.

    Normalization statistics are those of `begun`, a run that is resumed; else of the recipe; else of its data set where
    the images may be that (no other known set, as many classes), of the weights it starts from, of a known source, or
    measured on the training images. Classes have the names of the source, or of the data set where the source has
    numbers alone.
    """
    classes = len(source.class_names)
    known = DATASETS.get(recipe.dataset)
    if known and (known.num_classes != classes or source.info not in (None, known)):
        known = None
    begin = recipe.from_weights if isinstance(recipe, Recipe) else ''
    start = resolve(begin, recipe.model).cfg if begin else {}
    if (channels := start.get('input_size', (3,))[0]) not in (3, source.channels):
        raise ZooError(f'{begin} takes images of {channels} channels, and {source.name} has {source.channels}: give '
                       f'other images, or other weights to start from.')
    stated, deep = (vars(recipe), vars(known) if known else {}, start), source.train.images.deep
    if begun and begun['input_size'][0] == source.channels:
        mean, std = begun['mean'], begun['std']
    else:
        mean, std = (None if deep else next(((each['mean'], each['std']) for each in stated if each.get('mean')), None)
                     ) or normalization(source, recipe.img_size)
    names = (are_numbers(source.class_names) and known and known.label_names) or source.class_names
    return {
        'architecture': recipe.model, 'num_classes': classes,
        'input_size': (source.channels, recipe.img_size, recipe.img_size),
        'mean': tuple(mean), 'std': tuple(std), 'crop_pct': recipe.crop_pct, 'interpolation': 'bicubic',
        'label_names': list(names), 'multi_label': source.train.multi_label and isinstance(recipe, Recipe)}


def _finish(task: Task, options: Options, source: Source, run: Run) -> dict[str, Any]:
    """Write the weights, judge them, write card and result.json (which says that the training is over)."""
    recipe, world = task.recipe, task.world
    if world.first:
        with naming_unwritable(run.folder / RESULT):
            (run.folder / RESULT).unlink(missing_ok=True)       # of other weights
        write_weights(run.folder, recipe, task.cfg, task.kept())
        if isinstance(recipe, Recipe):
            keep_trained_on(run.folder, digests_of(source.train), runs_before(recipe))
    world.barrier()
    try:
        figures = task.judge(run.folder)
    except ZooError as e:       # the outputs are NaN or infinite
        (run.folder / 'weights.safetensors').unlink(missing_ok=True)
        raise ZooError(f'{e} The last checkpoint is in {run.folder}.') from e
    try:
        cost: float | None = float(f'{pflop(recipe, len(source.train), len(source.class_names)):.4g}')
    except ZooError:    # a method from outside
        cost = None
    result = {'weights': recipe.name, 'figures': figures, 'pflop': cost,
              'command': options.command or recipe.command(spec_of(recipe.dataset)), 'machine': machine(),
              TENSORS: read_metadata(run.folder / 'weights.safetensors')[TENSORS],
              'run': digest(read_recipe(run.folder)), **stated_of(run.folder)}
    if world.first:
        write_whole(run.folder / 'card.md', make_card(task, source, result).encode(errors='backslashreplace'))
        run.finish(result)
        for line in task.summary(run.folder, figures):
            run.say(line)
    world.barrier()
    return result


def write_weights(folder: Path, recipe: BaseRecipe, cfg: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Write weights.safetensors, with all that timm needs to know of them in its metadata."""
    stated = {key: value for key, value in cfg.items() if key not in ('architecture', 'multi_label')}
    save_weights(tensors, folder / 'weights.safetensors', {
        'pretrained_cfg': json.dumps(stated), 'recipe': recipe.name,
        **Readout(multi_label=cfg.get('multi_label', False)).metadata})
