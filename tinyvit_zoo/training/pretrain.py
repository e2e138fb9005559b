"""From a pre-training recipe and images to an encoder: what `tinyvit-zoo pretrain` does. No label is learned from."""
from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor

from ..augment.batched import Augment
from ..augment.pillow import TwoViews, pretraining_transform
from ..augment.views import contrastive_views, low_resolution_views
from ..data.batches import make_batches
from ..data.datasets import spec_of
from ..data.sources import Source
from ..data.splits import draw
from ..errors import ZooError, nearest
from ..kernels.memory import keep_freed_memory
from ..measure.bench import evaluation_batches
from ..measure.features import extract, knn, spread
from ..methods import METHODS, MaskedModel, Method, MoCoV3, SelfDistillation
from ..models import require_plain
from ..models.mae_lite import encoder_tensors
from ..recipes import Pretraining
from ..runtime.files import write_whole
from ..runtime.machine import machine
from ..runtime.precision import autocast_dtype
from ..runtime.world import World
from ..weights import read_weights, unwrap
from ..weights.resolve import resolve
from .checks import check_model, check_numbers, check_training
from .loop import Loop
from .pictures import draw_reconstruction
from .run_dir import Run
from .train import Options, about, data_cfg, open_images, open_run, settings_table, write_weights

_BANK, _QUERIES, _PICTURES = 5000, 1000, 8      # images that are looked at meanwhile, at most
_COLLAPSED = 0.2                                # of the spread that random weights have

Views = Callable[[Tensor, torch.Generator], tuple[Tensor, ...]]


def pretrain(recipe: Pretraining, options: Options, world: World) -> dict[str, Any]:
    """Make the encoder of a recipe. Returns what result.json has."""
    dtype = autocast_dtype(options.precision, world.device)
    check_pretraining(recipe)
    check_numbers(vars(options))
    run = Run(options.output, quiet=not world.first, tensorboard=options.tensorboard)
    source = open_images(recipe, options, world)
    cfg = {key: value for key, value in data_cfg(recipe, source).items() if key != 'label_names'} | {'num_classes': 0}
    method = make_method(recipe, cfg, world.device)
    make_views(recipe, cfg, method, False)  # says what is wrong of them while nothing is written
    open_run(run, recipe, options, source, world)
    result = run.folder / 'result.json'
    if options.resume and result.exists():
        run.say(f'{recipe.name} is finished: {run.folder}.')
        return json.loads(result.read_text(encoding='utf-8'))

    with world.first_alone():
        batches = make_batches(
            source.train, cfg['input_size'][1:], recipe.batch_size, world.device, train=True, seed=recipe.seed,
            rank=world.rank, world_size=world.size, stream_transform=stream_transform(recipe, cfg, method),
            **options.loading)
    monitor = Monitor(source, recipe.batch_size, cfg, world, dtype, **options.loading)
    every = options.eval_every or max(1, recipe.total_epochs // 20)
    task = Pretrain(recipe, method, make_views(recipe, cfg, method, batches.streamed), monitor, every, run, world)
    loop = Loop(task, batches, recipe, run, world, dtype, options.compile, options.checkpoint_minutes)
    if options.resume:
        run.say(f'Resumed at step {loop.step}.' if loop.restore() else 'No checkpoint yet: from the beginning.')
    run.say(_headline(recipe, source, method, world, dtype, loop))
    if not loop.step:
        task.look()
    with keep_freed_memory(world.device):
        loop.train()
    return _finish(recipe, options, source, cfg, task, run, world)


def check_pretraining(recipe: Pretraining) -> None:
    """ZooError for what cannot be trained, before anything is read or written."""
    check_training(recipe)
    if recipe.method not in METHODS:
        raise ZooError(f'There is no method {recipe.method!r}.{nearest(recipe.method, METHODS)} Expected '
                       f'{", ".join(METHODS)}.')
    known = inspect.signature(METHODS[recipe.method]).parameters
    for name in recipe.method_args:
        if name not in known or name in ('encoder', 'teacher'):
            raise ZooError(f'{recipe.method} has no argument {name!r} (method_args).{nearest(name, known)}')
    check_numbers(recipe.method_args)
    if ('teacher' in known) != bool(recipe.teacher):
        raise ZooError(f'{recipe.method} learns from a teacher: name one by --teacher, with --teacher-weights FILE.'
                       if 'teacher' in known else f'{recipe.method} has no use for a teacher: leave it out.')
    unused = [] if issubclass(METHODS[recipe.method], MaskedModel) else [
        name for name in ('crop_padding', 'crop_ratio', 'color_jitter')
        if getattr(recipe, name) != getattr(Pretraining, name)]
    if unused:
        raise ZooError(f'{recipe.method} makes views of its own and has no use for {", ".join(unused)}: leave it out.')
    if METHODS[recipe.method].whole_batches and (recipe.accumulate > 1 or recipe.batch_size < 2):
        raise ZooError(f'{recipe.method} tells the images of a batch apart, all at once: take accumulate 1 and a '
                       f'batch_size of 2 or more (they are {recipe.accumulate} and {recipe.batch_size}).')
    METHODS[recipe.method].check_encoder(timm.create_model(recipe.model, device='meta'))
    check_model(recipe)


def make_method(recipe: Pretraining, cfg: Mapping[str, Any], device: torch.device) -> Method:
    """The encoder with random weights drawn from the seed, and what the method puts around it."""
    torch.manual_seed(recipe.seed)
    args = dict(recipe.method_args)
    if recipe.teacher:
        args['teacher'] = make_teacher(recipe).to(device)
    encoder = make_encoder(recipe)
    try:
        return METHODS[recipe.method](encoder, **args).to(device)
    except (TypeError, ValueError, IndexError) as e:
        raise ZooError(f'{recipe.method} cannot be made with the method_args {dict(recipe.method_args)}: {e}. Expected '
                       f'values like its own.') from e


def make_encoder(recipe: Pretraining) -> Any:
    """Without classifier. timm's ViTs end in a norm behind the blocks only where the class token is what is read."""
    args = {'num_classes': 0, 'img_size': recipe.img_size, **recipe.model_args}
    if isinstance(timm.create_model(recipe.model, device='meta', **args), VisionTransformer):
        args['global_pool'] = 'token'
    return timm.create_model(recipe.model, **args)


def make_teacher(recipe: Pretraining) -> Any:
    """The model whose attention is distilled; all its weights must be there."""
    name = recipe.teacher
    if not timm.is_model(name):
        raise ZooError(f'There is no model {name!r} to be a teacher.{nearest(name, timm.list_models())}')
    args = {'num_classes': 0, 'img_size': recipe.img_size, 'global_pool': 'token'}
    try:
        require_plain(timm.create_model(name, device='meta', **args))
    except Exception as e:  # models of other kinds have other arguments
        raise ZooError(f'{name} cannot be a teacher at {recipe.img_size} pixels: {e} Expected a plain vision '
                       f'transformer, as deit_tiny_patch16_224.') from e
    if not recipe.teacher_weights:
        try:
            return timm.create_model(name, pretrained=True, **args)
        except (RuntimeError, OSError) as e:
            raise ZooError(f'There are no weights for the teacher {name} ({e}): give --teacher-weights FILE.') from e
    path = resolve(f'{name}={recipe.teacher_weights}').file
    assert path is not None     # NAME=FILE has one
    teacher = timm.create_model(name, **args)
    tensors, _ = encoder_tensors(unwrap(read_weights(path)))
    tensors.setdefault('pos_embed', teacher.pos_embed)  # fixed in pre-training
    try:
        teacher.load_state_dict(tensors)
    except RuntimeError as e:
        raise ZooError(f'{path} holds no weights of {name} at {recipe.img_size} pixels: {e}') from e
    return teacher


def make_views(recipe: Pretraining, cfg: Mapping[str, Any], method: Method, augmented: bool) -> Views:
    """What a method looks at, of a batch of images; as they are where the batches come augmented."""
    if augmented:
        return lambda images, generator: (images.transpose(0, 1) if isinstance(method, MoCoV3) else images,)
    size, mean, std = cfg['input_size'][1:], cfg['mean'], cfg['std']
    crops: dict[str, Any] = dict(
        flip=recipe.flip, crop_scale=recipe.crop_scale, interpolation=recipe.crop_interpolation)
    if isinstance(method, MoCoV3):
        return contrastive_views(size, mean, std, **crops)
    if isinstance(method, SelfDistillation):
        return low_resolution_views(size, mean, std, local_views=method.local_views, local_scale=method.local_scale,
                                    local_size=method.local_size, **crops)
    augment = Augment(
        size, mean, std, crop_padding=recipe.crop_padding, crop_ratio=recipe.crop_ratio,
        color_jitter=recipe.color_jitter, **crops)
    return lambda images, generator: (augment(images, generator),)


def stream_transform(recipe: Pretraining, cfg: Mapping[str, Any], method: Method) -> Callable[[Any], Tensor] | None:
    """How an image that is read from its file becomes one view, or two of a size; None where it takes a batch."""
    if isinstance(method, MoCoV3):
        return TwoViews(recipe, cfg)
    return pretraining_transform(recipe, cfg) if isinstance(method, MaskedModel) else None


class Monitor:
    """k-NN accuracy and spread of an encoder's features: training images vote on those held out."""

    def __init__(self, source: Source, batch_size: int, cfg: Mapping[str, Any], world: World,
                 dtype: torch.dtype | None, **loading: Any) -> None:
        bank, queries = source.train, source.val or source.test
        if queries is None:
            held = draw(bank.labels, len(bank) // 5, 0)
            bank, queries = bank.select(~held), bank.select(held)
        self.cfg, self.world, self.dtype, self.num_classes = cfg, world, dtype, len(source.class_names)
        self.bank, self.queries = (
            evaluation_batches(split if len(split) <= most else split.select(draw(split.labels, most, 0)),
                               2 * batch_size, cfg, world, **loading)
            for split, most in ((bank, _BANK), (queries, _QUERIES)))

    def measure(self, encoder: Any) -> dict[str, float]:
        bank, labels = extract(encoder, self.bank, self.world, self.dtype)
        features, theirs = extract(encoder, self.queries, self.world, self.dtype)
        return {'knn_top1': knn(bank, labels, features, theirs, num_classes=self.num_classes),
                'spread': spread(features)}

    def some(self) -> Tensor:
        """A few images, as an encoder gets them."""
        images, _ = next(iter(self.queries))
        return images[:_PICTURES]


class Pretrain:
    """The task of the loop: any method."""

    def __init__(self, recipe: Pretraining, network: Method, views: Views, monitor: Monitor, eval_every: int, run: Run,
                 world: World) -> None:
        self.recipe, self.network, self.views, self.monitor = recipe, network, views, monitor
        self.eval_every, self.run, self.world = eval_every, run, world
        # what a method draws for an image does not depend on how many processes share the batch
        self.generator = torch.Generator(world.device).manual_seed(recipe.seed)
        self.figures: dict[str, dict[str, float]] = {}      # before the training, and when last looked at

    def prepare(self, images: Tensor, labels: Tensor, epoch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        world = self.world
        drawn = self.network.draw(len(images) * world.size, self.generator)
        return (*self.views(images, generator), *(rows[world.rank::world.size] for rows in drawn))

    def loss(self, forward: Any, *inputs: Tensor) -> Tensor:
        return forward(*inputs)

    def before_step(self, progress: float) -> None:
        self.network.before_step(progress)

    def after_step(self, progress: float) -> None:
        self.network.after_step(progress)

    def look(self) -> dict[str, float]:
        """k-NN accuracy and spread; said aloud before the training, and where all images have come to look alike."""
        found = self.monitor.measure(self.network.kept())
        if not self.figures:
            self.figures['untrained'] = found
            self.run.say(f'before training: k-NN top-1 {found["knn_top1"]:.2f} %, spread {found["spread"]:.3f}')
        elif found['spread'] < _COLLAPSED * self.figures['untrained']['spread']:
            self.run.say(f'The encoder has collapsed: the spread of its features is {found["spread"]:.1e}, '
                         f'with random weights it was {self.figures["untrained"]["spread"]:.1e}. Try a lower --lr, a '
                         f'longer --warmup-epochs or a larger --batch-size.')
        elif trouble := self.network.trouble():
            self.run.say(f'Nothing is learned any more: {trouble}.')
        self.figures['last'] = found
        return found

    def evaluate(self, epoch: int) -> dict[str, float]:
        return {} if epoch % self.eval_every and epoch != self.recipe.total_epochs else self.look()

    def saved(self, folder: Path, step: int) -> None:
        if isinstance(self.network, MaskedModel):
            draw_reconstruction(self.network, self.monitor.some(), self.monitor.cfg, folder, step, self.run)

    def state_dict(self) -> dict[str, Any]:
        return {'generator': self.generator.get_state(), 'figures': self.figures}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state['generator'])
        self.figures = state['figures']


def _headline(
        recipe: Pretraining, source: Source, method: Method, world: World, dtype: torch.dtype | None, loop: Loop,
) -> str:
    encoder = sum(p.numel() for p in method.encoder.parameters())
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    return (f'{recipe.name}: {recipe.method}, {encoder:,} parameters in the encoder, {trained:,} trained; '
            f'{source.name}, {len(source.train)} images without their labels; {recipe.total_epochs} epochs of '
            f'{len(loop.batches)} steps, {str(dtype or torch.float32).removeprefix("torch.")} on {world.size} x '
            f'{world.device}.')


def _finish(
        recipe: Pretraining, options: Options, source: Source, cfg: Mapping[str, Any], task: Pretrain, run: Run,
        world: World,
) -> dict[str, Any]:
    """The encoder's file, the card and result.json, which says that the pre-training is over."""
    result = {'weights': recipe.name, 'figures': {'knn': task.figures},
              'command': options.command or recipe.command(spec_of(recipe.dataset)), 'machine': machine()}
    if world.first:
        write_weights(run.folder, recipe, cfg, task.network.kept().state_dict())
        write_whole(run.folder / 'card.md', card(recipe, source, cfg, result).encode())
        write_whole(run.folder / 'result.json', json.dumps(result, indent=1).encode())
        run.say(f'The encoder and its card are in {run.folder}: `tinyvit-zoo train --from {run.folder} --data ...` '
                f'fine-tunes it.')
        run.say(f'k-NN accuracy: {task.figures["last"]["knn_top1"]:.2f} % (untrained '
                f'{task.figures["untrained"]["knn_top1"]:.2f} %)')
    world.barrier()
    return result


def card(
        recipe: Pretraining, source: Source, cfg: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """What this encoder is, in Markdown."""
    figures = result['figures']['knn']
    rows = ''.join(f'| {name} | {figures[key]["knn_top1"]:.2f} | {figures[key]["spread"]:.2f} |\n'
                   for name, key in (('random weights', 'untrained'), ('these', 'last')))
    size = ' x '.join(map(str, cfg['input_size']))
    return f'''# {recipe.name}
{about(recipe, source)} An encoder without classifier, pre-trained by {recipe.method}; no label was learned from.

| encoder | k-NN top-1, % | spread of the features |
|---|---|---|
{rows}
![curves](curves.png)

## Use
`tinyvit-zoo train --from DIR --data SOURCE` fine-tunes it. Input {size}, mean {cfg['mean']}, std {cfg['std']}.

## Pre-training
`{result['command']}` on {source.name} ({len(source.train)} images), {machine()['device']}.

{settings_table(recipe)}'''
