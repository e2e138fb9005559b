"""Options that several commands share, and the types of their values."""
import argparse
import math
from typing import Any


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number from 1 up')
    return int(text)


def amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number above 0')
    return value


def duration(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number of seconds, 0 or more')
    return value


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
