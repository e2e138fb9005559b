"""A model and the images that it is evaluated on, preprocessed as its weights expect."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..augment.batched import normalize
from ..augment.spec import evaluation_transform
from ..data.batches import Batches, make_batches
from ..data.datasets import DATASETS
from ..data.sources import Source, open_source
from ..data.splits import Split
from ..errors import ZooError, nearest
from ..runtime.world import World
from ..weights.resolve import Loaded
from .features import extract


def evaluation_batches(split: Split, batch_size: int, cfg: Mapping[str, Any], world: World, **options: Any) -> Batches:
    """Make batches of a split, each image once, normalized as the weights of `cfg` expect."""
    transforms = {'batch_transform': lambda images: normalize(images, cfg['mean'], cfg['std']),
                  'stream_transform': evaluation_transform(cfg)}
    return make_batches(split, cfg['input_size'][1:], batch_size, world.device, train=False, rank=world.rank,
                        world_size=world.size, **{**transforms, **options})


@dataclass(frozen=True)
class Bench:
    """A loaded model, a data source and the split to evaluate on."""
    loaded: Loaded
    source: Source
    split: str
    world: World
    dtype: torch.dtype | None = None
    batch_size: int = 256

    @property
    def num_classes(self) -> int:
        return len(self.source.class_names)

    @property
    def class_names(self) -> Sequence[str]:
        """Return the names of the dataset; where it only numbers its classes, those of the weights."""
        names, own = self.source.class_names, (self.loaded.model.pretrained_cfg or {}).get('label_names') or ()
        numbered = self.source.info is None and list(names) == [str(i) for i in range(len(names))]
        return own if numbered and len(own) == len(names) else names

    def batches(self, split: str | Split = '', normalized: bool = True) -> Batches:
        """Return batches of every image of a split (default: the one evaluated on); not `normalized`: as uint8."""
        # images are kept in memory as bytes only where the result equals that of timm's transform
        cfg = self.loaded.cfg
        images = split if isinstance(split, Split) else getattr(self.source, split or self.split)
        channels = cfg['input_size'][0]
        if channels not in (1, 3):
            raise ZooError(f'{self.loaded.title} takes images of {channels} channels: expected 1 (grey) or 3 (RGB).')
        whole = cfg['crop_pct'] == 1 and cfg['interpolation'] == 'bicubic'
        raw: Any = {} if normalized else {
            'batch_transform': None, 'stream_transform': evaluation_transform(cfg, normalize=False)}
        return evaluation_batches(images, self.batch_size * self.world.size, cfg, self.world, channels=channels,
                                  mode='auto' if whole else 'stream', **raw)

    def normalize(self, images: Tensor) -> Tensor:
        return normalize(images, self.loaded.cfg['mean'], self.loaded.cfg['std'])

    @cached_property
    def features(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return features and labels of the training images, then of the evaluated ones."""
        if self.split == 'train':
            raise ZooError('--knn and --probe train on the training images: give --split test or val.')
        return tuple(  # type: ignore[return-value]
            part for split in ('train', self.split)
            for part in extract(self.loaded.model, self.batches(split), self.world, self.dtype))

    @property
    def class_mismatch(self) -> str:
        """Return why the model cannot be scored on the classes of the dataset; '' if it can."""
        title, source = self.loaded.title, self.source
        count = getattr(self.loaded.model, 'num_classes', 0)
        if not count:
            return f'{title} has no classes, it is an encoder'
        if count != self.num_classes:
            return f'{title} has {count} classes, {source.name} has {self.num_classes}'
        names, known = self.loaded.label_names, source.info.label_names if source.info else ()
        if names and known and not set(names) & set(known):
            return (f'{title} tells other classes apart ({names[0]}, {names[1]}, ...) than {source.name} has '
                    f'({known[0]}, {known[1]}, ...)')
        return ''

    def check_classes(self, advice: str = 'give the data it was trained on') -> None:
        if self.class_mismatch:
            raise ZooError(f'{self.class_mismatch}: {advice}.')


def open_bench_source(spec: str, split: str, **options: Any) -> Source:
    """Open `[KEY=]SOURCE` and check that it has the split. KEY names the dataset that a file holds."""
    key, equals, rest = spec.partition('=')
    if not equals or ':' in key:
        key, rest = '', spec
    elif key not in DATASETS:
        raise ZooError(f'There is no data set {key!r}, expected one of {", ".join(DATASETS)}.{nearest(key, DATASETS)}')
    source = open_source(rest, **options)
    if getattr(source, split) is None:
        present = [name for name in ('train', 'val', 'test') if getattr(source, name) is not None]
        raise ZooError(f'{rest} has no {split} images, but {" and ".join(present)}: give --split {present[-1]}.')
    if not key:
        return source
    info = DATASETS[key]
    if info.num_classes != len(source.class_names):
        raise ZooError(f'{spec} has {len(source.class_names)} classes, {info.title} has {info.num_classes}: fix KEY.')
    return replace(source, info=info, class_names=info.label_names or source.class_names)
