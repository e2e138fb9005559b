"""Options that several commands share, and the types of their values."""
import argparse
import math
from contextlib import suppress
from functools import partial
from typing import Any


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number from 1 up')
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
                        help='side, or height and width, of the images (default: those of the model)')


class _Size(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        if len(values) > 2:
            parser.error(f'{option} takes one side, or height and width, not {len(values)} numbers')
        setattr(namespace, self.dest, (values[0], values[-1]))


def add_formats(parser: argparse.ArgumentParser, json_help: str) -> None:
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument('--json', action='store_true', help=json_help)
    formats.add_argument('--csv', action='store_true', help='print CSV, a line a model')
