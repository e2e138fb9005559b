"""The supervised task: cross-entropy on augmented and mixed images."""
from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..augment.batched import Augment, Mix
from ..augment.pillow import training_transform
from ..data.batches import make_batches
from ..recipes import Recipe
from ..runtime.world import World
from .momentum import average_


class Supervised:
    """Cross-entropy, with mixing and smoothing; keeps averaged weights and the best ones where the recipe asks."""

    def __init__(self, recipe: Recipe, network: nn.Module, augment: Augment | None, mix: Mix | None,
                 monitor: Mapping[str, Any], eval_every: int) -> None:
        self.recipe, self.network, self.augment, self.mix = recipe, network, augment, mix
        self.monitor, self.eval_every = monitor, eval_every
        self.average = copy.deepcopy(network).eval() if recipe.ema else None
        self.best: dict[str, Any] = {'top1': -1.}
        self.steps = 0

    def prepare(self, images: Tensor, labels: Tensor, epoch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        x = self.augment(images, generator) if self.augment else images
        if self.mix and not 0 < self.recipe.mix_off_epoch <= epoch:
            return self.mix(x, labels, generator)
        return x, labels

    def loss(self, forward: Any, *inputs: Tensor) -> Tensor:
        x, target = inputs
        smoothing = 0. if target.is_floating_point() else self.recipe.smoothing  # soft targets are smoothed already
        return F.cross_entropy(forward(x).float(), target, label_smoothing=smoothing)

    def before_step(self, progress: float) -> None:
        pass

    def after_step(self, progress: float) -> None:
        self.steps += 1
        if self.average is not None:  # the first steps count less, or the random beginning would stay in the average
            average_(self.average, self.network, min(self.recipe.ema, self.steps / (self.steps + 10)))

    def saved(self, folder: Path, step: int) -> None:
        pass

    def evaluate(self, epoch: int) -> dict[str, float]:
        if epoch % self.eval_every and epoch != self.recipe.total_epochs:
            return {}
        model = self.average if self.average is not None else self.network
        figures: dict[str, float] = {}
        for name, measure in self.monitor.items():
            found = measure(model)
            figures.update({f'{name}_{key}': found[key] for key in found if key != 'images'})
        if self.recipe.keep == 'best' and figures['val_top1'] > self.best['top1']:
            weights = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
            self.best = {'top1': figures['val_top1'], 'epoch': epoch, 'weights': weights}
        return figures

    def kept(self) -> dict[str, Tensor]:
        """The weights that the run is for."""
        if self.recipe.keep == 'best':
            return self.best['weights']
        model = self.average if self.recipe.keep == 'ema' else self.network
        assert model is not None
        return model.state_dict()

    def state_dict(self) -> dict[str, Any]:
        average = self.average.state_dict() if self.average is not None else {}
        return {'average': average, 'best': self.best, 'steps': self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.average is not None:
            self.average.load_state_dict(state['average'])
        self.best, self.steps = state['best'], state['steps']


def supervised_batches(recipe: Recipe, split: Any, cfg: Mapping[str, Any], world: World, **options: Any) -> Any:
    """The training images, by device batches; streamed ones come augmented."""
    return make_batches(
        split, cfg['input_size'][1:], recipe.batch_size, world.device, train=True, seed=recipe.seed, rank=world.rank,
        world_size=world.size, stream_transform=training_transform(recipe, cfg), **options)


def supervised_task(
        recipe: Recipe, network: nn.Module, cfg: Mapping[str, Any], augmented: bool, monitor: Mapping[str, Any],
        eval_every: int,
) -> Supervised:
    """`augmented`: the batches are; `monitor`: names and functions of the model that measure it, for the log."""
    augment = None if augmented else make_augment(recipe, cfg['mean'], cfg['std'])
    return Supervised(recipe, network, augment, make_mix(recipe, cfg['num_classes']), monitor, eval_every)


def make_augment(recipe: Recipe, mean: Sequence[float], std: Sequence[float]) -> Augment:
    return Augment(
        (recipe.img_size, recipe.img_size), mean, std, flip=recipe.flip, crop_padding=recipe.crop_padding,
        crop_scale=recipe.crop_scale, crop_ratio=recipe.crop_ratio, interpolation=recipe.crop_interpolation,
        auto_augment=recipe.auto_augment, color_jitter=recipe.color_jitter, erase=recipe.erase,
        erase_mode=recipe.erase_mode, erase_area=recipe.erase_area, erase_aspect=recipe.erase_aspect)


def make_mix(recipe: Recipe, num_classes: int) -> Mix | None:
    mix = Mix(num_classes, recipe.mixup, recipe.cutmix, recipe.mix_prob, recipe.mix_switch_prob, recipe.mix_mode,
              recipe.smoothing)
    return mix if recipe.mixup or recipe.cutmix else None
