"""From names on a command line to models: the zoo's, and timm's to hold beside them."""
from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import timm
from timm.models import is_model
from torch import nn

from ..errors import ZooError, nearest
from ..models import check_tag, list_models
from ..runtime.text import one_line


def find_names(patterns: Sequence[str]) -> list[str]:
    """Names as given, wildcards as the zoo's models they match, all of the zoo's for nothing; each once, in order."""
    found: dict[str, None] = {}
    for pattern in patterns or ['*']:
        if any(c in pattern for c in '*?['):
            names = [name for name in list_models() if fnmatchcase(name, pattern)]
            if not names:
                raise ZooError(f'No model of the zoo matches {pattern!r}: `tinyvit-zoo list` shows all.')
            found.update(dict.fromkeys(names))
        else:
            _check(pattern)
            found[pattern] = None
    return list(found)


def _check(name: str) -> None:
    architecture, _, tag = name.partition('.')
    if not is_model(architecture):
        raise ZooError(f'There is no model {architecture!r}, here or in timm.{nearest(architecture, list_models())} '
                       f'`tinyvit-zoo list` shows all.')
    if tag:
        check_tag(architecture, tag)


def make_model(
        name: str, num_classes: int | None = None, img_size: tuple[int, int] | None = None, device: str = 'cpu',
) -> nn.Module:
    """The model without weights. `img_size` is for those that are built for one; a ResNet takes what it gets."""
    kwargs: dict[str, Any] = {} if num_classes is None else {'num_classes': num_classes}
    try:
        try:
            sized = kwargs if img_size is None else {**kwargs, 'img_size': img_size}
            return timm.create_model(name, device=device, **sized)
        except TypeError as e:
            if 'img_size' not in str(e):
                raise
            return timm.create_model(name, device=device, **kwargs)
    except ZooError:
        raise
    except (TypeError, RuntimeError, ValueError, AssertionError) as e:  # timm's own ways to refuse
        raise ZooError(f'{name} cannot be built so: {one_line(e)}') from e


def add_img_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--img-size', type=whole_number, nargs='+', metavar='S', action=_Size,
                        help='side, or height and width, of the images (default: what a model is made for)')


def add_formats(parser: argparse.ArgumentParser, json_help: str) -> None:
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument('--json', action='store_true', help=json_help)
    formats.add_argument('--csv', action='store_true', help='for a spreadsheet: a line a model, in plain numbers')


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """The plain values of each row, lists of them with blanks between; what has parts of its own is left to JSON."""
    flat = [{key: ' '.join(map(str, value)) if isinstance(value, (list, tuple)) else value
             for key, value in row.items() if not isinstance(value, dict)} for row in rows]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(flat[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(flat)
    return buffer.getvalue().rstrip()


class _Size(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        if len(values) > 2:
            parser.error(f'{option} takes one side, or height and width, not {len(values)} numbers')
        setattr(namespace, self.dest, (values[0], values[-1]))


def whole_number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number from 1 up')
    return int(text)


def duration(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number of seconds, 0 or more')
    return value
