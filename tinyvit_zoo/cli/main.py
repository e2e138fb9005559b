"""The command `tinyvit-zoo`: a list of commands, and one way to report errors.

A command is a module with NAME, SUMMARY, EXAMPLES (one a line), `add(parser)`, and `run(args)`, which returns the text
to print.
"""
import argparse
import logging
import os
import signal
import sys
import textwrap
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, NoReturn

from ..entry import stop
from ..errors import ZooError, nearest
from ..runtime.files import told
from ..runtime.text import drop, one_line, printable, show
from ..version import __version__
from ._options import Incomplete

COMMANDS: list[Any] = [import_module(f'{__package__}.{name}') for name in (
    'list', 'info', 'predict', 'recipes', 'train', 'pretrain', 'plot_fractions', 'eval', 'analyze', 'count', 'compare',
    'export', 'demo', 'publish', 'autoload')]
_LONGEST = 4000     # characters of an error
_PARTS = ('NAME', 'SUMMARY', 'EXAMPLES', 'add', 'run')


def main(argv: list[str] | None = None) -> int:
    """Run a command; return 0, 1 where a part failed, 2 for a mistake of the caller.

    As shells do, 130 for Ctrl-C, 141 for a closed pipe and 143 for SIGTERM.
    """
    argv = sys.argv[1:] if argv is None else argv
    sys.stdout, sys.stderr = (stream or open(os.devnull, 'w') for stream in (sys.stdout, sys.stderr))   # closed by >&-
    logging.lastResort.setFormatter(_Printable())    # type: ignore[union-attr]
    warnings.filterwarnings('ignore', module=r'PIL\.')    # of a damaged image, which gets a line
    warnings.filterwarnings('ignore', 'tqdm:disabling monitor')    # where no thread may be started: bars do without
    warnings.filterwarnings('ignore', 'This DataLoader will create')    # more workers than cores, as was asked for
    logging.getLogger('PIL').setLevel(logging.CRITICAL)     # likewise
    try:
        if signal.getsignal(signal.SIGINT) is stop:     # which ends the imports
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if odd := next((word for word in argv if word.endswith('=--') or '\0' in word), None):
            raise ZooError(f'{odd!r} is not a value of an option (see `tinyvit-zoo --help`)')
        args, unknown = _parser().parse_known_args(argv)
        if unknown:
            name = unknown[0].partition('=')[0]
            kind = 'option' if name.startswith('-') else 'argument'
            raise ZooError(f'There is no {kind} {name!r}.{nearest(name, args.options)} '
                           f'See `tinyvit-zoo {args.command.NAME} --help`.')
        args.argv = argv
        with _terminating(), _quiet_threads():
            return _run(args)
    except BrokenPipeError:
        drop(sys.stdout)
        return 141
    except KeyboardInterrupt:
        return 130
    except _Terminated:
        return _complain('stopped by SIGTERM.', 128 + signal.SIGTERM)
    except ZooError as e:
        return _complain(str(e))
    except Exception as e:
        if not (problem := _problem(e)):
            raise
        return _complain(problem)


def _problem(error: Exception) -> str:
    """Return the line on an error that is no fault of ours; '' for others."""
    if library := _imported(error):
        return (f'{library} cannot be imported ({type(error).__name__}: {one_line(error)}): correct its installation '
                f'or environment variables.')
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and 'memory' in str(error)):
        return f'Out of memory ({one_line(error)}): use smaller images, batches or models.'
    return told(error) if isinstance(error, OSError) else ''


def _imported(error: BaseException) -> str:
    """Return the library that was being imported when it raised the error; '' for an error of another kind."""
    names = (frame.f_globals.get('__name__', '').partition('.')[0] for frame, _ in traceback.walk_tb(
        error.__traceback__) if frame.f_code.co_name == '<module>')
    return next((name for name in names if name not in ('__main__', __package__.partition('.')[0])), '')


def _run(args: argparse.Namespace) -> int:
    """Run a command and print its text."""
    problem = ''
    try:
        text = args.command.run(args)
    except Incomplete as e:
        text, problem = e.text, str(e)
    if text:
        show(text)
    return _complain(problem, 1) if problem else 0


class _Terminated(BaseException):
    """SIGTERM came."""


@contextmanager
def _terminating() -> Iterator[None]:
    """Raise _Terminated at SIGTERM, so that what is half-written is removed as after Ctrl-C."""
    def end(number: int, _: Any) -> NoReturn:
        raise _Terminated
    ours = threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
    if ours:
        signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """Print no OSError of a library's thread: whoever waits for the thread reports it."""
    before = threading.excepthook
    threading.excepthook = lambda args: None if issubclass(args.exc_type, OSError) else before(args)
    try:
        yield
    finally:
        threading.excepthook = before


def _complain(message: str, code: int = 2) -> int:
    try:
        text = ' '.join(printable(message).split())
        print(f'tinyvit-zoo: {text[:_LONGEST]}{" ..." * (len(text) > _LONGEST)}', file=sys.stderr, flush=True)
    except OSError:     # there is no place left to say it
        drop(sys.stderr)
    return code


class _Printable(logging.Formatter):
    """Write a warning on one line, with control characters escaped."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(' '.join(super().format(record).split()))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ZooError(f'{message} (see `{self.prog} --help`)')

    def _print_message(self, message: str, file: Any = None) -> None:
        show(message.rstrip('\n'))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog='tinyvit-zoo', description='Small vision transformers for small data sets, for timm.',
                     epilog='example: tinyvit-zoo list cct --weights')
    parser.add_argument('--version', action='version', version=f'tinyvit-zoo {__version__}')
    added = parser.add_subparsers(title='commands', metavar='COMMAND', required=True)
    for command in (*COMMANDS, *_plugin_commands()):  # a tuple: plugins are imported before our commands read tables
        if command.NAME not in added.choices:  # a plugin replaces nothing
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


def _plugin_commands() -> Iterator[Any]:
    """Import the modules of other packages (docs/extending.md); yield those that are commands, report broken ones."""
    for entry in entry_points(group='tinyvit_zoo.plugins'):
        try:
            plugin = entry.load()
            if sum(hasattr(plugin, part) for part in _PARTS) < 3:  # a table's `NAME`, an `add` of its own: no command
                continue
            _add(_Parser(prog='tinyvit-zoo').add_subparsers(), plugin)
            plugin.run  # noqa: B018  there, or AttributeError
        except (Exception, SystemExit) as e:  # whatever another package raises
            _complain(f'The plugin {entry.value} is broken ({type(e).__name__}: {e}): update or uninstall its package.')
        else:
            yield plugin
