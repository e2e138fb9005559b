"""Text for people: one-line errors and tables."""
import csv
import io
from collections.abc import Container, Mapping, Sequence
from typing import Any

from PIL import UnidentifiedImageError


def one_line(error: BaseException, most: int = 160) -> str:
    """Return the first `most` characters of an error's text on one line; with its type where that is a bare word."""
    if isinstance(error, UnidentifiedImageError):
        return 'no image, or of no kind that Pillow reads'  # its text repeats the file's name
    text = ' '.join((getattr(error, 'strerror', None) or str(error)).split())[:most]
    return text if ' ' in text else ': '.join(filter(None, (type(error).__name__, text)))


def table(rows: Sequence[Sequence[str]], left: Container[int] = (0,)) -> str:
    """Align columns: those in `left` to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return '\n'.join('  '.join(
        cell.ljust(width) if i in left else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows as CSV: lists with blanks between their values, nested mappings left out."""
    flat = [{key: ' '.join(map(str, value)) if isinstance(value, (list, tuple)) else value
             for key, value in row.items() if not isinstance(value, dict)} for row in rows]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(flat[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(flat)
    return buffer.getvalue().rstrip()
