"""Pre-training: an encoder, by any method, without labels. k-NN accuracy and the spread of its features are watched."""
import inspect
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor

from ..augment.spec import AugmentSpec
from ..data.sources import Source
from ..data.splits import draw
from ..errors import ZooError, nearest
from ..measure.bench import evaluation_batches, extract, knn, spread
from ..models import require_plain
from ..models.mae_lite import encoder_tensors
from ..recipes import Pretraining
from ..runtime.text import one_line
from ..weights import read_weights, unwrap
from ..weights.resolve import resolve
from .method import Method, Task, check_model

_BANK, _QUERIES = 5000, 1000    # most images to evaluate on
_COLLAPSED = 0.2                # of the spread that random weights have
METHODS: dict[str, type[Method]] = {}   # filled by tinyvit_zoo.methods


class SelfSupervised(Task):
    """The pre-training of `network`, a method with its encoder."""
    recipe: Pretraining
    network: Method
    generator: torch.Generator
    title = 'Pre-training'

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.cfg = {key: value for key, value in self.cfg.items() if key != 'label_names'} | {'num_classes': 0}
        self.views = self.network.views(AugmentSpec.of(self.recipe, self.cfg))
        # draws for an image do not depend on the number of processes that share the batch
        self.generator = torch.Generator(self.world.device).manual_seed(self.recipe.seed)
        self.figures: dict[str, dict[str, float]] = {}      # before the training, and when last evaluated

    @classmethod
    def check(cls, recipe: Pretraining) -> None:
        if recipe.method not in METHODS:
            raise ZooError(f'There is no method {recipe.method!r}.{nearest(recipe.method, METHODS)} Expected '
                           f'{", ".join(METHODS)}.')
        method = METHODS[recipe.method]
        known = inspect.signature(method).parameters
        for name in recipe.method_args:
            if name not in known or name in ('encoder', 'teacher'):
                raise ZooError(f'{recipe.method} has no argument {name!r} (method_args).{nearest(name, known)}')
        if ('teacher' in known) != bool(recipe.teacher):
            raise ZooError(f'{recipe.method} needs a teacher: give teacher and teacher_weights.'
                           if 'teacher' in known else f'{recipe.method} does not use a teacher: leave it out.')
        unused = [name for name in ('crop_padding', 'crop_ratio', 'color_jitter')
                  if method.own_views and getattr(recipe, name) != getattr(Pretraining, name)]
        if unused:
            raise ZooError(f'{recipe.method} makes its own views and does not use {", ".join(unused)}: leave it out.')
        if method.whole_batches and (recipe.accumulate > 1 or recipe.batch_size < 2):
            raise ZooError(f'{recipe.method} contrasts the images of a batch: use accumulate 1 and a batch_size of 2 '
                           f'or more (not {recipe.accumulate} and {recipe.batch_size}).')
        method.check_encoder(timm.create_model(recipe.model, device='meta'))
        check_model(recipe)

    @classmethod
    def check_images(cls, recipe: Pretraining, source: Source) -> None:
        if source.train.images.deep and recipe.teacher:
            raise ZooError(f'{source.name} is not 8-bit grey or RGB, as a teacher needs: use a method without one.')

    @classmethod
    def make_network(cls, recipe: Pretraining, cfg: Mapping[str, Any], device: torch.device) -> Method:
        torch.manual_seed(recipe.seed)
        args = dict(recipe.method_args)
        if recipe.teacher:
            args['teacher'] = make_teacher(recipe).to(device)
        encoder = make_encoder(recipe, cfg['input_size'][0])
        try:
            return METHODS[recipe.method](encoder, **args).to(device)
        except (TypeError, ValueError, IndexError) as e:
            raise ZooError(f'{recipe.method} does not take the method_args {dict(recipe.method_args)} '
                           f'({one_line(e)}): leave some out.') from e

    @property
    def distilled(self) -> Any:
        return self.network.distilled

    def prepare(self, images: Tensor, labels: Tensor, epoch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        world = self.world
        drawn = self.network.draw(len(images) * world.size, self.generator)
        return (*self.views(images, generator), *(rows[world.rank::world.size] for rows in drawn))

    def kind_at(self, epoch: int, progress: float) -> Hashable:
        return self.network.kind_at(progress)

    def before_step(self, progress: float) -> None:
        self.network.before_step(progress)

    def after_step(self, progress: float) -> None:
        self.network.after_step(progress)

    def watch(self, source: Source, say: Callable[[str], None], loading: Mapping[str, Any]) -> None:
        """Prepare k-NN by training images on validation, test, or else held-out training images."""
        self.say, self.classes = say, len(source.class_names) + source.train.multi_label
        bank, queries = source.train.rarest, source.val or source.test
        if queries is None:
            held = draw(bank.labels, len(bank) // 5, 0)
            bank, queries = bank.select(~held), bank.select(held)
        queries = queries.rarest
        self.bank, self.queries = (
            evaluation_batches(split if len(split) <= most else split.select(draw(split.labels, most, 0)),
                               2 * self.recipe.batch_size, self.cfg, self.world, **loading)
            for split, most in ((bank, _BANK), (queries, _QUERIES)))

    def begin(self) -> None:
        before = self.figures['untrained'] = self.figures['last'] = self.look()
        knn_top1 = f'k-NN top-1 {before["knn_top1"]:.2f} %, ' if 'knn_top1' in before else ''
        self.say(f'before training: {knn_top1}spread {before["spread"]:.3f}')

    def look(self) -> dict[str, float]:
        """Return k-NN accuracy, where there are labels, and spread of the encoder's features."""
        bank, features = (extract(self.network.kept(), batches, self.world, self.dtype)
                          for batches in (self.bank, self.queries))
        accuracy = {'knn_top1': knn(*bank, *features, num_classes=self.classes)} if self.classes > 1 else {}
        return {**accuracy, 'spread': spread(features[0])}

    def evaluate(self, epoch: int) -> dict[str, float]:
        if not self.due(epoch):
            return {}
        before, figures = self.figures['untrained'], self.look()
        if figures['spread'] < _COLLAPSED * before['spread']:
            self.say(f'The encoder has collapsed: the spread of its features fell from {before["spread"]:.1e} to '
                     f'{figures["spread"]:.1e}. Try a lower lr, more warmup_epochs or a larger batch_size.')
        elif trouble := self.network.trouble():
            self.say(f'Training has collapsed: {trouble}.')
        self.figures['last'] = figures
        return figures

    def drawn(self) -> dict[str, Tensor]:
        if not self.network.pictures:
            return {}
        images, _ = next(iter(self.queries))
        return self.network.drawn(images[:self.network.pictures])

    def kept(self) -> dict[str, Tensor]:
        return self.network.kept().state_dict()

    def judge(self, folder: Path) -> dict[str, Any]:
        return {'knn': self.figures}

    def headline(self, source: Source) -> str:
        encoder = sum(p.numel() for p in self.network.encoder.parameters())
        trained = sum(p.numel() for p in self.network.parameters() if p.requires_grad)
        return (f'{self.recipe.method}, {encoder:,} parameters in the encoder, {trained:,} trained; {source.name}, '
                f'{len(source.train)} images, without labels')

    def summary(self, folder: Path, figures: Mapping[str, Any]) -> list[str]:
        last, before = (self.figures[key] for key in ('last', 'untrained'))
        lines = [f'The encoder and its card are in {folder}: `tinyvit-zoo train --from {folder} --data ...` fine-tunes '
                 f'it.', f'spread of the features: {last["spread"]:.3f} (untrained {before["spread"]:.3f})']
        if 'knn_top1' in last:
            lines[1] = f'k-NN accuracy: {last["knn_top1"]:.2f} % (untrained {before["knn_top1"]:.2f} %)'
        return lines

    def card(self, figures: Mapping[str, Any]) -> dict[str, str]:
        shown = {'knn_top1': 'k-NN top-1, %', 'spread': 'spread of the features'}
        shown = {key: title for key, title in shown.items() if key in self.figures['last']}
        rows = ''.join(f'| {name} | {" | ".join(f"{self.figures[key][figure]:.2f}" for figure in shown)} |\n'
                       for name, key in (('random weights', 'untrained'), ('these', 'last')))
        return {'note': f' An encoder without classifier, pre-trained by {self.recipe.method} without labels.',
                'table': f'| encoder | {" | ".join(shown.values())} |\n|---{"|---" * len(shown)}|\n{rows}',
                'use': '`tinyvit-zoo train --from DIR --data SOURCE` fine-tunes it. ', 'classes': ''}

    def state_dict(self) -> dict[str, Any]:
        return {'generator': self.generator.get_state(), 'figures': self.figures}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state['generator'])
        self.figures = state['figures']


def make_encoder(recipe: Pretraining, channels: int = 3) -> Any:
    """Make the encoder, without classifier. timm's ViTs end in a norm after the blocks only if they read the token."""
    args = {'num_classes': 0, 'img_size': recipe.img_size, **recipe.model_args}
    if channels != 3:
        args['in_chans'] = channels
    if isinstance(timm.create_model(recipe.model, device='meta', **args), VisionTransformer):
        args['global_pool'] = 'token'
    return timm.create_model(recipe.model, **args)


def make_teacher(recipe: Pretraining) -> Any:
    """Make the model whose attention is distilled; all its weights must be there."""
    name = recipe.teacher
    if not timm.is_model(name):
        raise ZooError(f'There is no teacher {name!r}.{nearest(name, timm.list_models())}')
    args = {'num_classes': 0, 'img_size': recipe.img_size, 'global_pool': 'token'}
    try:
        require_plain(timm.create_model(name, device='meta', **args))
    except Exception as e:  # models of other kinds have other arguments
        raise ZooError(f'{name} cannot be a teacher at {recipe.img_size} pixels ({one_line(e)}): use a plain '
                       f'ViT.') from e
    if not recipe.teacher_weights:
        try:
            return timm.create_model(name, pretrained=True, **args)
        except (RuntimeError, OSError) as e:
            raise ZooError(f'There are no weights for the teacher {name} ({one_line(e)}): give teacher_weights.') from e
    path = resolve(f'{name}={recipe.teacher_weights}').file
    assert path is not None     # NAME=FILE has one
    teacher = timm.create_model(name, **args)
    tensors, _ = encoder_tensors(unwrap(read_weights(path)))
    tensors.setdefault('pos_embed', teacher.pos_embed)  # fixed in pre-training
    try:
        teacher.load_state_dict(tensors)
    except RuntimeError as e:
        raise ZooError(f'{path} holds no weights of {name} at {recipe.img_size} pixels ({one_line(e)}): give '
                       f'others.') from e
    return teacher
