"""Register families with timm, and build their models through timm's builder, with strict loading.

This module alone imports private names of timm, some of them for others.
"""
import logging
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from huggingface_hub import constants as hub_constants
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from timm.layers import to_2tuple
from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    generate_default_cfgs,
    get_arch_pretrained_cfgs,
    register_model,
)
from timm.models._builder import resolve_pretrained_cfg
from timm.models._features import feature_take_indices as _taken
from timm.models._input import update_model_args, update_model_input_size  # noqa: F401
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..data.files import free_memory
from ..errors import ZooError, nearest
from ..layers import adapt_patch_channels
from ..runtime.text import one_line, shown
from ..weights import (
    check_agreement,
    check_cfg,
    check_config,
    hub_config,
    pretrained_cfgs,
    read_cfg,
    read_weights,
    unwrap,
    url_cache,
    weight_file,
)
from ..weights.files import LARGEST
from ._arguments import check_arguments

_logger = logging.getLogger(__name__)
ModelT = TypeVar('ModelT', bound=nn.Module)
Filter = Callable[..., dict[str, Tensor]]  # (state_dict, model, source_size)


def build_model(model_cls: type[ModelT], variant: str, pretrained: bool, filter_fn: Filter, pretrained_cfg: Any = None,
                pretrained_cfg_overlay: dict[str, Any] | None = None, **kwargs: Any) -> ModelT:
    """Build a model by timm's `build_model_with_cfg`, with stricter loading.

    Weight files are read by `read_weights` (zips, checksums, no code); every tensor but the head's must be there and
    fit, for any number of classes. Classes, size and normalization statistics of a file that we trained are in it. A
    model without weights is a classifier, also where all weights of its architecture are encoders.
    """
    check_arguments(model_cls, kwargs)
    if str(kwargs.get('device')) != 'meta' and (sizes := repr((model_cls, kwargs))) not in _FITTING:
        meta = build_model(model_cls, variant, False, filter_fn, pretrained_cfg, **{**kwargs, 'device': 'meta'})
        _check_memory(variant, meta, sizes)
    indices = getattr(model_cls, 'default_out_indices', 3)
    kwargs.setdefault('feature_cfg', dict(out_indices=indices, feature_cls='getter'))
    if isinstance(pretrained_cfg, str):
        check_tag(variant, pretrained_cfg)
    overlay = dict(pretrained_cfg_overlay or {})
    if any(overlay.get(key) for key in _SOURCES):  # it takes the place of the tag's own, which timm might prefer
        overlay = {**dict.fromkeys(_SOURCES[:3]), **overlay}
    if overlay.get('file'):
        overlay = {**read_cfg(weight_file({'file': overlay['file']}) or ''), **overlay}
    config = _check_given(variant, pretrained_cfg, overlay, kwargs.get('cache_dir'))
    if not pretrained:
        if pretrained_cfg is None and f'{variant}.untrained' in get_arch_pretrained_cfgs(variant):
            pretrained_cfg = 'untrained'
        with _ShapesAlone() if str(kwargs.get('device')) == 'meta' else nullcontext():
            return build_model_with_cfg(
                model_cls, variant, False, pretrained_cfg, overlay, pretrained_filter_fn=filter_fn, **kwargs)
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, overlay).to_dict()
    if not any(cfg.get(key) for key in _SOURCES):
        raise ZooError(f'There are no weights for {variant} yet: use pretrained=False, or one of `tinyvit-zoo list`.')
    source_size = _source_size(cfg, overlay, kwargs.get('pretrained_model_args') or {})
    try:
        if path := weight_file(cfg, kwargs.get('cache_dir')):
            if config:
                check_agreement(config, pretrained_cfg, path)
            tensors = unwrap(read_weights(path, verified=not cfg.get('file')))
            found = _classes_of(tensors, cfg) if pretrained_cfg is None else {}
            overlay = {**found, **overlay, 'state_dict': tensors, 'source': ''}     # else timm reads a file by itself
        model = build_model_with_cfg(
            model_cls, variant, True, pretrained_cfg, overlay,
            pretrained_filter_fn=partial(_strict_filter, filter_fn=filter_fn, source_size=source_size), **kwargs)
    except _NOT_FETCHED as e:
        raise ZooError(f'{_fetch_advice(variant, cfg, kwargs.get("cache_dir"))} ({one_line(e)})') from e
    model.pretrained_cfg.pop('state_dict', None)
    if path and cfg.get('source'):
        model.pretrained_cfg['source'] = cfg['source']
    return model


def _source_size(cfg: Mapping[str, Any], overlay: Mapping[str, Any], args: Mapping[str, Any],
                 ) -> tuple[int, int] | None:
    """Return the image size of the weights; None for a file of the caller's that does not state it."""
    size = args.get('img_size')
    if size is None and ('input_size' in overlay or not any(overlay.get(key) for key in _SOURCES)):
        size = cfg['input_size'][1:]
    return None if size is None else to_2tuple(size)


def _classes_of(tensors: Mapping[str, Any], cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the number of classes of weights that do not state it: the rows of their head, where it has its name."""
    head = tensors.get(f'{cfg["classifier"]}.weight')
    if not isinstance(head, Tensor) or not head.ndim or len(head) == cfg['num_classes']:
        return {}
    return {'num_classes': len(head), 'label_names': None}


def _check_memory(variant: str, model: nn.Module, arguments: str) -> None:
    """Raise ZooError if a model, given on the meta device, is larger than any weights that are read, or than memory."""
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())) / 2 ** 30
    if size > (most := min(free_memory(), LARGEST) / 2 ** 30):
        raise ZooError(f'{variant} of this size takes {size:,.1f} GiB of memory, expected {most:,.1f} at most: use '
                       f'smaller arguments.')
    _FITTING.add(arguments)


def _check_given(variant: str, pretrained_cfg: Any, overlay: Mapping[str, Any], cache_dir: str | Path | None,
                 ) -> Path | None:
    """Raise ZooError for impossible values in a cfg of the caller's, or of a config.json; return that, if any."""
    given = pretrained_cfg if isinstance(pretrained_cfg, Mapping) else {}
    for key in _SOURCES:
        value, mapping = overlay.get(key), key == 'state_dict'
        if value is not None and (not value or isinstance(value, Mapping) != mapping):
            raise ZooError(f'In the pretrained cfg of {variant}, {key} is {shown(value)}: expected weights.')
    try:
        path = hub_config(given, cache_dir)
        if path:
            check_config(path)
    except _NOT_FETCHED as e:
        raise ZooError(f'{_fetch_advice(variant, given, cache_dir)} ({one_line(e)})') from e
    check_cfg({**given, **overlay}, f'In the pretrained cfg of {variant}', others=True)
    if unknown := {**given, **overlay}.keys() - {f.name for f in fields(PretrainedCfg)}:
        raise ZooError(f'In the pretrained cfg of {variant} there is a field {min(unknown)!r}, which timm does not '
                       f'have.{nearest(min(unknown), [f.name for f in fields(PretrainedCfg)])} Leave it out.')
    return path


def register_family(module: str, build: Callable[..., nn.Module],
                    variants: Mapping[str, tuple[str, int, Mapping[str, Any]]],
                    aliases: Mapping[str, str] = MappingProxyType({}), **cfg: Any) -> None:
    """Register `variants` (dataset, image size, arguments by name) with timm; `aliases` take another's weights."""
    family = sys.modules[module]
    shared = dict(fixed_input_size=True, classifier='head', license='apache-2.0', **cfg)
    meant_for = {name: (dataset, size) for name, (dataset, size, _) in variants.items()}
    family.default_cfgs = generate_default_cfgs(  # type: ignore[attr-defined]
        pretrained_cfgs(meant_for, aliases, **shared))
    for name, (_, _, args) in variants.items():
        entrypoint = partial(_create, build, name, args)
        entrypoint.__name__, entrypoint.__module__ = name, module  # type: ignore[attr-defined]
        setattr(family, name, register_model(entrypoint))


def _create(build: Callable[..., nn.Module], name: str, args: Mapping[str, Any], pretrained: bool = False,
            **kwargs: Any) -> nn.Module:
    """Build a model. Errors of its layers, of timm and of torch become a ZooError that shows what was given."""
    try:
        return build(name, pretrained, **{**args, **kwargs})
    except ZooError:
        raise
    except Exception as e:
        unknown = isinstance(e, TypeError) and any(f"unexpected keyword argument '{key}'" in str(e) for key in kwargs)
        if unknown and not isinstance(kwargs.get('pretrained_cfg'), Mapping):   # of a config.json
            raise   # as timm's models say that they have no such argument
        given = ', '.join(f'{key}={shown(value)}' for key, value in kwargs.items()
                          if value is not None and key != 'pretrained_cfg')
        raise ZooError(f'{name} cannot be built with {given or "its arguments"} ({one_line(e)}).') from e


class _ShapesAlone(TorchDispatchMode):
    """Skip the initialisation of tensors without values, which takes torch ten times as long as the rest."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        fills = func.overloadpacket.__name__ in _FILLS and args[0].is_meta
        return args[0] if fills else func(*args, **(kwargs or {}))


_FILLS = ('uniform_', 'normal_', 'erfinv_', 'mul_', 'add_', 'clamp_', 'fill_', 'zero_')
_SOURCES = ('file', 'url', 'hf_hub_id', 'state_dict')
_FITTING: set[str] = set()      # models and arguments whose memory was counted
_NOT_FETCHED = (OSError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled)


def check_tag(variant: str, tag: str) -> None:
    """Raise ZooError, with the nearest tag, if the model has none of this name."""
    tags = list(get_arch_pretrained_cfgs(variant))
    if f'{variant}.{tag}' not in tags:
        known = [name.partition('.')[2] for name in tags]
        raise ZooError(f'{variant} has no weights {tag!r}.{nearest(tag, known)} There are: {", ".join(known)}.')


def _fetch_advice(variant: str, cfg: Mapping[str, Any], cache_dir: str | Path | None) -> str:
    where = 'or pass pretrained_cfg_overlay=dict(file=PATH)'
    if cfg.get('hf_hub_id'):
        return (f'The weights of {variant} are neither cached nor available: {cfg["hf_hub_id"]} on the Hub '
                f'(cache {cache_dir or hub_constants.HF_HUB_CACHE}). Connect, {where}')
    return (f'The weights of {variant} are neither cached nor available: {cfg.get("url")}. '
            f'Connect, put the file at {url_cache(str(cfg.get("url")), cache_dir)}, {where}')


def _strict_filter(state_dict: Mapping[str, Any], model: Any, filter_fn: Filter,
                   source_size: tuple[int, int] | None) -> dict[str, Tensor]:
    """Apply the family's filter, and the check that timm skips when the class count differs."""
    single = {name: value.float() if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
              else value for name, value in state_dict.items()}  # tables are resized and channels adapted in it
    if odd := [name for name, value in single.items() if isinstance(value, Tensor) and value.is_complex()]:
        raise ZooError(f'The tensor {odd[0]} of the checkpoint is complex: expected real numbers.')
    try:
        tensors = filter_fn(single, model, source_size)
    except ZooError:
        raise
    except Exception as e:  # of odd shapes; and timm would take a TypeError for a filter with one argument, and hide it
        raise ZooError(f'The checkpoint could not be read as one of {type(model).__name__} ({one_line(e)}): '
                       f'give weights of this architecture.') from e
    problems = _misfits(tensors, model)
    if problems:
        more = f' and {len(problems) - 5} more' if len(problems) > 5 else ''
        raise ZooError(f'Weights do not fit {model.pretrained_cfg["architecture"]}: {"; ".join(problems[:5])}{more}. '
                       f'Give its own, and their num_classes in the pretrained cfg (0 for an encoder).')
    return tensors


def _misfits(tensors: Mapping[str, Tensor], model: Any) -> list[str]:
    """Describe each missing, surplus or misshapen tensor that timm may not adapt."""
    cfg, own = model.pretrained_cfg, model.state_dict()
    head = (f'{cfg["classifier"]}.weight', f'{cfg["classifier"]}.bias')
    dropped = head if model.num_classes != cfg['num_classes'] else ()
    stem = f'{cfg["first_conv"]}.weight' if model.in_chans != cfg['input_size'][0] else ''
    problems = [f'{name} is missing' for name in own if name not in tensors and name not in dropped]
    problems += [f'{name} is not part of it' for name in tensors if name not in own and name not in head]
    if not dropped:
        problems += [f'{name} is not part of it' for name in head if name in tensors and name not in own]
    for name in own:
        if name in tensors and name not in dropped:
            given, expected = list(tensors[name].shape), list(own[name].shape)
            any_channels = name == stem and len(given) == len(expected) == 4
            if given != expected and not (any_channels and given[:1] + given[2:] == expected[:1] + expected[2:]):
                problems.append(f'{name} is {given}, expected {expected}')
            elif own[name].is_floating_point() and not tensors[name].is_floating_point():
                problems.append(f'{name} is of {str(tensors[name].dtype).removeprefix("torch.")}, expected floats')
    return problems


def feature_take_indices(count: int, indices: int | list[int] | None = None) -> tuple[list[int], int]:
    """Return the positions that `indices` stand for, from 0, and the last; ZooError unless they rise."""
    taken, last = _taken(count, indices)
    if sorted(set(taken)) != list(taken):
        raise ZooError(f'The indices of features are {shown(indices)}, expected each once, the first layers first.')
    return taken, last


def renamed(tensors: Mapping[str, Tensor], patterns: Iterable[tuple[str, Any]]) -> dict[str, Tensor]:
    """Rename the tensors by `re.sub(pattern, replacement, name)` for each pair in turn."""
    names = list(tensors)
    for pattern, replacement in patterns:
        names = [re.sub(pattern, replacement, name) for name in names]
    return dict(zip(names, tensors.values(), strict=True))


def without(tensors: Mapping[str, Tensor], pattern: str, why: str) -> dict[str, Tensor]:
    """Drop the tensors whose names match a pattern; the log names them."""
    out = [name for name in tensors if re.search(pattern, name)]
    if out:
        _logger.info('Left out (%s): %s', why, ', '.join(out))
    return {name: tensor for name, tensor in tensors.items() if name not in out}


def adapt_linear_stem(tensors: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Adapt a Linear stem `tokenizer.proj` to the model's channels, as timm does for convolutions.

    Tensors change only where the model and the pretrained cfg differ in channels and the widths agree with that; others
    are left to the strict check. The model sets `self._traits = {'first_conv': None}`, so that timm skips the stem.
    """
    stem = 'tokenizer'
    own = dict(model.get_submodule(stem).named_parameters(prefix=stem))
    old, new = getattr(model, 'pretrained_cfg', {}).get('input_size', (model.in_chans,))[0], model.in_chans
    if old == new or own[f'{stem}.proj.weight'].ndim != 2 or not own.keys() <= tensors.keys():
        return dict(tensors)
    for name in own.keys() & {f'{stem}.proj.weight', f'{stem}.norm.weight', f'{stem}.norm.bias'}:
        if tensors[name].ndim != own[name].ndim or tensors[name].numel() * new != own[name].numel() * old:
            return dict(tensors)
    return adapt_patch_channels(tensors, stem, old, new)
