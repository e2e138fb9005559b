"""Train, evaluate and use models from Python: what the commands do, with progress bars in a notebook too."""
import copy
import json
import signal
import tempfile
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .calls import checked
from .data.datasets import spec_of
from .data.sources import Source
from .errors import ZooError, nearest
from .measure.accuracy import calibrate, outputs
from .measure.bench import Bench, check_size, open_evaluated, tell_of_trained
from .measure.calibration import plot_reliability
from .measure.figures import Figures, figures_of, plot_confusion, plot_mistakes
from .measure.multilabel import MultiLabelFigures
from .measure.prediction import Prediction, classify, is_one, label_names
from .publish.export import check_replaceable, export_with_preprocessing
from .publish.formats import format_of
from .recipes import Pretraining, Recipe
from .recipes.settings import AnyRecipe, check_keywords, check_lengths, override, settings
from .runtime.files import check_path, display_pictures, user_path
from .runtime.lock import only_training
from .runtime.text import shown
from .runtime.world import World, autocast_dtype, choose_device, join_world
from .training import own, train as training
from .training.loop import Stopped
from .weights.files import save_weights
from .weights.readout import Readout
from .weights.resolve import Loaded, read_result, resolve

_ALONE = threading.RLock()     # torch's random numbers and its exporter are the process's
_OWN = ('output', 'data', 'given', 'begun', 'command')      # fields of Options that are no keywords


class Classifier:
    """A trained model with its preprocessing and classes: what `train` and `load` return.

    `folder` is its run directory (None for weights of the zoo), `result` the run's result.json, `model` timm's model.
    """

    @checked
    def __init__(self, spec: str | Path, device: str = 'auto') -> None:
        found = resolve(spec)
        self._resolved = replace(found, file=found.file.absolute()) if found.file else found    # for another directory
        self.device = choose_device(device)
        self.folder = user_path(spec).absolute() if user_path(spec).is_dir() else None
        self.result: dict[str, Any] = read_result(self.folder) if self.folder else {}
        with _ALONE, _random_numbers_kept(self.device):
            self._loaded: Loaded = self._resolved.load(self.device)
        self.model, self.title = self._loaded.model, self._loaded.title
        self._evaluated: tuple[Figures | MultiLabelFigures, Tensor, Tensor, Any, str] | None = None

    def __repr__(self) -> str:
        return f'Classifier({self.title!r}, {len(self.classes)} classes, input {self._loaded.cfg["input_size"]})'

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The class names; numbers if the weights have no names; () for an encoder."""
        model = self._loaded.model
        names = label_names(model.pretrained_cfg)
        return tuple(names if len(names) == model.num_classes else map(str, range(model.num_classes)))

    @checked
    def evaluate(self, data: Any, split: str = '', *, per_class: bool = True, bootstrap: int = 0,
                 batch_size: int = 256, precision: str = 'fp32') -> Figures | MultiLabelFigures:
        """Return the accuracy and other figures on images.

        Args:
            data: a source as the commands take it ('folder:photos'), a Path, (images, labels), a torch Dataset, ...
            split: 'test', 'val' or 'train', by default the first that there is; of class folders without splits, 'test'
                is the fifth that is held out, as in training, 'all' are all: for images that are new to the weights.
            per_class: with the figures of each class and the confusion matrix.
            bootstrap: resamples that 95 % intervals are taken from; 0: none but that of the top-1.
        """
        source, split = self._source(data, split)
        bench = self._bench(source, split, batch_size, precision)
        bench.check_classes()
        images: Any = getattr(source, split)
        check_size(self._resolved, None, min(batch_size, len(images)), self.device)
        if split != 'train':
            tell_of_trained(self._resolved, images, source.name)
        logits, labels = outputs(self.model, bench.batches(), bench.world, bench.dtype)
        figures = figures_of(logits, labels, self.classes, bootstrap, readout=self._loaded.readout)
        self._evaluated = figures, logits, labels, images, f'{self.title} on {source.name}: {figures.headline}'
        if per_class:
            return figures
        return replace(figures, classes=[], confusion=[]) if isinstance(figures, Figures) else replace(
            figures, classes=[])

    @checked
    def calibrate(self, data: Any, batch_size: int = 256) -> float:
        """Fit the temperature of the probabilities to validation images, store it with the weights, and return it.

        A training with validation images has done so. `data`: as for `evaluate`, with validation images, be it those
        that `val_fraction` held out in this run; (images, labels) or a torch Dataset are taken for such.
        """
        self._check_unchanged('the temperature belongs to')
        source = self._source(data, 'val', **self._resolved.held_out)[0]
        if source.val:
            tell_of_trained(self._resolved, source.val, source.name)
        readout = calibrate(self._bench(source, 'val', batch_size), self._resolved.file)
        self._loaded, self._evaluated = replace(self._loaded, readout=readout), None
        return readout.temperature or 1.

    def _bench(self, source: Source, split: str, batch_size: int, precision: str = 'fp32') -> Bench:
        self._loaded = self._loaded.following(self.model)
        return Bench(self._loaded, source, split, World(0, 1, self.device), autocast_dtype(precision, self.device),
                     batch_size)

    def _source(self, data: Any, split: str, **options: Any) -> tuple[Source, str]:
        return open_evaluated(data, split, self.classes, self.title, **options)

    @checked
    def predict(self, images: Any, topk: int | None = None, batch_size: int = 32) -> list[Prediction]:
        """Classify images: paths, Pillow images, arrays or tensors (uint8, or floats of 0 to 1), one or many.

        An array [N, H, W] is N grey images. `topk`: so many classes; by default five, or those above 0.5 where an image
        may have several labels.
        """
        if not self.classes:
            raise ZooError(f'{self.title} has no classes to predict: it is an encoder; train a classifier from it.')
        self._loaded = self._loaded.following(self.model)
        cfg = self._loaded.cfg
        try:
            # grey images have the same statistics in all channels; a mean of 0.5 is a convention of timm
            grey = len({*cfg['mean']}) == len({*cfg['std']}) == 1 and cfg['mean'][0] != 0.5
            items = [images] if is_one(images, cfg['input_size'][0], grey) else list(images)
        except TypeError as e:
            raise ZooError(f'images is {shown(images)}, expected paths, Pillow images, arrays or tensors.') from e
        check_size(self._resolved, None, min(batch_size, len(items)), self.device)
        self.model.eval()
        found = []
        for i, top in enumerate(classify(self.model, self.classes, items, topk, batch_size, self._loaded.readout)):
            if isinstance(top, str):
                name = items[i] if isinstance(items[i], (str, Path)) else f'Image {i}'
                raise ZooError(f'{name} cannot be read as an image ({top}): fix it or leave it out.')
            found.append(Prediction(*(tuple(row[key] for row in top) for key in ('label', 'index', 'probability'))))
        return found

    @checked
    def export(self, path: str | Path, *, any_size: bool = False, int8: bool = False, data: Any = '') -> dict[str, Any]:
        """Export `model` to the format of the ending, with its preprocessing as .json; return the report of the check.

        `data`, as for `evaluate`: check on its test images too; with `int8`, quantize by its training images.
        """
        path = user_path(path)
        format_of(path).require()
        check_replaceable(path)
        data = data if isinstance(data, str) else self._source(data, 'test')[0]
        self._loaded = self._loaded.following(self.model)
        loaded = replace(self._loaded, model=copy.deepcopy(getattr(self.model, '_orig_mod', self.model)).cpu().eval())
        with _ALONE, _random_numbers_kept(self.device):
            return export_with_preprocessing(loaded, path, any_size, int8, data)

    def _check_unchanged(self, reason: str) -> None:
        """Raise ZooError where `model` was changed, and not its file."""
        with _ALONE, _random_numbers_kept(self.device):
            mine = getattr(self._loaded.following(self.model).model, '_orig_mod', self.model).state_dict()
            loaded = self._resolved.load(self.device).model.state_dict()
        if mine.keys() != loaded.keys() or not all(torch.equal(mine[key], loaded[key]) for key in mine):
            raise ZooError(f'The model of {self.title} was changed after it was loaded, and {reason} its file: load it '
                           f'again, or save it by its save(FILE) and give {self._resolved.architecture}=FILE.')

    @checked
    def save(self, path: str | Path) -> None:
        """Save `model` as it is, also after a training of your own, as safetensors with its classes and preprocessing.

        `load('NAME=FILE')`, `train(..., start='NAME=FILE')` and timm take it. `calibrate` fits a temperature anew.
        """
        if user_path(path).suffix != '.safetensors':
            raise ZooError(f'{path} does not end in .safetensors: choose such a name.')
        self._loaded = self._loaded.following(self.model)
        names = label_names(self._loaded.model.pretrained_cfg)
        cfg = {**self._loaded.cfg, 'num_classes': self.model.num_classes, **({'label_names': names} if names else {})}
        save_weights(getattr(self.model, '_orig_mod', self.model).state_dict(), path, {
            'pretrained_cfg': json.dumps(cfg), **Readout(multi_label=self._loaded.readout.multi_label).metadata})

    @checked
    def show(self, folder: str | Path | None = None) -> list[Path]:
        """Draw the curves of the run and, after `evaluate`, the confusion matrix, calibration and worst mistakes.

        Pictures go to `folder` (default: the run directory's `pictures`, or a new temporary folder), and are displayed
        in a notebook. Returns their paths.
        """
        chosen = folder or (self.folder / 'pictures' if self.folder else tempfile.mkdtemp(prefix='tinyvit-zoo-'))
        place, paths = user_path(chosen), []
        check_path(place)
        if self.folder and (self.folder / 'curves.png').exists():
            paths.append(self.folder / 'curves.png')
        if self._evaluated:
            figures, logits, labels, images, title = self._evaluated
            place.mkdir(parents=True, exist_ok=True)
            paths.append(place / 'reliability.png')
            plot_reliability(logits, labels, title, paths[-1], self._loaded.readout)
            if isinstance(figures, Figures):
                paths += [place / 'confusion.png', place / 'mistakes.png']
                plot_confusion(figures.confusion, self.classes, title, paths[-2])
                plot_mistakes(logits / (figures.temperature or 1), labels, images, self.classes, title, paths[-1])
        if not paths:
            raise ZooError(f'Nothing to show for {self.title}: call evaluate(data) first.')
        display_pictures(paths)
        return paths


@checked
def load(weights: str | Path, device: str = 'auto') -> Classifier:
    """Load weights: NAME[.TAG] of the zoo or timm, NAME=FILE, a file of a training, a run, or hf-hub:ORG/NAME."""
    return Classifier(weights, device)


@checked
def train(model: str | Path | Recipe | Classifier, data: Any = None, *, output: str | Path | None = None,
          start: Any = '', device: str = 'auto', **keywords: Any) -> Classifier:
    """Train a classifier and return it.

    Args:
        model: NAME[.TAG], a run directory, a file, 'hf-hub:ORG/NAME', or what `train` or `load` returned, whose weights
            are fine-tuned (a name without weights, or NAME.untrained, is trained from scratch); or a recipe:
            `find_recipe('cct_2_3x2.c10')`.
        data: 'folder:photos', 'npz:FILE', 'digits', ... (see `tinyvit-zoo train --help`), a Path of a folder or .npz,
            (images, labels), a torch or Hugging Face dataset, or {'train': ..., 'val': ..., 'test': ...} of such.
        output: run directory (default: runs/NAME).
        start: weights to start from instead: a run directory, what `train` or `pretrain` returned, a file, a NAME.TAG.
        device: 'auto', 'cpu', 'cuda', ...
        **keywords: `minutes`, `resume`, `track`, `val_fraction`, ... (fields of `tinyvit_zoo.training.train.Options`),
            and any field of a Recipe: `epochs`, `lr`, `img_size`, ...

    Ctrl-C stops after the current step, with a checkpoint: `resume=True` continues.
    """
    begin = _spec(start)
    if isinstance(model, Recipe):
        recipe = replace(model, from_weights=begin) if begin else model
    else:
        resumed = user_path(output) if output and keywords.get('resume') else None
        recipe = own.finetuning_recipe(_spec(model), begin, resumed)
    name = recipe.name if isinstance(model, Recipe) else _spec(model)
    return Classifier(_train(name, recipe, data, output, device, keywords), device)


def _spec(weights: Any) -> str:
    """Return how weights are named: a text or a path, or what `train`, `load` or `pretrain` returned."""
    if isinstance(weights, Classifier):
        weights._check_unchanged('a training starts from')
    if isinstance(weights, (Classifier, Encoder)):
        return str(weights.folder or weights.title)     # type: ignore[union-attr]
    if not isinstance(weights, (str, Path)):
        raise ZooError(f'The weights are {shown(weights)}, expected a name, a path, or what train, load or pretrain '
                       f'returned.')
    return str(weights)


@dataclass(frozen=True)
class Encoder:
    """A pre-trained encoder: `train(..., start=encoder)` fine-tunes it."""
    folder: Path
    result: dict[str, Any]


@checked
def pretrain(method: str | Pretraining, data: Any = None, *, model: str = '', output: str | Path | None = None,
             device: str = 'auto', **keywords: Any) -> Encoder:
    """Pre-train an encoder without labels, which the images need not have; the arguments are those of `train`.

    `method`: 'mae_small', 'self_distill', ... with `model`, the encoder; or a recipe, or the name of one.
    """
    recipe = own.pretraining_recipe(method, model)
    folder = _train(method if isinstance(method, str) else recipe.name, recipe, data, output, device, keywords)
    return Encoder(folder, read_result(folder))


def _train(name: str, recipe: AnyRecipe, data: Any, output: str | Path | None, device: str, keywords: dict[str, Any],
           ) -> Path:
    """Run a training of the recipe with the fields among `keywords` changed; return its directory."""
    kind = type(recipe)
    if data is None and 'PATH' in (data := spec_of(recipe.dataset)):
        raise ZooError(f"There is no data: give data={data!r}, arrays, or another source.")
    keywords = {key: value.item() if isinstance(value, np.generic) else dict(value) if isinstance(value, Mapping)
                else value for key, value in keywords.items()}
    check_lengths({**vars(recipe), **keywords})
    known = [f.name for f in fields(training.Options) if f.name not in _OWN]
    given = {key: value for key, value in keywords.items() if key not in known}
    for key in given:
        if key not in settings(kind):
            raise ZooError(f'There is no setting {key!r}.{nearest(key, [*known, *settings(kind)])} Expected a field of '
                           f'{kind.__name__}, or one of {", ".join(known)}.')
    check_keywords(kind, given)
    others = {key: value for key, value in keywords.items() if key in known}
    check_keywords(training.Options, others)
    recipe = override(own.without_mirroring(recipe, data if isinstance(data, str) else ''), given)
    options = training.Options(
        output=user_path(output or Path('runs', recipe.name)), data=data, given=given,
        command=own.call_text(name, recipe, data, keywords), **others)
    first = training.pretraining_of(recipe) if isinstance(recipe, Recipe) else None
    with only_training(), join_world(device) as world, _random_numbers_kept(world.device):
        try:
            if first:
                training.train_from_pretraining(first, recipe, options, world)  # type: ignore[arg-type]
            else:
                training.train(recipe, options, world)
        except Stopped as stop:
            text = f'Stopped; the checkpoint is written: continue with resume=True and output={str(options.output)!r}.'
            if stop.args[0] == signal.SIGINT:
                raise KeyboardInterrupt(text) from None
            raise SystemExit(128 + stop.args[0]) from None
    return options.output.absolute()


def _random_numbers_kept(device: torch.device) -> AbstractContextManager[None]:
    """Restore the state of torch's random numbers afterwards."""
    return torch.random.fork_rng([device] if device.type == 'cuda' else [])
