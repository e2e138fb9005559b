"""Options that several commands share, the types of their values, and the set-up of `train` and `pretrain`."""
import argparse
import dataclasses
import math
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ..data.datasets import spec_of
from ..entry import BEGUN, IS_COMMAND
from ..errors import ZooError
from ..recipes import BaseRecipe
from ..recipes.settings import AnyRecipe, option, override, parse, settings, type_name
from ..runtime.files import user_path
from ..runtime.world import World, join_world
from ..training.loop import Stopped
from ..training.trackers import TRACKERS
from ..training.train import Options


class Incomplete(ZooError):
    """A command that did part of its work: it prints `text` and exits with code 1."""

    def __init__(self, problem: str, text: str) -> None:
        super().__init__(problem)
        self.text = text


def positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) < 10 ** 9:
        raise argparse.ArgumentTypeError(f'{text[:40]!r} is not a whole number from 1 to 999,999,999')
    return int(text)


def amount(text: str, least: float = math.ulp(0.), most: float = math.inf, kind: str = 'number above 0') -> float:
    with suppress(ValueError):
        if least <= float(text) < most:
            return float(text)
    raise argparse.ArgumentTypeError(f'{text!r} is not a {kind}')


duration = partial(amount, least=0., most=1e9, kind='number of seconds, 0 or more')


def add_device(parser: Any) -> None:
    parser.add_argument('--device', default='auto', help='cpu, cuda, cuda:1, ... (default: cuda where there is one)')


def add_img_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--img-size', type=positive, nargs='+', metavar='S', action=_Size,
                        help='image side, or height and width (default: of the model)')


class _Size(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        if len(values) > 2:
            parser.error(f'{option} takes one side, or height and width, not {len(values)} numbers')
        setattr(namespace, self.dest, (values[0], values[-1]))


def add_formats(parser: argparse.ArgumentParser, json_help: str) -> None:
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument('--json', action='store_true', help=json_help)
    formats.add_argument('--csv', action='store_true', help='print CSV, one line per model')


# -- trainings ---------------------------------------------------------------------------------------------------------
def add_options(parser: argparse.ArgumentParser, kind: type[BaseRecipe]) -> None:
    """Add the options of the machine, and one for every field of the recipe."""
    parser.add_argument('--data', metavar='SOURCE', help='folder:DIR, csv:FILE, npz:FILE, hf:NAME, medmnist:NAME, '
                        'cifar10:DIR, digits, ... (default: digits, for recipes on digits)')
    parser.add_argument('--output', type=user_path, metavar='DIR', help='run directory (default: runs/RECIPE)')
    parser.add_argument('--resume', action='store_true', help='continue the run in --output')
    parser.add_argument('--download', action='store_true', help='download the data set if it is missing')
    parser.add_argument('--val-fraction', type=float, metavar='F', help='share of the training images to hold out for '
                        'validation, if the data have no such split (default: 0.1 for --keep best, else 0)')
    parser.add_argument('--fraction', type=float, default=1., metavar='F', help='share of the training images to use')
    add_device(parser)
    parser.add_argument('--precision', default='auto', choices=['auto', 'fp32', 'bf16', 'fp16'],
                        help='auto: bf16 where the device supports it in hardware, else fp32')
    parser.add_argument('--compile', action='store_true', help='torch.compile the model, and on a GPU the augmentation')
    parser.add_argument('--no-graphs', dest='graphs', action='store_false',
                        help='do not capture steps as CUDA graphs')
    parser.add_argument('--loader', default='auto', choices=['auto', 'memory', 'stream'],
                        help='keep the images in device memory, or stream them (default: by their size)')
    parser.add_argument('--workers', type=int, metavar='N', help='worker processes for streaming')
    parser.add_argument('--checkpoint-minutes', type=float, default=1., metavar='M',
                        help='minutes between checkpoints (default: 1)')
    parser.add_argument('--eval-every', type=int, default=0, metavar='EPOCHS',
                        help='epochs between evaluations (default: some 20 in all, in a fifth of the time at most)')
    parser.add_argument('--track', default='', choices=TRACKERS, help='also log to this experiment tracker')
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument('--minutes', type=amount, metavar='M',
                        help='train for as many epochs as fit in M minutes on this machine; the schedule scales with '
                             'them. A resumed run keeps its epochs')
    budget.add_argument('--pflop', type=amount, metavar='C',
                        help='train for as many epochs as C PFLOP allow: epochs x images x 6 x multiply-adds')
    group = parser.add_argument_group('settings', 'override the recipe; --epochs also scales its schedule')
    helps = {field.name: field.metadata.get('help', '').replace('%', '%%') for field in dataclasses.fields(kind)}
    for name in settings(kind):
        group.add_argument(option(name), metavar=type_name(kind, name).upper(), dest=f'set_{name}', help=helps[name])


def with_options(args: argparse.Namespace, recipe: AnyRecipe) -> tuple[AnyRecipe, Options]:
    """Return the recipe with the fields that were given as options, and the other options."""
    kind = type(recipe)
    texts = {name: getattr(args, f'set_{name}') for name in settings(kind)}
    given = {name: parse(kind, name, text) for name, text in texts.items() if text is not None}
    recipe = override(recipe, given)
    values = {**vars(args), 'data': image_source(args.data, recipe), 'output': args.output or Path('runs', recipe.name),
              'given': given, 'begun': BEGUN if IS_COMMAND else None,
              'command': shlex.join(['tinyvit-zoo', *args.argv])}
    return recipe, Options(**{field.name: values[field.name] for field in dataclasses.fields(Options)})


def image_source(data: str | None, recipe: BaseRecipe) -> str:
    spec = data or spec_of(recipe.dataset)
    if not data and ':' in spec:
        raise ZooError(f'--data is missing: give e.g. {spec}.')
    return spec


def in_world(device: str, run: Callable[[World], object]) -> str:
    """Run as one of the processes of torchrun; a signal exits with 128 plus its number."""
    with join_world(device) as world:
        try:
            run(world)
        except Stopped as stop:
            print(f'tinyvit-zoo: stopped by {signal.Signals(stop.args[0]).name}; the checkpoint is written; '
                  f'continue with --resume.', file=sys.stderr)
            raise SystemExit(128 + stop.args[0]) from None
    return ''
