"""A model and the images that it is evaluated on, preprocessed as its weights expect, and its frozen features."""
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..augment.batched import normalize
from ..augment.spec import evaluation_transform
from ..data.batches import Batches, fits_in_memory, make_batches
from ..data.channels import as_channels, cropped
from ..data.datasets import DATASETS
from ..data.hub import is_hub
from ..data.images import ArrayImages, for_each
from ..data.objects import SPLITS, is_object, open_split, title_of
from ..data.sources import Source, open_source
from ..data.splits import Parts, Split, are_numbers, draw, numbered, repeated
from ..errors import ZooError, nearest
from ..runtime.text import some
from ..runtime.world import World, autocast
from ..weights.resolve import Loaded, Resolved, create_model
from ..weights.trained import trained_on
from .counting import MANY_PIXELS, check_memory, count, image_memory

_logger = logging.getLogger(__name__)
_CHUNK = 1 << 24        # similarities held at once
STRENGTHS = (1., 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)      # of the L2 penalty of the probe, the strongest first
_HELD_OUT = 0.2         # share of the training features that the penalty is chosen on
_DRAW = 7               # makes this draw differ from others with the same seed


def evaluation_batches(split: Split, batch_size: int, cfg: Mapping[str, Any], world: World, mode: str = 'auto',
                       **options: Any) -> Batches:
    """Make batches of a split, each image once, with the pixels of timm's transform, in memory or streamed."""
    size, channels = cfg['input_size'][1:], options.get('channels', cfg['input_size'][0])
    whole = cfg['crop_pct'] == 1 and cfg['interpolation'] == 'bicubic' and cfg.get('crop_mode') in (None, 'center')
    if mode == 'auto':
        mode = 'memory' if fits_in_memory(split, size, channels, world.device) else 'stream'
    if mode == 'memory' and not whole:      # else decoding gives the same
        split = _cut(split, cfg, channels, world.rank == 0)
    transforms = {'batch_transform': lambda images: normalize(images, cfg['mean'], cfg['std']),
                  'stream_transform': evaluation_transform(cfg), 'channels': cfg['input_size'][0]}
    return make_batches(split, size, batch_size, world.device, train=False, rank=world.rank, world_size=world.size,
                        mode=mode, crop_pct=cfg['crop_pct'], **{**transforms, **options})


def _cut(split: Split, cfg: Mapping[str, Any], channels: int, progress: bool) -> Split:
    """Return the images of a split resized and cropped as timm's transform does, in memory."""
    size, images, transform = cfg['input_size'][1:], split.images, evaluation_transform(cfg, normalize=False)
    pixels = torch.empty(len(split), *size, channels, dtype=images.dtype)

    def work(place: int, i: int) -> None:
        cut = cropped(images.pixels_at(i), size, channels, cfg['crop_pct']) if images.deep else transform(
            as_channels(images.read(i), channels))
        pixels[place] = cut.permute(1, 2, 0)
    for_each(images, list(map(split.number, range(len(split)))), work, 'decoding images', progress)
    return Split(ArrayImages(pixels, 'images'), split.labels)


@dataclass(frozen=True)
class Bench:
    """A loaded model, a data source as `given`, and the split to evaluate on."""
    loaded: Loaded
    given: Source
    split: str
    world: World
    dtype: torch.dtype | None = None
    batch_size: int = 256

    @cached_property
    def source(self) -> Source:
        """Return the images, their classes numbered as the weights number them, where both have names."""
        names, own = self.loaded.label_names, self.given.class_names
        known = self._comparable and tuple(own) != tuple(names) and not self._unknown_classes
        return renumbered(self.given, names) if known else self.given

    @property
    def num_classes(self) -> int:
        return len(self.source.class_names)

    @property
    def class_names(self) -> Sequence[str]:
        """Return the names of the dataset; where it only numbers its classes, those of the weights."""
        names, own = self.source.class_names, (self.loaded.model.pretrained_cfg or {}).get('label_names') or ()
        numbered = self.source.info is None and are_numbers(names)
        return own if numbered and len(own) == len(names) else names

    def batches(self, split: str | Split = '', normalized: bool = True) -> Batches:
        """Return batches of every image of a split (default: the one evaluated on); not `normalized`: as uint8."""
        cfg = self.loaded.cfg
        images = split if isinstance(split, Split) else getattr(self.source, split or self.split)
        channels = cfg['input_size'][0]
        own = images.images.channels
        if channels not in (1, 3, own) or (images.images.deep and own not in (1, channels)):
            raise ZooError(f'{self.loaded.title} takes images of {channels} channels, {self.source.name} has {own}: '
                           f'give the data it was trained on.')
        raw: Any = {} if normalized else {
            'batch_transform': None, 'stream_transform': evaluation_transform(cfg, normalize=False)}
        return evaluation_batches(images, self.batch_size * self.world.size, cfg, self.world, channels=channels, **raw)

    def normalize(self, images: Tensor) -> Tensor:
        return normalize(images, self.loaded.cfg['mean'], self.loaded.cfg['std'])

    @cached_property
    def features(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return features and labels of the training images, then of the evaluated ones."""
        if self.split == 'train' or not self.source.train:
            raise ZooError('--knn and --probe train on the training images: give data with such, and --split test or '
                           'val.')
        return tuple(  # type: ignore[return-value]
            part for split in ('train', self.split)
            for part in extract(self.loaded.model, self.batches(split), self.world, self.dtype))

    @property
    def _comparable(self) -> bool:
        """Return whether the classes of the weights and of the images have names, and the images are no known set.

        Numbers in order stand for classes without names; they are compared with other numbers alone.
        """
        names, own = self.loaded.label_names, self.given.class_names
        if not names or self.given.info or len(set(names)) < len(names):
            return False
        digits = [all(name.isdigit() for name in each) for each in (names, own)]
        return all(digits) or not any(are_numbers(each) for each in (names, own))

    @property
    def _unknown_classes(self) -> list[str]:
        return [name for name in self.given.class_names if self._comparable and name not in self.loaded.label_names]

    @property
    def class_mismatch(self) -> str:
        """Return why the model cannot be scored on the classes of the dataset; '' if it can."""
        title, source = self.loaded.title, self.source
        count = getattr(self.loaded.model, 'num_classes', 0)
        if not count:
            return f'{title} is an encoder without classes'
        if unknown := self._unknown_classes:
            known = self.loaded.label_names
            return (f'{source.name} has the classes {some(unknown)}, which {title} does not know (it knows '
                    f'{some(known)})')
        if count != self.num_classes:
            return f'{title} has {count} classes, {source.name} has {self.num_classes}'
        if self.loaded.readout.multi_label != source.train.multi_label:
            kinds = ('one label', 'several labels')
            return (f'{title} gives an image {kinds[self.loaded.readout.multi_label]}, {source.name} has '
                    f'{kinds[source.train.multi_label]}')
        names, known = self.loaded.label_names, source.info.label_names if source.info else ()
        if names and known and not set(names) & set(known):
            return (f'{title} has other classes ({names[0]}, {names[1]}, ...) than {source.name} ({known[0]}, '
                    f'{known[1]}, ...)')
        return ''

    def check_classes(self, advice: str = 'give the data it was trained on') -> None:
        if self.class_mismatch:
            raise ZooError(f'{self.class_mismatch}: {advice}.')


def renumbered(source: Source, names: Sequence[str]) -> Source:
    """Number the classes of a source as `names` do, among which they all are."""
    place = torch.tensor([names.index(name) for name in source.class_names])

    def changed(split: Split | None) -> Split | None:
        if split is None:
            return None
        if not split.multi_label:
            return replace(split, labels=place[split.labels])
        hot = torch.zeros(len(split), len(names), dtype=split.labels.dtype)
        return replace(split, labels=hot.index_copy(1, place, split.labels))
    train, val, test = map(changed, (source.train, source.val, source.test))
    assert train is not None
    return replace(source, train=train, val=val, test=test, class_names=tuple(names))


def tell_of_trained(resolved: Resolved, split: Split, title: str) -> None:
    """Warn where images for evaluation were trained on by a run."""
    known = trained_on(resolved.file) if resolved.file else set()
    if known and (both := repeated(split, known)):
        _logger.warning('%d of %d images of %s were trained on by %s, which makes its figures too good: %s.', len(both),
                        len(split), title, resolved.spec, some([split.name(i) for i in both]))


def check_size(resolved: Resolved, img_size: int | None, batch: int, device: torch.device) -> None:
    """Raise ZooError where a batch takes more memory than is free; looked at where it has many pixels."""
    size = img_size or resolved.cfg.get('input_size', (3, 32, 32))[-1]
    if batch * size ** 2 < MANY_PIXELS:
        return
    try:
        model = create_model(resolved.architecture, size, device='meta', **resolved.model_args)
        needed, macs = image_memory(model, size), count(model, size).macs
    except Exception:   # of every architecture its own; loading it says what is wrong
        return
    check_memory(f'{resolved.spec} at {size} pixels', device, batch, needed, macs)


def open_bench_source(spec: Any, split: str, **options: Any) -> Source:
    """Open `[KEY=]SOURCE` and check that it has the split ('': any). KEY names the dataset that a file holds.

    The split 'all': every image of a source that has no splits; they become its `test`.
    """
    key, equals, rest = spec.partition('=') if isinstance(spec, str) else ('', '', spec)
    if not equals or ':' in key:
        key, rest = '', spec
    elif key not in DATASETS:
        raise ZooError(f'There is no data set {key!r}, expected one of {", ".join(DATASETS)}.{nearest(key, DATASETS)}')
    source = open_source(rest, training=False, whole=split == 'all', **options)
    present = [name for name in ('train', 'val', 'test') if getattr(source, name)]
    if split == 'all':
        if len(present) > 1:
            raise ZooError(f'{source.name} has splits of its own ({", ".join(present)}): evaluate on one of them.')
        everything = getattr(source, present[0])
        source = replace(source, train=Parts.of(None, None, everything, ()).train, val=None, test=everything)
    elif split and split not in present:
        raise ZooError(f'{source.name} has no {split} images, but {" and ".join(present)}: evaluate on the split '
                       f'{present[-1]}.')
    if not key:
        return source
    info = DATASETS[key]
    if info.num_classes != len(source.class_names):
        raise ZooError(f'{spec} has {len(source.class_names)} classes, {info.title} has {info.num_classes}: fix KEY, '
                       f'or give images of all classes.')
    return replace(source, info=info, class_names=info.label_names or source.class_names)


def open_evaluated(data: Any, split: str, classes: Sequence[str], title: str, **options: Any) -> tuple[Source, str]:
    """Open what is evaluated from Python, with its split ('': the first of test, val, train that there is).

    (images, labels) and torch Datasets are that split, of the `classes` of the weights, named `title`.
    """
    known = 'test' if split == 'all' else split
    if not is_object(data) or hasattr(data, 'keys') or is_hub(data):
        source = open_bench_source(data, '' if options else split, **options)
        return source, known or next(name for name in reversed(SPLITS) if getattr(source, name))
    if not classes:
        raise ZooError(f'{title} is an encoder without classes: train a classifier from it.')
    images, texts = open_split(data, known or 'test', classes, () if are_numbers(classes) else classes)
    if not texts and not images.multi_label and not are_numbers(classes) and all(map(str.isdecimal, classes)):
        images = replace(images, labels=numbered(list(map(str, images.labels.tolist())), classes, 'The data'))
    count = images.labels.shape[1] if images.multi_label else int(images.labels.max()) + 1
    if count > len(classes) or (images.multi_label and count < len(classes)):
        raise ZooError(f'The data have labels up to {count - 1}, expected 0 to {len(classes) - 1}, the classes of '
                       f'{title}.')
    return Source(title_of(data), images, images if split == 'val' else None, images, tuple(classes)), known or 'test'


# -- features of a frozen encoder: their k-NN accuracy, their spread, and logistic regression on them ------------------
@torch.no_grad()
def extract(model: Any, batches: Iterable[tuple[Tensor, Tensor]], world: World,
            dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Return the classifier's input [N, D] (float32) and labels [N] of all batches, on every process, in eval mode."""
    training = model.training
    model.eval()
    pairs: list[tuple[Tensor, Tensor]] = []
    for images, labels in batches:
        with autocast(world.device, dtype):
            features = model.forward_head(model.forward_features(images), pre_logits=True)
        pairs.append((features.flatten(1).float(), labels))
    model.train(training)
    if world.size > 1:
        pairs = [(x.to(world.device), y.to(world.device)) for part in world.gather(
            [(x.cpu(), y.cpu()) for x, y in pairs]) for x, y in part]
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


@torch.no_grad()
def knn(train_features: Tensor, train_labels: Tensor, features: Tensor, labels: Tensor, k: int = 20,
        temperature: float = 0.07, *, num_classes: int) -> float:
    """Return the top-1 in percent of DINO's k-NN classifier (arXiv:2104.14294): votes are exp(cosine / temperature)."""
    bank, queries = F.normalize(train_features, dim=1), F.normalize(features, dim=1)
    k, correct = min(k, len(bank)), torch.zeros((), dtype=torch.int64, device=features.device)
    step = max(1, _CHUNK // len(bank))
    for x, y in zip(queries.split(step), labels.split(step), strict=True):
        similarity, index = (x @ bank.T).topk(k)                                            # [B, k]
        weights = ((similarity - 1) / temperature).exp()        # the largest similarity is 1: nothing overflows
        votes = weights.new_zeros(len(x), num_classes).scatter_add_(1, train_labels[index], weights)
        correct += votes.argmax(1).eq(y).sum()
    return 100 * correct.item() / len(labels)


@torch.no_grad()
def spread(features: Tensor) -> float:
    """Return the deviation of L2-normalised features over the images: 1 if even over the sphere, 0 for a collapse."""
    return F.normalize(features, dim=1).std(0, correction=0).mean().item() * features.shape[1] ** 0.5


def probe(train_features: Tensor, train_labels: Tensor, features: Tensor, labels: Tensor, *, num_classes: int,
          seed: int = 0) -> dict[str, float]:
    """Return {'top1' in percent, 'l2'} of a classifier that minimises mean cross-entropy + l2 / 2 |W|^2."""
    # features [N, D] are standardised; l2 is chosen on a stratified fifth, the classifier then fitted to all
    held = draw(train_labels.cpu(), round(_HELD_OUT * len(train_labels)), seed, _DRAW).to(train_labels.device)
    strength = STRENGTHS[len(STRENGTHS) // 2]
    if held.any():      # false for one image a class
        fitted = _path(train_features[~held], train_labels[~held], num_classes, STRENGTHS)
        scores = [_top1(weights, train_features[held], train_labels[held]) for weights in fitted]
        strength = STRENGTHS[scores.index(max(scores))]     # the strongest of equals
    path = STRENGTHS[:STRENGTHS.index(strength) + 1]
    weights = _path(train_features, train_labels, num_classes, path)[-1]
    return {'top1': _top1(weights, features, labels), 'l2': strength}


def _path(features: Tensor, labels: Tensor, num_classes: int, strengths: tuple[float, ...]) -> list[Tensor]:
    """Return weights [D + 1, C] for raw features at each strength, each fit started from the one before."""
    deviation, mean = torch.std_mean(features.double(), 0, correction=0)
    deviation = torch.where(deviation > 1e-6 * deviation.max(), deviation, torch.inf)   # drops constants
    x = ((features - mean) / deviation).float()
    path, weights = [], x.new_zeros(x.shape[1] + 1, num_classes)
    for strength in strengths:
        weights = _fit(x, labels, weights, strength)
        scaled = weights[:-1].double() / deviation[:, None]
        path.append(torch.cat([scaled, weights[-1:] - mean[None] @ scaled]))
    return path


def _fit(x: Tensor, labels: Tensor, start: Tensor, strength: float) -> Tensor:
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=100, history_size=20, tolerance_grad=1e-5, tolerance_change=1e-7,
                                  line_search_fn='strong_wolfe')

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = torch.addmm(weights[-1], x, weights[:-1])
        loss = F.cross_entropy(logits, labels) + strength / 2 * weights[:-1].square().sum()
        loss.backward()
        return loss
    with torch.enable_grad():
        optimizer.step(closure)
    return weights.detach()


def _top1(weights: Tensor, features: Tensor, labels: Tensor) -> float:
    logits = features.double() @ weights[:-1] + weights[-1]
    return 100 * logits.argmax(1).eq(labels).double().mean().item()
