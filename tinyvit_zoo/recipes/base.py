"""Recipes: all that decides which weights a training makes, and nothing else.

Where the images lie, the device, precision and checkpoints are options of the command: see `tinyvit-zoo train --help`.
To add a recipe from outside: `RECIPES[recipe.name] = recipe`, or `PRETRAININGS`; ten lines do:

    RECIPES['cct_2_3x2.mine'] = Recipe(
        name='cct_2_3x2.mine', about='Flowers of my garden, from scratch.', img_size=32, epochs=50, batch_size=64,
        lr=1e-3, warmup_epochs=5, crop_scale=(0.6, 1.), smoothing=0.1, mixup=0.2)
"""
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ZooError
from .ranges import BELOW_1, FINITE, FROM_0, FROM_1, PART, POSITIVE, SEED, SHARE, Choice, check_fields, limited

SCHEDULES = Choice(('cosine', 'later_cosine', 'linear'))

@dataclass(frozen=True, kw_only=True)
class BaseRecipe:
    """The settings of every recipe. Its name is that of the weights it makes: `architecture.tag`.

    `about` says where it comes from, and what was chosen where that is silent. Lengths are in epochs, each one pass
    over the training images. The learning rate is that of the whole batch, over all processes.
    """
    name: str
    about: str
    published: float | None = None      # the paper's top-1
    dataset: str = ''                   # key of tinyvit_zoo.data.datasets.DATASETS: normalisation; '' computes it
    # where the paper's are not those of `dataset`
    mean: tuple[float, float, float] | None = limited(None, FINITE.of(3))
    std: tuple[float, float, float] | None = limited(None, POSITIVE.of(3))
    model_args: Mapping[str, Any] = field(default_factory=dict)
    img_size: int = limited(32, FROM_1)
    crop_pct: float = limited(1., PART)

    epochs: int = limited(300, FROM_1)  # of the schedule; the cool-down comes after them
    batch_size: int = limited(128, FROM_1)
    accumulate: int = limited(1, FROM_1)  # parts a batch goes through the model in
    opt: str = 'adamw'                  # timm's names
    lr: float = limited(5e-4, FROM_0)
    momentum: float = limited(0.9, SHARE)  # of SGD
    betas: tuple[float, float] = limited((0.9, 0.999), BELOW_1.of(2))
    weight_decay: float = limited(0.05, FROM_0)
    weight_decay_end: float | None = limited(None, FROM_0)  # to where it goes, as half a cosine; None: constant
    decay_all: bool = False             # decay biases, norms, tables and tokens too
    # its beginning cut off by the warm-up; 'later_cosine': after it; or 'linear'
    schedule: str = limited('cosine', SCHEDULES)
    warmup_epochs: float = limited(10., FROM_0)
    warmup_lr: float = limited(0., FROM_0)
    min_lr: float = limited(0., FROM_0)
    cooldown_epochs: int = limited(0, FROM_0)  # at min_lr
    clip: float = limited(0., FROM_0)  # largest norm of a gradient
    clip_mode: str = limited('norm', Choice(('norm', 'tensor')))  # of all tensors together, or of each: 'tensor'

    flip: float = limited(0.5, SHARE)
    crop_padding: int = limited(0, FROM_0)
    crop_scale: tuple[float, float] | None = limited(None, POSITIVE.of(2))
    crop_ratio: tuple[float, float] = limited((3 / 4, 4 / 3), POSITIVE.of(2))
    crop_interpolation: str = 'bilinear'
    color_jitter: tuple[float, float, float, float] | None = limited(None, FROM_0.of(4))

    seed: int = limited(0, SEED)

    @property
    def model(self) -> str:
        return self.name.partition('.')[0]

    @property
    def total_epochs(self) -> int:
        return self.epochs + self.cooldown_epochs

    def check(self) -> None:
        """Raise ZooError for values that are not allowed, or do not go together."""
        check_fields(self)
        for name in ('model_args', 'method_args'):
            given = getattr(self, name, {})
            if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
                raise ZooError(f"{name} is {given!r}, expected values by the names of arguments, like {{'depth': 3}}.")
        if self.crop_padding > self.img_size:
            raise ZooError(f'crop_padding is {self.crop_padding}, expected at most the {self.img_size} pixels of the '
                           f'images.')
        if (self.mean is None) != (self.std is None):
            raise ZooError(f'mean is {self.mean} and std is {self.std}: give both or neither.')
        if self.epochs <= self.warmup_epochs:
            raise ZooError(f'warmup_epochs is {self.warmup_epochs:g} of {self.epochs} epochs: take fewer.')
        if self.weight_decay_end is not None and not self.weight_decay:
            raise ZooError(f'weight_decay is 0, and weight_decay_end {self.weight_decay_end:g}: parameters that are '
                           f'not decayed at first never are. Begin with 1e-8.')

    def command(self, data: str) -> str:
        """Return the command line that trains it on the source `data`."""
        verb = 'pretrain' if isinstance(self, Pretraining) else 'train'
        return f'tinyvit-zoo {verb} {self.name} --data {data} --output DIR'


@dataclass(frozen=True, kw_only=True)
class Recipe(BaseRecipe):
    """A supervised training: a classifier from scratch, or from weights."""
    from_weights: str = ''              # NAME.TAG, a file, a run directory, or the pre-training that makes them

    layer_decay: float = limited(1., PART)
    ema: float = limited(0., SHARE)  # decay of the averaged weights, per step
    teacher: str = ''                   # distil its logits: NAME[.TAG] of the zoo or timm, NAME=FILE, a run directory
    distill_weight: float = limited(0.9, SHARE)  # of the teacher's loss; the labels' has the rest
    temperature: float = limited(2., POSITIVE)  # of both softmaxes in the teacher's loss
    whiten: bool = False                # fix the first convolution to filters that whiten training patches
    sizes: tuple[int, ...] = ()         # image sizes over the training, in equal parts: (24, 28, 32); () is img_size
    # the weights kept: 'last', 'ema', or 'best' of a validation split
    keep: str = limited('last', Choice(('last', 'ema', 'best')))

    # what rare classes count: as many images as they have, as much as others in the 'loss', or as often by 'sampling'
    balance: str = limited('none', Choice(('none', 'loss', 'sampling')))
    # where images have several labels: binary cross-entropy, or one that easy negatives count less in
    multi_label_loss: str = limited('bce', Choice(('bce', 'asymmetric')))
    smoothing: float = limited(0., SHARE)
    mixup: float = limited(0., FROM_0)
    cutmix: float = limited(0., FROM_0)
    mix_prob: float = limited(1., SHARE)
    mix_switch_prob: float = limited(0.5, SHARE)
    mix_mode: str = limited('batch', Choice(('batch', 'elem')))  # one mixture a batch, or one an image: 'elem'
    mix_off_epoch: int = limited(0, FROM_0)  # no mixing from here on; 0: never off

    auto_augment: str = ''
    erase: float = limited(0., SHARE)
    erase_mode: str = 'pixel'
    erase_area: tuple[float, float] = limited((0.02, 1 / 3), POSITIVE.of(2))
    erase_aspect: tuple[float, float] = limited((0.3, 1 / 0.3), POSITIVE.of(2))

    def check(self) -> None:
        super().check()
        for size in self.sizes:
            FROM_1.check(sizes=size)
        if self.keep == 'ema' and not self.ema:
            raise ZooError("keep is 'ema', and nothing is averaged: give --ema 0.999.")


@dataclass(frozen=True, kw_only=True)
class Pretraining(BaseRecipe):
    """A training without labels: an encoder for a supervised recipe to begin with (its `from_weights`)."""
    method: str                         # a name of tinyvit_zoo.methods.METHODS
    method_args: Mapping[str, Any] = field(default_factory=dict)    # arguments of its constructor
    teacher: str = ''                   # whose attention is distilled: a model of timm's or ours, NAME[.TAG]
    teacher_weights: str = ''           # its weights, a file or a run directory; '': those that its name stands for
    schedule: str = limited('later_cosine', SCHEDULES)
