"""Progress: a bar on a terminal, a line now and then elsewhere, nothing where it is quiet."""
from __future__ import annotations

import io
import sys

import pytest

from tinyvit_zoo.runtime import text as progress
from tinyvit_zoo.runtime.text import Progress, track


def test_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, 'LINE_SECONDS', 0)
    with Progress(1200, 'decoding images') as shown:
        shown.show(600)
        shown.show(1200, 'last')
    assert capsys.readouterr().err.splitlines() == [
        'decoding images: 600 of 1,200, 0 s left', 'decoding images: 1,200 of 1,200, last']
    assert list(track('ab', 'letters', 'letter')) == ['a', 'b']
    assert capsys.readouterr().err.splitlines()[-1] == 'letters: 2 of 2'
    for options in ({'quiet': True}, {'lines': False}):
        with Progress(2, **options) as shown:
            shown.show(1)
    assert not capsys.readouterr().err


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, 'stderr', terminal)
    with Progress(4, 'checking') as shown:
        shown.show(4, 'last')
        shown.clear()
    assert terminal.getvalue().startswith('\rchecking:   0%') and '\n' not in terminal.getvalue()


@pytest.mark.parametrize(('seconds', 'expected'), [
    (10, ', 30 s left'), (60, ', 3 min left'), (3600, ', 3 h left'), (45, ', 2 min left')])
def test_time_left(monkeypatch: pytest.MonkeyPatch, seconds: float, expected: str) -> None:
    shown = Progress(8, done=4, lines=False)
    shown.begun = 0
    monkeypatch.setattr(progress.time, 'monotonic', lambda: seconds)
    assert shown.left() == ''
    shown.show(5)
    assert shown.left() == expected
    shown.show(8)
    assert shown.left() == ''
