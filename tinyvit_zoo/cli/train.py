"""`tinyvit-zoo train` and `tinyvit-zoo recipes`: options from the fields of a recipe, so that none is forgotten."""
from __future__ import annotations

import argparse
import ast
import dataclasses
import shlex
import signal
import sys
import textwrap
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ZooError, nearest
from ..recipes import (
    FINETUNING_PRESET,
    PRETRAININGS,
    RECIPES,
    SOURCES,
    BaseRecipe,
    Pretraining,
    Recipe,
    find_pretraining,
    find_recipe,
)

_FIXED = ('name', 'about', 'published', 'method')       # fields of a recipe that are no settings
_DIGITS = ('digits', 'mnist', 'svhn')                        # sources whose images must not be mirrored
_EXAMPLES = {'method_args': {'mask_ratio': 0.6}, 'weight_decay_end': 0.4}
TrainingT = TypeVar('TrainingT', bound=BaseRecipe)


def add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('recipe', metavar='RECIPE', nargs='?', help='the weights to make: see `tinyvit-zoo recipes`')
    parser.add_argument(
        '--model', metavar='NAME[.TAG]', help='instead: fine-tune these weights (without TAG the default ones)')
    parser.add_argument(
        '--from', dest='begin', metavar='RUN_OR_WEIGHTS',
        help='begin with these weights, as --from-weights; the run of a pre-training says the model too')
    parser.add_argument(
        '--pretraining', nargs='+', metavar='SETTING=VALUE', default=[],
        help='settings of the pre-training that comes first where a recipe begins with one: epochs=100')
    add_options(parser)
    add_settings(parser, Recipe)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What belongs to the machine at hand."""
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


def add_settings(parser: argparse.ArgumentParser, kind: type[BaseRecipe]) -> None:
    settings = parser.add_argument_group(
        'settings of the recipe', 'every field can be overridden; the defaults are the recipe\'s')
    for name in _settings(kind):
        settings.add_argument(_flag(name), metavar=_kind(kind, name).upper(), dest=f'set_{name}')


def _settings(kind: type[BaseRecipe]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if field.name not in _FIXED]


def run_train(args: argparse.Namespace, unknown: list[str]) -> str:
    """Says everything while it runs, the accuracy last. `unknown`: what the parser did not know."""
    refuse(unknown, Recipe, 'train')
    recipe = overridden(_recipe(args), args)
    if not args.recipe:
        recipe = not_mirrored(recipe, args)
    from ..training.chain import adapted, pretraining_of, train_from_pretraining
    from ..training.train import train

    options = options_of(args, recipe.name, image_source(args, recipe))
    first = pretraining_of(recipe)
    if first is None:
        if args.pretraining:
            raise ZooError(f'--pretraining is for recipes that begin with one, and {recipe.name} does not.')
        in_world(args.device, lambda world: train(recipe, options, world))
    else:
        chosen = with_changes(adapted(first, recipe), _assignments(args.pretraining))
        in_world(args.device, lambda world: train_from_pretraining(chosen, recipe, options, world))
    return ''


def _assignments(texts: list[str]) -> dict[str, Any]:
    """Of 'epochs=5' and the like: fields of a pre-training."""
    changes: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition('=')
        name = name.replace('-', '_')
        known = [name for name in _settings(Pretraining) if name not in ('seed', 'method')]
        if not equals or name not in known:
            raise ZooError(f'--pretraining {text} is no SETTING=VALUE of a pre-training.{nearest(name, known)} '
                           f'Expected epochs=100, for one.')
        changes[name] = _value(Pretraining, name, value)
    return changes


def options_of(args: argparse.Namespace, name: str, data: str) -> Any:
    from ..training.train import Options

    return Options(
        output=args.output or Path('runs', name), data=data, command=shlex.join(['tinyvit-zoo', *args.argv]),
        **{field.name: getattr(args, field.name) for field in dataclasses.fields(Options)
           if field.name not in ('output', 'data', 'command')})


def in_world(device: str, run: Callable[[Any], object]) -> None:
    """Run it in this process's place among all; a signal ends it with its number."""
    from ..runtime.world import join_world
    from ..training.loop import Stopped

    with join_world(device) as world:
        try:
            run(world)
        except Stopped as stop:
            name = signal.Signals(stop.number).name
            print(f'tinyvit-zoo: stopped by {name}; the checkpoint is written, --resume goes on.', file=sys.stderr)
            raise SystemExit(128 + stop.number) from None


def _recipe(args: argparse.Namespace) -> Recipe:
    begun = _pretrained_run(args.begin) if args.begin else {}
    if bool(args.recipe) + bool(args.model) != 1 and not (begun and not args.recipe and not args.model):
        raise ZooError('Give a RECIPE (`tinyvit-zoo recipes` shows all) or --model NAME, one of the two, or neither '
                       'and the run of a pre-training by --from.')
    if args.recipe:
        recipe = find_recipe(args.recipe)
        return dataclasses.replace(recipe, from_weights=args.begin) if args.begin else recipe
    recipe = _finetuning(args.model or begun['name'].partition('.')[0], args.begin)
    if begun:
        structure = {key: value for key, value in begun['model_args'].items() if not key.endswith('_rate')}
        recipe = dataclasses.replace(recipe, img_size=begun['img_size'], model_args=structure)
    return recipe


def _pretrained_run(path: str) -> dict[str, Any]:
    """The recipe of a pre-training's run directory; {} where it is something else."""
    from ..training.run_dir import read_recipe

    about = Path(path, 'recipe.json')
    recipe = read_recipe(about)['recipe'] if about.is_file() else {}
    return recipe if 'method' in recipe else {}


def _finetuning(name: str, begin: str | None = None) -> Recipe:
    """The fine-tuning recipe for a model with its weights or others, at their size; from scratch where it has none."""
    from timm.models import get_pretrained_cfg

    from ..models import check_name, check_tag

    check_name(name)
    model, _, tag = name.partition('.')
    if tag:
        check_tag(model, tag)
    cfg = get_pretrained_cfg(name)
    start = begin or (f'{model}.{cfg.tag}' if cfg.has_weights else '')
    return dataclasses.replace(
        FINETUNING_PRESET, name=f'{model}.finetuned', from_weights=start, img_size=cfg.input_size[-1],
        crop_pct=cfg.crop_pct, layer_decay=FINETUNING_PRESET.layer_decay if start else 1.)


def image_source(args: argparse.Namespace, recipe: BaseRecipe) -> str:
    if args.data:
        return args.data
    if recipe.dataset == 'digits':
        return 'digits'
    raise ZooError(f'--data is missing: {SOURCES.get(recipe.dataset, "folder")}:DIR, for one.')


def overridden(recipe: TrainingT, args: argparse.Namespace) -> TrainingT:
    given = {name: getattr(args, f'set_{name}') for name in _settings(type(recipe))
             if getattr(args, f'set_{name}', None) is not None}
    return with_changes(recipe, {name: _value(type(recipe), name, text) for name, text in given.items()})


def not_mirrored(recipe: TrainingT, args: argparse.Namespace) -> TrainingT:
    """Without flips where the images are digits, unless flips were asked for."""
    mirrored = args.set_flip is not None or (args.data or '').partition(':')[0] not in _DIGITS
    return recipe if mirrored else dataclasses.replace(recipe, flip=0.)


def with_changes(recipe: TrainingT, changes: dict[str, Any]) -> TrainingT:
    """With other epochs the whole schedule keeps its proportions."""
    if 'epochs' in changes:
        ratio = changes['epochs'] / recipe.epochs
        scaled: dict[str, Any] = {'warmup_epochs': recipe.warmup_epochs * ratio,
                                  'cooldown_epochs': round(recipe.cooldown_epochs * ratio)}
        if isinstance(recipe, Recipe):
            scaled['mix_off_epoch'] = recipe.mix_off_epoch and max(1, round(recipe.mix_off_epoch * ratio))
        changes = {**scaled, **changes}
    return dataclasses.replace(recipe, **changes)


def _flag(name: str) -> str:
    return f'--{name.replace("_", "-")}'


def _kind(recipe: type[BaseRecipe], name: str) -> str:
    """'int', 'float', 'str', 'bool', or 'value' (a Python literal)."""
    hint = typing.get_type_hints(recipe)[name]
    return hint.__name__ if hint in (int, float, str, bool) else 'value'


def _value(recipe: type[BaseRecipe], name: str, text: str) -> Any:
    """The text of an option in the type of its field."""
    kind = _kind(recipe, name)
    try:
        if kind == 'str':
            return text
        if kind == 'bool':
            return {'true': True, 'yes': True, '1': True, 'false': False, 'no': False, '0': False}[text.lower()]
        if kind == 'value':
            value, allowed = ast.literal_eval(text), _types(recipe, name)
            value = float(value) if float in allowed and isinstance(value, int) else value
            if not isinstance(value, allowed):
                raise ValueError
            return value
        return {'int': int, 'float': float}[kind](text)
    except (ValueError, SyntaxError, KeyError, TypeError) as e:
        expected = {'int': 'a whole number', 'float': 'a number', 'bool': 'true or false'}.get(
            kind, f'a value like {_EXAMPLES.get(name) or getattr(FINETUNING_PRESET, name)!r}')
        raise ZooError(f'{_flag(name)} is {text!r}, expected {expected}.') from e


def _types(recipe: type[BaseRecipe], name: str) -> tuple[type, ...]:
    """What a field may hold: (tuple, NoneType) for `tuple[float, float] | None`."""
    hint = typing.get_type_hints(recipe)[name]
    hints = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return tuple(typing.get_origin(h) or h for h in hints)


def refuse(unknown: list[str], kind: type[BaseRecipe], command: str) -> None:
    """ZooError for options that there are not."""
    if unknown:
        name = unknown[0].partition('=')[0]
        raise ZooError(f'There is no option {name!r}.{nearest(name, map(_flag, _settings(kind)))} '
                       f'`tinyvit-zoo {command} --help` shows all.')


def recipes_text(name: str | None) -> str:
    """All recipes, a line each, or one in full."""
    if name is None:
        rows = [f'{r.name:34} {r.published or "-":>7}  {r.epochs:>6}' for r in RECIPES.values()]
        encoders = [f'{r.name:34} {r.method:>12} {r.epochs:>6}' for r in PRETRAININGS.values()]
        return '\n'.join([f'{"recipe":34} {"paper":>7}  epochs', *rows, '',
                          f'{"pre-training":34} {"method":>12} epochs', *encoders])
    recipe = find_pretraining(name) if name in PRETRAININGS else find_recipe(name)
    settings = [(key, getattr(recipe, key)) for key in _settings(type(recipe))]
    made = f'method: {recipe.method}' if isinstance(recipe, Pretraining) else (
        f'published: {recipe.published or "no figure"}')
    return '\n'.join([
        recipe.name, textwrap.fill(recipe.about, 100), made, f'command: {recipe.command}', '',
        *(f'{key:20} {value}' for key, value in settings)])
