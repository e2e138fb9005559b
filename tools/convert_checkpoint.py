#!/usr/bin/env python3
"""Convert an authors' checkpoint: tensor names of this zoo, safetensors, nothing but the model.

    python tools/convert_checkpoint.py finetune_300e.pth --model mae_lite_vit_tiny mae_lite.safetensors
    python tools/convert_checkpoint.py mae_lite_vit_tiny.wang_in1k_mae_400e --model mae_lite_vit_tiny mae.safetensors
    python tools/convert_checkpoint.py --list

The source is a file, weights of the catalogue by name, or an address; these are fetched into torch.hub's cache.
It lists the tensors that were taken, changed and dropped, and checks that the file gives the same model. Tensors that
do not fit are refused. The class count is that of the file; a pre-trained encoder has none. Exit code 2: nothing was
written. (The authors' files also load unconverted: timm.create_model(NAME, pretrained=True,
pretrained_cfg_overlay=dict(file=PATH, num_classes=N)).)
"""
from __future__ import annotations

import argparse
import ast
import json
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from tinyvit_zoo import ZooError
from tinyvit_zoo.models import check_name
from tinyvit_zoo.runtime.files import written_whole
from tinyvit_zoo.runtime.text import one_line
from tinyvit_zoo.weights import catalogue, read_weights, save_weights, unwrap, weight_file

Convert = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class Report:
    """Names of tensors: taken as they are; changed, with their origin; fresh; dropped (names in the source)."""
    taken: list[str]
    changed: dict[str, list[str]]
    fresh: list[str]
    dropped: list[str]

    def __str__(self) -> str:
        lines = [f'taken    {len(self.taken)} tensors as they are']
        lines += [f'changed  {name} (from {", ".join(origin)})' for name, origin in self.changed.items()]
        lines += [f'fresh    {name} (not in the file: initial values)' for name in self.fresh]
        lines += [f'dropped  {name}' for name in self.dropped]
        return '\n'.join(lines)


def trace(source: Mapping[str, Tensor], convert: Convert) -> Report:
    """Find out what `convert` makes of each tensor by observing it.

    A tensor that comes out in the same memory was taken. Each of the others is filled with NaN in turn: what comes out
    as NaN was made from it.
    """
    out = convert(source)
    given = {_memory(tensor): name for name, tensor in source.items()}
    taken = [name for name, tensor in out.items() if _memory(tensor) in given]
    used = {given[_memory(out[name])] for name in taken}
    changed: dict[str, list[str]] = {name: [] for name in out if name not in taken}
    dropped = []
    for name in [name for name in source if name not in used]:
        made = _made_from(name, source, convert, changed) if source[name].is_floating_point() else []
        for target in made:
            changed[target].append(name)
        if not made:
            dropped.append(name)
    fresh = [name for name, origin in changed.items() if not origin]
    return Report(taken, {name: origin for name, origin in changed.items() if origin}, fresh, dropped)


def _memory(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.numel()


def _made_from(name: str, source: Mapping[str, Tensor], convert: Convert, candidates: Mapping[str, Any]) -> list[str]:
    out = convert({**source, name: torch.full_like(source[name], math.nan)})
    return [target for target in candidates if out[target].isnan().any()]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log: filters report what they drop, at every call."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def convert_checkpoint(source: str, name: str, target: Path, **args: Any) -> str:
    """Write `target` from the file `source` for the model `name` built with `args`; return a report."""
    check_name(name)
    if '.' in name:
        raise ZooError(f'--model is {name}, expected a name without a tag: {name.partition(".")[0]}.')
    source = str(fetched(source))
    if target.suffix != '.safetensors' or not target.parent.is_dir():
        raise ZooError(f'{target} cannot be written: name a .safetensors file in a folder that exists.')
    if target.resolve() == Path(source).resolve():
        raise ZooError(f'{target} is the source itself: name another file to write.')
    try:
        timm.create_model(name, device='meta', **args)
    except (TypeError, ValueError) as e:
        raise ZooError(f'{name} cannot be made with {args}: {e}') from e
    tensors = unwrap(read_weights(source))
    with _quiet():
        convert = partial(_filter(name), model=timm.create_model(name, num_classes=0, **args))
        classes = _class_count(convert(tensors), name)
        model = _load(source, name, classes, args)
        report = trace(tensors, partial(_filter(name), model=model))
    size = [int(model.in_chans), *_image_size(model)]  # type: ignore[arg-type]
    cfg = json.dumps({'num_classes': classes, 'input_size': size})
    with written_whole(target) as partial_file:
        save_weights(model.state_dict(), partial_file, {'architecture': name, 'pretrained_cfg': cfg})
        with _quiet():
            _check_same(model, _load(str(partial_file), name, classes, args), size)
    return (f'{source} -> {target}\n{report}\n{name}, {classes or "no"} classes, {size[1]} x {size[2]} pixels; '
            f'read back: the same tensors, the same output')


def _filter(name: str) -> Callable[..., dict[str, Tensor]]:
    """Return the checkpoint filter of the model's family."""
    return sys.modules[timm.model_entrypoint(name).__module__].checkpoint_filter_fn


def _class_count(tensors: Mapping[str, Tensor], name: str) -> int:
    head = tensors.get(f'{timm.get_pretrained_cfg(name).classifier}.weight')
    return 0 if head is None else len(head)


def _load(path: str, name: str, classes: int, args: Mapping[str, Any]) -> nn.Module:
    """Load strictly: missing, surplus and misshapen tensors are named."""
    overlay = {'file': path, 'num_classes': classes}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=classes, **args).eval()


def _image_size(model: Any) -> tuple[int, int]:
    return model.img_size if hasattr(model, 'img_size') else model.patch_embed.img_size


@torch.no_grad()
def _check_same(model: nn.Module, back: nn.Module, size: list[int]) -> None:
    saved, loaded = model.state_dict(), back.state_dict()
    wrong = [name for name in saved if not torch.equal(saved[name], loaded[name])]
    x = torch.randn(2, *size)
    if wrong or not torch.allclose(model(x), back(x), rtol=1e-5, atol=1e-6):
        raise ZooError(f'The converted file does not give the same model ({", ".join(wrong) or "its output"} differs): '
                       f'it was removed.')


# -- where files are ---------------------------------------------------------------------------------------------------
def fetched(source: str) -> Path:
    """Return the path of a file, or that in the cache of weights by name or address, fetched where it is not there."""
    try:
        if not Path(source).is_file() and source in catalogue():
            return Path(weight_file(timm.get_pretrained_cfg(source).to_dict()) or '')
        if source.startswith(('http://', 'https://')):
            return Path(weight_file({'url': source}) or '')
    except OSError as e:
        raise ZooError(f'{source} cannot be fetched ({one_line(e)}): give the path of the file.') from e
    if not Path(source).is_file():
        raise ZooError(f'There is no file {source}: give the path of a .pth, .zip or .safetensors file, an address, or '
                       f'a name of --list.')
    return Path(source)


def listing() -> str:
    rows = [(weight.name, weight.url) for weight in catalogue().values() if weight.url]
    width = max(len(name) for name, _ in rows)
    return '\n'.join(f'{name:{width}}  {url}' for name, url in rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        'convert_checkpoint.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', nargs='?', help='a .pth, .zip or .safetensors file, a name of --list, or an address')
    parser.add_argument('target', nargs='?', type=Path, help='the .safetensors file to write')
    parser.add_argument('--model', help='name of the model, without a tag')
    parser.add_argument('--img-size', type=_size, metavar='PIXELS',
                        help='resize position embeddings to images of this size: 64, or 64x32 (height x width)')
    parser.add_argument('--global-pool', help="pooling other than the model's: 'token' keeps the final norm of a "
                                              'pre-trained mae_lite encoder')
    parser.add_argument('--model-args', default='{}', metavar='DICT',
                        help="other arguments of the model, as \"{'in_chans': 1}\"")
    parser.add_argument('--list', action='store_true', help='list known files, and where they are')
    return parser


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition('x')
    if not (height.isdecimal() and (width or height).isdecimal() and int(height) and int(width or height)):
        raise argparse.ArgumentTypeError(f'{text} is no size, expected 64, or 64x32')
    return int(height), int(width or height)


def _model_args(text: str) -> dict[str, Any]:
    try:
        model_args = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        model_args = None
    if not isinstance(model_args, dict):
        raise ZooError(f'--model-args is {text}, expected a dictionary like {{\'in_chans\': 1}}.')
    return model_args


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_intermixed_args(argv)
    if args.list:
        print(listing())
        return 0
    try:
        if not (args.source and args.model and args.target):
            raise ZooError('Give SOURCE --model NAME OUT.safetensors, or --list for known files.')
        options = {'img_size': args.img_size, 'global_pool': args.global_pool}
        given = {name: value for name, value in options.items() if value is not None}
        print(convert_checkpoint(args.source, args.model, args.target, **_model_args(args.model_args), **given))
    except (ZooError, OSError) as e:
        print(f'convert_checkpoint: {e}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
