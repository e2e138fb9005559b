"""One-line errors and aligned tables."""
from __future__ import annotations

import pytest
from PIL import UnidentifiedImageError

from tinyvit_zoo.runtime.text import one_line, table


@pytest.mark.parametrize(('error', 'expected'), [
    (ValueError('a\n  b  c'), 'a b c'), (ValueError(), 'ValueError'), (KeyError('model'), "KeyError: 'model'"),
    (FileNotFoundError(2, 'No such file or directory', '/a'), 'No such file or directory'),
    (UnidentifiedImageError('cannot identify image file /a'), 'not an image that Pillow reads'),
    (ValueError('a ' * 200), 'a ' * 80 + '...'), (ValueError('b' * 200), 'ValueError: ' + 'b' * 160 + ' ...'),
])
def test_an_error_on_one_line(error: Exception, expected: str) -> None:
    assert one_line(error) == expected


def test_columns_are_aligned() -> None:
    rows = [('name', 'count', 'of'), ('a', '10', 'b'), ('abcde', '2', '')]
    assert table(rows).splitlines() == ['name   count  of', 'a         10   b', 'abcde      2']
    assert table(rows, left=(1, 2)).splitlines() == [' name  count  of', '    a  10     b', 'abcde  2']
