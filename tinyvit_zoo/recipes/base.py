"""What a recipe is: everything that decides which weights a training makes, and nothing else.

Where the images lie, the device, precision and checkpoints are options of the command: see `tinyvit-zoo train --help`.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class BaseRecipe:
    """What every recipe has. Its name is that of the weights it makes: `architecture.tag`.

    `about` says where it comes from, what was chosen where that is silent, and what came out. A schedule is a function
    of the step; lengths are in epochs, one pass over the training images each. The learning rate is that of the whole
    batch, over all processes.
    """
    name: str
    about: str
    published: float | None = None      # the paper's top-1
    dataset: str = ''                   # key of tinyvit_zoo.data.datasets.DATASETS: normalisation; '' computes it
    mean: tuple[float, float, float] | None = None      # where the paper's are not those of `dataset`
    std: tuple[float, float, float] | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    img_size: int = 32
    crop_pct: float = 1.

    epochs: int = 300                   # of the schedule; the cool-down comes after them
    batch_size: int = 128
    accumulate: int = 1                 # parts a batch goes through the model in
    opt: str = 'adamw'                  # timm's names
    lr: float = 5e-4
    momentum: float = 0.9               # of SGD
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.05
    weight_decay_end: float | None = None               # to where it goes, as half a cosine; None: constant
    decay_all: bool = False             # decay biases, norms, tables and tokens too
    schedule: str = 'cosine'            # its beginning cut off by the warm-up; 'later_cosine': after it; or 'linear'
    warmup_epochs: float = 10.
    warmup_lr: float = 0.
    min_lr: float = 0.
    cooldown_epochs: int = 0            # at min_lr
    clip: float = 0.                    # largest norm of a gradient
    clip_mode: str = 'norm'             # of all tensors together, or of each: 'tensor'

    flip: float = 0.5
    crop_padding: int = 0
    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop_interpolation: str = 'bilinear'
    color_jitter: tuple[float, float, float, float] | None = None

    seed: int = 0

    @property
    def model(self) -> str:
        return self.name.partition('.')[0]

    @property
    def total_epochs(self) -> int:
        return self.epochs + self.cooldown_epochs

    def command(self, data: str) -> str:
        """Return the command line that trains it on the source `data`."""
        return f'tinyvit-zoo {self._verb} {self.name} --data {data} --output DIR'

    @property
    def _verb(self) -> str:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Recipe(BaseRecipe):
    """A supervised training: a classifier from scratch, or from weights."""
    from_weights: str = ''              # NAME.TAG, a file, a run directory, or the pre-training that makes them

    layer_decay: float = 1.
    ema: float = 0.                     # decay of the averaged weights, per step
    keep: str = 'last'                  # the weights kept: 'last', 'ema', or 'best' of a validation split

    smoothing: float = 0.
    mixup: float = 0.
    cutmix: float = 0.
    mix_prob: float = 1.
    mix_switch_prob: float = 0.5
    mix_mode: str = 'batch'             # one mixture a batch, or one an image: 'elem'
    mix_off_epoch: int = 0              # no mixing from here on; 0: never off

    auto_augment: str = ''
    erase: float = 0.
    erase_mode: str = 'pixel'
    erase_area: tuple[float, float] = (0.02, 1 / 3)
    erase_aspect: tuple[float, float] = (0.3, 1 / 0.3)

    @property
    def _verb(self) -> str:
        return 'train'


@dataclass(frozen=True, kw_only=True)
class Pretraining(BaseRecipe):
    """A training without labels: an encoder for a supervised recipe to begin with (its `from_weights`)."""
    method: str                         # a name of tinyvit_zoo.methods.METHODS
    method_args: Mapping[str, Any] = field(default_factory=dict)    # arguments of its constructor
    teacher: str = ''                   # whose attention is distilled: a model of timm's or ours, NAME[.TAG]
    teacher_weights: str = ''           # its weights, a file or a run directory; '': those that its name stands for
    schedule: str = 'later_cosine'

    @property
    def _verb(self) -> str:
        return 'pretrain'
