"""Supervised training: cross-entropy on augmented and mixed images, of one label each or of several."""
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.loss import AsymmetricLossMultiLabel
from torch import Tensor, nn

from ..augment.batched import Augment, Mix, smoothed
from ..augment.spec import AugmentSpec
from ..augment.views import OneView
from ..data.sources import Source
from ..data.splits import generator
from ..errors import ZooError
from ..measure.accuracy import evaluate, outputs
from ..measure.bench import evaluation_batches
from ..measure.calibration import fit_temperature
from ..measure.figures import FORMATS, figures_of
from ..models import list_models, take_any_size
from ..recipes import Recipe
from ..runtime.text import composed, one_line
from ..runtime.world import World
from ..weights.readout import Readout, write_readout
from ..weights.resolve import create_model, resolve, without_rates
from .joint import average_
from .method import Task, check_model
from .teacher import Teacher, distillation_loss, resized

_WHITENED, _EPSILON = 5000, 5e-4     # images, and what keeps rare patterns from growing: of arXiv 2404.00498
_FORWARD, _SHARE = 1 / 3, 0.2   # of a training step's time; of the training's time that evaluations may take


class Supervised(Task):
    """Cross-entropy, with mixing and smoothing; keeps averaged weights and the best ones where the recipe asks."""
    recipe: Recipe

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.views = OneView(AugmentSpec.of(self.recipe, self.cfg))
        self.mix = make_mix(self.recipe, self.cfg['num_classes'])
        self.average = copy.deepcopy(self.network).eval() if self.recipe.ema else None
        self.several = bool(self.cfg.get('multi_label'))
        self.best: dict[str, Any] = {'top1': -1.}      # or the AUROC
        self.steps, self.asymmetric = 0, AsymmetricLossMultiLabel(reduction='mean')
        self.class_weights: Tensor | None = None
        recipe, world = self.recipe, self.world
        self.teacher = Teacher(recipe.teacher, self.cfg, world.device, self.dtype) if recipe.teacher else None
        self.distilled = self.teacher and self.teacher.model
        if recipe.sizes:
            take_any_size(self.network)

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        model = check_model(recipe)
        if recipe.whiten and recipe.from_weights:
            raise ZooError('whiten replaces weights of from_weights: give only one of them.')
        if recipe.whiten:
            first_conv(model)
        if recipe.sizes:
            check_sizes(model, recipe)
        Augment(AugmentSpec.of(recipe, {'input_size': (3, 32, 32), 'mean': (0.5,) * 3, 'std': (0.5,) * 3}))
        make_mix(recipe, 2)
        if recipe.from_weights and not Path(recipe.from_weights).exists():
            start = resolve(recipe.from_weights, recipe.model)
            if start.architecture != recipe.model:
                raise ZooError(f'{recipe.from_weights} are weights of {start.architecture}, not of {recipe.model}: '
                               f'give others as from_weights.')
            if not start.has_weights:
                raise ZooError(f'There are no weights {recipe.from_weights!r} to start {recipe.model} from: give a '
                               f'file or a run directory as from_weights.')

    @classmethod
    def check_images(cls, recipe: Recipe, source: Source) -> None:
        if source.train.images.deep and recipe.teacher:
            raise ZooError(f'{source.name} is not 8-bit grey or RGB, as a teacher needs: leave it out.')
        if not source.train.multi_label:
            if recipe.multi_label_loss != 'bce':
                raise ZooError(f'multi_label_loss is {recipe.multi_label_loss!r}, and {source.name} has one label per '
                               f'image: leave it out.')
            return
        named = f'{source.name} has several labels per image: '
        if recipe.balance == 'sampling':
            raise ZooError(f"{named}replace balance 'sampling' by 'loss'.")
        if recipe.balance == 'loss' and recipe.multi_label_loss == 'asymmetric':
            raise ZooError(f"{named}balance 'loss' needs multi_label_loss 'bce'.")
        if recipe.teacher:
            raise ZooError(f'{named}leave out the teacher.')
        if recipe.keep == 'best' and source.val and not ((source.val.labels > 0).any(0) & (source.val.labels == 0).any(
                0)).any():
            raise ZooError(f"{named}keep 'best' needs the AUROC, but no class has positive and negative images: "
                           f"give more, or keep 'last'.")

    @classmethod
    def make_network(cls, recipe: Recipe, cfg: Mapping[str, Any], device: torch.device) -> nn.Module:
        torch.manual_seed(recipe.seed)
        args = {'num_classes': cfg['num_classes'], 'img_size': recipe.img_size, **recipe.model_args}
        if cfg['input_size'][0] != 3:
            args['in_chans'] = cfg['input_size'][0]
        if recipe.from_weights:
            start = resolve(recipe.from_weights, recipe.model)
            model = start.create(**args)
            if not all(value.isfinite().all() for value in model.state_dict().values() if value.is_floating_point()):
                raise ZooError(f'{recipe.from_weights} has weights that are NaN or infinite: start from others.')
            sort_head(model, start.cfg.get('label_names') or (), cfg['label_names'])
            return model.to(device)
        return create_model(recipe.model, **args).to(device)

    def kind_at(self, epoch: int, progress: float = 0.) -> tuple[bool, int]:
        """Whether images are mixed, and their size."""
        return self.mix is not None and not 0 < self.recipe.mix_off_epoch <= epoch, size_at(self.recipe, epoch)

    def prepare(self, images: Tensor, labels: Tensor, epoch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        x, = self.views(images, generator)
        mixed, size = self.kind_at(epoch)
        if mixed and self.mix:
            x, labels = self.mix(x, labels, generator)
        elif self.several:
            labels = smoothed(labels, labels.shape[1], self.recipe.smoothing)
        logits = () if self.teacher is None else (self.teacher(x),)
        return resized(x, (size, size)), labels, *logits

    def loss(self, forward: Any, *inputs: Tensor) -> Tensor:
        x, target, *teacher = inputs
        smoothing = 0. if target.is_floating_point() else self.recipe.smoothing  # soft targets are smoothed already
        logits = forward(x).float()
        if self.several:
            if self.recipe.multi_label_loss == 'asymmetric':
                return self.asymmetric(logits, target)
            return F.binary_cross_entropy_with_logits(logits, target, pos_weight=self.class_weights)
        if self.class_weights is None:
            loss = F.cross_entropy(logits, target, label_smoothing=smoothing)
        else:   # torch's mean would divide by the weights of this part of the batch
            loss = F.cross_entropy(logits, target, self.class_weights, label_smoothing=smoothing, reduction='sum')
            loss = loss / len(logits)
        if teacher:
            distilled = distillation_loss(logits, teacher[0], self.recipe.temperature)
            loss = torch.lerp(loss, distilled, self.recipe.distill_weight)
        return loss

    def after_step(self, progress: float) -> None:
        self.steps += 1
        if self.average is not None:  # the first steps count less, or the random beginning would stay in the average
            average_(self.average, self.network, min(self.recipe.ema, self.steps / (self.steps + 10)))

    def watch(self, source: Source, say: Callable[[str], None], loading: Mapping[str, Any]) -> None:
        self.batches = {name: partial(evaluation_batches, split, 2 * self.recipe.batch_size, self.cfg, self.world,
                                      **loading)
                        for name, split in (('val', source.val), ('test', source.test)) if split is not None}
        if self.recipe.balance == 'loss':   # in the mean over the images they are 1
            labels, count = source.train.labels, len(source.class_names)
            counts = labels.sum(0) if self.several else labels.bincount(minlength=count)
            counts = counts.clamp(min=1).float().to(self.world.device)
            others = len(labels) - counts
            self.class_weights = others / counts if self.several else len(labels) / (count * counts)
        if self.recipe.whiten:
            some = torch.randperm(len(source.train), generator=generator(self.recipe.seed, 1))[:_WHITENED]
            alone = World(0, 1, self.world.device)
            batches = evaluation_batches(source.train.select(some), 500, self.cfg, alone, **loading)
            whiten_first_conv(self.network, torch.cat([x for x, _ in batches]))
            if self.average is not None:
                self.average.load_state_dict(self.network.state_dict())
        # test images are evaluated meanwhile only where there are no others; they choose nothing
        self.monitor = {name: make() for name, make in list(self.batches.items())[:1]}
        watched = len(source.val or source.test or ())
        self.least_eval_every = max(1, round(watched / len(source.train) * _FORWARD / _SHARE))

    def evaluate(self, epoch: int) -> dict[str, float]:
        if not self.due(epoch):
            return {}
        model = self.network if self.average is None else self.average
        figures = {f'{name}_{key}': value for name, batches in self.monitor.items()
                   for key, value in self.look(model, batches).items() if key != 'images'}
        best = figures.get('val_auroc' if self.several else 'val_top1', -1.)
        if self.recipe.keep == 'best' and best > self.best['top1']:
            weights = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
            self.best = {'top1': best, 'epoch': epoch, 'weights': weights}
        return figures

    def look(self, model: Any, batches: Any) -> dict[str, float]:
        if not self.several:
            return evaluate(model, batches, self.world, self.dtype)
        made = outputs(model, batches, self.world, self.dtype, quiet=True)      # the training has a bar
        figures = figures_of(*made, self.cfg['label_names']).scalars()
        return {key: figures[key] for key in ('loss', 'accuracy', 'auroc') if key in figures}

    def kept(self) -> dict[str, Tensor]:
        if self.recipe.keep == 'best':
            return self.best['weights']
        model = self.average if self.recipe.keep == 'ema' else self.network
        assert model is not None
        return model.state_dict()

    def judge(self, folder: Path) -> dict[str, Any]:
        """Load the file as a user would and evaluate it on all that is not for training; calibrate it where it can be.

        The temperature is fitted to the validation images and written into the file.
        """
        model = resolve(folder.absolute()).load(self.world.device).model
        names = self.cfg['label_names']
        made = {name: outputs(model, self.monitor.get(name) or make(), self.world)     # in fp32, as `eval`
                for name, make in self.batches.items()}
        readout = Readout(multi_label=self.several)
        if 'val' in made:
            readout = replace(readout, temperature=fit_temperature(*made['val']))
            if self.world.first:
                write_readout(folder / 'weights.safetensors', readout)
        return {name: figures_of(logits, labels, names, readout=readout).scalars()
                for name, (logits, labels) in made.items()}

    def headline(self, source: Source) -> str:
        parts = [f'{name} {len(split)}' for name, split in (
            ('training', source.train), ('validation', source.val), ('test', source.test)) if split is not None]
        beginning = f'from {self.recipe.from_weights}' if self.recipe.from_weights else 'from scratch'
        several = ''
        if self.several:
            one = ' (all training images have one: give one class per image if they exclude each other)'
            several = f' with any number of labels{one * bool((source.train.labels.sum(1) == 1).all())}'
        return (f'{sum(p.numel() for p in self.network.parameters()):,} parameters, {beginning}; '
                f'{source.name}, images{several}: {", ".join(parts)}')

    def summary(self, folder: Path, figures: Mapping[str, Any]) -> list[str]:
        over = ' over images and classes' if self.several else ''
        lines = [f'{name} accuracy{over}: {split.get("top1", split.get("accuracy")):.2f} % of {split["images"]} images'
                 + (f', AUROC {split["auroc"]:.4f}' if self.several and 'auroc' in split else '')
                 for name, split in figures.items()]
        scaled = [f'{split["calibration_error"]:.4f} to {split["calibrated_error"]:.4f} ({name} images)'
                  for name, split in figures.items() if 'calibrated_error' in split]
        calibration = 'Probabilities are not calibrated, as there are no validation images.'
        if scaled:
            calibration = (f'Probabilities are calibrated on the validation images (temperature '
                           f'{figures["val"]["temperature"]:.4g}): calibration error {", ".join(scaled)}.')
        return [f'Weights, curves and card are in {folder}.', calibration, *lines]

    def card(self, figures: Mapping[str, Any]) -> dict[str, str]:
        shown = {key: each for key, each in FORMATS.items() if any(key in split for split in figures.values())}
        head = ['measured on', 'images', *(title + ', %' * (form == '.2f') for title, form in shown.values())]
        rows = [[name, str(split['images']), *(f'{split[key]:{form}}' if key in split else '-'
                                               for key, (_, form) in shown.items())] for name, split in figures.items()]
        lines = ''.join(f'| {" | ".join(row)} |\n' for row in (head, ['---'] * len(head), *rows))
        shaping, stated = without_rates(self.recipe.model_args), {'file': 'weights.safetensors'}
        if (channels := self.cfg['input_size'][0]) != 3:
            shaping['in_chans'] = channels
        if self.recipe.model not in list_models():      # timm reads no metadata
            stated |= {key: self.cfg[key] for key in (
                'num_classes', 'input_size', 'mean', 'std', 'crop_pct', 'interpolation')}
        args = ''.join(f', {key}={value!r}' for key, value in shaping.items())
        overlay = ',\n               '.join(f'{key}={value!r}' for key, value in stated.items())
        readout = Readout(figures.get('val', {}).get('temperature'), self.several)
        probabilities = f'`tinyvit-zoo predict` shows {readout.formula}; timm and exports give logits. '
        return {
            'note': '', 'table': lines,
            'use': f'''```python
import timm
import tinyvit_zoo
weights = dict({overlay})
model = timm.create_model('{self.recipe.model}', pretrained=True, pretrained_cfg_overlay=weights{args})
```
{probabilities}''', 'classes': f', {self.cfg["num_classes"]} classes' + ', any number per image' * self.several}

    def state_dict(self) -> dict[str, Any]:
        average = self.average.state_dict() if self.average is not None else {}
        return {'average': average, 'best': self.best, 'steps': self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.average is not None:
            self.average.load_state_dict(state['average'])
        self.best, self.steps = state['best'], state['steps']


@torch.no_grad()
def sort_head(model: Any, old: Sequence[str], new: Sequence[str]) -> None:
    """Put the rows of a classifier of `old` classes into the order of the `new` ones, where they are the same."""
    old, head = [composed(name) for name in old], model.get_classifier()
    if isinstance(head, nn.Linear) and old != [*new] and sorted(old) == sorted(new) and len(new) == len(head.weight):
        order = [old.index(name) for name in new]
        for parameter in head.parameters():
            parameter.copy_(parameter[order])


def size_at(recipe: Recipe, epoch: int) -> int:
    """Return the image size of an epoch: those of `sizes` share the epochs equally."""
    sizes = recipe.sizes or (recipe.img_size,)
    return sizes[min(epoch * len(sizes) // recipe.total_epochs, len(sizes) - 1)]


def check_sizes(model: Any, recipe: Recipe) -> None:
    """Raise ZooError unless the model, on the meta device, takes images of all `sizes`."""
    if recipe.sizes[-1] != recipe.img_size:
        raise ZooError(f'sizes is {recipe.sizes}: its last must be img_size, {recipe.img_size}.')
    take_any_size(model)
    for size in recipe.sizes:
        try:
            model(torch.zeros(2, model.in_chans, size, size, device='meta'))
        except (RuntimeError, TypeError, ValueError, AssertionError, ZooError) as e:
            raise ZooError(f'{recipe.model} cannot take images of {size} pixels from sizes {recipe.sizes} '
                           f'({one_line(e)}): give others.') from e


def make_mix(recipe: Recipe, num_classes: int) -> Mix | None:
    mix = Mix(num_classes, recipe.mixup, recipe.cutmix, recipe.mix_prob, recipe.mix_switch_prob, recipe.mix_mode,
              recipe.smoothing)
    return mix if recipe.mixup or recipe.cutmix else None


# -- filters for a first convolution that whiten the patches of the training images ------------------------------------
def whiten_first_conv(network: Any, images: Tensor) -> None:
    """Fix the filters to eigenvectors of the covariance of patches, each scaled to unit variance, with both signs.

    `images` are normalized, [N, C, H, W]. Filters beyond twice the values of a patch stay random.
    """
    conv = first_conv(network)
    patches = F.unfold(images, conv.kernel_size).transpose(1, 2).flatten(0, 1).double()
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / (values + _EPSILON).sqrt()).T.flip(0).unflatten(1, conv.weight.shape[1:])
    count = min(len(filters), len(conv.weight) // 2)
    with torch.no_grad():
        conv.weight[:2 * count] = torch.cat([filters[:count], -filters[:count]]).to(conv.weight)
    conv.weight.requires_grad_(False)


def first_conv(network: Any) -> nn.Conv2d:
    name = network.pretrained_cfg.get('first_conv') or ''
    conv = network.get_submodule(name) if isinstance(name, str) else None
    if not isinstance(conv, nn.Conv2d) or conv.groups > 1:
        raise ZooError(f'{type(network).__name__} does not begin with a convolution, as whiten needs: leave it out.')
    return conv
