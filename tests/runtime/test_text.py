"""One-line errors and aligned tables."""
from __future__ import annotations

import errno
import io

import pytest
from PIL import UnidentifiedImageError

from tinyvit_zoo import ZooError
from tinyvit_zoo.runtime.text import one_line, show, table


@pytest.mark.parametrize(('error', 'expected'), [
    (ValueError('a\n  b  c'), 'a b c'), (ValueError(), 'ValueError'), (KeyError('model'), "KeyError: 'model'"),
    (FileNotFoundError(2, 'No such file or directory', '/a'), 'No such file or directory'),
    (UnidentifiedImageError('cannot identify image file /a'), 'not an image that Pillow reads'),
    (ValueError('a ' * 200), 'a ' * 80 + '...'), (ValueError('b' * 200), 'ValueError: ' + 'b' * 160 + ' ...'),
])
def test_an_error_on_one_line(error: Exception, expected: str) -> None:
    assert one_line(error) == expected


@pytest.mark.parametrize('number, remedy', [(errno.ENOSPC, 'free disk space'), (errno.EIO, 'another place')])
def test_output_that_cannot_be_written(number: int, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(io.StringIO):
        encoding = 'utf-8'

        def write(self, _: str) -> int:
            raise OSError(number, 'no')
    monkeypatch.setattr('sys.stdout', Failing())
    with pytest.raises(ZooError, match=rf'^Standard output cannot be written \(no\): .*{remedy}\.$'):
        show('text')


def test_the_package_has_errors_of_one_line() -> None:
    """Whatever a file is called, and also in a process of a loader, whose traceback goes around it."""
    assert str(ZooError('There is no a\nb\x1b: give another.\n')) == r'There is no a\nb\x1b: give another.'


def test_letters_of_two_columns_are_aligned() -> None:
    assert table([('a\u0301', '1'), ('\u65e5\u672c', '20')]).splitlines() == ['a\u0301      1', '\u65e5\u672c  20']


def test_columns_are_aligned() -> None:
    rows = [('name', 'count', 'of'), ('a', '10', 'b'), ('abcde', '2', '')]
    assert table(rows).splitlines() == ['name   count  of', 'a         10   b', 'abcde      2']
    assert table(rows, left=(1, 2)).splitlines() == [' name  count  of', '    a  10     b', 'abcde  2']
