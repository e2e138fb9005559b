"""How good a model is on a data set: accuracy with its interval, by class, and what its features are worth."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..augment.batched import normalize
from ..augment.pillow import evaluation_transform
from ..data.batches import Batches
from ..data.datasets import DATASETS
from ..data.sources import Source, open_source
from ..data.splits import Split
from ..errors import ZooError, nearest
from ..runtime.world import World
from ..weights.catalogue import wilson
from ..weights.resolve import Loaded
from .accuracy import evaluate, evaluation_batches
from .features import extract, knn, spread
from .probe import probe


@dataclass(frozen=True)
class Bench:
    """A model and the images it is judged on, prepared as its weights want them."""
    loaded: Loaded
    source: Source
    split: str
    world: World
    dtype: torch.dtype | None = None
    batch_size: int = 256

    @property
    def classes(self) -> int:
        return len(self.source.class_names)

    def batches(self, split: str | Split, normalized: bool = True) -> Batches:
        """Every image once. In memory (as bytes) only where that prepares it as timm's own transform does.

        `normalized` False: bytes in any case.
        """
        cfg = self.loaded.cfg
        images = getattr(self.source, split) if isinstance(split, str) else split
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
        """Of the training images and of those judged on, each with their labels."""
        if self.split == 'train':
            raise ZooError('--knn and --probe learn from the training images: judge them on --split test or val.')
        return tuple(  # type: ignore[return-value]
            part for split in ('train', self.split)
            for part in extract(self.loaded.model, self.batches(split), self.world, self.dtype))


def open_bench_source(spec: str, split: str, **options: Any) -> Source:
    """The source of `[KEY=]SOURCE`, which has images to judge on; KEY, one of a data set's, says which one it is."""
    key, rest = split_key(spec)
    source = open_source(rest, **options)
    if getattr(source, split) is None:
        there = [name for name in ('train', 'val', 'test') if getattr(source, name) is not None]
        raise ZooError(f'{rest} has no {split} images, but {" and ".join(there)}: give --split {there[-1]}, or another '
                       f'source.')
    if not key:
        return source
    info = DATASETS[key]
    if info.num_classes != len(source.class_names):
        raise ZooError(f'{spec} has {len(source.class_names)} classes, {info.title} has {info.num_classes}: give '
                       f'KEY=SOURCE with the key of that data set.')
    return replace(source, info=info, class_names=info.label_names or source.class_names)


def split_key(spec: str) -> tuple[str, str]:
    """'c10=npz:FILE' -> ('c10', 'npz:FILE'); the key is '' where there is none."""
    key, equals, rest = spec.partition('=')
    if not equals or ':' in key:
        return '', spec
    if key not in DATASETS:
        raise ZooError(f'There is no data set {key!r}, expected one of {", ".join(DATASETS)}.{nearest(key, DATASETS)}')
    return key, rest


# -- accuracy ----------------------------------------------------------------------------------------------------------
def why_no_accuracy(bench: Bench) -> str:
    """What keeps a model from being counted on these classes; '' where nothing does."""
    count = getattr(bench.loaded.model, 'num_classes', 0)
    if not count:
        return f'{bench.loaded.title} has no classes, it is an encoder'
    if count != bench.classes:
        return f'{bench.loaded.title} has {count} classes, {bench.source.name} has {bench.classes}'
    names = bench.loaded.label_names
    known = bench.source.info.label_names if bench.source.info else ()
    if names and known and not set(names) & set(known):
        return (f'{bench.loaded.title} tells other classes apart ({names[0]}, {names[1]}, ...) than '
                f'{bench.source.name} has ({known[0]}, {known[1]}, ...)')
    return ''


def accuracy(bench: Bench) -> dict[str, Any]:
    """top-1, top-5, loss, images as `evaluate`; 'interval' of the top-1, 'classes' one by one, 'confusion'."""
    confusion = torch.zeros(bench.classes, bench.classes, dtype=torch.int64, device=bench.world.device)
    figures = evaluate(bench.loaded.model, bench.batches(bench.split), bench.world, bench.dtype, confusion)
    correct = int(confusion.diagonal().sum())
    return {**figures, 'interval': wilson(correct, int(figures['images'])),
            'classes': by_class(confusion, class_names(bench)), 'confusion': confusion.tolist()}


def accuracy_if_any(bench: Bench, required: bool) -> dict[str, Any]:
    """`accuracy`, or nothing where the model is no classifier of these classes, unless it is required."""
    reason = why_no_accuracy(bench)
    if reason and required:
        raise ZooError(f'{reason}: give --knn or --probe to judge its features, or the data it was trained on.')
    return {} if reason else accuracy(bench)


def class_names(bench: Bench) -> Sequence[str]:
    """The data set's; those of the weights where it has none but numbers."""
    names, own = bench.source.class_names, (bench.loaded.model.pretrained_cfg or {}).get('label_names') or ()
    numbered = bench.source.info is None and list(names) == [str(i) for i in range(len(names))]
    return own if numbered and len(own) == len(names) else names


def by_class(confusion: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """For each class its images, how many of them were right, and the class it was most often taken for."""
    rows = []
    for i, (name, row) in enumerate(zip(names, confusion.tolist(), strict=True)):
        images, right, row[i] = sum(row), row[i], -1
        wrong = max(range(len(row)), key=row.__getitem__)
        rows.append({
            'class': name, 'images': images, 'correct': right, 'top1': 100 * right / images if images else None,
            'interval': wilson(right, images) if images else None,
            'most_taken_for': names[wrong] if row[wrong] > 0 else None, 'times': max(row[wrong], 0)})
    return rows


# -- features ----------------------------------------------------------------------------------------------------------
def knn_figures(bench: Bench) -> dict[str, float]:
    """'top1' of 20 weighted nearest neighbours, and the 'spread' of the features."""
    return {'top1': knn(*bench.features, num_classes=bench.classes), 'spread': spread(bench.features[2])}


def probe_figures(bench: Bench) -> dict[str, float]:
    return probe(*bench.features, num_classes=bench.classes)
