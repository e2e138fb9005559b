"""One-line errors and aligned tables."""
from __future__ import annotations

import pytest
from PIL import UnidentifiedImageError

from tinyvit_zoo import ZooError
from tinyvit_zoo.runtime.text import one_line, table


@pytest.mark.parametrize(('error', 'expected'), [
    (ValueError('a\n  b  c'), 'a b c'), (ValueError(), 'ValueError'), (KeyError('model'), "KeyError: 'model'"),
    (FileNotFoundError(2, 'No such file or directory', '/a'), 'No such file or directory'),
    (UnidentifiedImageError('cannot identify image file /a'), 'not an image that Pillow reads'),
    (ValueError('a ' * 200), 'a ' * 80 + '...'), (ValueError('b' * 200), 'ValueError: ' + 'b' * 160 + ' ...'),
])
def test_an_error_on_one_line(error: Exception, expected: str) -> None:
    assert one_line(error) == expected


def test_the_package_has_errors_of_one_line() -> None:
    """Whatever a file is called, and also in a process of a loader, whose traceback goes around it."""
    assert str(ZooError('There is no a\nb\x1b: give another.\n')) == r'There is no a\nb\x1b: give another.'


def test_columns_are_aligned() -> None:
    rows = [('name', 'count', 'of'), ('a', '10', 'b'), ('abcde', '2', '')]
    assert table(rows).splitlines() == ['name   count  of', 'a         10   b', 'abcde      2']
    assert table(rows, left=(1, 2)).splitlines() == [' name  count  of', '    a  10     b', 'abcde  2']
