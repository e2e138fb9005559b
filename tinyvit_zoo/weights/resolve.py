"""From a name, a file or a run directory to a model, its preprocessing and its class names."""
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from timm.models import (
    PretrainedCfg,
    get_arch_pretrained_cfgs,
    is_model,
    load_model_config_from_hf,
    parse_model_name,
)
from timm.models._hub import load_model_config_from_path

from ..errors import ZooError, nearest
from ..models import check_tag, list_models
from ..recipes import Pretraining, Recipe, check_model_args
from ..recipes.settings import check_types
from ..runtime.documents import digest, read_document
from ..runtime.files import user_path
from ..runtime.text import composed, one_line, quiet, some
from .files import TENSORS, check_cfg, read_cfg, read_metadata
from .readout import PLAIN, Readout, read_readout

_FORMS = 'NAME[.TAG] of the zoo or timm, NAME.untrained, NAME[.TAG]=FILE, hf-hub:ORG/NAME, or a run directory'
_RECIPE_DOCUMENT = {
    'recipe': {'name': str}, 'data?': {'source': str, 'images': int, 'labels?': str}, 'val_fraction?': float,
    'fraction?': float, 'processes?': int, 'precision?': str, 'compile?': bool, 'machine?': dict}
RESULT = 'result.json'
_logger = logging.getLogger(__name__)
_OF_THE_DATA = ('num_classes', 'in_chans', 'img_size')
_PREPROCESSING = ('input_size', 'mean', 'std', 'crop_pct', 'interpolation')
_FILES = ('.safetensors', '.pth', '.pt', '.zip', '.bin')


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode. `cfg` is its preprocessing (timm's fields), `epochs` the length of the run that made it."""
    title: str
    model: Any
    cfg: Mapping[str, Any]
    epochs: int | None = None
    label_names: Sequence[str] = ()
    readout: Readout = PLAIN
    shape: tuple[Any, int] = (None, 0)      # image size, where the model has one, and number of classes

    def following(self, model: Any) -> 'Loaded':
        """Return this with a model and image size as the caller changed them; ZooError for other types and classes."""
        if not getattr(model, 'pretrained_cfg', None) or any(p.is_meta for p in model.parameters()):
            raise ZooError(f'The model of {self.title} is now a {type(model).__name__}, expected a model of timm with '
                           f'its pretrained_cfg, and weights: load it again.')
        stated = {key: model.pretrained_cfg[key] for key in _PREPROCESSING if key in model.pretrained_cfg}
        check_cfg(stated, f'In pretrained_cfg of {self.title}')
        shape = _shape(model)
        if odd := {p.dtype for p in model.parameters()} - {torch.float32}:
            raise ZooError(f'The model of {self.title} is now {odd.pop()}, expected torch.float32: call model.float(); '
                           f'evaluate takes a precision.')
        if shape[1] != self.shape[1]:
            raise ZooError(f'The model of {self.title} now has {shape[1]} classes, expected {self.shape[1]}: load it '
                           f'again, or train one with start.')
        if shape[0]:
            model.pretrained_cfg['input_size'] = (self.cfg['input_size'][0], *shape[0])
        return replace(self, model=model, cfg=preprocessing(model), shape=shape)


def preprocessing(model: Any) -> dict[str, Any]:
    """Return the preprocessing that a model states, compiled or not."""
    return resolve_data_config(pretrained_cfg=model.pretrained_cfg)


def _shape(model: Any) -> tuple[Any, int]:
    size = getattr(model, 'img_size', None) or getattr(getattr(model, 'patch_embed', None), 'img_size', None)
    return size, getattr(model, 'num_classes', 0)


@dataclass(frozen=True)
class Resolved:
    """A model and its weights, not loaded yet. `recipe` is that of a run directory, else empty."""
    spec: str   # as it was given
    name: str   # NAME.TAG, NAME.untrained, hf-hub:...; NAME with a file or without weights
    file: Path | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        return self._hub_config[1] if self.on_hub else self.name.partition('.')[0]

    @property
    def on_hub(self) -> bool:
        """Whether timm looks this up: hf-hub:ORG/NAME and local-dir:FOLDER."""
        return not self.file and ':' in self.name

    @property
    def untrained(self) -> bool:
        return not self.file and self.name.endswith('.untrained')

    @property
    def has_weights(self) -> bool:
        if self.file or self.on_hub:
            return True
        return not self.untrained and bool(self._registered and self._registered.has_weights)

    @property
    def epochs(self) -> int | None:
        return self.recipe.get('epochs', 0) + self.recipe.get('cooldown_epochs', 0) or None

    @property
    def cfg(self) -> dict[str, Any]:
        """Return the preprocessing and classes stated by the weights, in timm's fields; {} for a foreign file."""
        if self.file:
            return read_cfg(self.file)
        if self.on_hub:
            return self._hub_config[0]
        return self._registered.to_dict() if self._registered else {}

    @property
    def readout(self) -> Readout:
        return read_readout(self.file) if self.file else PLAIN

    @property
    def held_out(self) -> dict[str, Any]:
        """Return the options of `open_source` that cut the validation images of the run from the training images."""
        facts = read_recipe(self.file.parent) if self.recipe and self.file else {}
        return {'val_fraction': facts.get('val_fraction', 0.), 'seed': self.recipe.get('seed', 0)}

    @property
    def _registered(self) -> PretrainedCfg | None:
        cfgs = get_arch_pretrained_cfgs(self.architecture)
        return cfgs.get(self.name) or next(iter(cfgs.values()), None)

    @property
    def model_args(self) -> dict[str, Any]:
        """Return the arguments that shape the model, but classes and images."""
        args = self._hub_config[2] if self.on_hub else self.recipe.get('model_args', {})
        return {key: value for key, value in without_rates(args).items() if key not in _OF_THE_DATA}

    @cached_property
    def _hub_config(self) -> tuple[dict[str, Any], str, dict[str, Any]]:
        """Return cfg, architecture and arguments, as config.json has them."""
        with self._one_error():
            source, place = parse_model_name(self.name)
            cfg, name, args = (load_model_config_from_hf if source == 'hf-hub' else load_model_config_from_path)(place)
            args = dict(args or {})
        check_model(str(name))
        check_cfg(cfg, f'In config.json of {self.name}', others=True)
        return cfg, str(name), args

    def create(self, img_size: Any = None, **args: Any) -> Any:
        """Build the model with its weights. `args` override those of the run; random weights are of seed 0."""
        if not (self.untrained or self.has_weights):
            cfgs = get_arch_pretrained_cfgs(self.architecture).values()
            tags = ','.join(cfg.tag for cfg in cfgs if cfg.has_weights)
            raise ZooError(f'There are no weights of {self.name}{f", but {tags}" if tags else ""}: give '
                           f'{self.architecture}=FILE, or {self.architecture}.untrained for random ones.')
        args = {**without_rates(self.recipe.get('model_args', {})), **args}
        if self.file:
            args['pretrained_cfg_overlay'] = {**self.cfg, 'file': str(self.file)}
            if (channels := self.cfg.get('input_size', (3,))[0]) != 3:
                args = {'in_chans': channels, **args}
        if self.untrained:
            torch.manual_seed(0)
        with self._one_error(', or another img_size' if img_size else ''):
            return create_model(self.architecture if self.untrained else self.name, img_size,
                                pretrained=not self.untrained, **args)

    @contextmanager
    def _one_error(self, more: str = '') -> Iterator[None]:
        """Raise ZooError for whatever timm, the Hub and the network raise."""
        try:
            with quiet('huggingface_hub'):
                yield
        except ZooError:
            raise
        except Exception as e:
            name = 'NAME' if self.on_hub else self.architecture
            raise ZooError(f'{self.name} cannot be loaded{f" from {self.file}" if self.file else ""} '
                           f'({type(e).__name__}: {one_line(e)}): give other weights, {name}=FILE, or '
                           f'{name}.untrained for random ones{more}.') from e

    def load(self, device: torch.device | str = 'cpu', img_size: int | None = None) -> Loaded:
        """Load the weights, at another image size than theirs where `img_size` is given."""
        model = self.create(img_size)
        if not (hasattr(model, 'forward_features') and hasattr(model, 'forward_head')):
            raise ZooError(f'{self.name} has no forward_features and forward_head: use a classifier of timm\'s.')
        cfg = preprocessing(model)
        if img_size:
            cfg['input_size'] = (cfg['input_size'][0], img_size, img_size)
            try:  # refuse a size that does not work before any image is read
                with torch.no_grad():
                    model.eval()(torch.zeros(1, *cfg['input_size']))
            except ZooError:
                raise
            except Exception as e:  # every architecture has its own
                raise ZooError(f'{self.name} cannot take img_size {img_size} ({one_line(e)}): give another '
                               f'size.') from e
        stated = {} if self.untrained else self.cfg
        if self.file and not stated and '.' not in self.name:
            own = model.pretrained_cfg.get('label_names') or ()
            _logger.warning('%s does not state its classes and preprocessing: taken for %d classes%s, at %d pixels, as '
                            '%s has them.', self.file, model.num_classes, f' ({some(own)})' if own else '',
                            cfg['input_size'][-1], self.architecture)
        names = [composed(name) for name in stated.get('label_names') or ()]
        return Loaded(self.spec, model.to(device).eval(), cfg, self.epochs, names, self.readout, _shape(model))


def resolve(spec: str | Path, architecture: str = '') -> Resolved:
    """Find the model and the weights that `spec` names (see `_FORMS`), without loading them."""
    # with `architecture`, as with NAME=FILE, a file or run gives the weights and nothing else
    spec = str(spec)
    if spec.startswith('local-dir:~'):
        spec = f'local-dir:{user_path(spec.removeprefix("local-dir:"))}'
    name, equals, place = spec.partition('=')
    if not equals or '/' in name or Path(spec).exists():
        name, place = architecture, spec
    path, file = user_path(place), None
    recipe: dict[str, Any] = {}
    if path.is_dir():
        recipe, file = {} if name else read_recipe(path)['recipe'], path / 'weights.safetensors'
        name = name or recipe['name'].partition('.')[0]
        if not file.is_file():
            read_recipe(path)       # says what is no run
            raise ZooError(f'{path} is an unfinished run (no {file.name}): resume it (--resume, resume=True).')
        _check_own(file)
    elif path.is_file():
        name, file = name or read_metadata(path).get('recipe', '').partition('.')[0], path
        if not name:
            raise ZooError(f'{path} does not name its model: write NAME={path}.')
    elif place != spec:
        raise ZooError(f'There is no weights file {path}: expected {_FORMS}.')
    elif path.suffix in _FILES or ('/' in spec and ':' not in spec):
        raise ZooError(f'There is no file or run directory {spec}: expected {_FORMS}.')
    else:
        name = spec
    resolved = Resolved(spec, name, file, recipe)
    if ':' not in name:  # hf-hub:ORG/NAME and local-dir:FOLDER are looked up by timm
        check_model(name)
    if file or '.' in name or ':' in name or not resolved.has_weights:
        return resolved
    return Resolved(spec, next(iter(get_arch_pretrained_cfgs(name))))   # with the tag of the default


def read_recipe(folder: Path) -> dict[str, Any]:
    """Read the recipe.json of a run directory: 'recipe', and the data and options it was made with."""
    path = folder / 'recipe.json'
    if not path.is_file():
        raise ZooError(f'{folder} is not a run directory (it has no {path.name}): expected {_FORMS}.')
    advice = 'restore it from a copy of the run, or train again in another output'
    content = read_document(path, _RECIPE_DOCUMENT, advice)
    try:
        check_types(Pretraining if 'method' in content['recipe'] else Recipe, content['recipe'])
        check_model_args(content['recipe'].get('model_args', {}))
    except ZooError as e:
        raise ZooError(f'{path} is damaged ({e}): {advice}.') from e
    return content


def read_result(folder: Path) -> dict[str, Any]:
    """Read the result.json of a finished run."""
    # if damage has removed the digest, 'machine' beside it is gone too
    return read_document(folder / RESULT, {'figures': dict, 'machine': dict, f'{TENSORS}?': str, 'run?': str},
                         'resume the run (--resume, resume=True), which writes it again')


def _check_own(file: Path) -> None:
    """Raise ZooError where a finished run holds the weights of another."""
    try:
        result = read_result(file.parent)
    except ZooError:    # not finished, or to be resumed
        return
    if result.get(TENSORS) not in (None, read_metadata(file).get(TENSORS)):
        raise ZooError(f'{file} is not the file of this run (its digest is not that of {RESULT}): resume the run '
                       f'(--resume, resume=True), which writes it again, or give NAME={file}.')
    if result.get('run') not in (None, digest(read_recipe(file.parent))):
        raise ZooError(f'{RESULT} in {file.parent} is of another run: resume this one (--resume, resume=True), which '
                       f'writes it again, or give NAME={file}.')


def without_rates(model_args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that shape a model: drop rates act in training alone."""
    return {key: value for key, value in model_args.items() if not key.endswith('_rate')}


def create_model(name: str, img_size: Any = None, **args: Any) -> Any:
    """Call `timm.create_model`, with `img_size` where the constructor takes it (a convolutional network does not)."""
    try:
        return timm.create_model(name, **args, **({} if img_size is None else {'img_size': img_size}))
    except TypeError as e:
        if 'img_size' not in str(e):
            raise
        return timm.create_model(name, **args)


def check_model(name: str) -> None:
    """Raise ZooError that names the nearest if neither the zoo nor timm has the model, or this tag of it."""
    architecture, _, tag = name.partition('.')
    if not is_model(architecture):
        hint = nearest(architecture, list_models()) or nearest(architecture, timm.list_models())
        raise ZooError(f"There is no model {architecture!r}, in the zoo or in timm.{hint} See `tinyvit-zoo list`.")
    if name.endswith('.'):
        raise ZooError(f'{name} ends with a dot: give NAME or NAME.TAG.')
    if tag and tag != 'untrained':
        check_tag(architecture, tag)
