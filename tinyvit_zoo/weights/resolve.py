"""From what a user calls a model to the model: a name of the zoo or of timm's, a file, the directory of a run."""
from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg, is_model

from ..errors import ZooError, nearest
from ..models import check_tag, list_models
from ..runtime.text import one_line
from .files import read_cfg, read_metadata

FORMS = 'NAME[.TAG] of the zoo or timm, NAME.untrained, NAME[.TAG]=FILE, or the directory of a training run'
_FILES = ('.safetensors', '.pth', '.pt', '.zip', '.bin')


@dataclass(frozen=True)
class Loaded:
    """`cfg`: how its images are prepared (timm's fields). `epochs`: of the run that made it, where it is one.

    `label_names`: of the classes, where the weights say them.
    """
    title: str
    model: Any
    cfg: Mapping[str, Any]
    epochs: int | None = None
    label_names: Sequence[str] = ()


@dataclass(frozen=True)
class _Found:
    name: str                       # NAME or NAME.TAG
    file: Path | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    epochs: int | None = None


def load(spec: str, device: torch.device, img_size: int | None = None) -> Loaded:
    """The model of `spec` (one of `FORMS`) in eval mode. `img_size`: another than that of its weights."""
    found = _find(spec)
    if found.file is not None and not found.file.is_file():
        raise ZooError(f'There is no weights file {found.file}: expected {FORMS}.')
    _check_name(found.name)
    model = _create(found, img_size)
    if not (hasattr(model, 'forward_features') and hasattr(model, 'forward_head')):
        raise ZooError(f'{found.name} has no forward_features and forward_head: take a classifier of timm\'s.')
    cfg = resolve_model_data_config(model)
    if img_size:
        cfg['input_size'] = (cfg['input_size'][0], img_size, img_size)
        _try(model, cfg['input_size'])
    return Loaded(spec, model.to(device).eval(), cfg, found.epochs, _label_names(found, model))


def _label_names(found: _Found, model: Any) -> Sequence[str]:
    if found.name.endswith('.untrained'):
        return ()
    told = read_cfg(found.file) if found.file else getattr(model, 'pretrained_cfg', None)
    return (told or {}).get('label_names') or ()


def _find(spec: str) -> _Found:
    name, equals, file = spec.partition('=')
    if equals and '/' not in name:
        return _Found(name, Path(file).expanduser())
    path = Path(spec).expanduser()
    if path.is_dir():
        return _run(path)
    if path.is_file():
        maker = read_metadata(path).get('recipe', '').partition('.')[0]
        if not maker:
            raise ZooError(f'{path} does not say whose weights it holds: write NAME={path}.')
        return _Found(maker, path)
    if path.suffix in _FILES or ('/' in spec and ':' not in spec):
        raise ZooError(f'There is no file or run directory {spec}: expected {FORMS}.')
    return _Found(spec)


def _run(folder: Path) -> _Found:
    """Architecture, weights and length of a run; rates are of training only."""
    path, weights = folder / 'recipe.json', folder / 'weights.safetensors'
    if not path.is_file():
        raise ZooError(f'{folder} is no run directory (it has no recipe.json): expected {FORMS}.')
    if not weights.is_file():
        raise ZooError(f'{folder} is a run that has not ended (no {weights.name}): go on with it by '
                       f'`tinyvit-zoo train ... --resume`.')
    recipe = json.loads(path.read_text(encoding='utf-8'))['recipe']
    args = {key: value for key, value in recipe.get('model_args', {}).items() if not key.endswith('_rate')}
    epochs = recipe.get('epochs', 0) + recipe.get('cooldown_epochs', 0)
    return _Found(recipe['name'].partition('.')[0], weights, args, epochs or None)


def _check_name(name: str) -> None:
    if ':' in name:                 # hf-hub:ORG/NAME and local-dir:FOLDER are looked up by timm
        return
    architecture, _, tag = name.partition('.')
    if not is_model(architecture):
        known = list_models()
        hint = nearest(architecture, known) or nearest(architecture, timm.list_models())
        raise ZooError(f'There is no model {architecture!r}, in the zoo or in timm.{hint} `tinyvit-zoo list` shows the '
                       f"zoo's.")
    if tag and tag != 'untrained':
        check_tag(architecture, tag)


def _create(found: _Found, img_size: int | None) -> Any:
    """Built with the image size where the constructor takes one; a network of convolutions takes any."""
    args = dict(found.args)
    architecture, _, tag = found.name.partition('.')
    if tag == 'untrained':
        torch.manual_seed(0)
        name, args['pretrained'] = architecture, False
    else:
        name, args['pretrained'] = found.name, True
        _check_weights(found)
    if found.file:
        args['pretrained_cfg_overlay'] = {'file': str(found.file)}
    logging.getLogger('huggingface_hub').setLevel(logging.ERROR)  # it tells of every retry
    try:
        try:
            return timm.create_model(name, **args, **({'img_size': img_size} if img_size else {}))
        except TypeError as e:
            if 'img_size' not in str(e):
                raise
            return timm.create_model(name, **args)
    except ZooError:
        raise
    except Exception as e:  # timm, the Hub and the network have their own
        raise ZooError(f'{found.name} cannot be loaded{f" from {found.file}" if found.file else ""} '
                       f'({type(e).__name__}: {one_line(e)}): give weights of this architecture, NAME=FILE'
                       f'{", or another --img-size" if img_size else ""}.') from e


@torch.no_grad()
def _try(model: Any, input_size: tuple[int, int, int]) -> None:
    """One image, for a size that was asked for: before any is read, what cannot be is said."""
    try:
        model.eval()(torch.zeros(1, *input_size))
    except ZooError:
        raise
    except Exception as e:  # every architecture has its own
        raise ZooError(f'{type(model).__name__} cannot take images of {" x ".join(map(str, input_size[1:]))} '
                       f'({one_line(e)}): give another --img-size.') from e


def _check_weights(found: _Found) -> None:
    if found.file or ':' in found.name or get_pretrained_cfg(found.name).has_weights:
        return
    architecture = found.name.partition('.')[0]
    tags = [cfg.tag for cfg in get_arch_pretrained_cfgs(architecture).values() if cfg.has_weights]
    raise ZooError(f'There are no weights of {found.name}{f", but {chr(44).join(tags)}" if tags else ""}: give '
                   f'{architecture}=FILE, or {architecture}.untrained for random ones.')
