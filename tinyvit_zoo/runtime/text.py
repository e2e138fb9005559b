"""One-line errors, tables, and progress bars."""
import csv
import errno
import io
import logging
import os
import sys
import time
import unicodedata
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from PIL import UnidentifiedImageError
from tqdm.auto import tqdm

from ..errors import ZooError

LINE_SECONDS = 10.      # between two lines where no bar can be shown


def one_line(error: BaseException, most: int = 160) -> str:
    """Return the first `most` characters, or less, of an error's text on one line; a bare word with its type."""
    if isinstance(error, UnidentifiedImageError):
        return 'not an image that Pillow reads'  # its text repeats the file's name
    text = ' '.join((getattr(error, 'strerror', None) or str(error)).split())
    cut = text if len(text) <= most else text[:most].rsplit(' ', 1)[0] + ' ...'
    return cut if ' ' in text else ': '.join(filter(None, (type(error).__name__, cut)))


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Keep libraries from logging what they also raise, and each retry before it."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def printable(text: str) -> str:
    """Escape control and direction characters, except newlines: file names and labels may hold any."""
    return ''.join(c if c.isprintable() or c == '\n' else c.encode('unicode_escape').decode() for c in text).replace(
        r'\x7f', r'\u007f')     # as JSON may have it


def composed(name: str) -> str:
    """Return a name in one form of Unicode: macOS writes the accents of folders as letters of their own."""
    return unicodedata.normalize('NFC', name)


def some(names: Sequence[str]) -> str:
    """Name the first three."""
    return printable(', '.join(names[:3])) + ', ...' * (len(names) > 3)


def shown(value: object) -> str:
    """Return a value on one line, cut where it is long."""
    try:
        return ' '.join(repr(value).split())[:80]
    except Exception:   # Python prints no integer of thousands of digits; a caller's object may raise what it likes
        return f'a {type(value).__name__} that cannot be printed'


def show(text: str) -> None:
    """Print text at once; what the terminal cannot show is escaped. ZooError where there is no room for it."""
    encoding = sys.stdout.encoding or 'utf-8'
    try:
        print(printable(text).encode(encoding, 'backslashreplace').decode(encoding), flush=True)
    except BrokenPipeError:
        raise
    except OSError as e:
        drop(sys.stdout)
        remedy = 'free disk space' if e.errno in (errno.ENOSPC, errno.EDQUOT) else 'send it to another place'
        raise ZooError(f'Standard output cannot be written ({e.strerror or e}): {remedy}.') from e


def drop(stream: Any) -> None:
    """Write nothing more to a stream that has failed, or Python complains when it flushes at exit."""
    with suppress(OSError, ValueError):     # a test's has no number
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def table(rows: Sequence[Sequence[str]], left: Container[int] = (0,)) -> str:
    """Align columns: those in `left` to the left, the others to the right."""
    rows = [[printable(cell).replace('\n', r'\n') for cell in row] for row in rows]
    widths = [max(map(_columns, column)) for column in zip(*rows, strict=True)]

    def padded(cell: str, width: int, i: int) -> str:
        blanks = ' ' * (width - _columns(cell))
        return cell + blanks if i in left else blanks + cell
    return '\n'.join('  '.join(map(padded, row, widths, range(len(row)))).rstrip() for row in rows)


def _columns(text: str) -> int:
    """Return how many columns of a terminal a text takes: two for each Chinese, Japanese or Korean letter."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in 'WF') for c in text)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows as CSV: lists with blanks between their values, nested mappings left out."""
    flat = [{key: ' '.join(map(str, value)) if isinstance(value, (list, tuple)) else value
             for key, value in row.items() if not isinstance(value, dict)} for row in rows]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(flat[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(flat)
    return buffer.getvalue().rstrip()


class Progress(tqdm):
    """A tqdm bar on a terminal or in a notebook; elsewhere, with `lines`, a line on stderr every ten seconds."""

    def __init__(self, total: int, title: str = '', unit: str = 'image', done: int = 0, quiet: bool = False,
                 lines: bool = True) -> None:
        super().__init__(total=total, desc=title, unit=unit, initial=done, leave=False, disable=quiet or None,
                         position=0)    # else tqdm moves it below a bar that was not closed
        self.title, self.first, self.done, self.lines = title, done, done, lines and not quiet and self.disable
        self.begun = self.shown = time.monotonic()

    # `clear` (tqdm's) erases the bar before a line is printed; the next `show` draws it again.
    def show(self, done: int, note: str = '') -> None:
        """Show that `done` of the total are done, with a short `note`."""
        self.set_postfix_str(note, refresh=False)
        self.update(done - self.done)
        self.done = done
        if self.lines and time.monotonic() - self.shown >= LINE_SECONDS:
            self.shown = time.monotonic()
            text = f'{self.title}: {done:,} of {self.total:,}{", " if note else ""}{note}{self.left()}'
            print(text, file=sys.stderr, flush=True)

    def left(self) -> str:
        """Return ', 3 min left', from the speed so far; '' before the first and after the last."""
        if not self.first < self.done < self.total:
            return ''
        seconds = (time.monotonic() - self.begun) / (self.done - self.first) * (self.total - self.done)
        unit, name = next((u, n) for u, n in ((3600, 'h'), (60, 'min'), (0, 's')) if seconds >= 2 * u)
        return f', {seconds / max(unit, 1):.0f} {name} left'


def track(items: Any, title: str, unit: str, quiet: bool = False, lines: bool = True) -> Iterator[Any]:
    """Yield items whose number is known, and show how many are done."""
    with Progress(len(items), title, unit, quiet=quiet, lines=lines) as progress:
        for done, item in enumerate(items, 1):
            yield item
            progress.show(done)
