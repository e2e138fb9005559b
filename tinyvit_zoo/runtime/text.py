"""Text for people: one-line errors and tables."""
from __future__ import annotations

from collections.abc import Sequence

from PIL import UnidentifiedImageError


def one_line(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return 'no image, or of no kind that Pillow reads'  # the name stands before it
    text = getattr(error, 'strerror', None) or str(error)
    return ' '.join(text.split())[:120] or type(error).__name__


def table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Aligned columns, all but the first `left` to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return '\n'.join('  '.join(
        cell.ljust(width) if i < left else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows)
