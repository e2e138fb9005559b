"""Recipes: all that decides which weights a training makes, and nothing else.

Where the images lie, the device, precision and checkpoints are options of the command: see `tinyvit-zoo train --help`.
To add a recipe from outside: `RECIPES[recipe.name] = recipe`, or `PRETRAININGS`; ten lines do:

    RECIPES['cct_2_3x2.mine'] = Recipe(
        name='cct_2_3x2.mine', about='Flowers of my garden, from scratch.', img_size=32, epochs=50, batch_size=64,
        lr=1e-3, warmup_epochs=5, crop_scale=(0.6, 1.), smoothing=0.1, mixup=0.2)
"""
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ZooError
from .ranges import (
    BELOW_1,
    CROP,
    DEVIATION,
    FROM_0,
    FROM_1,
    MEAN,
    PART,
    POSITIVE,
    SEED,
    SHARE,
    Choice,
    check_fields,
    setting,
)

SCHEDULES = Choice(('cosine', 'later_cosine', 'linear'))
# of `timm.create_model` or the training: they say where weights come from, or follow from images and settings
_NO_MODEL_ARGS = (
    'num_classes', 'in_chans', 'img_size', 'pretrained', 'pretrained_cfg', 'pretrained_cfg_overlay',
    'pretrained_strict', 'pretrained_model_args', 'checkpoint_path', 'cache_dir', 'device', 'dtype', 'scriptable',
    'exportable', 'no_jit', 'features_only', 'feature_cfg', 'out_indices', 'kwargs_filter', 'pretrained_filter_fn',
    'pretrained_custom_load', 'model_cfg')
SCHEDULE_HELP = 'cosine from epoch 0 on; later_cosine or linear after the warm-up'


@dataclass(frozen=True, kw_only=True)
class BaseRecipe:
    """The settings of every recipe. Its name is that of the weights it makes: `architecture.tag`.

    `about` says where the recipe comes from, and which settings are our choice. Lengths are in epochs, each one pass
    over the training images. The learning rate is for the whole batch, over all processes.
    """
    name: str
    about: str
    published: float | None = None      # the paper's top-1
    dataset: str = setting('', 'data set whose mean and std to use: c10, c100, ... (default: measured)')
    mean: tuple[float, float, float] | None = setting(None, 'mean of each channel, in place of that', MEAN.of(3))
    std: tuple[float, float, float] | None = setting(None, 'standard deviation, likewise', DEVIATION.of(3))
    model_args: Mapping[str, Any] = setting({}, "arguments of the model: \"{'drop_path_rate': 0.1}\"")
    img_size: int = setting(32, 'side of the images in pixels', FROM_1)
    crop_pct: float = setting(1., 'center crop of the evaluation, as a share of the side', CROP)

    epochs: int = setting(300, 'epochs, warm-up included, cool-down not', FROM_1)
    batch_size: int = setting(128, 'images in a step, over all processes', FROM_1)
    accumulate: int = setting(1, 'parts that a batch is split into, to save memory', FROM_1)
    opt: str = setting('adamw', "timm's name of the optimizer: adamw, nmuon, sgd, ...")
    lr: float = setting(5e-4, 'peak learning rate, for the whole batch', FROM_0)
    momentum: float = setting(0.9, 'momentum of SGD or Muon', SHARE)
    betas: tuple[float, float] = setting((0.9, 0.999), 'betas of Adam or AdamW', BELOW_1.of(2))
    weight_decay: float = setting(0.05, 'weight decay', FROM_0)
    weight_decay_end: float | None = setting(None, 'weight decay at the end, along half a cosine', FROM_0)
    decay_all: bool = setting(False, 'decay biases, norms, position tables and tokens too')
    schedule: str = setting('cosine', SCHEDULE_HELP, SCHEDULES)
    warmup_epochs: float = setting(10., 'epochs of linear warm-up', FROM_0)
    warmup_lr: float = setting(0., 'learning rate at the start of the warm-up', FROM_0)
    min_lr: float = setting(0., 'learning rate at the end', FROM_0)
    cooldown_epochs: int = setting(0, 'additional epochs at --min-lr', FROM_0)
    clip: float = setting(0., 'maximum norm of the gradients (0: no clipping)', FROM_0)
    clip_mode: str = setting('norm', 'norm: of all gradients together; tensor: of each', Choice(('norm', 'tensor')))

    flip: float = setting(0.5, 'probability of a horizontal flip', SHARE)
    crop_padding: int = setting(0, 'pixels of padding before a random crop', FROM_0)
    crop_scale: tuple[float, float] | None = setting(None, 'area of random resized crops: (0.6, 1.0)', POSITIVE.of(2))
    crop_ratio: tuple[float, float] = setting((3 / 4, 4 / 3), 'aspect ratio of random resized crops', POSITIVE.of(2))
    crop_interpolation: str = setting('bilinear', 'bilinear, bicubic or random')
    color_jitter: tuple[float, float, float, float] | None = setting(
        None, 'strength of random brightness, contrast, saturation and hue', FROM_0.of(4))

    seed: int = setting(0, 'random seed', SEED)

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
                raise ZooError(f"{name} is {given!r}, expected arguments by name, e.g. {{'depth': 3}}.")
        check_model_args(self.model_args)
        if self.crop_padding > self.img_size:
            raise ZooError(f'crop_padding is {self.crop_padding}, expected at most the {self.img_size} pixels of the '
                           f'images.')
        if (self.mean is None) != (self.std is None):
            raise ZooError(f'mean is {self.mean} and std is {self.std}: give both or neither.')
        if self.epochs <= self.warmup_epochs:
            raise ZooError(f'warmup_epochs is {self.warmup_epochs:g} of {self.epochs} epochs: use fewer.')
        if self.weight_decay_end is not None and not self.weight_decay:
            raise ZooError(f'weight_decay is 0, and weight_decay_end {self.weight_decay_end:g}: parameters without '
                           f'decay at first stay without it. Start at 1e-8.')

    def command(self, data: str) -> str:
        """Return the command line that trains it on the source `data`."""
        verb = 'pretrain' if isinstance(self, Pretraining) else 'train'
        return f'tinyvit-zoo {verb} {self.name} --data {data} --output DIR'


def check_model_args(given: Mapping[str, Any]) -> None:
    """Raise ZooError for an argument that is not of a model's constructor alone."""
    if others := [key for key in given if key in _NO_MODEL_ARGS]:
        raise ZooError(f'model_args has {others[0]!r}, which the images, other settings or the weights decide: leave '
                       f'it out.')


@dataclass(frozen=True, kw_only=True)
class Recipe(BaseRecipe):
    """Train a classifier, from scratch or from weights."""
    from_weights: str = setting('', 'weights to start from: NAME.TAG, a file, a run, or a pre-training recipe')
    layer_decay: float = setting(1., 'learning rate of a layer, relative to the next one', PART)
    ema: float = setting(0., 'decay of the moving average of the weights, per step (0: none)', SHARE)
    teacher: str = setting('', 'model to distil: NAME[.TAG] of the zoo or timm, NAME=FILE, or a run directory')
    distill_weight: float = setting(0.9, "weight of the teacher's loss; the rest goes to the labels'", SHARE)
    temperature: float = setting(2., 'temperature of distillation', POSITIVE)
    whiten: bool = setting(False, 'fix the first convolution to filters that whiten training patches')
    sizes: tuple[int, ...] = setting((), 'image sizes during training, in equal parts: (24, 28, 32)')
    keep: str = setting('last', 'weights to keep: last, ema, or best on validation images',
                        Choice(('last', 'ema', 'best')))

    balance: str = setting('none', 'for rare classes: none, loss (class weights) or sampling (equally often)',
                           Choice(('none', 'loss', 'sampling')))
    multi_label_loss: str = setting('bce', 'loss of multi-label images: bce, or asymmetric (easy negatives count less)',
                                    Choice(('bce', 'asymmetric')))
    smoothing: float = setting(0., 'label smoothing', SHARE)
    mixup: float = setting(0., 'mixup alpha (0: off)', FROM_0)
    cutmix: float = setting(0., 'CutMix alpha (0: off)', FROM_0)
    mix_prob: float = setting(1., 'probability of mixing', SHARE)
    mix_switch_prob: float = setting(0.5, 'probability of CutMix where both are on', SHARE)
    mix_mode: str = setting('batch', 'draw one mixture per batch, or per image (elem)', Choice(('batch', 'elem')))
    mix_off_epoch: int = setting(0, 'stop mixing at this epoch (0: never)', FROM_0)

    auto_augment: str = setting('', "cifar10, svhn, imagenet, or timm's RandAugment: rand-m9-mstd0.5-inc1")
    erase: float = setting(0., 'probability of random erasing', SHARE)
    erase_mode: str = setting('pixel', 'fill erased areas with noise (pixel) or the mean colour (const)')
    erase_area: tuple[float, float] = setting((0.02, 1 / 3), 'share of the image that is erased', POSITIVE.of(2))
    erase_aspect: tuple[float, float] = setting((0.3, 1 / 0.3), 'aspect ratio of erased areas', POSITIVE.of(2))

    def check(self) -> None:
        super().check()
        for size in self.sizes:
            FROM_1.check(sizes=size)
        if self.keep == 'ema' and not self.ema:
            raise ZooError("keep is 'ema', but nothing is averaged: give an ema of 0.999.")


@dataclass(frozen=True, kw_only=True)
class Pretraining(BaseRecipe):
    """Pre-train an encoder without labels, for the `from_weights` of a supervised recipe."""
    method: str                         # a name of tinyvit_zoo.methods.METHODS
    method_args: Mapping[str, Any] = setting({}, "arguments of the method: \"{'mask_ratio': 0.6}\"")
    teacher: str = setting('', 'model whose attention to distil: NAME[.TAG] of the zoo or timm')
    teacher_weights: str = setting('', 'its weights, a file or a run directory (default: those of its name)')
    schedule: str = setting('later_cosine', SCHEDULE_HELP, SCHEDULES)
