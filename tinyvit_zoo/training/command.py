"""`tinyvit-zoo train` and `tinyvit-zoo recipes`: options from the fields of a recipe, so that none is forgotten."""
from __future__ import annotations

import argparse
import ast
import dataclasses
import signal
import sys
import textwrap
import typing
from pathlib import Path
from typing import Any

from ..errors import ZooError, nearest
from ..recipes import FINETUNE, RECIPES, SOURCES, Recipe, find_recipe

_FIXED = ('name', 'about', 'published')     # fields of a recipe that are no settings


def add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('recipe', metavar='RECIPE', nargs='?', help='the weights to make: see `tinyvit-zoo recipes`')
    parser.add_argument(
        '--model', metavar='NAME[.TAG]', help='instead: fine-tune these weights (without TAG the default ones)')
    parser.add_argument(
        '--data', metavar='SOURCE', help='cifar10:DIR, npz:FILE, folder:DIR, digits, ... (default: digits where the '
                                         'recipe is for them)')
    parser.add_argument('--output', type=Path, metavar='DIR', help='run directory (default: runs/RECIPE)')
    parser.add_argument('--resume', action='store_true', help='go on with the run in --output')
    parser.add_argument('--download', action='store_true', help='fetch the data set where it is not there')
    parser.add_argument('--val-fraction', type=float, default=0., metavar='F', help='share of the training images held '
                                                                                    'out for validation (default: 0)')
    parser.add_argument('--fraction', type=float, default=1., metavar='F', help='share of the training images to use')
    parser.add_argument('--device', default='auto', help='cpu, cuda, cuda:1, ... (default: cuda where there is one)')
    parser.add_argument('--precision', default='auto', choices=['auto', 'fp32', 'bf16', 'fp16'])
    parser.add_argument('--compile', action='store_true', help='torch.compile the model, and on a GPU the augmentation')
    parser.add_argument('--loader', default='auto', choices=['auto', 'memory', 'stream'],
                        help='images in memory on the device, or read as they are needed')
    parser.add_argument('--workers', type=int, metavar='N', help='processes that read images, when streaming')
    parser.add_argument('--checkpoint-minutes', type=float, default=1., metavar='M', help='between two checkpoints')
    parser.add_argument('--eval-every', type=int, default=0, metavar='EPOCHS', help='default: twenty times in all')
    parser.add_argument('--tensorboard', action='store_true', help='write TensorBoard events too')
    settings = parser.add_argument_group(
        'settings of the recipe', 'every field can be overridden; the defaults are the recipe\'s')
    for field in dataclasses.fields(Recipe):
        if field.name not in _FIXED:
            settings.add_argument(_flag(field.name), metavar=_kind(field.name).upper(), dest=f'set_{field.name}')


def run_train(args: argparse.Namespace, unknown: list[str]) -> str:
    """Says everything while it runs, the accuracy last. `unknown`: what the parser did not know."""
    _refuse(unknown)
    recipe = _overridden(_recipe(args), args)
    from .distributed import join_world
    from .loop import Stopped
    from .train import Options, train

    options = Options(
        output=args.output or Path('runs', recipe.name), data=_source(args, recipe),
        **{field.name: getattr(args, field.name) for field in dataclasses.fields(Options)
           if field.name not in ('output', 'data')})
    with join_world(args.device) as world:
        try:
            train(recipe, options, world)
        except Stopped as stop:
            name = signal.Signals(stop.number).name
            print(f'tinyvit-zoo: stopped by {name}; the checkpoint is written, --resume goes on.', file=sys.stderr)
            raise SystemExit(128 + stop.number) from None
    return ''


def _recipe(args: argparse.Namespace) -> Recipe:
    if bool(args.recipe) == bool(args.model):
        raise ZooError('Give a RECIPE (`tinyvit-zoo recipes` shows all) or --model NAME, one of the two.')
    return find_recipe(args.recipe) if args.recipe else _finetuning(args.model)


def _finetuning(name: str) -> Recipe:
    """The fine-tuning recipe for a model with its weights, at their size; from scratch where it has none."""
    from timm.models import get_pretrained_cfg

    from ..models import check_name, check_tag

    check_name(name)
    model, _, tag = name.partition('.')
    if tag:
        check_tag(model, tag)
    cfg = get_pretrained_cfg(name)
    start = f'{model}.{cfg.tag}' if cfg.has_weights else ''
    return dataclasses.replace(
        FINETUNE, name=f'{model}.finetuned', from_weights=start, img_size=cfg.input_size[-1], crop_pct=cfg.crop_pct,
        layer_decay=FINETUNE.layer_decay if start else 1.)


def _source(args: argparse.Namespace, recipe: Recipe) -> str:
    if args.data:
        return args.data
    if recipe.dataset == 'digits':
        return 'digits'
    raise ZooError(f'--data is missing: {SOURCES.get(recipe.dataset, "folder")}:DIR, for one.')


def _overridden(recipe: Recipe, args: argparse.Namespace) -> Recipe:
    given = {field.name: getattr(args, f'set_{field.name}') for field in dataclasses.fields(Recipe)
             if getattr(args, f'set_{field.name}', None) is not None}
    changes = {name: _value(name, text) for name, text in given.items()}
    if 'epochs' in changes:  # the whole schedule keeps its proportions
        ratio = changes['epochs'] / recipe.epochs
        scaled = {'warmup_epochs': recipe.warmup_epochs * ratio,
                  'cooldown_epochs': round(recipe.cooldown_epochs * ratio),
                  'mix_off_epoch': recipe.mix_off_epoch and max(1, round(recipe.mix_off_epoch * ratio))}
        changes = {**scaled, **changes}
    return dataclasses.replace(recipe, **changes)


def _flag(name: str) -> str:
    return f'--{name.replace("_", "-")}'


def _kind(name: str) -> str:
    """'int', 'float', 'str', 'bool', or 'value' (a Python literal)."""
    hint = typing.get_type_hints(Recipe)[name]
    return hint.__name__ if hint in (int, float, str, bool) else 'value'


def _value(name: str, text: str) -> Any:
    """The text of an option in the type of its field."""
    kind = _kind(name)
    try:
        if kind == 'str':
            return text
        if kind == 'bool':
            return {'true': True, 'yes': True, '1': True, 'false': False, 'no': False, '0': False}[text.lower()]
        if kind == 'value':
            value = ast.literal_eval(text)
            hint = typing.get_type_hints(Recipe)[name]
            default = next(f for f in dataclasses.fields(Recipe) if f.name == name)
            wanted = dict if default.default is dataclasses.MISSING else tuple
            if value is None and type(None) in typing.get_args(hint):
                return None
            if not isinstance(value, wanted):
                raise ValueError
            return value
        return {'int': int, 'float': float}[kind](text)
    except (ValueError, SyntaxError, KeyError, TypeError) as e:
        expected = {'int': 'a whole number', 'float': 'a number', 'bool': 'true or false'}.get(
            kind, f'a value like {getattr(FINETUNE, name)!r}')
        raise ZooError(f'{_flag(name)} is {text!r}, expected {expected}.') from e


def _refuse(unknown: list[str]) -> None:
    if unknown:
        flags = [_flag(field.name) for field in dataclasses.fields(Recipe) if field.name not in _FIXED]
        name = unknown[0].partition('=')[0]
        raise ZooError(f'There is no option {name!r}.{nearest(name, flags)} `tinyvit-zoo train --help` shows all.')


def recipes_text(name: str | None) -> str:
    """All recipes, a line each, or one in full."""
    if name is None:
        rows = [f'{r.name:28} {r.published or "-":>7}  {r.epochs:>5}  {r.model}' for r in RECIPES.values()]
        return '\n'.join([f'{"recipe":28} {"paper":>7}  epochs', *(row.rpartition('  ')[0] for row in rows)])
    recipe = find_recipe(name)
    settings = [(f.name, getattr(recipe, f.name)) for f in dataclasses.fields(Recipe) if f.name not in _FIXED]
    return '\n'.join([
        recipe.name, textwrap.fill(recipe.about, 100), f'published: {recipe.published or "no figure"}',
        f'command: {recipe.command}', '', *(f'{key:20} {value}' for key, value in settings)])
