"""The command `tinyvit-zoo`: a list of commands, and one way to report errors.

A command is a module with NAME, SUMMARY, EXAMPLES (one a line), `add(parser)` and `run(args)`, which returns the text
to print: a command that fails prints nothing else. `run` imports the slow libraries. Other packages add a command by an
entry point of the group `tinyvit_zoo.commands` that names such a module.
"""
from __future__ import annotations

import argparse
import os
import sys
import textwrap
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, NoReturn

from ..errors import ZooError, nearest
from ..version import __version__
from . import (
    analyze,
    autoload,
    compare,
    count,
    eval,
    export,
    info,
    list as list_,
    plot_fractions,
    predict,
    pretrain,
    publish,
    recipes,
    train,
)
from .plugins import load_plugins

__all__ = ['main']

COMMANDS: tuple[Any, ...] = (
    list_, info, predict, recipes, train, pretrain, plot_fractions, eval, analyze, count, compare, export, publish,
    autoload)
GROUP = 'tinyvit_zoo.commands'


def main(argv: list[str] | None = None) -> int:
    """Run a command; return 0, 2 for a mistake of the caller, 130 for Ctrl-C or 141 for a closed pipe, as shells do."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        load_plugins()
        args, unknown = _parser().parse_known_args(argv)
        if unknown and not isinstance(args.command, BrokenCommand):
            return _complain(_unknown(unknown[0], args))
        args.argv = argv
        text, encoding = args.command.run(args), sys.stdout.encoding or 'utf-8'
        if text:
            print(text.encode(encoding, 'backslashreplace').decode(encoding), flush=True)  # file names hold any bytes
        return 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        return 141
    except KeyboardInterrupt:
        return 130
    except ZooError as e:
        return _complain(str(e))
    except OSError as e:
        if not e.filename:
            raise
        return _complain(f'{e.filename}: {e.strerror}')


def _complain(message: str) -> int:
    print(f'tinyvit-zoo: {" ".join(message.split())}', file=sys.stderr)
    return 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ZooError(f'{message} (see `{self.prog} --help`)')


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog='tinyvit-zoo', description='Small vision transformers for small data sets, for timm.',
        epilog='example: tinyvit-zoo list cct --weights')
    parser.add_argument('--version', action='version', version=f'tinyvit-zoo {__version__}')
    added = parser.add_subparsers(title='commands', metavar='COMMAND', required=True)
    names = set()
    for command in (*COMMANDS, *map(_load, entry_points(group=GROUP))):
        if command.NAME not in names:  # a plugin replaces nothing
            names.add(command.NAME)
            _add(added, command)
    return parser


def _add(commands: Any, command: Any) -> None:
    summary, examples = command.SUMMARY, command.EXAMPLES.strip()
    title = 'examples' if '\n' in examples else 'example'
    parser = commands.add_parser(
        command.NAME, help=summary.replace('%', '%%'), description=f'{summary[0].upper()}{summary[1:]}.',
        epilog=f'{title}:\n{textwrap.indent(examples, "  ")}', formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False)
    parser.set_defaults(command=command, options=parser._option_string_actions)
    command.add(parser)


def _unknown(argument: str, args: argparse.Namespace) -> str:
    name = argument.partition('=')[0]
    kind = 'option' if name.startswith('-') else 'argument'
    return f'There is no {kind} {name!r}.{nearest(name, args.options)} See `tinyvit-zoo {args.command.NAME} --help`.'


# -- commands of other packages ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class BrokenCommand:
    """Stand in for a command that cannot be loaded: the others go on working."""
    NAME: str
    SUMMARY: str
    EXAMPLES: ClassVar[str] = 'tinyvit-zoo --help'

    def add(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument('rest', nargs='*', help=argparse.SUPPRESS)

    def run(self, args: argparse.Namespace) -> str:
        raise ZooError(f'{self.NAME} {self.SUMMARY}: update or uninstall its package.')


def _load(entry_point: EntryPoint) -> Any:
    try:
        command: Any = entry_point.load()
        _add(_Parser(prog='tinyvit-zoo').add_subparsers(), command)
        command.run  # noqa: B018  there, or AttributeError
        return command
    except Exception as e:  # whatever a foreign package raises
        error = ' '.join(f'{type(e).__name__}: {e}'.split())
        return BrokenCommand(entry_point.name, f'cannot be loaded from {entry_point.value} ({error})')
